"""Each layer by itself: the outputs and the task metric with it alone in the low precision, and it alone in float32.

Users of AIMET know the two as "one on" and "one off". Where a ranking looks at the worst samples, all layers are
measured here on the same ones, so that their figures can be read side by side.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import astuple, dataclass
from functools import partial
from typing import Any

from precisionlab.backends.base import SensitivityRequest
from precisionlab.backends.watching import constant_outputs
from precisionlab.calibration.table import CalibrationTable
from precisionlab.compare.comparison import Comparison
from precisionlab.compare.metrics import SQNR
from precisionlab.compare.sensitivity import Sensitivity, Toggled, merged, worst_sqnr
from precisionlab.compare.task import TaskMetric
from precisionlab.data import Dataset
from precisionlab.evaluate.evaluator import Evaluator
from precisionlab.plan.plan import PrecisionPlan
from precisionlab.precision import Precision
from precisionlab.rewrite.observe import output_bytes
from precisionlab.system.deadline import BudgetExhausted
from precisionlab.system.plain import Count, of_kind

_NOTHING = 0.1
"""dB: no layer is told of that gains less."""

_AT_ONCE = 64
"""Layers that are measured before the journal is told: what a kill costs."""

_ROOM = 128 * 1024**2
"""Bytes of final outputs that may wait for the task metric."""


@dataclass(frozen=True)
class LayerFigures:
    """The final outputs with one layer of another precision than all others.

    `sqnr` is the worst output's in dB, NaN where one holds a NaN that the reference does not; `nonfinite` counts their
    new NaN and Inf. `metric` is the task metric, None without one.
    """

    sqnr: float
    nonfinite: Count
    metric: float | None


@dataclass(frozen=True)
class EachLayer:
    """All layers by themselves, on so many `samples`; those that time did not do for are left out.

    `one_on` has each alone in the low precision, `one_off` each alone in float32, `low` the precision throughout.
    `reference_metric` is float32's task metric on these samples, None without one.
    """

    samples: int
    one_on: Mapping[str, LayerFigures]
    one_off: Mapping[str, LayerFigures]
    low: LayerFigures
    reference_metric: float | None


def extremes(low: float, one_on: Mapping[str, float], one_off: Mapping[str, float]) -> tuple[str | None, str | None]:
    """The layer that harms most alone in the low precision, and that which buys most alone in float32.

    By SQNR in dB, of which NaN is the least; `low` is that of the precision throughout. None of the first where none
    was measured, and of the second where none gains a tenth of a decibel either.
    """

    def worth(sqnr: float) -> float:
        return -math.inf if math.isnan(sqnr) else sqnr

    worst = min(one_on, key=lambda name: worth(one_on[name]), default=None)
    best = max(one_off, key=lambda name: worth(one_off[name]), default=None)
    # Not so of two that are no number: their difference is none.
    gains = best is not None and worth(one_off[best]) - worth(low) >= _NOTHING
    return worst, best if gains else None


@dataclass(frozen=True)
class _Subject:
    """What is measured on which samples, by whose plans."""

    evaluator: Evaluator
    low: PrecisionPlan
    table: CalibrationTable | None
    samples: Dataset

    def figures(self, title: str, plan: PrecisionPlan, other: PrecisionPlan, layers: Sequence[str]) -> _Figures:
        """Each of the layers under `other`, all else under `plan`; of as many as there is time for."""
        found: dict[str, LayerFigures] = {}
        try:
            parts = self._parts(layers)
            for number, some in enumerate(parts, 1):
                said = title if len(parts) == 1 else f"{title}, part {number} of {len(parts)}"
                found |= self._some(said, plan, other, some)
                if not found.keys() >= set(some):
                    break
        except BudgetExhausted:
            pass
        return found

    @property
    def _at_once(self) -> int:
        sizes = output_bytes(self.evaluator.model)
        final = sum(sizes.get(info.name, 0) for info in self.evaluator.model.outputs)
        return max(1, min(_AT_ONCE, _ROOM // max(1, final * (1 + self.evaluator.backend.threads))))

    def _parts(self, layers: Sequence[str]) -> list[tuple[str, ...]]:
        """The layers in parts of about the same size."""
        count = math.ceil(len(layers) / self._at_once)
        size = math.ceil(len(layers) / max(1, count))
        return [tuple(layers[start : start + size]) for start in range(0, len(layers), max(1, size))]

    def _some(self, title: str, plan: PrecisionPlan, other: PrecisionPlan, layers: tuple[str, ...]) -> _Figures:
        """The same for layers whose outputs fit side by side."""
        evaluator = self.evaluator
        with_values, arithmetic = evaluator.metric is not None, evaluator.arithmetic
        request = SensitivityRequest(plan, other, layers, self.table, evaluator.judging, arithmetic, with_values)
        measured = _Measured(evaluator, self.samples)
        key = {**evaluator.toggling_key(request, self.samples), "by itself": "metric" if request.values else ""}

        def work() -> Any:
            evaluator.observer.stage(title, len(layers), "layer")
            for toggled in evaluator.backend.toggled(request, self.samples):
                measured.add(toggled)
                evaluator.observer.advance(measured.seen)
            return {name: list(astuple(figures)) for name, figures in measured.figures()}

        read = partial(of_kind, Mapping[str, LayerFigures])
        try:
            return evaluator.journalled(title, key, work, read, lambda found: found.keys() == set(layers))
        except BudgetExhausted:
            return dict(measured.figures())


_Figures = Mapping[str, LayerFigures]
"""By the layers' names."""


class _Measured:
    """What toggled layers have come to so far, each over the samples that it went through."""

    def __init__(self, evaluator: Evaluator, samples: Dataset) -> None:
        self._new, self._labels = evaluator.metric, samples.labels
        self._samples = len(samples)
        self._constants = constant_outputs(evaluator.model)
        self._sums: dict[str, Mapping[str, Sensitivity]] = {}
        self._counts: dict[str, int] = {}
        self._metrics: dict[str, TaskMetric] = {}

    def add(self, toggled: Toggled) -> None:
        """One sample of some layers; of each layer they come in the samples' order."""
        for name, told in toggled.layers.items():
            before = {name: self._sums[name]} if name in self._sums else {}
            self._sums[name] = merged([before, {name: told.outputs}]).get(name, {})
            self._counts[name] = self._counts.get(name, 0) + 1
            label = self._labels.get(toggled.sample)
            if self._new is not None and told.values is not None and label is not None:
                if name not in self._metrics:
                    self._metrics[name] = self._new()
                self._metrics[name].update({**self._constants, **told.values}, label)

    @property
    def seen(self) -> int:
        """How many layers have been on their way."""
        return len(self._counts)

    def figures(self) -> Iterator[tuple[str, LayerFigures]]:
        """Those that went through all samples."""
        for name, outputs in self._sums.items():
            if self._counts[name] == self._samples:
                nonfinite = sum(own.errors.new_nonfinite for own in outputs.values())
                metric = self._metrics[name].compute() if name in self._metrics else None
                yield name, LayerFigures(worst_sqnr(outputs), nonfinite, metric)


def each_layer(
    evaluator: Evaluator,
    low: PrecisionPlan,
    table: CalibrationTable | None,
    layers: Sequence[str],
    samples: Dataset,
    whole: Comparison,
) -> EachLayer:
    """Measure each of `layers` alone in the low precision, and each alone in float32, over the samples.

    `low` is the low precision's plan, with the ranges of `table`, and `whole` what it came to on the same samples.
    Costs less than two passes of the model for each layer and sample: what does not follow the layer is run once. Where
    the evaluator's observer raises BudgetExhausted, it is what was measured by then.
    """
    subject = _Subject(evaluator, low, table, samples)
    float32 = PrecisionPlan(evaluator.model.sha256, Precision.FP32)
    one_on = subject.figures(f"{low.default}, each layer alone in it", float32, low, layers)
    one_off = subject.figures(f"{low.default}, each layer alone in fp32", low, float32, layers)
    nonfinite = sum(own.errors.new_nonfinite for own in whole.outputs.values() if own.errors is not None)
    figures = LayerFigures(whole.worst(SQNR), nonfinite, whole.metric)
    return EachLayer(len(samples), one_on, one_off, figures, whole.reference_metric)
