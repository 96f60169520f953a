"""How far a build is, and the way to stop it, where TensorRT tells (10.0 and later)."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

TOTAL = 1000
"""How many parts a whole build has."""


@dataclass
class Phase:
    """A running phase: which part of the build it is, from `start` on, and where it is now (`at`); the build is 1."""

    steps: int
    start: float
    span: float
    at: float
    done: int = 0

    def inner(self, steps: int) -> Phase:
        """A phase within the present step. Nobody says how many will come: each takes half of what is left of it."""
        end = self.start + self.span * min(self.done + 1, self.steps) / self.steps
        phase = Phase(steps, self.at, (end - self.at) / 2, self.at)
        self.at += phase.span
        return phase

    def complete(self, step: int) -> None:
        """Step number `step`, from 0, is done; steps may be told out of order."""
        self.done = max(self.done, min(step + 1, self.steps))
        self.at = max(self.at, self.start + self.span * self.done / self.steps)


class Phases:
    """The phases of a build as one title and one figure that does not fall.

    The names are unique among the phases that run at a time. A phase without a parent is a build of its own.
    """

    def __init__(self) -> None:
        self._running: dict[str, Phase] = {}
        self._at = 0.0
        self._title = ""

    def begin(self, name: str, parent: str | None, steps: int) -> tuple[str, int]:
        """A phase has begun, within `parent` where that runs."""
        steps = max(steps, 1)
        above = None if parent is None else self._running.get(parent)
        if above is None:
            self._at = 0.0
            self._running[name] = Phase(steps, 0.0, 1.0, 0.0)
        else:
            self._running[name] = above.inner(steps)
        return self._now(name)

    def step(self, name: str, step: int) -> tuple[str, int]:
        """Step number `step` (from 0) of a phase is done."""
        phase = self._running.get(name)
        if phase is not None:
            phase.complete(step)
            self._at = max(self._at, phase.at)
        return self._now(name)

    def finish(self, name: str) -> tuple[str, int]:
        """A phase has ended, maybe before its last step; its title stays until another phase tells something."""
        phase = self._running.pop(name, None)
        if phase is not None:
            self._at = max(self._at, phase.start + phase.span)
        return self._title, self._parts()

    def _now(self, name: str) -> tuple[str, int]:
        phase = self._running.get(name)
        self._title = name if phase is None or phase.steps == 1 else f"{name} {phase.done}/{phase.steps}"
        return self._title, self._parts()

    def _parts(self) -> int:
        return min(TOTAL, round(TOTAL * self._at))


def make_monitor(trt: Any, progress: Callable[[str, int, int], None], cancelled: Callable[[], bool]) -> Any | None:
    """A `trt.IProgressMonitor` for one build at a time; None where TensorRT has none (8.6).

    `progress` is called with a title (what is done now, and how many of its steps are), how many parts of the build are
    done, and how many there are; only where something changed. `cancelled` is asked after each step: where it says
    true, TensorRT gives the build up. An exception of either does the same; it is kept, and `raise_kept()` raises it:
    call that after every build.
    """
    if not hasattr(trt, "IProgressMonitor"):
        return None

    class Monitor(trt.IProgressMonitor):  # type: ignore[misc]
        """TensorRT's progress monitor; called from several threads."""

        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            # Re-entrant: the garbage collector may run a callback's clean-up in the thread that holds it.
            self._lock = threading.RLock()
            self._phases = Phases()
            self._told: tuple[str, int] | None = None
            self._kept: BaseException | None = None

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            """Called by TensorRT when a phase begins."""
            self._guarded(lambda: self._tell(self._phases.begin(phase_name, parent_phase, num_steps)))

        def step_complete(self, phase_name: str, step: int) -> bool:
            """Called by TensorRT after each step: whether it is to go on."""
            self._guarded(lambda: self._tell(self._phases.step(phase_name, step)))
            stop = self._guarded(lambda: bool(cancelled()))
            return self._kept is None and not stop

        def phase_finish(self, phase_name: str) -> None:
            """Called by TensorRT when a phase ends."""
            self._guarded(lambda: self._tell(self._phases.finish(phase_name)))

        def raise_kept(self) -> None:
            """Raise what went wrong in `progress` or `cancelled`, if anything did."""
            kept, self._kept = self._kept, None
            if kept is not None:
                raise kept

        def _tell(self, now: tuple[str, int]) -> None:
            if now != self._told:
                self._told = now
                title, done = now
                progress(title, done, TOTAL)

        def _guarded(self, action: Callable[[], bool | None]) -> bool | None:
            with self._lock:
                if self._kept is None:
                    try:
                        return action()
                    except BaseException as error:
                        self._kept = error
            return None

    return Monitor()
