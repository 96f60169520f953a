"""What became better and what worse between two runs."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from precisionlab.jobs.report import folder_of_run
from precisionlab.jobs.result import DiffResult, SweepResult
from precisionlab.report.diff import check_comparable, diff_runs
from precisionlab.report.redraw import read_run, values_told


def diff(
    before: str | Path | SweepResult,
    after: str | Path | SweepResult,
    *,
    fail_if: Iterable[str] = (),
    other_model: bool = False,
) -> DiffResult:
    """Hold two sweeps beside each other, from their folders alone: what each ships, figures, pins, repairs and layers.

    `fail_if` are conditions such as "sqnr drop>1". Raises OptionError for a folder that is no run's, a condition that
    cannot be read, and for runs of different models or data unless `other_model`.
    """
    first, second = (folder_of_run(run) for run in (before, after))
    old, new = read_run(first), read_run(second)
    with values_told(f"{first} or {second}"):
        if not other_model:
            check_comparable(old, new)
        return DiffResult(diff_runs(old, new, tuple(fail_if)))
