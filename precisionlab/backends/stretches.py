"""Parts of a model in graphs of their own: one as the base has it, and one with a branch for each toggled layer."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from threading import Lock

from precisionlab.backends.base import SensitivityRequest
from precisionlab.backends.device import Device, Running
from precisionlab.backends.sensitivity import Arrays
from precisionlab.backends.walk import Values
from precisionlab.model import Model
from precisionlab.rewrite.copiers import copier_of
from precisionlab.rewrite.toggle import Stretch, stretch_of

_BUILDING = Lock()
"""Graphs are made one at a time, as a copy of a node with bodies touches the model's own values; sessions are not."""


class StretchPart:
    """The layers from `start` up to `stop`; each of its two sessions is made when it is needed first."""

    is_one_run = True

    def __init__(
        self, model: Model, request: SensitivityRequest, start: int, stop: int, layers: Collection[str], device: Device
    ) -> None:
        """Of these `layers` those are toggled that are in it."""
        self._model, self._request, self._device = model, request, device
        self._start, self.stop = start, stop
        own = model.layers[start:stop]
        self.layers = tuple(layer.name for layer in own if layer.name in layers)
        made = {str(value.name) for layer in own for name in layer.nodes for value in model.node[name].outputs}
        self.takes = frozenset(name for layer in own for name in model.taken[layer.name]) - made
        self._sessions: dict[bool, tuple[Stretch, Running]] = {}
        self._lock = Lock()

    def base(self, values: Arrays) -> Values:
        """What the graph without branches gives."""
        return self._run(False, values)[0]

    def toggled(self, values: Arrays, layers: Sequence[str]) -> dict[str, Values]:
        """One run for all layers."""
        branches = self._run(True, values)[1]
        return {name: branches[name] for name in layers}

    def begun(self, values: Arrays) -> tuple[Values, dict[str, Values]]:
        """What the base gives, and each toggled layer: of one run."""
        return self._run(True, values)

    def prepare(self) -> None:
        """Make the session without branches."""
        self._session(False)

    def end_base(self) -> None:
        """Let go of the session without branches before the one with them is made."""
        self.close()

    def close(self) -> None:
        """Let go of the sessions; they are made again when they are needed."""
        for _, session in self._sessions.values():
            session.close()
        self._sessions.clear()

    def _run(self, is_toggled: bool, values: Arrays) -> tuple[Values, dict[str, Values]]:
        stretch, session = self._session(is_toggled)
        found = session.run({feed: values[name] for name, feed in stretch.feeds.items()})
        alive = {name: found[shown] for name, shown in stretch.alive.items()}
        return alive, {layer: {n: found[shown] for n, shown in own.items()} for layer, own in stretch.branches.items()}

    def _session(self, is_toggled: bool) -> tuple[Stretch, Running]:
        with self._lock:
            if is_toggled not in self._sessions:
                plan, other, table = self._request.plan, self._request.other, self._request.table
                copier, layers = copier_of(self._request.arithmetic), self.layers if is_toggled else ()
                with _BUILDING:
                    stretch = stretch_of(self._model, plan, other, layers, table, self._start, self.stop, copier)
                self._sessions[is_toggled] = stretch, self._device.session(stretch.graph)
            return self._sessions[is_toggled]
