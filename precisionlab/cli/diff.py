"""`precisionlab diff`: what became better and what worse between two runs."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

import click

from precisionlab.cli.help import Command
from precisionlab.cli.report import open_page, write_page
from precisionlab.errors import OptionError

if TYPE_CHECKING:
    from rich.table import Table

    from precisionlab.report.diff import Change, RunDiff
    from precisionlab.report.diff.plans import PrecisionChange

_LAYERS = 10
_STYLES = {"worse": "red", "better": "green", "mixed": "yellow"}
_MOST = 300  # letters of a name or a reason


@click.command(
    "diff",
    cls=Command,
    short_help="Say what became better and worse between two runs.",
    examples={
        "reports/before reports/after": "what moved, and whether a verdict did",
        'reports/before reports/after --fail-if "sqnr drop>1"': "in CI",
    },
)
@click.argument("run_a", type=click.Path(path_type=Path))
@click.argument("run_b", type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Print the comparison as JSON on standard output.")
@click.option("--html", type=click.Path(path_type=Path), metavar="FILE", help="Write it as a page too.")
@click.option(
    "--fail-if",
    multiple=True,
    metavar="COND",
    help='Exit with 1 where a plan found became worse by more, such as "sqnr drop>1" or "cost rise>5%"; may be given '
    "several times.",
)
@click.option("--other-model", is_flag=True, help="Compare runs of different models, or of different data, too.")
@click.option("--open", "opened", is_flag=True, help="Open the page of --html in the browser.")
@click.pass_context
def diff_command(
    ctx: click.Context,
    run_a: Path,
    run_b: Path,
    as_json: bool,
    html: Path | None,
    fail_if: tuple[str, ...],
    other_model: bool,
    opened: bool,
) -> None:
    """Say what became better and what worse from the run in the folder RUN_A to that in RUN_B.

    What each ships stands first. A figure is the same where each run's lies within the other's 95 % interval over
    samples.

    Exits with 1 where a tolerance that A met is not met any more, or a condition of --fail-if holds; with 0 where not;
    with 2 for folders that cannot be used.
    """
    from precisionlab.report.diff import check_comparable, diff_runs, diff_to_dict, render_diff
    from precisionlab.report.redraw import altered_text, read_run, values_told

    if opened and html is None:
        raise OptionError("--open shows the page of --html: give --html FILE too")
    before, after = read_run(run_a), read_run(run_b)
    for files in (before, after):
        if (said := altered_text(files)) is not None:
            click.echo(said, err=True)
    with values_told(f"{run_a} or {run_b}"):
        if not other_model:
            check_comparable(before, after)
        diff = diff_runs(before, after, fail_if)
        if html is not None:
            write_page(html, render_diff(diff))
        if as_json:
            import json

            click.echo(json.dumps(diff_to_dict(diff), indent=2, allow_nan=False))
        else:
            print_diff(diff, sys.stdout)
    if html is not None and not as_json:
        click.echo(f"Report: {html}")
    if opened and html is not None:
        open_page(html)
    ctx.exit(1 if diff.failures else 0)


def print_diff(diff: RunDiff, stream: TextIO) -> None:
    """Print tables that fit 80 columns, without colour where there is no terminal: first what each run ships."""
    from precisionlab.cli.summary import console_for
    from precisionlab.system.wording import counted

    console = console_for(stream)
    for letter, files, advice in zip("AB", (diff.before, diff.after), diff.advice, strict=True):
        console.print(_text(f"{letter}: {files.folder}, {files.run['model']['path']}, {files.run['created']}"))
        console.print(_text(f"   {advice.sentence}"), style="bold")
    for precision in diff.precisions:
        console.print()
        marks = " → ".join(str(verdict.mark) for verdict in precision.verdicts)
        style = f"bold {_STYLES.get(precision.trend, '')}".strip()
        console.print(f"{precision.name}: {precision.trend}; tolerance {marks}", style=style)
        console.print(_plans(precision))
        for pin in precision.pins:
            what = f"{pin.before or 'no pin'} → {pin.after or 'no pin'}"
            console.print(_text(f"  {what}: {pin.layer}"))
        for repair in precision.repairs:
            before, after = (text or "no repair" for text in repair.texts)
            console.print(_text(f"  {before} → {after}: {repair.repair}"))
    if diff.settings:
        console.print()
        console.print(_settings(diff))
    console.print()
    console.print(_variants(diff))
    if diff.layers:
        console.print()
        console.print(_layers(diff, console.width))
        if len(diff.layers) > _LAYERS:
            console.print(f"… and {counted(len(diff.layers) - _LAYERS, 'layer')} more", style="dim")
    for what, old, new in diff.only:
        console.print(f"of one run alone: {counted(len(old), what)} of A, {counted(len(new), what)} of B")
        for letter, names in (("A", old), ("B", new)):
            for one in names[:3]:
                console.print(_text(f"  {letter}: {one}"))
    console.print()
    for failure in diff.failures:
        console.print(_text(f"WORSE: {failure}"), style="bold red")
    if not diff.failures:
        console.print("B is not worse than A allows", style="bold green")


def _text(text: str) -> str:
    """Foreign text for a terminal: what would steer it is shown instead, and a name of 10 000 letters is cut."""
    from precisionlab.report.cells import visible

    shown = visible(text)
    return shown if len(shown) <= _MOST else shown[: _MOST - 1] + "…"


def _settings(diff: RunDiff) -> Table:
    table = _table("given or made differently", ("A", "B"))
    for setting in diff.settings:
        table.add_row(*(_text(text) for text in (setting.name, setting.before, setting.after)))
    return table


def _table(first: str, others: tuple[str, ...]) -> Table:
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in (first, *others):
        table.add_column(name, overflow="fold")
    return table


def _figures(first: str) -> Table:
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column(first, overflow="fold")
    table.add_column("figure", overflow="fold", max_width=30)
    for name in ("A", "B", "B − A"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("")
    return table


def _plans(precision: PrecisionChange) -> Table:
    """The plans found, whose figures are what ships."""
    table = _figures("the plan found")
    a, b = precision.variants
    for place, change in enumerate(precision.shown):
        name = (a if a == b else f"{a} → {b}") if place == 0 else ""
        table.add_row(_text(name), _text(change.label), *change.texts, _trend(change))
    return table


def _variants(diff: RunDiff) -> Table:
    """The variants of both runs; the plans found stand above."""
    table = _figures("variant")
    shown = [(variant.name, variant.shown) for variant in diff.variants if not variant.reference]
    for name, changes in shown:
        for place, change in enumerate(changes):
            table.add_row(_text(name) if place == 0 else "", _text(change.label), *change.texts, _trend(change))
    return table


def _layers(diff: RunDiff, width: int) -> Table:
    from rich.table import Table

    from precisionlab.cli.console import shortened

    table = Table(box=None, pad_edge=False, header_style="bold", title="layers that changed most, SQNR in dB")
    table.title_justify = "left"
    table.add_column("in", no_wrap=True)
    table.add_column("layer", no_wrap=True)
    for name in ("own A", "own B", "so far A", "so far B"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("")
    room = max(width - 50, 12)
    for layer in diff.layers[:_LAYERS]:
        own, far = layer.introduced.texts, layer.inherited.texts
        trend = layer.introduced if layer.introduced.trend != "same" else layer.inherited
        table.add_row(layer.precision, shortened(_text(layer.layer), room), *own[:2], *far[:2], _trend(trend))
    return table


def _trend(change: Change) -> str:
    if change.is_within and change.texts[2]:
        return "same: within the interval"
    return "" if change.trend == "same" else change.trend
