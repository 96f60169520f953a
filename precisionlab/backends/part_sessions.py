"""The sessions of a model's parts: of those that do not all fit into the memory as many stay as do."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from threading import Lock
from typing import Any

import onnx_ir as ir

from precisionlab.backends.device import Device, Running
from precisionlab.backends.runner import MAKERS, side_by_side


class PartSessions:
    """A session for each graph. Those that do not stay are made when they are run, and let go when their turn ends."""

    def __init__(self, graphs: Sequence[ir.Model], needs: Sequence[int], room: int | None, device: Device) -> None:
        """`needs` says how many bytes each session takes, `room` how many there are; None: all stay.

        Those that stay are made now, side by side where all do.
        """
        self._graphs, self._device, self._lock = graphs, device, Lock()
        self.staying = staying_in(needs, room)
        self.held = sum(needs[index] for index in self.staying)
        """Bytes of those that stay."""
        first = self.staying if room is None else ()
        made = side_by_side(device.repeated, [graphs[index] for index in first], MAKERS, device)
        self._made: dict[int, Running] = dict(zip(first, made, strict=True))

    def at(self, index: int) -> Running:
        """The session of a part, made where it is not there."""
        with self._lock:
            if index not in self._made:
                self._made[index] = self._device.repeated(self._graphs[index])
            return self._made[index]

    def end_turn(self, index: int) -> None:
        """Let go of the session of a part, unless it stays."""
        if index not in self.staying:
            with self._lock:
                if (session := self._made.pop(index, None)) is not None:
                    session.close()


def staying_in(needs: Sequence[int], room: int | None) -> tuple[int, ...]:
    """Which of the sessions stay: in their order, each that still fits."""
    if room is None:
        return tuple(range(len(needs)))
    found = []
    for index, need in enumerate(needs):
        if need <= room:
            found.append(index)
            room -= need
    return tuple(found)


class TurnedSession:
    """A part's session with inputs of its own set; closing it ends its turn."""

    def __init__(self, sessions: PartSessions, index: int, switches: Mapping[str, Any]) -> None:
        self._sessions, self._index, self._switches = sessions, index, switches

    def run(self, feeds: Mapping[str, Any]) -> dict[str, Any]:
        """All outputs by name."""
        return self._sessions.at(self._index).run({**feeds, **self._switches})

    def close(self) -> None:
        """Let go of it unless it stays: other plans use it."""
        self._sessions.end_turn(self._index)
