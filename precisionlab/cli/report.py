"""`precisionlab report`: the report drawn again from a run's folder; and a page opened in the browser."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path

import click

from precisionlab.cli.help import Command


@click.command(
    "report",
    cls=Command,
    short_help="Draw a run's report again.",
    examples={
        "reports/model --open": "draw it again, and show it",
    },
)
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--out", type=click.Path(path_type=Path), help="The page to write.  [default: report.html in the folder]")
@click.option("--open", "opened", is_flag=True, help="Open it in the browser.")
def report_command(run: Path, out: Path | None, opened: bool) -> None:
    """Draw report.html again from what lies in the folder RUN of a sweep. Nothing is run.

    Exits with 2 where the folder cannot be used.
    """
    from precisionlab.report.redraw import altered_text, read_run, redraw
    from precisionlab.system.lock import held_folder

    page = out or run / "report.html"
    # Where no such folder is, reading it says so.
    with held_folder(run, _warn, "give --out") if out is None and run.is_dir() else nullcontext():
        files = read_run(run)
        write_page(page, redraw(files))
    if (said := altered_text(files)) is not None:
        _warn(said)
    click.echo(f"Report: {page}")
    if opened:
        open_page(page)


def write_page(path: Path, text: str) -> None:
    """Write a page where the user wants it, whole or not at all. Raises OptionError where that cannot be done."""
    from precisionlab.system.disk import told, write_whole
    from precisionlab.system.lock import held_file

    advice = "choose another place"
    with held_file(path, _warn, advice), told(path, advice):
        write_whole(path, text)


def _warn(text: str) -> None:
    click.echo(text, err=True)


def open_page(path: Path) -> None:
    """Open a page in the browser, or say on standard error where it lies."""
    from precisionlab.system import browser

    browser.open_page(path, _warn)
