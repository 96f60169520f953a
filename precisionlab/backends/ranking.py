"""Sensitivities to single layers in sessions that all rounds of a ranking share, each over a few layers.

Where making a graph takes longer than running it for some samples, stages with a head and a rest of their own (see
`sensitivity`) take most of their time to be made, and again for each round. Here each layer is in two graphs alone:
that of its part of the model, and one with a branch for each toggled layer of that part.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from typing import Any

from precisionlab.backends.base import SensitivityRequest
from precisionlab.backends.device import Cpu, Device, Running
from precisionlab.backends.memory import Share
from precisionlab.backends.runner import side_by_side
from precisionlab.backends.sensitivity import Arrays, Finals, Reference, is_same
from precisionlab.compare.judged import judged_sensitivities
from precisionlab.compare.sensitivity import Sensitivities, Sensitivity
from precisionlab.data import Sample
from precisionlab.model import Model
from precisionlab.plan.assign import is_lowered
from precisionlab.rewrite.copiers import copier_of
from precisionlab.rewrite.observe import output_bytes
from precisionlab.rewrite.toggle import Stretch, costs_of, part_ends, stage_need, stretch_of

_LARGE = 128 * 1024**2
"""Bytes of weights from which on sessions take turns: those here hold them packed five times over."""


def pays(model: Model, request: SensitivityRequest, budget: int, share: Share, device: Device) -> bool:
    """Whether the sessions of all parts fit side by side, and take longer to be made than to be run."""
    build, run = costs_of(model)
    every = toggleable(model, request)
    if not isinstance(device, Cpu) or build < run or sum(layer.weight_bytes for layer in model.layers) > _LARGE:
        return False
    ends, sizes = part_ends(model, every, budget), output_bytes(model)
    need, _ = stage_need(model, every, ends)
    borders = sum(count for stop in ends for name, count in sizes.items() if model.is_needed(name, stop))
    return need + borders <= share.samples and every.issuperset(request.layers)


def toggleable(model: Model, request: SensitivityRequest) -> frozenset[str]:
    """All layers that the request's plans could be asked about: where parts end must not hang on which of them are."""
    plans = request.plan, request.other
    return frozenset(layer.name for layer in model.layers if any(is_lowered(model, layer, plan) for plan in plans))


@dataclass(frozen=True)
class _Part:
    """Consecutive layers from `start` up to `stop`, as the base has them all, and which of them can be toggled."""

    start: int
    stop: int
    layers: frozenset[str]
    plain: tuple[Stretch, Running]


class SensitivityParts:
    """The sessions of a request, for any layers."""

    def __init__(
        self, model: Model, request: SensitivityRequest, budget: int, device: Device, reference: Reference | None
    ) -> None:
        """`reference` gives what is judged of the reference, where that is known."""
        self._every = every = toggleable(model, request)
        ends = part_ends(model, every, budget)
        self._model = model = request.judging.watched(model)
        self._request = request
        self._device = device
        self._finals = Finals(model, request, device, reference)
        self._parts: list[_Part] = []
        self._toggling: dict[int, tuple[Stretch, Running]] = {}
        for start, stop in pairwise((0, *ends)):
            inside = every.intersection(layer.name for layer in model.layers[start:stop])
            self._parts.append(_Part(start, stop, inside, self._made((), start, stop)))

    def is_for(self, request: SensitivityRequest) -> bool:
        """Whether the request is this one, or of other layers."""
        is_alike = replace(request, layers=()) == replace(self._request, layers=())
        return is_alike and self._every.issuperset(request.layers)

    def of(self, sample: Sample, layers: Collection[str], threads: int) -> Iterator[Sensitivities]:
        """How sensitive all that is judged of the sample is to each of these layers, part by part."""
        finals = self._finals.of(sample)
        before: list[Arrays] = [sample.inputs]
        for part in self._parts[:-1]:
            before.append(self._behind(part, before[-1]))
        for index, part in enumerate(self._parts):
            if part.layers.isdisjoint(layers):
                continue
            if index not in self._toggling:
                self._toggling[index] = self._made(part.layers, part.start, part.stop)
            stretch, session = self._toggling[index]
            values = _run(stretch, session, before[index], {})
            branches = {
                layer: {name: values[shown] for name, shown in branch.items()}
                for layer, branch in stretch.branches.items()
                if layer in layers
            }
            go_on = partial(self._toggled, finals, before, index)
            found = side_by_side(go_on, branches.values(), threads, self._device)
            yield dict(zip(branches, found, strict=True))

    def _made(self, toggled: Collection[str], start: int, stop: int) -> tuple[Stretch, Running]:
        plan, other, table = self._request.plan, self._request.other, self._request.table
        copier = copier_of(self._request.arithmetic)
        stretch = stretch_of(self._model, plan, other, toggled, table, start, stop, copier)
        return stretch, self._device.session(stretch.graph)

    def _behind(self, part: _Part, state: Arrays) -> Arrays:
        """The base's values behind a part, as far as they are needed there."""
        stretch, session = part.plain
        values = _run(stretch, session, state, {})
        now = {**state, **{name: values[shown] for name, shown in stretch.alive.items()}}
        return {name: value for name, value in now.items() if self._model.is_needed(name, part.stop)}

    def _toggled(
        self, finals: tuple[Arrays, Arrays, Arrays], before: list[Arrays], index: int, changed: dict[str, Any]
    ) -> Mapping[str, Sensitivity]:
        """Go on from what a layer changes behind its part, up to the outputs."""
        reference, base, error = finals
        for part, state in zip(self._parts[index + 1 :], before[index + 1 :], strict=True):
            changed = {n: value for n, value in changed.items() if n in state and not is_same(state[n], value)}
            stretch, session = part.plain
            if not changed.keys().isdisjoint(stretch.feeds.values()):
                values = _run(stretch, session, state, changed)
                changed.update((name, values[shown]) for name, shown in stretch.alive.items())
        host = self._device.host
        outputs = {name: host(changed[name]) if name in changed else base[name] for name in self._finals.names}
        return judged_sensitivities(self._finals.judging, reference, outputs, error)


def _run(stretch: Stretch, session: Running, state: Arrays, changed: Arrays) -> dict[str, Any]:
    return session.run({feed: changed.get(name, state[name]) for name, feed in stretch.feeds.items()})
