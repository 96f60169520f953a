"""Standard streams that may be closed or full: what is told beside the result never ends the work."""

from __future__ import annotations

import io
import os
import sys
from pathlib import Path
from typing import Any, TextIO

_OUTPUT, _ERROR = 1, 2  # descriptors


class OutputError(OSError):
    """Standard output takes no more."""


class _Telling(io.RawIOBase):
    """Writes to a descriptor; that it fails is told apart from a failure with any other file."""

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
        """Write some of it. Raises OutputError."""
        try:
            return os.write(self._handle, content)
        except BrokenPipeError:
            raise
        except OSError as error:
            raise OutputError(error.errno, error.strerror) from None


class _Forgiving(_Telling):
    """Writes what the descriptor takes, and forgets the rest."""

    def write(self, content: Any) -> int:
        """Write some of it, or nothing."""
        try:
            return super().write(content)
        except OSError:
            return len(memoryview(content).cast("B"))


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
        sys.stderr = _around(_Forgiving(_ERROR), sys.stderr)
    if has_output and _is_on(_OUTPUT, sys.stdout):
        sys.stdout = _around(_Telling(_OUTPUT), sys.stdout)
    elif isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")
    return has_output


def _around(raw: io.RawIOBase, like: TextIO) -> TextIO:
    like.flush()
    stream = io.BufferedWriter(raw)
    return io.TextIOWrapper(
        stream, like.encoding, "replace", line_buffering=raw.isatty() or isinstance(raw, _Forgiving)
    )


def _nowhere() -> TextIO:
    return Path(os.devnull).open("w", encoding="utf-8")  # for as long as the process lives


def _is_on(handle: int, stream: TextIO) -> bool:
    try:
        return isinstance(stream, io.TextIOWrapper) and stream.fileno() == handle
    except OSError:  # what stands in its place for a test has none
        return False
