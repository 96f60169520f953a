"""`precisionlab extract`: the smallest part of a model that shows a fault, for a bug report."""

from __future__ import annotations

import click

from precisionlab.cli.help import Command
from precisionlab.cli.listing import Listing, low_precisions
from precisionlab.cli.verbosity import verbosity_options


@click.command(
    "extract",
    cls=Command,
    short_help="Cut out the smallest part that shows a fault.",
    examples={
        "reports/model": "the worst layer of a sweep",
        "model.onnx --data samples/ --layer /norm/square": "this layer, in fp16",
        "model.onnx --data samples/ --to logits": "the fewest layers that show it there",
        "model.onnx --data samples/ --other quantized.onnx": "the worst layer of a second model",
    },
)
@click.argument("source", type=click.Path(path_type=str))
@click.option("--data", type=click.Path(), help="The samples.  [default: those of the run in SOURCE]")
@click.option("--layer", metavar="NAME", help="The layer to cut out.  [default: the one that introduces most]")
@click.option("--from", "start", multiple=True, metavar="TENSOR", help="Where the part begins; several times.")
@click.option(
    "--to",
    "end",
    multiple=True,
    metavar="TENSOR",
    help="Where it ends. Without --from: the fewest layers ahead that show the fault.",
)
@click.option("--other", type=click.Path(), help="The fault is this second model's, as compare has it.")
@click.option("--match", multiple=True, metavar="OURS=THEIRS", help="A tensor, and what OTHER calls it; several times.")
@click.option(
    "--precision",
    cls=Listing,
    names=low_precisions,
    help="The fault is this precision's, emulated: {names}.  [default: the run's, else fp16]",
)
@click.option("--tolerance", metavar="COND", help="What would be right with --to, such as sqnr>=30.")
@click.option("--keep", default=1, show_default=True, help="Save the inputs of so many samples, the worst first.")
@click.option("--samples", type=int, help="Look for the worst in so many samples, chosen by the seed.")
@click.option("--seed", default=0, show_default=True, help="Seed of that choice.")
@click.option("--skip-bad", is_flag=True, help="Go on past samples that cannot be used, and say which.")
@click.option("--threads", type=int, help="Threads to use.  [default: all processors]")
@click.option("--memory", metavar="SIZE", help="Memory to take, such as 4G.  [default: half of the machine's]")
@click.option("--out", type=click.Path(), help="Where the files go.  [default: reports/<model>-extract]")
@click.option("--json", "as_json", is_flag=True, help="Print what extract.json holds.")
@verbosity_options
@click.pass_context
def extract_command(
    ctx: click.Context,
    /,
    source: str,
    data: str | None,
    layer: str | None,
    start: tuple[str, ...],
    end: tuple[str, ...],
    other: str | None,
    match: tuple[str, ...],
    precision: str | None,
    tolerance: str | None,
    keep: int,
    samples: int | None,
    seed: int,
    skip_bad: bool,
    threads: int | None,
    memory: str | None,
    out: str | None,
    as_json: bool,
) -> None:
    """Cut the smallest part that shows a fault out of SOURCE: a model, or the folder of a sweep.

    Writes the part as a model, its inputs, what it should and does give, and a README, ready for a bug report. What was
    written is read back and measured: exits with 0 where it shows the fault, 1 where not, 2 for input that cannot be
    used.
    """
    import json

    from precisionlab.cli.compare import pairs_of
    from precisionlab.cli.progress import progress
    from precisionlab.jobs.extract import extract
    from precisionlab.report.cells import visible

    with progress() as observer:
        found = extract(
            source,
            data,
            layer=layer,
            start=start,
            end=end,
            other=other,
            match=pairs_of(match),
            precision=precision,
            tolerance=tolerance,
            keep=keep,
            samples=samples,
            seed=seed,
            threads=threads,
            memory=memory,
            skip_bad=skip_bad,
            out=out,
            observer=observer,
        )
    if as_json:
        click.echo(json.dumps(found.to_dict(), indent=2, allow_nan=False))
    else:
        click.echo(visible(f"{found.model}: {found.sentence}"))
        click.echo(f"Extract: {found.folder / 'README.md'}")
    ctx.exit(0 if found.shown else 1)
