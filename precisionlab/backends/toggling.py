"""Sensitivities to single layers by way of the sessions that a search's plans share.

The model is cut into parts. Each sample goes through them once, as the base has it; a toggled layer goes on from there:
its part runs with that one layer switched, and behind it the base's own parts. So a layer costs the parts from its own
to the end, and no session.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from precisionlab.backends.base import SensitivityRequest
from precisionlab.backends.device import CPU, Running
from precisionlab.backends.runner import side_by_side
from precisionlab.backends.sensitivity import Arrays, judged_outputs
from precisionlab.backends.switched import SwitchedSessions, pinned_to_float32
from precisionlab.backends.walk import Values, Walk, Way, values_before
from precisionlab.compare.judged import judged_differences
from precisionlab.compare.sensitivity import Toggled
from precisionlab.data import Sample
from precisionlab.model import Model
from precisionlab.plan.assign import is_reference
from precisionlab.plan.plan import Pin, PrecisionPlan
from precisionlab.precision import Precision
from precisionlab.rewrite.builder import GraphBuilder
from precisionlab.rewrite.copiers import copier_of
from precisionlab.rewrite.observe import Segment
from precisionlab.rewrite.switched import base_of


def low_of(request: SensitivityRequest) -> PrecisionPlan:
    """The plan of the low precision: `plan` or `other`, whichever is not float32 throughout."""
    return request.other if is_reference(request.plan) else request.plan


def can_be_toggled(model: Model, request: SensitivityRequest) -> bool:
    """Whether both plans are what one base is with some layers pinned to float32, and with all the reference is."""
    base = base_of(low_of(request))
    others = (plan for plan in (request.plan, request.other) if not is_reference(plan))
    if any(base_of(plan) != base for plan in others):
        return False
    if any(layer.own is not None or layer.has_own_inside for layer in model.layers):
        return False
    copier = copier_of(request.arithmetic)(GraphBuilder(model.onnx), model, None)
    float32 = base.with_pins(Pin(layer.name, layer.nodes, Precision.FP32, "") for layer in model.layers)
    return all(copier.is_exact(layer, float32) for layer in model.layers)


def pins_of(model: Model, plan: PrecisionPlan) -> frozenset[str]:
    """What the plan pins to float32 of its base: of the reference that is every layer."""
    return frozenset(layer.name for layer in model.layers) if is_reference(plan) else pinned_to_float32(plan)


class Toggling:
    """One request's way through the sessions that are shared; on a GPU the base has some of its own beside them."""

    def __init__(self, sessions: SwitchedSessions, request: SensitivityRequest, at_once: int) -> None:
        """`at_once` is how many samples there is room for."""
        self._sessions, self._request, self._at_once = sessions, request, at_once
        self._model, self._host = sessions.model, sessions.device.host
        self._names = judged_outputs(self._model)
        self._all = frozenset(layer.name for layer in self._model.layers)
        pins = pins_of(self._model, request.plan), pins_of(self._model, request.other)
        self._parts: list[SwitchedPart]
        if sessions.device is CPU:
            self._parts = [SwitchedPart(sessions, index, *pins) for index in range(len(sessions.cut))]
        else:
            own = sessions.beside(request.plan)
            self._parts = [_PartWithOwnBase(sessions, index, *pins, one) for index, one in enumerate(own)]

    def is_for(self, request: SensitivityRequest) -> bool:
        """Whether the request is this one, or of fewer layers."""
        own = self._request
        return replace(request, layers=own.layers) == own and set(own.layers).issuperset(request.layers)

    def of(self, samples: Sequence[Sample], layers: Collection[str], threads: int) -> Iterator[Toggled]:
        """What each of these layers does to each sample, part by part."""
        device = self._sessions.device
        threads = device.threads(threads, self._sessions.each)
        walk = Walk(self._model, self._parts, self._request, device)
        for start in range(0, len(samples), self._at_once):
            some = samples[start : start + self._at_once]
            ways = list(side_by_side(self._way, some, min(threads, len(some)), device))
            yield from walk.toggled(ways, layers, threads)

    def _way(self, sample: Sample) -> Way:
        request = self._request
        before = values_before(self._model, self._parts, sample.inputs)
        outputs = {name: self._host(before[-1][name]) for name in self._names}
        switched = partial(self._through, sample.inputs)
        if is_reference(request.plan):
            reference, variant = outputs, switched(pins_of(self._model, request.other))
        else:
            reference, variant = switched(self._all), outputs
        return Way(sample.name, before, outputs, reference, judged_differences(request.judging, reference, variant))

    def _through(self, inputs: Mapping[str, Any], pinned: frozenset[str]) -> Values:
        """The final outputs with these pins."""
        state = dict(inputs)
        for index, part in enumerate(self._parts):
            state.update(self._sessions.run(index, state, pinned))
            state = {name: value for name, value in state.items() if self._model.is_needed(name, part.stop)}
        return {name: self._host(state[name]) for name in self._names}


class SwitchedPart:
    """One part, which has each layer behind a switch, in the base and with a layer toggled."""

    is_one_run = False

    def __init__(self, sessions: SwitchedSessions, index: int, base: Collection[str], other: Collection[str]) -> None:
        """`base` and `other` are what the two plans pin to float32."""
        self._sessions, self._index = sessions, index
        self._base, self._other = frozenset(base), frozenset(other)
        self.layers = tuple(layer.name for layer in sessions.cut[index])
        self.stop = sessions.stops[index]
        self.takes = sessions.takes(index)
        made = (name for layer in sessions.cut[index] for name in layer.outputs)
        self._needed = frozenset(name for name in made if sessions.model.is_needed(name, self.stop))

    def base(self, values: Arrays) -> Values:
        """What stands behind the part with none of its layers toggled."""
        return self._switched(values, self._base)

    def toggled(self, values: Arrays, layers: Sequence[str]) -> dict[str, Values]:
        """A run for each layer."""
        pins = {name: self._base | {name} if name in self._other else self._base - {name} for name in layers}
        return {name: self._switched(values, pinned) for name, pinned in pins.items()}

    def _switched(self, values: Arrays, pinned: Collection[str]) -> Values:
        found = self._sessions.run(self._index, values, pinned)
        return {name: value for name, value in found.items() if name in self._needed}


class _PartWithOwnBase(SwitchedPart):
    """The same where a switch is a kernel for each value that is rounded: the base has a session without any."""

    def __init__(
        self,
        sessions: SwitchedSessions,
        index: int,
        base: Collection[str],
        other: Collection[str],
        own: tuple[Segment, Running],
    ) -> None:
        super().__init__(sessions, index, base, other)
        self._segment, self._session = own

    def base(self, values: Arrays) -> Values:
        """What the base's own session gives."""
        found = self._session.run({own: values[of] for own, (_, of) in self._segment.feeds.items()})
        return {self._segment.fetches[own][1]: value for own, value in found.items()}
