"""The samples before any work: checked and told to whoever watches, parted, and the worst of them picked."""

from __future__ import annotations

import math
from collections.abc import Sequence

from precisionlab.compare.comparison import Comparison
from precisionlab.compare.output import OutputErrors
from precisionlab.data import Dataset
from precisionlab.system.observer import Observer


def checked(opened: Dataset, skip_bad: bool, observer: Observer) -> Dataset:
    """Read every sample once: a bad one stops the run here, or is left out; say what looks wrong with the data.

    Raises DataError for a bad sample, unless `skip_bad`.
    """
    observer.stage("reading the samples", opened.size or 0)
    dataset = opened.checked(skip_bad=skip_bad, progress=observer.advance)
    for bad in dataset.skipped:
        observer.note(f"skipped {bad.name}: {bad.reason}")
    if dataset.look is not None and not dataset.is_random:
        for finding in dataset.look.findings:
            about = f"input {finding.input!r}: " if finding.input is not None and len(dataset.model_inputs) > 1 else ""
            observer.note(f"{finding.severity}: {about}{finding.text}")
    return dataset


FEWEST_TO_SPLIT = 32
"""With fewer samples none is held out: too few would be left on either side to say anything."""


def split(dataset: Dataset, share: float, observer: Observer) -> tuple[Dataset, Dataset | None]:
    """The samples that choose ranges and pins, and those that only judge; the same whatever else was asked.

    Evenly spaced in the order of their names, so that both parts hold something of each class or folder.
    """
    if not share or dataset.is_random:
        return dataset, None
    if len(dataset) < FEWEST_TO_SPLIT:
        observer.note(f"only {len(dataset)} samples: none is held out, the same ones choose the pins and judge them")
        return dataset, None
    held = frozenset(
        name for i, name in enumerate(dataset.names) if math.floor((i + 1) * share) > math.floor(i * share)
    )
    if not held or len(held) == len(dataset):
        return dataset, None
    return dataset.only(frozenset(dataset.names) - held), dataset.only(held)


_WORST_SAMPLES = 8
"""On so many samples at most, those where the low precision is worst, a layer's sensitivity is measured."""


def worst_samples(names: Sequence[str], low: Comparison) -> tuple[str, ...]:
    """Of the samples of these names those where what is judged of the low precision is worst, the worst first.

    By the largest relative error of its parts.
    """
    losses = [0.0] * low.samples
    for errors in low.each.values():
        for i, found in enumerate(errors):
            judged = found.judged.values() if found.counts else ()
            for loss in (errors.rel_l2 for errors in judged if not errors.judges_nothing):
                losses[i] = max(losses[i], math.inf if math.isnan(loss) else loss)
    order = sorted(range(low.samples), key=lambda i: (-losses[i], i))
    return tuple(names[i] for i in order[:_WORST_SAMPLES])


STEADINESS_SAMPLES = 4
"""On so many samples it is measured how steady the reference answers: an unsteady model is so on any."""


def spaced_samples(dataset: Dataset, reference: Comparison) -> Dataset:
    """A few samples, evenly spaced among those whose reference holds numbers; of all, where none does."""
    lost = [all(_is_lost(errors[i]) for errors in reference.each.values()) for i in range(reference.samples)]
    names = [name for name, is_lost in zip(dataset.names, lost, strict=False) if not is_lost] or list(dataset.names)
    count = min(STEADINESS_SAMPLES, len(names))
    return dataset.only(frozenset(names[i * len(names) // count] for i in range(count)))


def _is_lost(errors: OutputErrors) -> bool:
    return errors.errors is None or errors.errors.judges_nothing
