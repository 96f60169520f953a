"""Sensitivities to single layers in sessions that all rounds of a ranking share, each over a few layers.

Where making a graph takes longer than running it for some samples, stages with a head and a rest of their own (see
`sensitivity`) take most of their time to be made, and again for each round. Here each layer is in two graphs alone:
that of its part of the model, and one with a branch for each toggled layer of that part.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import replace
from itertools import pairwise

from precisionlab.backends.base import SensitivityRequest
from precisionlab.backends.device import Cpu, Device
from precisionlab.backends.memory import Share
from precisionlab.backends.runner import side_by_side
from precisionlab.backends.sensitivity import Finals, Reference
from precisionlab.backends.stretches import StretchPart
from precisionlab.backends.walk import Walk, Way, border_bytes, values_before
from precisionlab.compare.sensitivity import Toggled
from precisionlab.data import Sample
from precisionlab.model import Model
from precisionlab.plan.assign import is_lowered
from precisionlab.rewrite.toggle import costs_of, part_ends, stage_need

_MAKERS = 4
"""Sessions that are made side by side."""

_LARGE = 128 * 1024**2
"""Bytes of weights from which on sessions take turns: those here hold them packed five times over."""


def pays(model: Model, request: SensitivityRequest, budget: int, share: Share, device: Device) -> bool:
    """Whether the sessions of all parts fit side by side, and take longer to be made than to be run."""
    build, run = costs_of(model)
    if not isinstance(device, Cpu) or build < run or sum(layer.weight_bytes for layer in model.layers) > _LARGE:
        return False
    every = toggleable(model, request)
    return _need(model, every, part_ends(model, every, budget)) <= share.samples and every.issuperset(request.layers)


def _need(model: Model, every: Collection[str], ends: Sequence[int]) -> int:
    """Bytes of one sample's values: in a part that is run, and between all of them."""
    parts = [model.layers[start:stop] for start, stop in pairwise((0, *ends))]
    return stage_need(model, every, ends)[0] + border_bytes(model, parts)


def toggleable(model: Model, request: SensitivityRequest) -> frozenset[str]:
    """All layers that the request's plans could be asked about: where parts end must not hang on which of them are."""
    plans = request.plan, request.other
    return frozenset(layer.name for layer in model.layers if any(is_lowered(model, layer, plan) for plan in plans))


class SensitivityParts:
    """The sessions of a request, for any layers."""

    def __init__(
        self,
        model: Model,
        request: SensitivityRequest,
        budget: int,
        share: Share,
        device: Device,
        reference: Reference | None,
    ) -> None:
        """`reference` gives what is judged of the reference, where that is known."""
        self._every = every = toggleable(model, request)
        ends = part_ends(model, every, budget)
        self._at_once = max(1, share.samples // max(1, _need(model, every, ends)))
        self._model = model = request.judging.watched(model)
        self._request, self._device = request, device
        self._finals = Finals(model, request, device, reference)
        self._parts = [StretchPart(model, request, start, stop, every, device) for start, stop in pairwise((0, *ends))]
        list(side_by_side(StretchPart.prepare, self._parts, _MAKERS, device))

    def is_for(self, request: SensitivityRequest) -> bool:
        """Whether the request is this one, or of other layers."""
        is_alike = replace(request, layers=()) == replace(self._request, layers=())
        return is_alike and self._every.issuperset(request.layers)

    def of(self, samples: Sequence[Sample], layers: Collection[str], threads: int) -> Iterator[Toggled]:
        """What each of these layers does to each sample, part by part."""
        walk = Walk(self._model, self._parts, self._request, self._device)
        for start in range(0, len(samples), self._at_once):
            some = samples[start : start + self._at_once]
            ways = list(side_by_side(self._way, some, min(threads, len(some)), self._device))
            yield from walk.toggled(ways, layers, threads)

    def _way(self, sample: Sample) -> Way:
        reference, base, error = self._finals.of(sample)
        return Way(sample.name, values_before(self._model, self._parts, sample.inputs), base, reference, error)
