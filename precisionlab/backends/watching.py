"""Looks at the values of an evaluation while samples go through, and keeps their statistics alone."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from numpy.typing import NDArray

from precisionlab.backends.base import Detail, Evaluation
from precisionlab.backends.device import Device
from precisionlab.backends.kept import KeptOutputs
from precisionlab.backends.runner import State
from precisionlab.compare.gather import SampleResult
from precisionlab.compare.judged import judged_errors
from precisionlab.data import Sample
from precisionlab.model import Model
from precisionlab.rewrite.observe import Flow, Segment, observed_rows, row_formats


class Watching:
    """What is asked of the values of an evaluation."""

    def __init__(self, model: Model, evaluation: Evaluation, device: Device) -> None:
        self.evaluation = evaluation
        self.device = device
        self.rows = observed_rows(model, evaluation.plan, evaluation.flows)
        self.formats = row_formats(model, evaluation.plan, (name for _, name in self.rows))
        self.outputs = [info.name for info in model.outputs]
        self.judged = evaluation.judging.names
        self.constants = constant_outputs(model)
        inputs = {info.name for info in model.inputs}
        self.computed = frozenset(n for n in self.judged if n not in self.constants and n not in inputs)


class Watch:
    """One sample on its way."""

    def __init__(
        self, what: Watching, sample: Sample, known: Mapping[str, NDArray[Any]], kept: KeptOutputs | None
    ) -> None:
        """`known` has values of the reference that take the place of those that run here, or stand for them.

        Those that run here are `kept` for the next plan.
        """
        self._what = what
        self._sample = sample
        self._known = known
        self._kept = kept
        self._layers = what.device.errors(what.formats)
        self._look = self._count if what.evaluation.detail is Detail.NONFINITE else self._compare
        self._reference: dict[str, NDArray[Any]] = dict(what.constants)
        self._variant: dict[str, NDArray[Any]] = dict(what.constants)

    def observer(self, segment: Segment, state: State) -> None:
        """Add up what the segment shows, and keep what is judged."""
        self._look(segment, state)
        self._layers.settle()
        host = self._what.device.host
        for name in self._what.judged:
            true, low = state.get((Flow.REFERENCE, name)), state.get((Flow.VARIANT, name))
            if true is not None:
                self._reference[name] = host(true)
                self._variant[name] = self._reference[name]
            if low is not None:
                self._variant[name] = host(low)

    def result(self) -> SampleResult:
        """The statistics of the sample."""
        if self._kept is not None:
            self._kept.keep(self._sample, {name: self._reference[name] for name in self._what.computed})
        self._reference.update(self._known)
        errors = judged_errors(self._what.evaluation.judging, self._reference, self._variant)
        values = None
        if self._what.evaluation.values:
            outputs = self._what.outputs
            values = (_picked(self._reference, outputs), _picked(self._variant, outputs))
        return SampleResult(self._layers.result(), errors, values, self._sample.label)

    def _compare(self, segment: Segment, state: State) -> None:
        rows = self._what.rows
        for name in (*segment.observed, *segment.inside):
            true = state[Flow.REFERENCE, name]
            self._layers.add(rows[Flow.VARIANT, name], true, state.get((Flow.VARIANT, name), true))
            if (Flow.ALONE, name) in rows:
                self._layers.add(rows[Flow.ALONE, name], true, state[Flow.ALONE, name])

    def _count(self, segment: Segment, state: State) -> None:
        for name in (*segment.observed, *segment.inside):
            if (Flow.VARIANT, name) in state:
                self._layers.count_nonfinite(self._what.rows[Flow.VARIANT, name], state[Flow.VARIANT, name])


def constant_outputs(model: Model) -> dict[str, NDArray[Any]]:
    """The final outputs that are constants."""
    constants = {str(v.name): v.const_value for v in model.onnx.graph.outputs if v.is_initializer()}
    return {name: value.numpy() for name, value in constants.items() if value is not None}


def _picked(values: Mapping[str, NDArray[Any]], names: Iterable[str]) -> dict[str, NDArray[Any]]:
    return {name: values[name] for name in names}
