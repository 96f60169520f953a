"""The process that TensorRT runs in, seen from outside: it may crash, hang or be killed, and nothing is lost.

Standard output and standard error of the process go to `log`, where TensorRT's logger writes too (`LogKeeper`): the
last lines before a crash are there, and end up in the error.
"""

from __future__ import annotations

import contextlib
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

from precisionlab.backends.tensorrt.worker import (
    Answer,
    Asked,
    Broke,
    Call,
    Done,
    Failed,
    Handler,
    Open,
    Refusal,
    Told,
    receive,
    send,
)
from precisionlab.errors import BuildError, EngineError, OptionError
from precisionlab.system.plainfiles import open_to_append, open_to_read

Callback = Callable[..., Any]

_TICK = 0.2
"""Seconds between two looks at the clock and at the process's memory."""
_LEAVING = 5.0
"""Seconds that a process gets to end by itself."""
_LAST_LINES = 6
_LONGEST_LINE = 400
_TAIL_BYTES = 64 * 1024
_CRASH_DUMP = ("Fatal Python error:", "Windows fatal exception:")
_WORDS = {
    "SIGKILL": "was killed by SIGKILL (out of memory?)",
    "SIGSEGV": "crashed with a segmentation fault (SIGSEGV)",
    "SIGABRT": "aborted (SIGABRT)",
    "SIGBUS": "crashed with a bus error (SIGBUS; is a disk or /dev/shm full?)",
    "SIGILL": "crashed with an illegal instruction (SIGILL)",
    "SIGFPE": "crashed with an arithmetic error (SIGFPE)",
}
_WINDOWS = {
    0xC0000005: "crashed with an access violation (0xC0000005)",
    0xC00000FD: "crashed with a stack overflow (0xC00000FD)",
    0xC0000135: "could not start, a DLL is missing (0xC0000135)",
    0xC0000374: "crashed with a corrupted heap (0xC0000374)",
    0xC0000409: "aborted (0xC0000409)",
}


class EngineProcess:
    """Keeps one process, in which a factory's handlers answer calls; starts a fresh one where that has died.

    A context manager. `started` counts the processes so far: what a handler has kept (a loaded engine) is gone when
    it has grown. One call at a time.
    """

    def __init__(
        self,
        factory: Callable[..., Mapping[str, Handler]],
        *args: Any,
        log: Path,
        memory: int | None = None,
    ) -> None:
        """`factory(link, *args)` is called in the process, and gives the handlers by name.

        It is imported there by its name, so it must not be of a script's `__main__`. `memory` is how many bytes of
        host memory the process may have in use; beyond, it is ended. (Watched from outside, on Linux alone: an address
        space limit makes CUDA fail at once, as it reserves more than the machine has.) Raises OptionError elsewhere.
        """
        if memory is not None and not sys.platform.startswith("linux"):
            raise OptionError("the memory of TensorRT's process can be limited on Linux alone")
        self.log = log
        self.started = 0
        self._open = Open(factory, args)
        self._memory = memory
        self._child: _Child | None = None
        self._busy = threading.Lock()

    def __enter__(self) -> EngineProcess:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def call(
        self,
        name: str,
        *args: Any,
        what: str | None = None,
        silence: float | None = None,
        callbacks: Mapping[str, Callback] | None = None,
    ) -> Any:
        """What the handler `name` answers to these arguments.

        `what` names the job in errors ("building digits.int8.engine"; by default `name`). `silence` is after how many
        seconds without any message the process counts as hanging. `callbacks` are what it can tell or ask meanwhile;
        what one raises comes out of this call.

        Raises the PrecisionLabError that the handler raised, and EngineError where it raised any other or its process
        died. After an EngineError that is no BuildError the process is given up: a GPU's context that has once failed
        fails from then on.
        """
        job = what or name
        with self._busy:
            try:
                child = self._ready(job, silence)
                return self._converse(child, Call(name, args), job, silence, callbacks or {})
            except BaseException as error:
                # Ctrl-C or a callback may have left it in the middle of anything.
                busy = self._child is None or self._child.busy
                if busy or (isinstance(error, EngineError) and not isinstance(error, BuildError)):
                    self._give_up()
                raise

    def close(self) -> None:
        """End the process, if one runs."""
        child, self._child = self._child, None
        if child is not None:
            child.end(_LEAVING)

    def _ready(self, job: str, silence: float | None) -> _Child:
        """The process that runs, or a fresh one with its handlers made."""
        if self._child is not None and not self._child.alive:
            self._give_up()
        if self._child is None:
            self._child = _Child(self.log)
            self.started += 1
            try:
                self._converse(self._child, self._open, f"start of {job}", silence, {})
            except BaseException:
                self._give_up()
                raise
        return self._child

    def _converse(
        self, child: _Child, message: Any, job: str, silence: float | None, callbacks: Mapping[str, Callback]
    ) -> Any:
        """Send the message, and hear the process out until it is done."""
        child.busy = True
        said_before = child.log_size()
        kept: Exception | None = None
        heard = looked = time.monotonic()
        try:
            child.send(message)
        except OSError:
            raise self._died(child, job, said_before) from None
        while True:
            found = child.next(_TICK)
            now = time.monotonic()
            if self._memory is not None and now - looked >= _TICK:
                looked = now
                if (used := child.memory()) > self._memory:
                    child.end(0)
                    how = f"was ended: it took {_size(used)} of memory, {_size(self._memory)} are allowed"
                    raise EngineError(self._text(child, job, how, said_before))
            if found is None:
                if silence is not None and now - heard > silence:
                    child.end(0)
                    raise EngineError(self._text(child, job, f"was ended: it hung for {silence:g} s", said_before))
                continue
            heard = now
            if isinstance(found, Told):
                if found.name in callbacks:
                    callbacks[found.name](*found.args)
                continue
            if isinstance(found, Asked):
                try:
                    answer: Answer | Refusal = Answer(callbacks[found.name](*found.args))
                except Exception as error:  # raised where the call ends: the handler first leaves in order
                    kept, answer = error, Refusal()
                with contextlib.suppress(OSError):  # gone meanwhile: the next message says so
                    child.send(answer)
                heard = time.monotonic()
                continue
            if isinstance(found, _Gone):
                raise kept or self._died(child, job, said_before)
            child.busy = False
            if kept is not None:
                raise kept
            if isinstance(found, Failed):
                raise found.error
            if isinstance(found, Broke):
                raise EngineError(f"{job}: {found.text} (all of it in {self.log})")
            assert isinstance(found, Done)
            return found.value

    def _died(self, child: _Child, job: str, said_before: int) -> EngineError:
        return EngineError(self._text(child, job, how_it_died(child.end(_LEAVING)), said_before))

    def _text(self, child: _Child, job: str, how: str, said_before: int) -> str:
        lines = child.last_lines(said_before)
        words = f" Its last words: {' | '.join(lines)}" if lines else " It said nothing before."
        return f"{job}: TensorRT's process {how}.{words} (all of it in {self.log})"

    def _give_up(self) -> None:
        child, self._child = self._child, None
        if child is not None:
            child.end(0)


def how_it_died(code: int) -> str:
    """How a process ended, in words, from its exit code (negative: a signal's number; Windows has codes of its own)."""
    if code < 0:
        try:
            name = signal.Signals(-code).name
        except ValueError:
            name = f"signal {-code}"
        return _WORDS.get(name, f"was ended by {name}")
    return _WINDOWS.get(code, f"exited with code {code}")


class _Gone:
    """In the place of a message: the pipe is closed."""


class _Child:
    """One process, and the thread that listens to it."""

    def __init__(self, log: Path) -> None:
        self._log = log
        start = "from precisionlab.backends.tensorrt.worker import main; main()"
        # The parent's sys.path, as precisionlab itself may have been found there alone. `-m` would take the package's
        # folder for granted, and running the file would put a folder with a `cuda.py` in front.
        command = [sys.executable, "-c", f"import sys; sys.path[:] = {sys.path!r}; {start}"]
        try:
            log.parent.mkdir(parents=True, exist_ok=True)
            with open_to_append(log.parent, log.name) as stream:
                self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=stream)
        except OSError as error:
            raise EngineError(f"TensorRT's process cannot be started, its log is {log}: {error}") from None
        self.busy = False
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._incoming: BinaryIO = self._process.stdin  # type: ignore[assignment]
        self._messages: queue.Queue[Any] = queue.Queue()
        self._listener = threading.Thread(target=self._listen, args=(self._process.stdout,), daemon=True)
        self._listener.start()

    @property
    def alive(self) -> bool:
        """Whether the process still runs."""
        return self._process.poll() is None

    def send(self, message: Any) -> None:
        """Send it a message. Raises OSError where it is gone."""
        send(self._incoming, message)

    def next(self, seconds: float) -> Any | None:
        """Its next message, `_Gone` where none will come any more, None where none came in time."""
        try:
            return self._messages.get(timeout=seconds)
        except queue.Empty:
            if self.alive:
                return None
        # Its end of the pipe may be open in a process that was forked meanwhile, and never seem to close.
        self._listener.join(_LEAVING)
        return _Gone() if self._messages.empty() else self._messages.get()

    def memory(self) -> int:
        """How many bytes of host memory it has in use (Linux)."""
        try:
            status = Path(f"/proc/{self._process.pid}/status").read_text()
        except OSError:
            return 0  # gone, or about to be
        return next((int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmRSS:")), 0)

    def end(self, seconds: float) -> int:
        """Let it end by itself within so many seconds, or end it; its exit code."""
        with contextlib.suppress(OSError):
            self._incoming.close()
        try:
            return self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            self._process.kill()
            return self._process.wait()

    def log_size(self) -> int:
        """How long the log is by now."""
        try:
            return self._log.stat().st_size
        except OSError:
            return 0

    def last_lines(self, start: int) -> tuple[str, ...]:
        """The last lines that were written to the log behind `start`, without Python's dump of a crash."""
        try:
            with open_to_read(self._log.parent, self._log.name) as stream:
                stream.seek(max(start, self.log_size() - _TAIL_BYTES))
                lines = stream.read().decode("utf-8", errors="replace").splitlines()
        except OSError:
            return ()
        dump = next((i for i, line in enumerate(lines) if line.startswith(_CRASH_DUMP)), len(lines))
        said = [line.strip() for line in lines[:dump] if line.strip()]
        return tuple(line[:_LONGEST_LINE] for line in said[-_LAST_LINES:])

    def _listen(self, stream: BinaryIO) -> None:
        try:
            while True:
                self._messages.put(receive(stream))
        except Exception as error:  # the end of the pipe; or a message that cannot be read, and none can after it
            self._messages.put(
                _Gone() if isinstance(error, (EOFError, OSError)) else Broke(f"its answer cannot be read: {error}")
            )
            self._messages.put(_Gone())
        finally:
            stream.close()


def _size(count: int) -> str:
    return f"{count / 1024**3:.1f} GiB" if count >= 1024**3 else f"{count / 1024**2:.0f} MiB"
