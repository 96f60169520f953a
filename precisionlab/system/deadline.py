"""How long a search may work: a budget of time that is checked while samples run, not only between plans."""

from __future__ import annotations

import time
from collections.abc import Callable

from precisionlab.system.observer import Observer, Tried, tell_of
from precisionlab.system.wording import duration


class BudgetExhausted(Exception):  # noqa: N818 - no error: the search ends with the best that it has
    """Raised where a budget does not allow any more; its text says which."""


class Deadline:
    """An end of work, or a part of it. `check` raises BudgetExhausted from then on."""

    def __init__(
        self, seconds: float | None, *, budget: float | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """So many seconds from now, of the `budget` that the user gave (None: all of it); None has no end."""
        self._clock = clock
        self._budget = seconds if budget is None else budget
        self._end = None if seconds is None else clock() + seconds

    @property
    def left(self) -> float | None:
        """The seconds that are left; None where there is no end."""
        return None if self._end is None else max(0.0, self._end - self._clock())

    @property
    def said(self) -> str:
        """What is to be said once it has passed."""
        return f"the budget of {duration(self._budget or 0)} is spent"

    def part(self, share: float) -> Deadline:
        """An earlier end, after this share of what is left."""
        left = self.left
        return Deadline(None if left is None else left * share, budget=self._budget, clock=self._clock)

    def move_to(self, other: Deadline) -> None:
        """End when the other does, from now on, and for all who hold this one."""
        self._end = other._end

    def check(self) -> None:
        """Raises BudgetExhausted where no time is left."""
        if self.left == 0:
            raise BudgetExhausted(self.said)


class Watched:
    """Tells an observer how work goes, and ends that work where its time is spent: between any two samples."""

    def __init__(self, observer: Observer, deadline: Deadline) -> None:
        self._observer = observer
        self._deadline = deadline

    def stage(self, title: str, total: int, unit: str = "sample") -> None:
        """A stage begins. Raises BudgetExhausted where no time is left for it."""
        self._deadline.check()
        self._observer.stage(title, total, unit)

    def advance(self, done: int) -> None:
        """So many are done. Raises BudgetExhausted where no time is left for more."""
        self._observer.advance(done)
        self._deadline.check()

    def note(self, text: str) -> None:
        """Something worth a line."""
        self._observer.note(text)

    def tried(self, plan: Tried) -> None:
        """A plan has been evaluated."""
        tell_of(plan, self._observer)
