"""What runs in TensorRT's process: a loop that takes calls, and answers them.

Messages go through the process's own standard input and output, which are then taken away from everybody else: what
TensorRT, its plugins or a handler print goes to standard error, and from there to the log. A message is eight bytes of
length and a pickle.

The process ends with its parent: when the pipe closes or the parent is gone, whatever it does at that moment. (Not by
PR_SET_PDEATHSIG: that one acts when the parent's *thread* ends that had started the process.)
"""

from __future__ import annotations

import faulthandler
import os
import pickle
import queue
import signal
import struct
import sys
import threading
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, BinaryIO

from precisionlab.errors import PrecisionLabError

Handler = Callable[..., Any]
_LENGTH = struct.Struct("<Q")
_PARENT_LOOKED_FOR = 1.0
"""Seconds between two looks whether the parent is still there."""


@dataclass(frozen=True)
class Open:
    """The first message to a process: `factory(link, *args)` gives the handlers, by name."""

    factory: Callable[..., Mapping[str, Handler]]
    args: tuple[Any, ...]


@dataclass(frozen=True)
class Call:
    """Call a handler."""

    name: str
    args: tuple[Any, ...]


@dataclass(frozen=True)
class Answer:
    """The answer to what the process has asked."""

    value: Any


@dataclass(frozen=True)
class Refusal:
    """There is no answer: the parent's callback has failed, and keeps its error for itself."""


@dataclass(frozen=True)
class Told:
    """From the process: something to hear, that needs no answer."""

    name: str
    args: tuple[Any, ...]


@dataclass(frozen=True)
class Asked:
    """From the process: something that needs an answer."""

    name: str
    args: tuple[Any, ...]


@dataclass(frozen=True)
class Done:
    """From the process: the handler's result."""

    value: Any


@dataclass(frozen=True)
class Failed:
    """From the process: the handler has raised this, as it may."""

    error: PrecisionLabError


@dataclass(frozen=True)
class Broke:
    """From the process: the handler has raised what it should not; its traceback is in the log."""

    text: str


class RefusedError(Exception):
    """In the process: the parent could not answer. Let it pass; the parent raises its own error."""


def send(stream: BinaryIO, message: Any) -> None:
    """Write one message. Raises OSError where nobody is there to read it, and whatever pickle raises."""
    content = pickle.dumps(message, protocol=pickle.HIGHEST_PROTOCOL)
    stream.write(_LENGTH.pack(len(content)))
    stream.write(content)
    stream.flush()


def receive(stream: BinaryIO) -> Any:
    """Read one message. Raises EOFError where the other side is gone."""
    (length,) = _LENGTH.unpack(_exactly(stream, _LENGTH.size))
    return pickle.loads(_exactly(stream, length))


def _exactly(stream: BinaryIO, length: int) -> bytes:
    content = stream.read(length)
    if len(content) < length:
        raise EOFError
    return content


class Link:
    """The process's side of the pipe. Handlers reach the parent through it, from any thread."""

    def __init__(self, incoming: BinaryIO, outgoing: BinaryIO) -> None:
        self._incoming, self._outgoing = incoming, outgoing
        self._messages: queue.Queue[Any] = queue.Queue()
        self._sending = threading.Lock()
        self._asking = threading.Lock()

    def start(self) -> None:
        """Begin to listen, and to watch over the parent."""
        threading.Thread(target=self._listen, daemon=True).start()
        threading.Thread(target=_leave_with, args=(os.getppid(),), daemon=True).start()

    def tell(self, name: str, *args: Any) -> None:
        """Let the parent's callback `name` hear something."""
        self._send(Told(name, args))

    def ask(self, name: str, *args: Any) -> Any:
        """What the parent's callback `name` answers. Raises RefusedError where that has failed."""
        with self._asking:  # the next answer is to this question
            self._send(Asked(name, args))
            message = self._messages.get()
        if isinstance(message, Refusal):
            raise RefusedError
        return message.value

    def serve(self) -> None:
        """Take the factory, then calls, one after the other, for as long as the process lives."""
        handlers: Mapping[str, Handler] = {}
        while True:
            message = self._messages.get()
            answer: Done | Failed | Broke
            try:
                if isinstance(message, Open):
                    handlers, value = message.factory(self, *message.args), None
                else:
                    value = handlers[message.name](*message.args)
                answer = Done(value)
            except PrecisionLabError as error:
                answer = Failed(error)
            except RefusedError:
                answer = Broke("the parent did not answer")
            except Exception as error:  # whatever it is, the parent is told
                traceback.print_exc()
                answer = Broke(_text(error))
            try:
                self._send(answer)
            except (pickle.PicklingError, TypeError, AttributeError, ValueError) as error:
                self._send(Broke(f"its answer cannot be sent: {error}"))

    def _send(self, message: Any) -> None:
        with self._sending:
            send(self._outgoing, message)

    def _listen(self) -> None:
        try:
            while True:
                self._messages.put(receive(self._incoming))
        except EOFError:
            pass
        except BaseException:  # a message that cannot be read: its factory or its classes cannot be imported here
            traceback.print_exc()
            sys.stderr.flush()
        os._exit(1)


def _text(error: Exception) -> str:
    text = str(error).strip()
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def _leave_with(parent: int) -> None:
    """End this process when its parent is gone, though a process that the parent has forked may hold the pipe."""
    while os.getppid() == parent:
        time.sleep(_PARENT_LOOKED_FOR)
    os._exit(1)


def main() -> None:
    """The process: see the module's first lines."""
    incoming = os.fdopen(os.dup(0), "rb")
    outgoing = os.fdopen(os.dup(1), "wb")
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    os.dup2(2, 1)
    faulthandler.enable()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's affair, which ends this process
    link = Link(incoming, outgoing)
    link.start()
    link.serve()
