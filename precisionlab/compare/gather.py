"""From the results of single samples to one comparison."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from precisionlab.compare.comparison import NO_SPREADS, Comparison, Spreads
from precisionlab.compare.errors import Agreement, ErrorSums, ErrorTable, agreement, error_sums
from precisionlab.compare.output import OutputErrors, settled
from precisionlab.compare.spread import Spread, spread_of, sqnr_of_rows
from precisionlab.compare.task import Outputs, TaskMetric
from precisionlab.compare.wide import is_float

_GROUPS = 10
"""Of the delete-a-group jackknife; each sample updates all replicates but one."""


@dataclass(frozen=True)
class SampleResult:
    """What one sample has shown: a row of statistics for each tensor, and the final outputs' errors.

    `values` are the final outputs of reference and variant, where a task metric asks for them.
    """

    layers: ErrorTable
    outputs: Mapping[str, OutputErrors]
    values: tuple[Outputs, Outputs] | None
    label: str | None


def output_errors(reference: NDArray[Any], variant: NDArray[Any]) -> OutputErrors:
    """The errors of one tensor of one sample, as one part."""
    if not isinstance(reference, np.ndarray):  # a sequence, or an optional that is empty
        return OutputErrors(None, Agreement())
    errors = error_sums(reference, variant) if is_float(reference) else None
    return OutputErrors(errors, agreement(reference, variant))


class Gathering:
    """Takes the results of one sample after the other; gives the comparison over all of them."""

    def __init__(self, rows: int, metric: Callable[[], TaskMetric] | None) -> None:
        """`rows` is how many tensors each result has statistics of."""
        self.layers = ErrorTable(rows)
        self._each: dict[str, list[OutputErrors]] = {}
        self._sqnr: list[NDArray[np.float32]] = []
        self._samples = 0
        self._variant = metric() if metric else None
        self._reference = metric() if metric else None
        self._replicates = [metric() for _ in range(_GROUPS)] if metric else []
        self._labelled = 0

    def add(self, result: SampleResult) -> int:
        """Take one sample; returns how many there were."""
        self.layers.merge(result.layers)
        self._sqnr.append(sqnr_of_rows(result.layers))
        for name, errors in result.outputs.items():
            self._each.setdefault(name, []).append(errors)
        if self._variant and self._reference and result.values is not None and result.label is not None:
            reference, variant = result.values
            self._reference.update(reference, result.label)
            self._variant.update(variant, result.label)
            for group, replicate in enumerate(self._replicates):
                if self._labelled % _GROUPS != group:
                    replicate.update(variant, result.label)
            self._labelled += 1
        self._samples += 1
        return self._samples

    def spreads(self, rows: Mapping[str, int]) -> dict[str, Spread]:
        """How the SQNR of these rows spreads over the samples; those that no sample has a figure of are left out."""
        found = {name: spread_of([sample[row] for sample in self._sqnr]) for name, row in rows.items()}
        return {name: spread for name, spread in found.items() if spread is not None}

    def comparison(
        self,
        inherited: Mapping[str, ErrorSums],
        introduced: Mapping[str, ErrorSums],
        broken: tuple[str, ...],
        seconds: float,
        spreads: Spreads = NO_SPREADS,
    ) -> Comparison:
        """Everything together, with these statistics of the tensors."""
        metric = self._variant.compute() if self._variant else None
        judged = {name: settled(errors) for name, errors in self._each.items()}
        return Comparison(
            samples=self._samples,
            inherited=inherited,
            introduced=introduced,
            broken=broken,
            outputs={name: total for name, (total, _) in judged.items()},
            each={name: each for name, (_, each) in judged.items()},
            metric=metric,
            metric_error=None if metric is None else self._standard_error(),
            reference_metric=self._reference.compute() if self._reference else None,
            metric_name=self._variant.name if self._variant else None,
            higher_is_better=self._variant.higher_is_better if self._variant else True,
            seconds=seconds,
            spreads=spreads,
        )

    def _standard_error(self) -> float | None:
        """The task metric's standard error by the delete-a-group jackknife; None for too few samples.

        √((G − 1) / G · Σ(θ_g − θ̄)²), θ_g the metric without group g. Source: P. S. Kott, "The delete-a-group
        jackknife", Journal of Official Statistics 17 (2001).
        """
        if self._labelled < 2 * _GROUPS:
            return None
        values = np.array([replicate.compute() for replicate in self._replicates], np.float64)
        return math.sqrt((_GROUPS - 1) / _GROUPS * float(((values - values.mean()) ** 2).sum()))
