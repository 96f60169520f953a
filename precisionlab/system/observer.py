"""How long work tells of its progress."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from precisionlab.system.wording import counted


@dataclass(frozen=True)
class Tried:
    """A plan that a search has evaluated: its `number` and pins, its `figures` as a text, and whether it holds.

    `best` is how many pins the best has so far, None where none holds; `seconds` is how long it took.
    """

    precision: str
    number: int
    pins: int
    figures: str
    holds: bool
    best: int | None
    seconds: float

    @property
    def line(self) -> str:
        """`  12 pins: sqnr 31.2: holds; best so far 12 pins`."""
        figures = f": {self.figures}" if self.figures else ""
        best = "" if self.best is None else f"; best so far {counted(self.best, 'pin')}"
        return f"  {counted(self.pins, 'pin')}{figures}: {'holds' if self.holds else 'does not hold'}{best}"


class Observer(Protocol):
    """Is told how the work goes. Each stage runs over `total` samples, or other units, 0 where nobody can tell."""

    def stage(self, title: str, total: int, unit: str = "sample") -> None:
        """A stage begins."""
        ...

    def advance(self, done: int) -> None:
        """So many of them are done."""
        ...

    def note(self, text: str) -> None:
        """Something worth a line."""
        ...


@runtime_checkable
class Foretold(Observer, Protocol):
    """An observer that is told what is left of the whole run too."""

    def left(self, text: str) -> None:
        """What is left when the next stage begins, as `about 40 s left`; "" where nobody can tell."""
        ...


@runtime_checkable
class Following(Observer, Protocol):
    """An observer that is told of each plan by its figures, where others get a line."""

    def tried(self, plan: Tried) -> None:
        """A plan has been evaluated."""
        ...


def tell_of(plan: Tried, observer: Observer) -> None:
    """Tell the observer of a plan, in the way that it takes."""
    if isinstance(observer, Following):
        observer.tried(plan)
    else:
        observer.note(plan.line)


class Silent:
    """Tells nobody."""

    def stage(self, title: str, total: int, unit: str = "sample") -> None:
        """Nothing."""

    def advance(self, done: int) -> None:
        """Nothing."""

    def note(self, text: str) -> None:
        """Nothing."""
