"""Progress on standard error: a bar in a terminal, plain lines elsewhere."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from rich.progress import BarColumn, MofNCompleteColumn, Progress, Task, TextColumn, TimeRemainingColumn
from rich.text import Text

from precisionlab.cli.console import Console
from precisionlab.system.wording import counted

if TYPE_CHECKING:
    from precisionlab.system.observer import Observer


_BAR = 12
_BESIDE = _BAR + 42
"""As many columns stand beside a title at most: bar, counts, what is left. A title gives way to them, to `_LEAST`."""
_LEAST = 16


class _LeftColumn(TimeRemainingColumn):
    """What is left of the whole run, where that is told; of the stage else."""

    def render(self, task: Task) -> Text:
        """The text of this column."""
        left = str(task.fields["left"])
        return Text(left) if left else super().render(task)


class _Bars:
    """One bar for the stage under way; notes stay above it."""

    def __init__(self, bars: Progress) -> None:
        self._bars = bars
        self._task = bars.add_task("", total=None, visible=False, left="")

    def left(self, text: str) -> None:
        self._bars.update(self._task, left=text)

    def stage(self, title: str, total: int, unit: str = "sample") -> None:
        room = max(_LEAST, self._bars.console.width - _BESIDE)
        if len(title) > room:
            title = f"{title[: room - 1]}…"
        self._bars.reset(self._task, description=title, total=total or None, visible=True)

    def advance(self, done: int) -> None:
        self._bars.update(self._task, completed=done)

    def note(self, text: str) -> None:
        self._bars.console.print(text, markup=False, highlight=False)


class _Lines:
    """A line for each stage, for logs."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._left = ""

    def left(self, text: str) -> None:
        self._left = text

    def stage(self, title: str, total: int, unit: str = "sample") -> None:
        self.note(f"{title} ({counted(total, unit)})" + (f" · {self._left}" if self._left else ""))

    def advance(self, done: int) -> None:
        pass

    def note(self, text: str) -> None:
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)


@contextmanager
def progress() -> Iterator[Observer]:
    """An observer that shows the work on standard error while it lasts."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield _Lines(console)
        return
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(_BAR),
        MofNCompleteColumn(),
        _LeftColumn(),
    )
    with Progress(*columns, console=console, transient=True) as bars:
        yield _Bars(bars)
