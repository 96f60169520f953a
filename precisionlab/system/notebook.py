"""Whether this is a notebook, and how work tells of its progress there."""

from __future__ import annotations

import html
import sys
import time
from typing import Any

from precisionlab.system.observer import Observer, Silent

_EVERY = 0.25  # seconds between two changes of what is shown
_NOTES = 12


def observer_of(given: Observer | None) -> Observer:
    """The observer that was given; else what shows the work in a notebook, and nobody elsewhere."""
    if given is not None:
        return given
    return NotebookObserver() if in_notebook() else Silent()


def in_notebook() -> bool:
    """Whether IPython runs this as a kernel, with a page in front of it. IPython is not loaded for that."""
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython is not None else None
    return shell is not None and type(shell).__name__ == "ZMQInteractiveShell"


class NotebookObserver:
    """One output of the cell: the stage under way with a bar, and the last notes below it."""

    def __init__(self) -> None:
        self._title, self._total, self._done, self._unit = "", 0, 0, "sample"
        self._left = ""
        self._notes: list[str] = []
        self._shown: Any = None
        self._last = 0.0

    def stage(self, title: str, total: int, unit: str = "sample") -> None:
        """A stage begins."""
        self._title, self._total, self._done, self._unit = title, total, 0, unit
        self._show(at_once=True)

    def advance(self, done: int) -> None:
        """So many of them are done."""
        self._done = done
        self._show(at_once=done == self._total)

    def note(self, text: str) -> None:
        """Something worth a line; the last of them are shown."""
        self._notes = [*self._notes, text][-_NOTES:]
        self._show(at_once=True)

    def left(self, text: str) -> None:
        """What is left of the whole run."""
        self._left = text

    @property
    def page(self) -> str:
        """What is shown, as HTML; all that it says is escaped."""
        bar = ""
        if self._total:
            bar = f'<progress value="{self._done}" max="{self._total}" style="vertical-align:middle"></progress> '
        count = f" {self._done} of {self._total} {self._unit}s" if self._total else ""
        left = f" · {html.escape(self._left)}" if self._left else ""
        notes = "".join(f"<div>{html.escape(text)}</div>" for text in self._notes)
        small = f'<div style="opacity:.75;font-size:.9em">{notes}</div>' if notes else ""
        return f"<div>{bar}{html.escape(self._title)}{count}{left}{small}</div>"

    def __repr__(self) -> str:
        """What is shown where HTML is not."""
        return f"{self._title} ({self._done} of {self._total})" if self._total else self._title

    def _show(self, at_once: bool) -> None:
        now = time.monotonic()
        if not at_once and now - self._last < _EVERY:
            return
        self._last = now
        from IPython.display import HTML, display  # type: ignore[import-not-found,unused-ignore]  # a notebook has it

        if self._shown is None:
            self._shown = display(HTML(self.page), display_id=True)
        else:
            self._shown.update(HTML(self.page))
