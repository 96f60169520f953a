"""What each of two runs says to ship, and whether the two are of one model and the same data."""

from __future__ import annotations

from collections.abc import Iterable

from precisionlab.errors import OptionError
from precisionlab.report.cells import records_of
from precisionlab.report.redraw import RunFiles
from precisionlab.report.section import Tables, section_of
from precisionlab.report.shipping import recommendation
from precisionlab.search.recommendation import Recommendation


def advice_of(files: RunFiles) -> Recommendation:
    """Which precision of a run to take."""
    rows = records_of(files.variants)
    tables = Tables(rows, records_of(files.layers), [])
    sections = [section_of(name, files.run, tables, files.plans, False) for name in files.run["precisions"]]
    return recommendation(files.run, rows, sections)


def shipped_first(names: Iterable[str], *advice: Recommendation) -> list[str]:
    """The names of precisions, with those in front that are taken, the last run's first of all."""
    taken = [found.taken for found in reversed(advice)]
    return sorted(names, key=lambda name: taken.index(name) if name in taken else len(taken))


def check_comparable(before: RunFiles, after: RunFiles) -> None:
    """Raises OptionError where the runs are of different models, or of different data.

    No figure says then what became better. Other samples of the same folder are different data.
    """
    advice = "compare runs of one model on the same samples, or say with --other-model that you mean these"
    for what, key in (("models", "model"), ("data", "data")):
        a, b = (str(files.run[key]["sha256"] or "") for files in (before, after))
        if a != b:
            named = " and ".join(f"{_named(files, key)} ({str(sha)[:12] or 'none'})" for files, sha in
                                 ((before, a), (after, b)))  # fmt: skip
            raise OptionError(f"{before.folder} and {after.folder} are of different {what}: {named}; {advice}")


def _named(files: RunFiles, key: str) -> str:
    facts = files.run[key]
    if key == "model":
        return str(facts["path"])
    return f"{facts.get('samples', '?')} samples of {facts['folder'] or 'random inputs'}"
