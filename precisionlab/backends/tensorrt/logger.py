"""What TensorRT says while it works: kept in memory, and written to a file that outlives a crash."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from io import BufferedWriter, TextIOWrapper
from pathlib import Path
from typing import Any, TextIO

from precisionlab.system.plainfiles import open_to_append

_LETTERS = {"INTERNAL_ERROR": "F", "ERROR": "E", "WARNING": "W", "INFO": "I", "VERBOSE": "V"}
"""TensorRT's severities, worst first, and what stands for each in a line."""
_ERRORS = ("INTERNAL_ERROR", "ERROR")
_LAYERS = "Layers:"
_LONGEST = 10_000
"""Characters of one message that are kept or written; the engine's layers alone are kept whole."""


class Distinct:
    """Different texts in the order of their first appearance, `most` of them: the first half stay, then the newest."""

    def __init__(self, most: int) -> None:
        self._stays = max(1, most // 2)
        self._most = max(2, most)
        self._texts: dict[str, None] = {}

    def add(self, text: str) -> None:
        """Keep this text, if it is new."""
        if text in self._texts:
            return
        if len(self._texts) >= self._most:
            # What went wrong first is most often the cause, what went wrong last is where it ended.
            del self._texts[list(self._texts)[self._stays]]
        self._texts[text] = None

    def texts(self) -> tuple[str, ...]:
        """What has been kept."""
        return tuple(self._texts)


class LogKeeper:
    """Keeps what matters of TensorRT's messages; any thread may call it.

    Each line of `file` is a time, a letter (F, E, W, I) and a message of INFO or worse; it is with the operating system
    before the next is taken. `tail` is how many of the last messages of every severity are kept, `most` how many
    different errors, and as many warnings. A file that cannot be written is given up, and that becomes a warning.
    """

    _tail: deque[str]
    _errors: Distinct
    _warnings: Distinct
    _layers: str | None

    def __init__(self, file: Path | None = None, tail: int = 200, most: int = 100) -> None:
        # Re-entrant: the garbage collector may run inside `take`, and what TensorRT frees then may log.
        self._lock = threading.RLock()
        self._tail_length, self._most = tail, most
        self._stream: TextIO | None = None
        self._forget()
        if file is not None:
            self._writing(lambda: self._open(file))

    @property
    def errors(self) -> tuple[str, ...]:
        """The different errors, in the order that they came in."""
        return self._errors.texts()

    @property
    def warnings(self) -> tuple[str, ...]:
        """The different warnings, in the order that they came in."""
        return self._warnings.texts()

    @property
    def tail(self) -> tuple[str, ...]:
        """The last messages of all severities, each behind its letter."""
        with self._lock:
            return tuple(self._tail)

    @property
    def layers(self) -> str | None:
        """The last message that describes a built engine's layers; None where there was none."""
        return self._layers

    def take(self, severity: str, text: str) -> None:
        """Keep one message; `severity` is the name of TensorRT's: INTERNAL_ERROR, ERROR, WARNING, INFO or VERBOSE."""
        with self._lock:
            if text.startswith(_LAYERS):
                self._layers = text
            shown = text if len(text) <= _LONGEST else f"{text[:_LONGEST]} … ({len(text) - _LONGEST} characters more)"
            line = f"{_LETTERS.get(severity, '?')} {shown}"
            self._tail.append(line)
            if severity in _ERRORS:
                self._errors.add(shown)
            elif severity == "WARNING":
                self._warnings.add(shown)
            if severity != "VERBOSE":
                self._writing(lambda: self._write(line))

    def forget(self) -> None:
        """Start over, as for another build; the file goes on."""
        with self._lock:
            self._forget()

    def close(self) -> None:
        """Close the file. What was kept stays."""
        with self._lock:
            stream, self._stream = self._stream, None
            if stream is not None:
                self._writing(stream.close)

    def _forget(self) -> None:
        self._tail = deque(maxlen=self._tail_length)
        self._errors = Distinct(self._most)
        self._warnings = Distinct(self._most)
        self._layers = None

    def _open(self, file: Path) -> None:
        # A message may hold what is not text; it must not be the reason why the log ends.
        self._stream = TextIOWrapper(
            BufferedWriter(open_to_append(file.parent, file.name)), encoding="utf-8", errors="backslashreplace"
        )

    def _write(self, line: str) -> None:
        if self._stream is not None:
            self._stream.write(f"{time.strftime('%H:%M:%S')} {line}\n")
            self._stream.flush()

    def _writing(self, action: Callable[[], None]) -> None:
        try:
            action()
        except OSError as error:
            self._stream = None
            self._warnings.add(f"TensorRT's log file cannot be written: {error.strerror or error}")


def make_logger(trt: Any, keep: LogKeeper) -> Any:
    """A `trt.ILogger` that hands each message on to `keep`. It must outlive the TensorRT objects that get it."""

    class Logger(trt.ILogger):  # type: ignore[misc]
        """TensorRT's logger, for one `LogKeeper`."""

        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: Any, msg: str) -> None:
            """Called by TensorRT, from any of its threads."""
            try:
                keep.take(severity.name, msg)
            except BaseException:
                # The caller is C++ that lets nothing pass: some bindings print what leaves here, some end the process.
                return

    return Logger()
