"""What a run has told of its way, in a file of its folder: a live display leaves nothing behind."""

from __future__ import annotations

import time
from contextlib import suppress
from pathlib import Path

from precisionlab.system.observer import Observer, Tried, tell_of
from precisionlab.system.plainfiles import open_to_append
from precisionlab.system.wording import counted, one_line

RUN_LOG = "run.log"


class RunLog:
    """Tells an observer how work goes, and keeps it as lines, each with its time.

    The lines wait until there is a folder that they belong to: input that is refused leaves none. A log that cannot be
    written never ends the work.
    """

    def __init__(self, observer: Observer) -> None:
        self._observer = observer
        self._waiting: list[str] = []
        self._folder: Path | None = None

    def begin(self, folder: Path) -> None:
        """Write them to this folder from now on, behind those of earlier runs."""
        self._folder = folder
        waiting, self._waiting = self._waiting, []
        self._write(waiting)

    def stage(self, title: str, total: int, unit: str = "sample") -> None:
        """A stage begins."""
        self._add(f"{title} ({counted(total, unit)})")
        self._observer.stage(title, total, unit)

    def advance(self, done: int) -> None:
        """So many are done."""
        self._observer.advance(done)

    def note(self, text: str) -> None:
        """Something worth a line."""
        self._add(text)
        self._observer.note(text)

    def tried(self, plan: Tried) -> None:
        """A plan has been evaluated."""
        self._add(plan.line)
        tell_of(plan, self._observer)

    def _add(self, text: str) -> None:
        line = f"{time.strftime('%Y-%m-%d %H:%M:%S')}  {one_line(text)}\n"
        if self._folder is None:
            self._waiting.append(line)
        else:
            self._write([line])

    def _write(self, lines: list[str]) -> None:
        if self._folder is not None and lines:
            with suppress(OSError), open_to_append(self._folder, RUN_LOG) as stream:
                stream.write("".join(lines).encode("utf-8", "backslashreplace"))
