"""How long work tells of its progress."""

from __future__ import annotations

from typing import Protocol, runtime_checkable


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
        """What is left when the next stage begins, as `about 40 s left at most`; "" where nobody can tell."""
        ...


class Silent:
    """Tells nobody."""

    def stage(self, title: str, total: int, unit: str = "sample") -> None:
        """Nothing."""

    def advance(self, done: int) -> None:
        """Nothing."""

    def note(self, text: str) -> None:
        """Nothing."""
