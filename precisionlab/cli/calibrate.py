"""`precisionlab calibrate`: INT8 ranges from data, as a TensorRT calibration cache."""

from __future__ import annotations

import re
import sys

import click

from precisionlab.cli.help import Command
from precisionlab.cli.listing import Listing, method_names
from precisionlab.cli.verbosity import verbosity_options
from precisionlab.cli.work import work_options
from precisionlab.errors import OptionError


@click.command(
    "calibrate",
    cls=Command,
    short_help="Find INT8 ranges, as a TensorRT calibration cache.",
    examples={
        "model.onnx --data calib_data/": "a calibration cache with ranges by entropy",
        "model.onnx --data calib_data/ --method auto": "by whichever method loses least",
    },
)
@click.argument("model", required=False, type=click.Path())
@click.option(
    "--data", default="calib_data", show_default=True, help="Folder of samples, or a hook package.module:function."
)
@click.option(
    "--method",
    cls=Listing,
    names=method_names,
    default="entropy",
    show_default=True,
    help="{names}, or auto (the best of them, measured).",
)
@click.option(
    "--percentile", default=99.99, show_default=True, help="Share of the values that the method percentile keeps."
)
@click.option(
    "--tensorrt",
    metavar="VERSION",
    help="TensorRT that the cache is for, as 8.6.1.  [default: the installed one, else 10.16.1]",
)
@click.option(
    "--cache", type=click.Path(), help="The cache to write.  [default: calibration.cache in the run's folder]"
)
@click.option("--out", type=click.Path(), help="The run's folder.  [default: reports/<model>-calibration]")
@click.option("--samples", type=int, help="Use so many samples, chosen by the seed.")
@click.option("--seed", default=0, show_default=True, help="Seed of that choice.")
@click.option("--shard", metavar="I/N", help="Count only every N-th sample, from the I-th on; merge later.")
@click.option(
    "--merge", "shards", multiple=True, type=click.Path(), help="Folder of a shard to merge; give one for each."
)
@click.option("--skip-bad", is_flag=True, help="Go on past samples that cannot be used, and say which.")
@work_options
@click.option("--open", "opened", is_flag=True, help="Open the report in the browser.")
@verbosity_options
def calibrate_command(
    model: str | None,
    data: str,
    method: str,
    percentile: float,
    tensorrt: str | None,
    cache: str | None,
    out: str | None,
    samples: int | None,
    seed: int,
    shard: str | None,
    shards: tuple[str, ...],
    skip_bad: bool,
    threads: int | None,
    memory: str | None,
    device: str,
    processes: int | None,
    dask: str | None,
    opened: bool,
) -> None:
    """Find the INT8 ranges of MODEL's tensors (the model that the folder's manifest names, if none is given).

    Writes a TensorRT calibration cache with a JSON fingerprint beside it, ranges.csv and calibration.html.
    No GPU is needed. A run that was killed goes on where it was.
    """
    from precisionlab.cli.progress import progress
    from precisionlab.cli.ranges import print_calibration
    from precisionlab.jobs.calibrate import calibrate, merge

    if shard and shards:
        raise OptionError("--shard counts a part, --merge puts the parts together: give one of them")
    with progress() as observer:
        if shards:
            result = merge(
                model, shards, data, method=method, percentile=percentile, tensorrt=tensorrt, cache=cache, out=out,
                threads=threads, memory=memory, device=device, observer=observer,
            )  # fmt: skip
        else:
            result = calibrate(
                model, data, method=method, percentile=percentile, tensorrt=tensorrt, cache=cache, out=out,
                samples=samples, seed=seed, threads=threads, memory=memory, device=device, processes=processes,
                dask=dask, shard=_shard(shard), skip_bad=skip_bad, observer=observer,
            )  # fmt: skip
    print_calibration(result, sys.stdout)
    if opened and result.cache is not None:  # a shard has no report
        from precisionlab.cli.report import open_page

        open_page(result.folder / "calibration.html")


def _shard(text: str | None) -> tuple[int, int] | None:
    if text is None:
        return None
    match = re.fullmatch(r"(\d+)/(\d+)", text)
    if not match:
        raise OptionError(f"--shard {text!r}: write I/N, such as 2/8")
    return int(match[1]), int(match[2])
