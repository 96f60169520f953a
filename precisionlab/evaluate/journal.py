"""A journal of finished evaluations, that a killed run goes on from.

A line of JSON for each, with a digest over the run's context, the key and the value: a line that a kill has cut short,
a disk has damaged or somebody has edited does not fit its digest, is dropped, and what it said is measured again. The
digest is no signature: who wants to can write a line that fits, and what it does to a plan is for `verify` to see.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

from precisionlab.plan.plan import PrecisionPlan
from precisionlab.system.disk import write_whole
from precisionlab.system.plainfiles import LinkError, is_there, open_to_append, open_to_read
from precisionlab.system.wording import counted

JOURNAL = "journal.jsonl"

_LARGEST = 1 << 32  # bytes; ten times what 5,000 layers and 200 evaluations take
_LONGEST = 1 << 28  # bytes of a line
_DIGITS = 16  # of SHA-256, in hexadecimal
_LONGEST_NUMBER = 20  # digits of a whole one: those of int64, and a sign

Warn = Callable[[str], None]


class Journal(Protocol):
    """Where finished evaluations are noted, and found again."""

    def known(self, key: Mapping[str, Any]) -> Any | None:
        """What was recorded under this key, if anything was."""
        ...

    def record(self, key: Mapping[str, Any], value: Any) -> None:
        """Note a finished evaluation; another under the same key takes the place of the first."""
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


class JournalFile:
    """The journal of one context (model, data, options, versions): with another one it starts afresh."""

    def __init__(self, folder: Path, context: Mapping[str, Any], warn: Warn) -> None:
        """Open it, or make it. Raises OSError where that fails, a LinkError where the name is a link."""
        self._folder = folder
        self._context = digest_of(context)
        self._entries: dict[str, Any] = {}
        self.is_new = not is_there(folder, JOURNAL)
        self._read(warn)

    def known(self, key: Mapping[str, Any]) -> Any | None:
        """What was recorded under this key, if anything was."""
        return self._entries.get(digest_of(key))

    def record(self, key: Mapping[str, Any], value: Any) -> None:
        """Note a finished evaluation; it is on disk when this returns. Raises OSError where it cannot be."""
        name = digest_of(key)
        _append(self._folder, self._line(name, value).encode())
        self._entries[name] = value

    def remove(self) -> None:
        """Remove the file."""
        (self._folder / JOURNAL).unlink(missing_ok=True)

    def _read(self, warn: Warn) -> None:
        lines, is_alone = ([], True) if self.is_new else self._lines()
        if lines and _parsed(lines[0]) == {"context": self._context}:
            found = [self._entry(line) for line in lines[1:]]
            self._entries = dict(entry for entry in found if entry is not None)
            dropped = found.count(None)
            if not dropped and is_alone:
                return
            # The last line alone is what a kill cuts short.
            if dropped > (found[-1] is None):
                it, said = ("it", "it said") if dropped == 1 else ("them", "they said")
                lines_of = f"{self._folder / JOURNAL}: {counted(dropped, 'line')}"
                warn(f"{lines_of} not as precisionlab wrote {it}; what {said} is measured again")
        # Written anew where the context is another, a line was dropped, or the file has other names beside this one.
        head = json.dumps({"context": self._context}) + "\n"
        write_whole(self._folder / JOURNAL, head + "".join(self._line(k, v) for k, v in self._entries.items()))

    def _lines(self) -> tuple[list[bytes], bool]:
        """The file's lines, and whether no other name stands for the same file."""
        lines: list[bytes] = []
        with open_to_read(self._folder, JOURNAL) as stream:
            facts = os.fstat(stream.fileno())
            if facts.st_size > _LARGEST:
                raise LinkError(self._folder / JOURNAL, f"larger than {_LARGEST >> 30} GiB; remove it")
            while line := stream.readline(_LONGEST):
                lines.append(line)
                if not line.endswith(b"\n"):
                    break  # cut short, or no line of ours
            return lines, facts.st_nlink == 1

    def _entry(self, line: bytes) -> tuple[str, Any] | None:
        entry = _parsed(line)
        if entry is None or set(entry) != {"key", "value", "sha256"} or not isinstance(entry["key"], str):
            return None
        return (entry["key"], entry["value"]) if line == self._line(entry["key"], entry["value"]).encode() else None

    def _line(self, name: str, value: Any) -> str:
        digest = digest_of([self._context, name, value])[:_DIGITS]
        return json.dumps({"key": name, "value": value, "sha256": digest}) + "\n"


def digest_of(value: Any) -> str:
    """SHA-256 of a value's JSON, whatever the order of its keys."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def _append(folder: Path, line: bytes) -> None:
    """Add a line, which is on disk when this returns; where the disk takes but half of it, that half goes again."""
    with open_to_append(folder, JOURNAL) as stream:
        before = stream.seek(0, os.SEEK_END)
        try:
            rest = memoryview(line)
            while rest:
                rest = rest[stream.write(rest) :]
            os.fsync(stream.fileno())
        except OSError:
            stream.truncate(before)
            raise


def _parsed(line: bytes) -> dict[str, Any] | None:
    if not line.endswith(b"\n"):
        return None
    try:
        entry = json.loads(line, parse_int=_whole_number)
    except (ValueError, RecursionError):
        return None
    return entry if isinstance(entry, dict) else None


def _whole_number(token: str) -> int:
    """No count of ours is longer, and what is would break whatever computes with it."""
    if len(token) > _LONGEST_NUMBER:
        raise ValueError(f"{token[:_LONGEST_NUMBER]}… has too many digits")
    return int(token)
