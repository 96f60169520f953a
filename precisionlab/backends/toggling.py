"""Sensitivities to single layers by way of the sessions that a search's plans share.

The model is cut into parts. Each sample goes through them once, as the base has it; a toggled layer goes on from there:
its part runs with that one layer switched, and behind it the base's own parts. So a layer costs the parts from its own
to the end, and no session.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import accumulate
from typing import Any

from precisionlab.backends.base import SensitivityRequest
from precisionlab.backends.device import CPU, Running
from precisionlab.backends.runner import side_by_side
from precisionlab.backends.sensitivity import is_same, judged_outputs
from precisionlab.backends.switched import SwitchedSessions, pinned_to_float32
from precisionlab.compare.judged import judged_differences, judged_sensitivities
from precisionlab.compare.sensitivity import Sensitivities, Sensitivity
from precisionlab.data import Sample
from precisionlab.model import Layer, Model
from precisionlab.plan.assign import is_reference
from precisionlab.plan.plan import Pin, PrecisionPlan
from precisionlab.precision import Precision
from precisionlab.rewrite.builder import GraphBuilder
from precisionlab.rewrite.copiers import copier_of
from precisionlab.rewrite.observe import Segment, output_bytes
from precisionlab.rewrite.switched import base_of

Values = dict[str, Any]
"""Tensors by name, as the device has them."""


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


def border_bytes(model: Model, parts: Sequence[Sequence[Layer]]) -> int:
    """What of one sample's values is kept between the parts."""
    sizes, made, total = output_bytes(model), set[str](), 0
    for part, stop in zip(parts, accumulate(len(part) for part in parts), strict=True):
        made.update(o for layer in part for o in layer.outputs)
        total += sum(sizes[o] for o in made if model.is_needed(o, stop))
    return total


@dataclass(frozen=True)
class _Way:
    """A sample's way under the base: the values in front of each part, the final outputs, and what they are held to.

    `error` is that of the whole variant in the low precision.
    """

    before: Sequence[Values]
    outputs: Values
    reference: Mapping[str, Any]
    error: Mapping[str, Any]


class Toggling:
    """One request's sessions: those of the base beside the ones that are shared."""

    def __init__(self, sessions: SwitchedSessions, request: SensitivityRequest) -> None:
        self._sessions, self._request = sessions, request
        self._model, self._host = sessions.model, sessions.device.host
        self._names = judged_outputs(self._model)
        self._all = frozenset(layer.name for layer in self._model.layers)
        self._pinned = self._pins_of(request.plan)
        self._base = sessions.beside(request.plan)

    def sensitivities(self, samples: Sequence[Sample], threads: int) -> Iterator[Sensitivities]:
        """Of each part its layers' sensitivities, for each sample in the samples' order."""
        toggled, start, device = frozenset(self._request.layers), 0, self._sessions.device
        threads = device.threads(threads, self._sessions.each)
        at_once = threads if len(samples) == 1 else 1  # a single sample has its toggled layers side by side
        threads = max(1, min(threads, len(samples)))
        ways = list(side_by_side(self._way, samples, threads, device))
        for part, stop in enumerate(self._sessions.stops):
            names = [layer.name for layer in self._model.layers[start:stop] if layer.name in toggled]
            start = stop
            if names:
                yield from side_by_side(partial(self._of_part, part, names, at_once), ways, threads, device)

    def _pins_of(self, plan: PrecisionPlan) -> frozenset[str]:
        return self._all if is_reference(plan) else pinned_to_float32(plan)

    def _way(self, sample: Sample) -> _Way:
        request, state = self._request, dict(sample.inputs)
        before: list[Values] = []
        for part, (segment, session) in enumerate(self._base):
            before.append(state)
            state = self._behind(part, {**state, **_run(segment, session, state)})
        outputs = {name: self._host(state[name]) for name in self._names}
        switched = partial(self._through, sample.inputs)
        if is_reference(request.plan):
            reference, variant = outputs, switched(self._pins_of(request.other))
        else:
            reference, variant = switched(self._all), outputs
        return _Way(before, outputs, reference, judged_differences(request.judging, reference, variant))

    def _through(self, inputs: Mapping[str, Any], pinned: frozenset[str]) -> Values:
        """The final outputs with these pins."""
        state = dict(inputs)
        for part in range(len(self._base)):
            state = self._behind(part, {**state, **self._sessions.run(part, state, pinned)})
        return {name: self._host(state[name]) for name in self._names}

    def _behind(self, part: int, values: Mapping[str, Any]) -> Values:
        """Those of the values that are needed behind a part."""
        stop = self._sessions.stops[part]
        return {name: value for name, value in values.items() if self._model.is_needed(name, stop)}

    def _of_part(self, part: int, names: Sequence[str], threads: int, way: _Way) -> Sensitivities:
        before = way.before[part]
        # On a CPU what is not changed at all is known for that: by the same kernels, one run of the part beside.
        known = self._behind(part, self._sessions.run(part, before, self._pinned)) if self._is_on_cpu else {}
        found = side_by_side(partial(self._toggled, part, way, known), names, threads, self._sessions.device)
        return dict(zip(names, found, strict=True))

    @property
    def _is_on_cpu(self) -> bool:
        return self._sessions.device is CPU

    def _toggled(self, part: int, way: _Way, known: Values, name: str) -> Mapping[str, Sensitivity]:
        request = self._request
        is_pinned = name in self._pins_of(request.other)
        pinned = self._pinned | {name} if is_pinned else self._pinned - {name}
        changed = self._behind(part, self._sessions.run(part, way.before[part], pinned))
        if known and all(is_same(known[tensor], value) for tensor, value in changed.items()):
            changed = {}
        for later in range(part + 1, len(self._base)):
            segment, session = self._base[later]
            if changed.keys().isdisjoint(of for _, of in segment.feeds.values()):
                continue
            changed.update(_run(segment, session, {**way.before[later], **changed}))
            changed = self._behind(later, changed)
        outputs = {of: self._host(changed[of]) if of in changed else way.outputs[of] for of in self._names}
        return judged_sensitivities(request.judging, way.reference, outputs, way.error)


def _run(segment: Segment, session: Running, values: Mapping[str, Any]) -> Values:
    found = session.run({own: values[of] for own, (_, of) in segment.feeds.items()})
    return {segment.fetches[own][1]: value for own, value in found.items()}
