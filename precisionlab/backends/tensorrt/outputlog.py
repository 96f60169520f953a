"""What TensorRT's own logger prints, read back when somebody asks.

A logger in Python is called for every line of every severity, through the bindings and the interpreter's lock; a real
build says hundreds of thousands of VERBOSE ones. `trt.Logger` is written in C++, and drops what is less severe than it
was made for before Python hears of it; the rest goes to the process's standard output, which is a file here:

    [11/27/2026-23:49:38] [TRT] [W] the message, which may have several lines

(pyCore.cpp of the bindings, `DefaultLogger`; the same from 8.6.1 to 11.4.) Only TensorRT-RTX needs VERBOSE lines, where
the builder describes the engine's layers: elsewhere the engine's inspector does.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from precisionlab.backends.tensorrt.logger import LogKeeper, make_logger
from precisionlab.system.plainfiles import open_to_read

_SEVERITIES = {"F": "INTERNAL_ERROR", "E": "ERROR", "W": "WARNING"}
_STAMP = re.compile(r"\[\d\d/\d\d/\d{4}-\d\d:\d\d:\d\d\] \[TRT\] \[([FEWIV])\] ")
_MOST = 64 * 1024 * 1024
"""Bytes that are read at once; of more, the last."""


class OutputKeeper(LogKeeper):
    """Keeps what matters of what `trt.Logger` has printed to `output`, the file that the process's output goes to.

    Without VERBOSE lines it knows of no layers, and it has no `tail`.
    """

    def __init__(self, output: Path) -> None:
        self._output = output
        self._from = 0
        super().__init__()
        self._from = self._end()

    @property
    def errors(self) -> tuple[str, ...]:
        """The different errors, in the order that they came in."""
        self._catch_up()
        return super().errors

    @property
    def warnings(self) -> tuple[str, ...]:
        """The different warnings, in the order that they came in."""
        self._catch_up()
        return super().warnings

    def forget(self) -> None:
        """Start over, as for another build: what was printed so far is left unread."""
        self._from = self._end()
        super().forget()

    def _end(self) -> int:
        try:
            return self._output.stat().st_size
        except OSError:
            return 0

    def _catch_up(self) -> None:
        """Take the messages that were printed since; of an unfinished line nothing, until it is whole."""
        with self._lock:
            if self._end() <= self._from:
                return
            content = b""

            def read() -> None:
                nonlocal content
                with open_to_read(self._output.parent, self._output.name) as stream:
                    stream.seek(max(self._from, self._end() - _MOST))
                    content = stream.read()

            self._writing(read)
            whole = content[: content.rfind(b"\n") + 1]
            self._from += len(whole)
            for severity, text in messages(whole.decode("utf-8", "backslashreplace")):
                if severity in _SEVERITIES:
                    self.take(_SEVERITIES[severity], text)


def messages(text: str) -> list[tuple[str, str]]:
    """The letter of each message's severity, and the message; what stands before the first belongs to none."""
    found: list[tuple[str, list[str]]] = []
    for line in text.split("\n"):
        stamp = _STAMP.match(line)
        if stamp is not None:
            found.append((stamp[1], [line[stamp.end() :]]))
        elif found:
            found[-1][1].append(line)
    return [(severity, "\n".join(lines).rstrip()) for severity, lines in found]


def keeper_for(trt: Any, log: Path) -> LogKeeper:
    """What keeps the messages of this TensorRT, in a process whose output goes to `log`."""
    return LogKeeper(log) if hasattr(trt, "ComputeCapability") else OutputKeeper(log)


def logger_for(trt: Any, keeper: LogKeeper) -> Any:
    """The logger that hands messages on to `keeper`: TensorRT's own, of INFO on, where the keeper reads its output."""
    if isinstance(keeper, OutputKeeper):
        return trt.Logger(trt.ILogger.Severity.INFO)
    return make_logger(trt, keeper)
