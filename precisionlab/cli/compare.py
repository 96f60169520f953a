"""`precisionlab compare`: a second model beside the first, layer by layer."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, TextIO

import click

from precisionlab.cli.help import Command
from precisionlab.cli.listing import Listing, metric_names
from precisionlab.cli.verbosity import verbosity_options
from precisionlab.errors import OptionError

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from precisionlab.results.compare import CompareFindings

_WORST = 8
_OTHER_COLUMNS = 44  # what the table of layers needs beside the names


@click.command(
    "compare",
    cls=Command,
    short_help="Hold a second model beside the first, layer by layer.",
    examples={
        "model.onnx quantized.onnx --data samples/": "where a quantised model goes astray",
        "model.onnx other.onnx --data samples/ --match y=output_0": "with a tensor that has another name there",
    },
)
@click.argument("model", type=click.Path(path_type=str))
@click.argument("other", type=click.Path(path_type=str))
@click.option("--data", required=True, type=click.Path(), help="Folder of samples, or a hook package.module:function.")
@click.option(
    "--tolerance",
    cls=Listing,
    names=metric_names,
    multiple=True,
    metavar="COND",
    help='What counts as right on the worst output, such as "sqnr>=30", of {names}; may be given several times.  '
    "[default: sqnr>=30, where OTHER quantises sqnr>=20]",
)
@click.option("--metric", metavar="SPEC", help="Your own task metric: package.module:name or file.py:name.")
@click.option(
    "--match",
    multiple=True,
    metavar="OURS=THEIRS",
    help="A tensor of MODEL, and what OTHER calls it; may be given several times.",
)
@click.option("--samples", type=int, help="Use so many samples, chosen by the seed.")
@click.option("--seed", default=0, show_default=True, help="Seed of that choice.")
@click.option("--skip-bad", is_flag=True, help="Go on past samples that cannot be used, and say which.")
@click.option("--threads", type=int, help="Threads to use.  [default: all processors]")
@click.option("--memory", metavar="SIZE", help="Memory to take, such as 4G.  [default: half of the machine's]")
@click.option("--out", type=click.Path(), help="Where the files go.  [default: reports/<model>-vs-<other>]")
@click.option(
    "--save-outputs", type=click.Path(), metavar="FILE", help="Write both models' outputs as Polygraphy's RunResults."
)
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON on standard output.")
@click.option("--open", "opened", is_flag=True, help="Open the page in the browser.")
@verbosity_options
@click.pass_context
def compare_command(
    ctx: click.Context,
    /,
    model: str,
    other: str,
    data: str,
    tolerance: tuple[str, ...],
    metric: str | None,
    match: tuple[str, ...],
    samples: int | None,
    seed: int,
    skip_bad: bool,
    threads: int | None,
    memory: str | None,
    out: str | None,
    save_outputs: str | None,
    as_json: bool,
    opened: bool,
) -> None:
    """Hold a second model, OTHER, beside MODEL: layer by layer, on the same samples.

    OTHER may have Q/DQ nodes, be in FP16, or come from another tool; it runs as it is written, on the CPU. Writes
    compare.html, compare.csv and compare.json. Exits with 0 where its outputs hold the tolerance, 1 where not or nobody
    can tell, 2 for input that cannot be used.
    """
    from precisionlab.cli.progress import progress
    from precisionlab.jobs.compare import compare

    with progress() as observer:
        result = compare(
            model,
            other,
            data,
            tolerance=tolerance,
            metric=metric,
            match=pairs_of(match),
            samples=samples,
            seed=seed,
            threads=threads,
            memory=memory,
            skip_bad=skip_bad,
            out=out,
            save_outputs=save_outputs,
            observer=observer,
        )
    if as_json:
        import json

        from precisionlab.results.compare import compare_json

        click.echo(json.dumps(compare_json(result), indent=2, allow_nan=False))
    else:
        print_compare(result, sys.stdout)
    if opened and result.folder is not None:
        from precisionlab.cli.report import open_page

        open_page(result.folder / "compare.html")
    ctx.exit(0 if result.met else 1)


def pairs_of(texts: Sequence[str]) -> dict[str, str]:
    """Ours → theirs. Raises OptionError for text without a sign between, and for a name that is given twice."""
    found: dict[str, str] = {}
    for text in texts:
        ours, sign, theirs = text.partition("=")
        if not sign or not ours or not theirs:
            raise OptionError(f"match {text!r}: write OURS=THEIRS, a tensor of each model")
        if ours in found:
            raise OptionError(f"match {text!r}: {ours} has a twin already")
        found[ours] = theirs
    return found


def print_compare(found: CompareFindings, stream: TextIO) -> None:
    """Print the verdict and tables that fit 80 columns."""
    from precisionlab.cli.summary import console_for
    from precisionlab.report.cells import visible
    from precisionlab.search.verdict import Tone
    from precisionlab.system.wording import counted

    console = console_for(stream)
    matched = len(found.rows) - len(found.unmatched)
    console.print(
        visible(
            f"{found.other} beside {found.model}: {counted(found.comparison.samples, 'sample')}, "
            f"{matched} of {counted(len(found.rows), 'tensor')} have a twin"
        )
    )
    for note in found.notes:
        console.print(visible(note))
    console.print()
    console.print(_outputs(found))
    worst = found.worst_rows(_WORST)
    if worst:
        console.print()
        console.print(_layers(console, found))
    if found.unmatched or found.alone:
        console.print()
        for what, names in (("MODEL", [r.tensor for r in found.unmatched]), ("OTHER", list(found.alone))):
            more = f" and {len(names) - 3} more" if len(names) > 3 else ""
            if names:
                console.print(visible(f"{len(names)} of {what} without a twin: {', '.join(names[:3])}{more}"))
    console.print()
    style = {Tone.GOOD: "bold green", Tone.BAD: "bold red", Tone.OPEN: "bold"}[found.verdict.mark.tone]
    console.print(visible(f"{found.verdict.sentence} ({found.verdict.figure})"), style=style)
    if found.folder is not None:
        console.print(f"Report: {found.folder / 'compare.html'}")


def _outputs(found: CompareFindings) -> Table:
    from rich.table import Table

    from precisionlab.compare.metrics import METRICS
    from precisionlab.report.cells import figure_cell, visible

    names = ("sqnr", "cosine", "max_error", "top1")
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("output", overflow="fold")
    for name in names:
        table.add_column(METRICS[name].column, justify="right", no_wrap=True)
    for output in found.comparison.outputs:
        figures = [
            figure_cell(found.comparison.worst(name, output), METRICS[name])
            if found.comparison.figures(name, output)
            else "–"
            for name in names
        ]
        table.add_row(visible(output), *figures)
    return table


def _layers(console: Console, found: CompareFindings) -> Table:
    from rich.table import Table

    from precisionlab.cli.console import shortened
    from precisionlab.report.cells import show, visible

    table = Table(box=None, pad_edge=False, header_style="bold", title="what introduces most, SQNR in dB")
    table.title_justify = "left"
    for name in ("layer", "kind"):
        table.add_column(name, no_wrap=True)
    for name in ("introduced", "inherited"):
        table.add_column(name, justify="right", no_wrap=True)
    room = max(console.width - _OTHER_COLUMNS, 16)
    for row in found.worst_rows(_WORST):
        figures = [show(e.sqnr, ".1f") if e is not None else "–" for e in (row.introduced, row.inherited)]
        table.add_row(shortened(visible(row.layer), room), shortened(visible(row.kind), 18), *figures)
    return table
