"""The parts of a model that take turns, in the sessions that a search's plans share: see `branches`."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

from precisionlab.backends.base import SensitivityRequest
from precisionlab.backends.branches import Finals
from precisionlab.backends.runner import side_by_side
from precisionlab.backends.sensitivity import Arrays, judged_outputs
from precisionlab.backends.switched import SwitchedSessions
from precisionlab.backends.toggling import SwitchedPart, pins_of
from precisionlab.backends.walk import Values
from precisionlab.compare.judged import judged_differences
from precisionlab.data import Sample
from precisionlab.plan.assign import is_reference


class SwitchedTurns:
    """Each part has one session, for base and toggled layers; it stays from turn to turn where there is room."""

    def __init__(self, sessions: SwitchedSessions, request: SensitivityRequest) -> None:
        self.model, self.share, self.cut = sessions.model, sessions.share, sessions.cut
        self._sessions, self._request = sessions, request
        self._pins = pins_of(self.model, request.plan), pins_of(self.model, request.other)

    def part(self, index: int, layers: frozenset[str]) -> _TurnedPart:
        """A part of which these layers are toggled, as far as they are in it."""
        return _TurnedPart(self._sessions, index, *self._pins, layers)

    def finals(self, samples: Sequence[Sample], threads: int) -> list[Finals]:
        """For each sample what is judged of the reference and of the base, and the error of the whole variant."""
        every = frozenset(layer.name for layer in self.model.layers)
        # The reference, the base, and the base with the layers of the other plan: one of the last two is the reference.
        pins = (every, *self._pins)
        states = [[dict[str, Any](sample.inputs) for _ in pins] for sample in samples]
        for index in range(len(self.cut)):
            for _ in side_by_side(partial(self._pass, index, pins), states, threads):
                pass
            self._sessions.end_turn(index)
        names, judging = judged_outputs(self.model), self._request.judging
        low = 2 if is_reference(self._request.plan) else 1
        found = [[{name: own[name] for name in names} for own in state] for state in states]
        return [(own[0], own[1], judged_differences(judging, own[0], own[low])) for own in found]

    def _pass(self, index: int, pins: Sequence[frozenset[str]], state: list[dict[str, Any]]) -> None:
        """Through one part, once for each set of pins."""
        stop, known = self._sessions.stops[index], dict[frozenset[str], dict[str, Any]]()
        for at, pinned in enumerate(pins):
            if pinned not in known:
                every = {**state[at], **self._sessions.run(index, state[at], pinned)}
                known[pinned] = {name: value for name, value in every.items() if self.model.is_needed(name, stop)}
            state[at] = known[pinned]


class _TurnedPart(SwitchedPart):
    """One of them, of which some layers are toggled."""

    def __init__(
        self,
        sessions: SwitchedSessions,
        index: int,
        base: frozenset[str],
        other: frozenset[str],
        layers: frozenset[str],
    ) -> None:
        super().__init__(sessions, index, base, other)
        self.layers = tuple(name for name in self.layers if name in layers)

    def begun(self, values: Arrays) -> tuple[Values, dict[str, Values]]:
        """What the base gives, and each toggled layer."""
        return self.base(values), self.toggled(values, self.layers)

    def end_base(self) -> None:
        """The session is the same for all."""

    def close(self) -> None:
        """Let go of the session, unless it stays."""
        self._sessions.end_turn(self._index)
