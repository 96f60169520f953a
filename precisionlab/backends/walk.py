"""Samples on their way through a model's parts, and beside them, where they differ, the values with one layer toggled.

A toggled layer costs what it takes to toggle it in its part, and the base's own parts behind that. As many layers as
there is room for go through a part, one after the other, before the next part is run: of a short input a part's weights
stay in the processor's cache then, and to read them takes longer than to compute with them.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, Protocol

from precisionlab.backends.base import SensitivityRequest
from precisionlab.backends.device import CPU, Device
from precisionlab.backends.runner import side_by_side
from precisionlab.backends.sensitivity import Arrays, is_same, judged_outputs, told_of
from precisionlab.compare.sensitivity import Toggled, Told
from precisionlab.model import Layer, Model
from precisionlab.rewrite.observe import output_bytes

Values = dict[str, Any]
"""Tensors by name, as the device has them."""

_ROOM = 32 * 1024**2
"""Bytes of toggled layers' values that wait between two parts at most."""

_ON_GPU = 4
"""Toggled layers for each thread that wait on a GPU: threads wait for one another as seldom as that."""


class Part(Protocol):
    """Consecutive layers of a model, up to `stop`. Threads may share it.

    `layers` are those that can be toggled; `is_one_run` says that one run toggles them all.
    """

    stop: int
    is_one_run: bool

    @property
    def layers(self) -> Sequence[str]:
        """In the model's order."""
        ...

    @property
    def takes(self) -> Collection[str]:
        """The tensors that the base takes in it."""
        ...

    def base(self, values: Arrays) -> Values:
        """What the base makes of the values in front of it: what is needed behind it, or leaves the model."""
        ...

    def toggled(self, values: Arrays, layers: Sequence[str]) -> Mapping[str, Values]:
        """The same with each of these layers toggled, as far as it is not known to be the base's."""
        ...


@dataclass(frozen=True)
class Way:
    """The way of a sample of this name under the base: the values in front of each part, and behind the last.

    `outputs` are the base's final outputs, `reference` what they are held to, in the host's memory; `error` is that of
    the whole variant in the low precision.
    """

    sample: str
    before: Sequence[Values]
    outputs: Arrays
    reference: Arrays
    error: Arrays


def border_bytes(model: Model, parts: Sequence[Sequence[Layer]]) -> int:
    """What of one sample's values is kept between the parts."""
    sizes, made, total = output_bytes(model), set[str](), 0
    for part, stop in zip(parts, accumulate(len(part) for part in parts), strict=True):
        made = {o for o in made.union(*(layer.outputs for layer in part)) if model.is_needed(o, stop)}
        total += sum(sizes[o] for o in made)
    return total


def through(part: Part, before: Arrays, changed: Values) -> Values:
    """What a toggled layer has changed behind the part, of what it has changed in front of it."""
    if changed.keys().isdisjoint(part.takes):
        return changed
    return {**changed, **part.base({**before, **changed})}


def differing(changed: Values, behind: Arrays) -> Values:
    """Those of the values that are needed, and are not known to be the base's."""
    return {name: value for name, value in changed.items() if name in behind and not is_same(behind[name], value)}


def values_before(model: Model, parts: Sequence[Part], inputs: Arrays) -> list[Values]:
    """The base's values in front of each part, and behind the last."""
    before: list[Values] = [dict(inputs)]
    for part in parts:
        now = {**before[-1], **part.base(before[-1])}
        before.append({name: value for name, value in now.items() if model.is_needed(name, part.stop)})
    return before


@dataclass(frozen=True)
class _Task:
    """Layers of one part that are toggled on one sample's way."""

    index: int
    way: Way
    names: Sequence[str]


_Branch = tuple[int, Way, Values]
"""Behind which part, on whose way, what a toggled layer has changed."""


class Walk:
    """Goes with toggled layers through parts that stay."""

    def __init__(self, model: Model, parts: Sequence[Part], request: SensitivityRequest, device: Device) -> None:
        self._parts, self._request, self._device = parts, request, device
        self._names = judged_outputs(model)

    def toggled(self, ways: Sequence[Way], layers: Collection[str], threads: int) -> Iterator[Toggled]:
        """What each of these layers does: part by part, for each way in turn."""
        most = self._most(ways, threads)
        for tasks in _filled(self._tasks(ways, layers, most, threads), most):
            begun = side_by_side(self._begin, tasks, threads, self._device)
            branches = [(task.index, task.way, own) for task, found in zip(tasks, begun, strict=True) for own in found]
            # Not one behind the other: those of the first parts take longest.
            dealt = [branches[first::threads] for first in range(min(threads, len(branches)))]
            told = list(side_by_side(self._on, dealt, threads, self._device))
            in_turn = (told[at % threads][at // threads] for at in range(len(branches)))
            for task in tasks:
                yield Toggled(task.way.sample, {name: next(in_turn) for name in task.names})

    def _most(self, ways: Sequence[Way], threads: int) -> int:
        """So many toggled layers' values may wait between two parts: as many as fit."""
        if self._device is not CPU:
            return _ON_GPU * threads
        every = (values.values() for way in ways for values in way.before)
        border = max((sum(getattr(value, "nbytes", 0) for value in values) for values in every), default=0)
        return max(threads, _ROOM // max(1, border))

    def _tasks(self, ways: Sequence[Way], layers: Collection[str], most: int, threads: int) -> Iterator[_Task]:
        for index, part in enumerate(self._parts):
            names = [name for name in part.layers if name in layers]
            # One by one a layer's part is run for the base too: no more of that than it takes for the threads.
            at_once = len(names) if part.is_one_run or most >= threads * len(names) else max(1, most // threads)
            for start in range(0, len(names), at_once or 1):
                for way in ways:
                    yield _Task(index, way, names[start : start + at_once])

    def _begin(self, task: _Task) -> list[Values]:
        before, behind = task.way.before[task.index : task.index + 2]
        toggled = self._parts[task.index].toggled(before, task.names)
        return [differing(toggled[name], behind) for name in task.names]

    def _on(self, branches: Sequence[_Branch]) -> list[Told]:
        """From behind their parts to the outputs, and what these tell."""
        changed = [own for _, _, own in branches]
        for index, part in enumerate(self._parts):
            for i, (begun, way, _) in enumerate(branches):
                if begun < index and changed[i]:
                    changed[i] = differing(through(part, way.before[index], changed[i]), way.before[index + 1])
        return [self._told(way, own) for (_, way, _), own in zip(branches, changed, strict=True)]

    def _told(self, way: Way, changed: Values) -> Told:
        host = self._device.host
        outputs = {name: host(changed[name]) if name in changed else way.outputs[name] for name in self._names}
        return told_of(self._request, way.reference, outputs, way.error)


def _filled(tasks: Iterable[_Task], most: int) -> Iterator[list[_Task]]:
    """The tasks in turn, as many at a time as have so many layers together; one at least."""
    some: list[_Task] = []
    for task in tasks:
        if some and sum(len(one.names) for one in some) + len(task.names) > most:
            yield some
            some = []
        some.append(task)
    if some:
        yield some
