"""Standard streams that may be closed or full: what is told beside the result never ends the work."""

from __future__ import annotations

import io
import os
import sys
from pathlib import Path
from typing import Any, TextIO

_ERROR = 2  # the descriptor of standard error


class _Forgiving(io.RawIOBase):
    """Writes to a descriptor what that takes, and forgets the rest."""

    def __init__(self, handle: int) -> None:
        super().__init__()
        self._handle = handle

    def writable(self) -> bool:
        return True

    def isatty(self) -> bool:
        return os.isatty(self._handle)

    def fileno(self) -> int:
        return self._handle

    def write(self, content: Any) -> int:
        rest = memoryview(content).cast("B")
        count = len(rest)
        try:
            while rest:
                rest = rest[os.write(self._handle, rest) :]
        except OSError:
            pass
        return count


def prepare_streams() -> bool:
    """Make both streams bear what may happen to them; the answer is whether standard output was there at all.

    A terminal that has no sign for ∞ must not end the run, nor must a standard error that is closed, or a full file.
    """
    has_output = sys.stdout is not None
    if not has_output:  # its descriptor would be given to the next file that is opened
        sys.stdout = _nowhere()
    if sys.stderr is None:
        sys.stderr = _nowhere()
    elif _is_on(_ERROR, sys.stderr):
        stream = io.BufferedWriter(_Forgiving(_ERROR))
        sys.stderr = io.TextIOWrapper(stream, sys.stderr.encoding, "replace", line_buffering=True)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")
    return has_output


def _nowhere() -> TextIO:
    return Path(os.devnull).open("w", encoding="utf-8")  # for as long as the process lives


def _is_on(handle: int, stream: TextIO) -> bool:
    try:
        return isinstance(stream, io.TextIOWrapper) and stream.fileno() == handle
    except OSError:  # what stands in its place for a test has none
        return False
