"""The check of the samples before any work, told to whoever watches."""

from __future__ import annotations

from precisionlab.data import Dataset
from precisionlab.observer import Observer


def checked(opened: Dataset, skip_bad: bool, see: Observer) -> Dataset:
    """Read every sample once: a bad one stops the run here, or is left out; say what looks wrong with the data.

    Raises DataError for a bad sample, unless `skip_bad`.
    """
    see.stage("reading the samples", opened.size or 0)
    dataset = opened.checked(skip_bad=skip_bad, progress=see.advance)
    for bad in dataset.skipped:
        see.note(f"skipped {bad.name}: {bad.reason}")
    if dataset.look is not None and not dataset.is_random:
        for finding in dataset.look.findings:
            see.note(f"{finding.severity}: {finding.text}")
    return dataset
