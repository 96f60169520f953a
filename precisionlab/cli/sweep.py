"""`precisionlab sweep`: the whole job."""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from typing import Any

import click

from precisionlab.cli.engines import engine_options, engine_options_of
from precisionlab.cli.help import Command
from precisionlab.cli.listing import (
    Choosing,
    Listing,
    backend_lines,
    float_precisions,
    low_precisions,
    metric_names,
    pin_precisions,
    sweep_methods,
    target_names,
)
from precisionlab.cli.verbosity import verbosity_options
from precisionlab.cli.work import work_options
from precisionlab.errors import OptionError


@click.command(
    "sweep",
    cls=Command,
    short_help="Find what breaks, make it right, and prove it.",
    examples={
        "model.onnx --data samples/": "what breaks in FP16 and INT8, and the plan that makes it right",
        'model.onnx --data samples/ --precisions int8 --tolerance "top1>=0.99"': "INT8 alone, held to the classes",
        "model.onnx --data samples/ --budget 30m --open": "end after half an hour, and show the report",
        "model.onnx --data samples/ --plan plan.json": "measure a plan that is there",
    },
)
@click.argument("model", type=click.Path(path_type=str))
@click.option(
    "--data",
    type=click.Path(),
    help="Folder of samples (.npz, .npy, images), a hook package.module:function, or what Polygraphy or trtexec has "
    "saved: inputs.json, loadInputs=x:x.bin.",
)
@click.option(
    "--precisions",
    default="fp16,int8",
    show_default=True,
    cls=Listing,
    names=low_precisions,
    help="Low precisions to sweep: {names}.",
)
@click.option(
    "--tolerance",
    cls=Listing,
    names=metric_names,
    multiple=True,
    metavar="COND",
    help='What counts as right on the worst output, such as "sqnr>=30", "top1>=0.99" or "metric_drop<=0.01", of '
    "{names}; may be given several times.  [default: sqnr>=30, for int8 sqnr>=20]",
)
@click.option("--metric", metavar="SPEC", help="Your own task metric: package.module:name or file.py:name.")
@click.option(
    "--each-layer",
    type=int,
    metavar="N",
    help="Measure each layer by itself too, on N samples: the outputs and the task metric with it alone in the low "
    "precision, and alone in fp32. About a pass for each layer and sample.",
)
@click.option("--plan", type=click.Path(), help="Measure this plan.json instead of searching for one.")
@click.option("--max-pins", type=int, help="Pin no more layers than this.")
@click.option("--no-repair", is_flag=True, help="Leave the graph as it is: search for pins alone.")
@click.option(
    "--minimize",
    default="pins",
    show_default=True,
    cls=Choosing,
    names=("pins", "cost"),
    help="Meet the tolerance with as few pins, or as cheaply: cost.",
)
@click.option(
    "--spend", metavar="SHARE", help="Make the error as small as so much added cost allows, such as 5%, instead."
)
@click.option(
    "--ladder",
    metavar="LIST",
    cls=Listing,
    names=pin_precisions,
    help="Precisions that pins may have, such as fp16,fp32.  [default: fp32; all with --minimize cost]",
)
@click.option(
    "--target",
    cls=Listing,
    names=target_names,
    help="The GPU that costs are for: {names}.  [default: the first that has the precisions]",
)
@click.option("--max-cost", metavar="SHARE", help="The most that a plan may cost, as a share of FP32's, such as 80%.")
@click.option(
    "--budget",
    metavar="TIME",
    help="End the whole run after this, such as 30m, with the best plan so far: time is kept for what cannot be left "
    "out, and the precisions share the rest. The same command with more goes on from there.",
)
@click.option(
    "--max-evaluations",
    type=int,
    help="End each precision's search for pins after so many plans. Ranges and repairs are tried before, uncounted.",
)
@click.option(
    "--around",
    cls=Listing,
    names=float_precisions,
    help="Precision of the float layers around quantized ones: {names}.  [default: fp32, around int4 fp16]",
)
@click.option(
    "--block",
    type=int,
    default=128,
    show_default=True,
    help="How many numbers of an int4 weight have one scale, at most: 16, 32, 64, 128.",
)
@click.option(
    "--calibration",
    cls=Listing,
    names=sweep_methods,
    more=("auto",),
    help="How ranges are found, or of int4 the scales of weights (mse, max, output): {names}, auto.  "
    "[default: entropy, of fp8 max, of int4 mse, and where that does not hold auto, before any pin]",
)
@click.option(
    "--backend",
    default="auto",
    show_default=True,
    cls=Listing,
    names=backend_lines,
    more=("auto",),
    help="What builds and runs the variants: {names}, auto: tensorrt where it and a GPU are.",
)
@engine_options
@click.option(
    "--out", type=click.Path(), help="The run's folder.  [default: reports/<model>, or beside a run with other options]"
)
@click.option("--samples", type=int, help="Use so many samples, chosen by the seed.")
@click.option(
    "--holdout",
    default="0.25",
    show_default=True,
    metavar="SHARE",
    help="Share of the samples that choose no range and no pin, and only judge.",
)
@click.option("--seed", default=0, show_default=True, help="Seed of that choice, and of random inputs.")
@click.option(
    "--shape",
    "shapes",
    multiple=True,
    metavar="NAME:1x3x224x224",
    help="Shape of an input with dynamic dimensions, for random inputs.",
)
@click.option(
    "--layers",
    cls=Choosing,
    names=("patterns", "compiled"),
    help="The units that are pinned: patterns, or compiled: the fused kernels of an engine. Default: patterns; "
    "compiled with tensorrt-rtx.",
)
@click.option(
    "--kernels",
    cls=Choosing,
    names=("tensorrt", "onnxruntime"),
    default="tensorrt",
    show_default=True,
    help="Whose rounding inside of layers in half is emulated: tensorrt, or onnxruntime (CUDA's).",
)
@click.option(
    "--sums",
    cls=Choosing,
    names=("float32", "half", "half-single"),
    default="float32",
    show_default=True,
    help="What TensorRT's kernels in half keep running sums in: float32, and what is found is measured once more with "
    "sums in half; half, or half-single (without tensor cores): pins are searched for under these.",
)
@click.option(
    "--random", is_flag=True, help="The inputs are to be random: the exit code goes by what is found on them."
)
@click.option("--skip-bad", is_flag=True, help="Go on past samples that cannot be used, and say which.")
@work_options
@click.option(
    "--batch",
    type=int,
    default=1,
    show_default=True,
    help="Run so many samples of one shape together, where the model's batch is dynamic: faster for short inputs, and "
    "last bits may differ from those of samples by themselves.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON on standard output.")
@click.option("--open", "opened", is_flag=True, help="Open the report in the browser.")
@verbosity_options
@click.pass_context
def sweep_command(
    ctx: click.Context,
    /,
    model: str,
    data: str | None,
    precisions: str,
    tolerance: tuple[str, ...],
    metric: str | None,
    each_layer: int | None,
    plan: str | None,
    max_pins: int | None,
    no_repair: bool,
    minimize: str,
    spend: str | None,
    ladder: str | None,
    target: str | None,
    budget: str | None,
    max_evaluations: int | None,
    around: str | None,
    block: int,
    calibration: str | None,
    backend: str,
    out: str | None,
    samples: int | None,
    holdout: str,
    seed: int,
    shapes: tuple[str, ...],
    layers: str | None,
    random: bool,
    max_cost: str | None,
    kernels: str,
    sums: str,
    skip_bad: bool,
    threads: int | None,
    memory: str | None,
    device: str,
    processes: int | None,
    dask: str | None,
    batch: int,
    as_json: bool,
    opened: bool,
    **engine: Any,
) -> None:
    """Find the layers of MODEL that break in low precision, pin them, and check the result.

    Writes report.html, summary.md, the tables, plan.json, run.json and annotated.onnx to the run's folder. Exits with 0
    when the tolerance is met, 1 when it is not, only as float32, or nobody can tell (random inputs that were not asked
    for, a search that was cut short), 2 for input that cannot be used.
    """
    from precisionlab.cli.progress import progress
    from precisionlab.jobs.sweep import sweep

    with progress() as observer:
        result = sweep(
            model,
            data,
            precisions=precisions,
            tolerance=tolerance,
            backend=backend,
            out=out,
            samples=samples,
            seed=seed,
            plan=plan,
            holdout=holdout,
            max_pins=max_pins,
            repair=not no_repair,
            minimize=minimize,
            spend=spend,
            ladder=ladder,
            target=target,
            budget=budget,
            max_evaluations=max_evaluations,
            layers=layers,
            random=random,
            max_cost=max_cost,
            kernels=kernels,
            sums=sums,
            skip_bad=skip_bad,
            threads=threads,
            memory=memory,
            device=device,
            batch=batch,
            processes=processes,
            dask=dask,
            around=around,
            block=block,
            calibration=calibration,
            metric=metric,
            each_layer=each_layer,
            shapes=_shapes(shapes),
            engine=engine_options_of(engine),
            observer=observer,
        )
    if as_json:
        from precisionlab.report.machine import to_json

        click.echo(to_json(result))
    else:
        from precisionlab.cli.summary import print_summary

        print_summary(result, sys.stdout)
    if opened and result.folder is not None:
        from precisionlab.cli.report import open_page

        open_page(result.folder / "report.html")
    ctx.exit(0 if result.met else 1)


def _shapes(texts: Sequence[str]) -> dict[str, tuple[int, ...]]:
    found: dict[str, tuple[int, ...]] = {}
    for text in texts:
        name, _, dims = text.rpartition(":")
        if not name or not re.fullmatch(r"[0-9]{1,18}(x[0-9]{1,18})*", dims):
            raise OptionError(f"--shape {text!r}: write the input's name, a colon, and its sizes with x between them")
        if name in found:
            raise OptionError(f"--shape {text!r}: the shape of {name} is given twice; give it once")
        found[name] = tuple(map(int, dims.split("x")))
    return found
