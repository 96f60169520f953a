"""A run's folder: its files, and the journal that a killed run goes on from."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from typing import Any

from precisionlab.evaluate.journal import JournalFile, Warn
from precisionlab.plan.plan import PrecisionPlan
from precisionlab.system.disk import drafted, make_folder, told, write_whole


class RunFolder:
    """The folder of one run, and its journal of finished evaluations."""

    def __init__(self, path: Path, context: Mapping[str, Any], warn: Warn) -> None:
        """Make the folder, or open it. Raises OptionError where it cannot be written.

        `warn` is told where the journal is not as it was written.
        """
        self.path = path
        with self._writing():
            self._made = make_folder(path)
            self._journal = JournalFile(path, context, warn)

    def known(self, key: Mapping[str, Any]) -> Any | None:
        """What was recorded under this key, if anything was."""
        return self._journal.known(key)

    def record(self, key: Mapping[str, Any], value: Any) -> None:
        """Note a finished evaluation; it is on disk when this returns."""
        with self._writing():
            self._journal.record(key, value)

    def keep_plan(self, name: str, plan: PrecisionPlan) -> None:
        """Write the best plan so far, which a search that is cut short leaves behind."""
        self.write(f"best.{name}.json", json.dumps(plan.to_dict(), indent=2, ensure_ascii=False) + "\n")

    def drop_kept_plan(self, name: str) -> None:
        """Remove it again: the search has come to its end, and written what it found."""
        (self.path / f"best.{name}.json").unlink(missing_ok=True)

    def write(self, name: str, text: str) -> Path:
        """Write one of the run's files, whole or not at all."""
        with self._writing():
            write_whole(self.path / name, text)
        return self.path / name

    @contextmanager
    def results(self, gone: Collection[str]) -> Iterator[Path]:
        """A folder for drafts of the run's results, which take their places all together; see `drafted`."""
        with self._writing(), drafted(self.path, "run.json", gone) as drafts:
            yield drafts

    def discard(self) -> None:
        """Remove what this run has made, where nothing has come of it; what was there before stays."""
        if self._journal.is_new:
            self._journal.remove()
            with suppress(OSError):  # somebody has put something else there
                for folder in self._made:
                    folder.rmdir()

    def _writing(self) -> AbstractContextManager[None]:
        return told(self.path, "choose another folder with --out")
