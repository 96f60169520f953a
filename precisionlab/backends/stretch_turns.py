"""The parts of a model that take turns, in graphs that are made for one request: see `branches`."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import Any

from numpy.typing import NDArray

from precisionlab.backends.base import SensitivityRequest
from precisionlab.backends.branches import Finals
from precisionlab.backends.device import CPU
from precisionlab.backends.memory import Share
from precisionlab.backends.runner import Runner, State
from precisionlab.backends.sensitivity import judged_outputs
from precisionlab.backends.stretches import StretchPart
from precisionlab.compare.judged import judged_differences
from precisionlab.data import Sample
from precisionlab.model import Model
from precisionlab.plan.plan import PrecisionPlan
from precisionlab.precision import Precision
from precisionlab.rewrite.copiers import copier_of
from precisionlab.rewrite.observe import Flow, Segment, cut

_BRANCHES = 16
"""A part that toggles layers holds a branch for each, half as long as the part: so much shorter are parts here."""


class StretchTurns:
    """Each part has a graph for the base, and one with a branch for each of its layers."""

    def __init__(self, model: Model, request: SensitivityRequest, budget: int, share: Share) -> None:
        self.model = request.judging.watched(model)
        self.share = share
        self._request, self._budget = request, budget
        nodes = None if share.nodes is None else share.nodes // _BRANCHES
        self.cut = cut(self.model, 0, budget, share.weights, nodes)
        self._stops = list(accumulate(len(part) for part in self.cut))

    def part(self, index: int, layers: frozenset[str]) -> StretchPart:
        """A part of which these layers are toggled, as far as they are in it."""
        stop = self._stops[index]
        return StretchPart(self.model, self._request, stop - len(self.cut[index]), stop, layers, CPU)

    def finals(self, samples: Sequence[Sample], threads: int) -> list[Finals]:
        """For each sample what is judged of the reference and of the base, and the error of the whole variant."""
        request, names = self._request, judged_outputs(self.model)
        found: dict[PrecisionPlan, list[dict[str, NDArray[Any]]]] = {}
        flows = (Flow.REFERENCE, Flow.VARIANT)
        reference = PrecisionPlan(self.model.sha256, Precision.FP32)
        copier = copier_of(request.arithmetic)
        for plan in dict.fromkeys((request.plan, request.other)):
            if plan != reference:
                how = flows, (), self._budget, self.share
                runner = Runner(self.model, plan, request.table, *how, copier=copier)
                pairs = list(runner.each(samples, lambda sample: _Outputs(names), threads))
                found[reference] = [first for first, _ in pairs]
                found[plan] = [second for _, second in pairs]
        low = found[request.other if request.plan.default is Precision.FP32 else request.plan]
        errors = [
            judged_differences(request.judging, true, value) for true, value in zip(found[reference], low, strict=True)
        ]
        return list(zip(found[reference], found[request.plan], errors, strict=True))


class _Outputs:
    """Keeps the final outputs of reference and variant."""

    def __init__(self, names: Sequence[str]) -> None:
        self._names = names
        self._reference: dict[str, NDArray[Any]] = {}
        self._variant: dict[str, NDArray[Any]] = {}

    def observer(self, segment: Segment, state: State) -> None:
        for name in self._names:
            if (Flow.REFERENCE, name) in state:
                self._reference[name] = state[Flow.REFERENCE, name]
                self._variant[name] = state.get((Flow.VARIANT, name), self._reference[name])

    def result(self) -> tuple[dict[str, NDArray[Any]], dict[str, NDArray[Any]]]:
        return self._reference, self._variant
