"""Progress on standard error: a live display in a terminal, plain lines elsewhere, or nothing."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from rich.console import RenderableType
from rich.progress import BarColumn, MofNCompleteColumn, Progress, Task, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from precisionlab.cli.console import Console
from precisionlab.cli.verbosity import Verbosity, verbosity
from precisionlab.system.wording import counted, duration

if TYPE_CHECKING:
    from precisionlab.system.observer import Observer, Tried


_BAR = 12
_BESIDE = _BAR + 42
"""As many columns stand beside a title at most: bar, counts, what is left. A title gives way to them, to `_LEAST`."""
_LEAST = 16
_ROWS = 6
"""Plans that a search's table shows: the last ones."""


class _LeftColumn(TimeRemainingColumn):
    """What is left of the whole run, where that is told; of the stage else."""

    def render(self, task: Task) -> Text:
        """The text of this column."""
        left = str(task.fields["left"])
        return Text(left) if left else super().render(task)


class _Display(Progress):
    """The bar of the stage under way, below the plans that a search has evaluated."""

    def __init__(self, *columns: Any, **options: Any) -> None:
        self.plans: deque[Tried] = deque(maxlen=_ROWS)
        self._begun = time.monotonic()
        super().__init__(*columns, **options)

    def get_renderables(self) -> Iterable[RenderableType]:
        """What is shown, from top to bottom."""
        if self.plans:
            yield self._table(tuple(self.plans))
        yield self.make_tasks_table(self.tasks)

    def _table(self, plans: tuple[Tried, ...]) -> Table:
        last = plans[-1]
        best = "none holds so far" if last.best is None else f"best so far {counted(last.best, 'pin')}"
        gone = duration(time.monotonic() - self._begun)
        table = Table(
            title=f"{last.precision}: {counted(last.number, 'plan')}, {best}, {gone}", title_justify="left", box=None
        )
        table.add_column("plan", justify="right")
        table.add_column("pins", justify="right")
        table.add_column("figures", no_wrap=True, overflow="ellipsis")
        table.add_column("")
        table.add_column("time", justify="right")
        for plan in plans:
            style = "green" if plan.holds else None
            verdict = "holds" if plan.holds else "does not hold"
            cells = f"{plan.number}", f"{plan.pins}", plan.figures, verdict, duration(plan.seconds)
            table.add_row(*(Text(cell, style=style or "") for cell in cells))
        return table


class _Bars:
    """One bar for the stage under way, and a search's plans; notes stay above them."""

    def __init__(self, display: _Display) -> None:
        self._display = display
        self._task = display.add_task("", total=None, visible=False, left="")

    def left(self, text: str) -> None:
        self._display.update(self._task, left=text)

    def stage(self, title: str, total: int, unit: str = "sample") -> None:
        room = max(_LEAST, self._display.console.width - _BESIDE)
        if len(title) > room:
            title = f"{title[: room - 1]}…"
        self._display.reset(self._task, description=title, total=total or None, visible=True)

    def advance(self, done: int) -> None:
        self._display.update(self._task, completed=done)

    def note(self, text: str) -> None:
        self._display.console.print(text, markup=False, highlight=False)

    def tried(self, plan: Tried) -> None:
        plans = self._display.plans
        if plans and plans[-1].precision != plan.precision:
            plans.clear()
        plans.append(plan)


class _Lines:
    """A line for each stage, for logs; `stamp` stands in front of each."""

    def __init__(self, console: Console, stamp: Callable[[], str] = lambda: "") -> None:
        self._console = console
        self._stamp = stamp
        self._left = ""

    def left(self, text: str) -> None:
        self._left = text

    def stage(self, title: str, total: int, unit: str = "sample") -> None:
        self.note(f"{title} ({counted(total, unit)})" + (f" · {self._left}" if self._left else ""))

    def advance(self, done: int) -> None:
        pass

    def note(self, text: str) -> None:
        self._console.print(f"{self._stamp()}{text}", markup=False, highlight=False, soft_wrap=True)


@contextmanager
def progress() -> Iterator[Observer]:
    """An observer that shows the work on standard error while it lasts, as the command's `-q` and `-v` have it."""
    console = Console(stderr=True)
    how = verbosity()
    if how is Verbosity.QUIET:
        from precisionlab.system.observer import Silent

        yield Silent()
    elif how is Verbosity.VERBOSE:
        begun = time.monotonic()
        yield _Lines(console, lambda: f"{time.monotonic() - begun:8.1f} s  ")
    elif not console.is_terminal:
        yield _Lines(console)
    else:
        columns = (
            TextColumn("{task.description}", markup=False),
            BarColumn(_BAR),
            MofNCompleteColumn(),
            _LeftColumn(),
        )
        with _Display(*columns, console=console, transient=True) as display:
            yield _Bars(display)
