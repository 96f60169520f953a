"""Sensitivities to single layers of a model whose weights or graphs do not fit into memory all at once.

The model's parts take turns. Through each go, for every sample, the values of the base, and those of each layer toggled
so far where they differ; what a part toggles itself begins there.
"""

from __future__ import annotations

import math
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from itertools import accumulate
from typing import Protocol

from precisionlab.backends.base import SensitivityRequest
from precisionlab.backends.memory import Share
from precisionlab.backends.runner import side_by_side
from precisionlab.backends.sensitivity import Arrays, judged_outputs, told_of
from precisionlab.backends.walk import Part, Values, differing, through
from precisionlab.compare.sensitivity import Toggled
from precisionlab.data import Sample
from precisionlab.model import Layer, Model
from precisionlab.rewrite.observe import largest_need
from precisionlab.rewrite.toggle import costs_of

Finals = tuple[Arrays, Arrays, Arrays]
"""What is judged of the reference and of the base, and the error of the whole variant."""

_PASSES = 32
"""How many times longer than making the parts the branches of the first pass run, where the model has so many layers:
what is ranked so far can be had after each pass. Each is twice as wide as the one before, as branches that come to the
same values as the base end early, and then the making is what takes the time."""

_READ_BYTE = 2e-9
"""Seconds that a byte of weights takes to be read, rounded and packed."""


class TurnedPart(Part, Protocol):
    """A part whose turn ends."""

    def begun(self, values: Arrays) -> tuple[Values, Mapping[str, Values]]:
        """What the base gives, and each toggled layer."""
        ...

    def end_base(self) -> None:
        """From now on it begins layers alone."""
        ...

    def close(self) -> None:
        """Its turn ends."""
        ...


class Turns(Protocol):
    """The parts of a model, for one request, which take turns."""

    model: Model
    share: Share

    @property
    def cut(self) -> Sequence[Sequence[Layer]]:
        """The layers of each."""
        ...

    def part(self, index: int, layers: frozenset[str]) -> TurnedPart:
        """A part of which these layers are toggled, as far as they are in it."""
        ...

    def finals(self, samples: Sequence[Sample], threads: int) -> list[Finals]:
        """For each sample what is judged of the reference and of the base, and the error of the whole variant."""
        ...


def branch_sensitivities(
    turns: Turns, request: SensitivityRequest, samples: Iterable[Sample], threads: int
) -> Iterator[Toggled]:
    """What each layer does to each sample: for as many layers at a time as there is room for their values.

    Some without a layer come in between, behind each part: then whoever takes them may stop.
    """
    model, share = turns.model, turns.share
    names = judged_outputs(model)
    _, carried, where = largest_need(model, turns.cut, 0, 1)
    each = 4 * max(1, carried)
    threads = share.side_by_side(model, threads, each, where)
    room = share.samples - (threads - 1) * each
    every = list(samples)
    # A branch's values for a sample, as many samples as fit beside one another, as many branches as fit with all these.
    count = max(1, min(len(every), room // each))
    most = max(1, min(len(request.layers), room // (count * max(1, carried)) - 2))
    for start in range(0, len(every), count):
        chunk = every[start : start + count]
        finals = turns.finals(chunk, threads)
        first, width = 0, min(most, _enough(model, count))
        while layers := request.layers[first : first + width]:
            outputs = yield from _outputs(turns, frozenset(layers), chunk, threads)
            for sample, (reference, base, error), branches in zip(chunk, finals, outputs, strict=True):
                found = {layer: {name: branches[layer].get(name, base[name]) for name in names} for layer in layers}
                told = {layer: told_of(request, reference, found[layer], error) for layer in layers}
                yield Toggled(sample.name, told)
            first, width = first + width, min(most, 2 * width)


def _outputs(
    turns: Turns, layers: frozenset[str], samples: Sequence[Sample], threads: int
) -> Generator[Toggled, None, list[dict[str, Values]]]:
    """For each sample and toggled layer the tensors behind the last part that differ from the base's."""
    base: list[Values] = [dict(sample.inputs) for sample in samples]
    branches: list[dict[str, Values]] = [{} for _ in samples]
    for index, stop in enumerate(accumulate(len(part) for part in turns.cut)):
        part = turns.part(index, layers)
        before = list(base)
        # Those toggled before come first: they need what the base holds in front of this part.
        passed = branches
        if any(branches):
            passed = _passed(part, before, branches, threads)
            if part.layers:
                part.end_base()
        begun = _begun(part, before, threads)
        part.close()
        for i, (alive, own) in enumerate(begun):
            base[i] = {
                name: value for name, value in {**before[i], **alive}.items() if turns.model.is_needed(name, stop)
            }
            every = {**passed[i], **own}
            branches[i] = {layer: differing(changed, base[i]) for layer, changed in every.items()}
        yield Toggled("", {})
    return branches


def _passed(
    part: TurnedPart, before: Sequence[Values], branches: Sequence[Mapping[str, Values]], threads: int
) -> list[dict[str, Values]]:
    """For each sample the values behind a part of the layers toggled before it."""
    tasks = [(at, names) for at, own in enumerate(branches) for names in _dealt(list(own), len(branches), threads)]

    def go_on(task: tuple[int, Sequence[str]]) -> dict[str, Values]:
        at, names = task
        return {name: through(part, before[at], branches[at][name]) for name in names}

    found: list[dict[str, Values]] = [{} for _ in branches]
    for (at, _), own in zip(tasks, side_by_side(go_on, tasks, threads), strict=True):
        found[at].update(own)
    return [{name: own[name] for name in branches[at]} for at, own in enumerate(found)]


def _begun(part: TurnedPart, before: Sequence[Values], threads: int) -> list[tuple[Values, Mapping[str, Values]]]:
    """For each sample what the base gives, and each layer that is toggled in the part."""
    if not part.layers:
        return [(alive, {}) for alive in side_by_side(part.base, before, threads)]
    if part.is_one_run or len(before) >= threads:
        return list(side_by_side(part.begun, before, threads))
    alive = list(side_by_side(part.base, before, threads))
    tasks = [(at, names) for at in range(len(before)) for names in _dealt(part.layers, len(before), threads)]
    toggled = side_by_side(lambda task: part.toggled(before[task[0]], task[1]), tasks, threads)
    found: list[dict[str, Values]] = [{} for _ in before]
    for (at, _), own in zip(tasks, toggled, strict=True):
        found[at].update(own)
    return [(alive[at], {name: own[name] for name in part.layers}) for at, own in enumerate(found)]


def _dealt(names: Sequence[str], samples: int, threads: int) -> list[Sequence[str]]:
    """The names in as many shares as keep the threads busy that have no sample of their own."""
    shares = max(1, threads // samples)
    return [names[first::shares] for first in range(min(shares, len(names)))]


def _enough(model: Model, samples: int) -> int:
    """So many branches that making the model's parts anew for others is little beside running them."""
    build, run = costs_of(model)
    build += _READ_BYTE * sum(layer.weight_bytes for layer in model.layers)
    return math.ceil(_PASSES * build / (samples * run)) if run else len(model.layers)
