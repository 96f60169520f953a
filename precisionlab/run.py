"""A run's folder: its files, and a journal that a killed run goes on from."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Collection, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from typing import Any, Protocol

from precisionlab.disk import drafted, make_folder, told, write_whole
from precisionlab.precision import PrecisionPlan


class Journal(Protocol):
    """Where finished evaluations are noted, and found again."""

    def known(self, key: Mapping[str, Any]) -> Any | None:
        """What was recorded under this key, if anything was."""
        ...

    def record(self, key: Mapping[str, Any], value: Any) -> None:
        """Note a finished evaluation."""
        ...

    def keep_plan(self, name: str, plan: PrecisionPlan) -> None:
        """Note the best plan of a search so far."""
        ...


class NoJournal:
    """Keeps nothing: whatever is asked is done anew."""

    def known(self, key: Mapping[str, Any]) -> Any | None:
        """Nothing."""
        return None

    def record(self, key: Mapping[str, Any], value: Any) -> None:
        """Nothing."""

    def keep_plan(self, name: str, plan: PrecisionPlan) -> None:
        """Nothing."""


class RunFolder:
    """The folder of one run, and its journal of finished evaluations.

    The journal is a line of JSON for each; a line that a kill has cut short is dropped. It belongs to
    one context (model, data, options, versions): with another one it starts afresh.
    """

    def __init__(self, path: Path, context: Mapping[str, Any]) -> None:
        """Make the folder, or open it. Raises OptionError where it cannot be written."""
        self.path = path
        self._journal = path / "journal.jsonl"
        self._context = _digest(context)
        self._entries: dict[str, Any] = {}
        with self._writing():
            self._made = make_folder(path)
            self._is_new = not self._journal.exists()
            self._read()

    def _read(self) -> None:
        text = self._journal.read_text(encoding="utf-8", errors="replace") if self._journal.exists() else ""
        lines = text.splitlines(keepends=True)
        entries = [e for line in lines if (e := _entry(line)) is not None]
        if entries and entries[0] == {"context": self._context}:
            self._entries = {e["key"]: e["value"] for e in entries[1:] if "key" in e and "value" in e}
            if len(entries) == len(lines):
                return
        # Written anew where the context is another, or where a kill has left half a line.
        kept = [{"context": self._context}, *({"key": k, "value": v} for k, v in self._entries.items())]
        write_whole(self._journal, "".join(json.dumps(e) + "\n" for e in kept))

    def known(self, key: Mapping[str, Any]) -> Any | None:
        """What was recorded under this key, if anything was."""
        return self._entries.get(_digest(key))

    def record(self, key: Mapping[str, Any], value: Any) -> None:
        """Note a finished evaluation; it is on disk when this returns."""
        name = _digest(key)
        with self._writing():
            _append(self._journal, (json.dumps({"key": name, "value": value}) + "\n").encode())
        self._entries[name] = value

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
        if self._is_new:
            self._journal.unlink(missing_ok=True)
            with suppress(OSError):  # somebody has put something else there
                for folder in self._made:
                    folder.rmdir()

    def _writing(self) -> AbstractContextManager[None]:
        return told(self.path, "choose another folder with --out")


def _append(path: Path, line: bytes) -> None:
    """Add a line, which is on disk when this returns; where the disk takes but half of it, that half goes again."""
    with path.open("ab", buffering=0) as stream:
        before = stream.seek(0, os.SEEK_END)
        try:
            rest = memoryview(line)
            while rest:
                rest = rest[stream.write(rest) :]
            os.fsync(stream.fileno())
        except OSError:
            stream.truncate(before)
            raise


def _entry(line: str) -> dict[str, Any] | None:
    if not line.endswith("\n"):
        return None
    try:
        entry = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return entry if isinstance(entry, dict) else None


def _digest(value: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
