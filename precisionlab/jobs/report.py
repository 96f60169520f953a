"""The report of a run, drawn again from its folder."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path

from precisionlab.jobs.result import SweepResult
from precisionlab.report.redraw import altered_text, read_run, redraw
from precisionlab.system.disk import told, write_whole
from precisionlab.system.lock import held_file, held_folder
from precisionlab.system.notebook import observer_of
from precisionlab.system.observer import Observer

REPORT = "report.html"
_ADVICE = "choose another place"


def report(run: str | Path | SweepResult, out: str | Path | None = None, *, observer: Observer | None = None) -> Path:
    """Draw report.html again from what lies in the folder of a sweep; nothing is run. Returns the page.

    It is written to `out`, by default into the folder. Raises OptionError where the folder is no run's, or the page
    cannot be written.
    """
    observer = observer_of(observer)
    folder = folder_of_run(run)
    page = Path(out) if out is not None else folder / REPORT
    # Where no such folder is, reading it says so.
    with held_folder(folder, observer.note, "give out") if out is None and folder.is_dir() else nullcontext():
        files = read_run(folder)
        text = redraw(files)
        with held_file(page, observer.note, _ADVICE), told(page, _ADVICE):
            write_whole(page, text)
    if (said := altered_text(files)) is not None:
        observer.note(said)
    return page


def folder_of_run(run: str | Path | SweepResult) -> Path:
    """The folder of a run, or of its result."""
    if isinstance(run, SweepResult):
        assert run.folder is not None, "a sweep writes its files"
        return run.folder
    return Path(run)
