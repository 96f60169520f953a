"""Sensitivities to single layers of a model whose weights or graphs do not fit into memory all at once.

The model's parts take turns. Through each go, for every sample, the values of the base, and those of each layer toggled
so far where they differ; what a part toggles itself begins there.
"""

from __future__ import annotations

import math
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from functools import partial
from itertools import accumulate
from typing import Any

import numpy as np
from numpy.typing import NDArray

from precisionlab.backends.base import SensitivityRequest
from precisionlab.backends.device import CPU
from precisionlab.backends.memory import Share
from precisionlab.backends.runner import Runner, State, side_by_side
from precisionlab.backends.sensitivity import judged_outputs, told_of
from precisionlab.backends.stretches import StretchPart
from precisionlab.backends.walk import Values, differing, through
from precisionlab.compare.judged import judged_differences
from precisionlab.compare.sensitivity import Toggled
from precisionlab.data import Sample
from precisionlab.model import Model
from precisionlab.plan.plan import PrecisionPlan
from precisionlab.precision import Precision
from precisionlab.rewrite.copiers import copier_of
from precisionlab.rewrite.observe import Flow, Segment, cut, largest_need
from precisionlab.rewrite.toggle import costs_of

Arrays = dict[str, NDArray[Any]]

_BRANCHES = 16
"""A part that toggles layers holds a branch for each, half as long as the part: so much shorter are parts here."""

_PASSES = 32
"""How many times longer than making the parts the branches of the first pass run, where the model has so many layers:
what is ranked so far can be had after each pass. Each is twice as wide as the one before, as branches that come to the
same values as the base end early, and then the making is what takes the time."""

_READ_BYTE = 2e-9
"""Seconds that a byte of weights takes to be read, rounded and packed."""


def branch_sensitivities(
    model: Model, request: SensitivityRequest, samples: Iterable[Sample], threads: int, budget: int, share: Share
) -> Iterator[Toggled]:
    """What each layer does to each sample: for as many layers at a time as there is room for their values.

    Some without a layer come in between, behind each part: then whoever takes them may stop.
    """
    model = request.judging.watched(model)
    names = judged_outputs(model)
    parts = cut(model, 0, budget, share.weights, None if share.nodes is None else share.nodes // _BRANCHES)
    _, carried, where = largest_need(model, parts, 0, 1)
    each = 4 * max(1, carried)
    threads = share.side_by_side(model, threads, each, where)
    room = share.samples - (threads - 1) * each
    every = list(samples)
    # A branch's values for a sample, as many samples as fit beside one another, as many branches as fit with all these.
    count = max(1, min(len(every), room // each))
    most = max(1, min(len(request.layers), room // (count * max(1, carried)) - 2))
    for start in range(0, len(every), count):
        chunk = every[start : start + count]
        finals = _finals(model, request, chunk, names, threads, budget, share)
        first, width = 0, min(most, _enough(model, count))
        while layers := request.layers[first : first + width]:
            outputs = yield from _outputs(model, request, frozenset(layers), parts, chunk, threads)
            for sample, (reference, base, error), branches in zip(chunk, finals, outputs, strict=True):
                found = {layer: {name: branches[layer].get(name, base[name]) for name in names} for layer in layers}
                told = {layer: told_of(request, reference, found[layer], error) for layer in layers}
                yield Toggled(sample.name, told)
            first, width = first + width, min(most, 2 * width)


def _outputs(
    model: Model,
    request: SensitivityRequest,
    layers: frozenset[str],
    parts: Sequence[Sequence[Any]],
    samples: Sequence[Sample],
    threads: int,
) -> Generator[Toggled, None, list[dict[str, Values]]]:
    """For each sample and toggled layer the tensors behind the last part that differ from the base's."""
    base: list[Values] = [dict(sample.inputs) for sample in samples]
    branches: list[dict[str, Values]] = [{} for _ in samples]
    for stop, layers_here in zip(accumulate(len(part) for part in parts), parts, strict=True):
        part = StretchPart(model, request, stop - len(layers_here), stop, layers, CPU)
        before = list(base)
        # Those toggled before come first: they need what the base holds in front of this part.
        if any(branches):
            passed = list(side_by_side(partial(_go_on, part), zip(before, branches, strict=True), threads))
            if part.layers:
                part.close()
        else:
            passed = branches
        begun = list(side_by_side(part.begun if part.layers else partial(_untouched, part), before, threads))
        part.close()
        for i, (alive, own) in enumerate(begun):
            base[i] = {name: value for name, value in {**before[i], **alive}.items() if model.is_needed(name, stop)}
            every = {**passed[i], **own}
            branches[i] = {layer: differing(changed, base[i]) for layer, changed in every.items()}
        yield Toggled("", {})
    return branches


def _untouched(part: StretchPart, base: Values) -> tuple[Values, dict[str, Values]]:
    return part.base(base), {}


def _go_on(part: StretchPart, sample: tuple[Values, dict[str, Values]]) -> dict[str, Values]:
    """The values behind a part of the layers toggled before it."""
    base, branches = sample
    return {name: through(part, base, changed) for name, changed in branches.items()}


def _finals(
    model: Model,
    request: SensitivityRequest,
    samples: Sequence[Sample],
    names: Sequence[str],
    threads: int,
    budget: int,
    share: Share,
) -> list[tuple[Arrays, Arrays, Mapping[str, NDArray[np.float32]]]]:
    """For each sample what is judged of the reference and of the base, and the error of the whole variant."""
    found: dict[PrecisionPlan, list[Arrays]] = {}
    flows = (Flow.REFERENCE, Flow.VARIANT)
    reference = PrecisionPlan(model.sha256, Precision.FP32)
    for plan in dict.fromkeys((request.plan, request.other)):
        if plan != reference:
            runner = Runner(model, plan, request.table, flows, (), budget, share, copier=copier_of(request.arithmetic))
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
        self._reference: Arrays = {}
        self._variant: Arrays = {}

    def observer(self, segment: Segment, state: State) -> None:
        for name in self._names:
            if (Flow.REFERENCE, name) in state:
                self._reference[name] = state[Flow.REFERENCE, name]
                self._variant[name] = state.get((Flow.VARIANT, name), self._reference[name])

    def result(self) -> tuple[Arrays, Arrays]:
        return self._reference, self._variant


def _enough(model: Model, samples: int) -> int:
    """So many branches that making the model's parts anew for others is little beside running them."""
    build, run = costs_of(model)
    build += _READ_BYTE * sum(layer.weight_bytes for layer in model.layers)
    return math.ceil(_PASSES * build / (samples * run)) if run else len(model.layers)
