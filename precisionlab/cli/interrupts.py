"""Ctrl-C and SIGTERM: the work is left at once, and what is begun beside it ends too, however often it is asked.

The first signal raises KeyboardInterrupt, so that files are put in order on the way out. Where that takes too long, or
another signal comes, the workers are ended by their ids, and the process itself: a run goes on from its journal
whatever is left undone.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from contextlib import suppress
from types import FrameType

from precisionlab.system.children import end_workers

INTERRUPTED = 130  # 128 + SIGINT, as shells have it
TERMINATED = 143  # 128 + SIGTERM

_PATIENCE = 3.0
"""Seconds that putting things in order may take."""

_STOPPED = "precisionlab: stopped; the same command goes on from here"


class Interrupts:
    """Handles both signals, for as long as the process lives."""

    def __init__(self) -> None:
        self.code = INTERRUPTED
        self._came = False

    def install(self) -> None:
        """Take the signals that a terminal or a service manager sends; only the main thread can."""
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                if signal.getsignal(number) not in (signal.SIG_IGN, None):  # `nohup` and the like have said no to it
                    signal.signal(number, self._handle)

    def tell(self) -> None:
        """Say that the work was stopped."""
        print(_STOPPED, file=sys.stderr, flush=True)

    def leave(self) -> None:
        """End this process where a signal came: Python's own way out waits for threads, and heeds signals again."""
        if self._came:
            for number in (signal.SIGINT, signal.SIGTERM):
                signal.signal(number, signal.SIG_IGN)
            end_workers()
            for stream in (sys.stdout, sys.stderr):
                with suppress(OSError):
                    stream.flush()
            os._exit(self.code)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self._came:
            self._end()
        self._came = True
        self.code = TERMINATED if number == signal.SIGTERM else INTERRUPTED
        patience = threading.Timer(_PATIENCE, self._end)
        patience.daemon = True
        patience.start()
        raise KeyboardInterrupt

    def _end(self) -> None:
        """End the workers, and this process, without another word from either."""
        try:
            self.tell()
        except (OSError, RuntimeError):  # the signal came in the middle of another line's print
            with suppress(OSError):
                os.write(2, f"{_STOPPED}\n".encode())
        end_workers()
        os._exit(self.code)
