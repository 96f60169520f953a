"""Runs of a session at shapes that come again: captured once as a CUDA graph, and launched as a whole from then on.

Of a short input a pass is mostly the launching of kernels one by one, and what Python does to bind values and to take
outputs. A captured run reads and writes at places that are its own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from precisionlab.backends.cuda.arrays import DeviceArray
from precisionlab.errors import ModelError

_SHAPES = 4
"""Captures of a session at most: each has its own room for all that the session shows."""

_ROOM = 8
"""One part in so many of the GPU's free memory may be taken for the outputs of a capture."""

_CHECKS = 2
"""Runs of a capture that are held against the session's ordinary ones, the first of them on the sample it was made of.

Of what the host would have to read on the way nothing is in a captured run; `replayable` says of which graphs that
holds, and this is what would tell if it were wrong."""

_Shapes = tuple[tuple[str, tuple[int, ...], str], ...]


class Capturing(Protocol):
    """A session that can have its runs captured."""

    def run(self, feeds: Mapping[str, Any]) -> dict[str, Any]:
        """All outputs by name, in memory that was taken for them."""
        ...

    def fed(self, name: str, value: Any) -> Any:
        """What the graph takes in the place of a value."""
        ...

    def captured(
        self, inputs: Mapping[str, DeviceArray], outputs: Mapping[str, DeviceArray], number: int
    ) -> Callable[[], None]:
        """Run at these places; what is given does that again, as one launch. `number` tells captures apart.

        Raises ModelError where the run cannot be captured.
        """
        ...


class Memory(Protocol):
    """The memory that values stand in."""

    def value(self, array: NDArray[Any]) -> DeviceArray:
        """A copy of an array."""
        ...

    def empty(self, shape: tuple[int, ...]) -> DeviceArray:
        """Room for a float32 tensor."""
        ...

    def fill(self, place: DeviceArray, value: DeviceArray | NDArray[Any]) -> None:
        """Copy a value of the same shape and type to a place."""
        ...

    def free(self) -> int:
        """Bytes that are free."""
        ...


@dataclass
class _Capture:
    """A captured run: where it reads, where it writes, what is the same at each run, and how often it was checked."""

    inputs: dict[str, DeviceArray]
    outputs: dict[str, DeviceArray]
    same: dict[str, Any]
    launch: Callable[[], None]
    checked: int = 0


class Replays:
    """The runs of one session with switches, one at a time; what one gives holds until the next.

    A shape that comes for the first time is run as ever, one that comes again is captured.
    """

    def __init__(self, session: Capturing, memory: Memory) -> None:
        self._session, self._memory = session, memory
        self._constants = {state: memory.value(np.asarray(state)) for state in (False, True)}
        self._switches: dict[str, tuple[DeviceArray, bool]] = {}
        self._seen: set[_Shapes] = set()
        self._captures: dict[_Shapes, _Capture] = {}
        self._is_off = False

    def run(self, feeds: Mapping[str, Any], switches: Mapping[str, bool]) -> dict[str, Any]:
        """All outputs by name."""
        feeds = {name: self._session.fed(name, value) for name, value in feeds.items()}
        shapes = _shapes_of(feeds)
        if shapes not in self._captures:
            found = self._ordinary(feeds, switches)
            if shapes in self._seen and not self._is_off:
                self._capture(shapes, feeds, switches, found)
            elif len(self._seen) < _SHAPES:
                self._seen.add(shapes)
            return found
        capture = self._captures[shapes]
        self._set(switches)
        for name, place in capture.inputs.items():
            self._memory.fill(place, feeds[name])
        capture.launch()
        if capture.checked < _CHECKS:
            return self._check(capture, self._ordinary(feeds, switches))
        return {**capture.outputs, **capture.same}

    def close(self) -> None:
        """Let go of what was captured."""
        self._captures.clear()

    def _ordinary(self, feeds: Mapping[str, Any], switches: Mapping[str, bool]) -> dict[str, Any]:
        return self._session.run({**feeds, **{name: self._constants[state] for name, state in switches.items()}})

    def _set(self, switches: Mapping[str, bool]) -> None:
        """Have the switches stand as they should, where captured runs read them."""
        for name, state in switches.items():
            place, known = self._switches.get(name, (None, None))
            if place is None:
                place = self._memory.value(np.asarray(state))
            elif state != known:
                self._memory.fill(place, np.asarray(state))
            self._switches[name] = place, state

    def _capture(
        self, shapes: _Shapes, feeds: Mapping[str, Any], switches: Mapping[str, bool], found: dict[str, Any]
    ) -> None:
        """Capture a run of these feeds, which give what was `found`."""
        shown = {name: value for name, value in found.items() if isinstance(value, DeviceArray)}
        if 4 * sum(value.size for value in shown.values()) > self._memory.free() // _ROOM:
            self._is_off = True
            return
        self._set(switches)
        inputs = {name: self._placed(value) for name, value in feeds.items()}
        outputs = {name: self._memory.empty(value.shape) for name, value in shown.items()}
        every = {**inputs, **{name: self._switches[name][0] for name in switches}}
        try:
            launch = self._session.captured(every, outputs, len(self._captures))
        except ModelError:  # it runs as ever
            self._is_off = True
            return
        same = {name: value for name, value in found.items() if name not in shown}
        self._captures[shapes] = _Capture(inputs, outputs, same, launch)
        self._check(self._captures[shapes], found)

    def _placed(self, value: DeviceArray | NDArray[Any]) -> DeviceArray:
        if isinstance(value, np.ndarray):
            return self._memory.value(value)
        place = self._memory.empty(value.shape)
        self._memory.fill(place, value)
        return place

    def _check(self, capture: _Capture, found: dict[str, Any]) -> dict[str, Any]:
        """What was found by an ordinary run; a captured one that gives another bit is one no longer."""
        capture.checked += 1
        given = {**capture.outputs, **capture.same}
        if any(_bytes(given[name]) != _bytes(value) for name, value in found.items()):
            self._captures.clear()
            self._is_off = True
        return found


def _bytes(value: DeviceArray | NDArray[Any]) -> bytes:
    return (value.host() if isinstance(value, DeviceArray) else value).tobytes()


def _shapes_of(feeds: Mapping[str, Any]) -> _Shapes:
    kinds = ((name, tuple(v.shape), str(getattr(v, "dtype", "float32"))) for name, v in feeds.items())
    return tuple(sorted(kinds))
