"""What runs in the processes of test_trt_process.py: handlers that crash, hang and print, as TensorRT might."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from precisionlab.backends.tensorrt.api import RTX, load_tensorrt
from precisionlab.backends.tensorrt.logger import LogKeeper
from precisionlab.backends.tensorrt.process import EngineProcess
from precisionlab.backends.tensorrt.worker import Link, RefusedError
from precisionlab.errors import BuildError, DataError, EngineError, ModelError

if TYPE_CHECKING:
    from precisionlab.backends.tensorrt.jobs import BuildJob


class StrangeDataError(DataError):
    """A user's error whose pickle cannot be read again."""

    def __init__(self, one: str, two: str) -> None:
        super().__init__(f"{one} and {two}")


ERRORS: Mapping[str, Callable[[], Exception]] = {
    "BuildError": lambda: BuildError("no kernel for conv1"),
    "DataError": lambda: DataError("sample 3 is empty"),
    "EngineError": lambda: EngineError("CUDA error 700"),
    "ValueError": lambda: ValueError("not foreseen"),
    "MemoryError": MemoryError,
    "StrangeDataError": lambda: StrangeDataError("this", "that"),
}


def fail_to_open(link: Link) -> Mapping[str, Callable[..., Any]]:
    """A factory that finds no TensorRT."""
    raise EngineError("the Python package tensorrt is not installed")


def fail_by_model(link: Link) -> Mapping[str, Callable[..., Any]]:
    """A factory that fails by a user's error."""
    raise ModelError("no such model")


def crash_on_opening(link: Link) -> Mapping[str, Callable[..., Any]]:
    """A factory that takes the process with it."""
    os.abort()


def handlers(link: Link, log: Path) -> Mapping[str, Callable[..., Any]]:
    """All the handlers; what TensorRT would log goes to `log`."""
    keeper = LogKeeper(log)
    kept: dict[str, Any] = {}

    def note(text: str) -> None:
        keeper.take("ERROR", text)

    def segfault() -> None:
        note("about to read address 0")
        ctypes.string_at(0)

    def kill(number: int) -> None:
        note("about to be killed")
        os.kill(os.getpid(), number)
        time.sleep(60)

    def garbage() -> str:
        os.write(1, b"\x00\xff printed to file descriptor 1\n" * 2000)
        print("printed to sys.stdout")
        sys.stdout.flush()
        subprocess.run(["echo", "printed by a child of the child"], check=True)
        return "still understood"

    def fail(kind: str) -> None:
        raise ERRORS[kind]()

    def chat(seconds: float) -> str:
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            link.tell("progress", "still here")
            time.sleep(0.02)
        return "done"

    def batches() -> list[float]:
        sums = []
        while (batch := link.ask("batch", ["image"])) is not None:
            link.tell("progress", f"batch {len(sums) + 1}")
            sums.append(float(batch.sum()))
        return sums

    def batches_in_order() -> str:
        try:
            return str(batches())
        except RefusedError:
            note("left in order")
            return "a result in spite of the refusal"

    def take_memory(size: int) -> None:
        kept["memory"] = np.ones(size, np.uint8)
        for _ in range(600):  # and goes on talking
            link.tell("progress", "still here")
            time.sleep(0.02)

    def remember(name: str, value: Any) -> int:
        kept[name] = value
        return os.getpid()

    return {
        "echo": lambda value: value,
        "pid": os.getpid,
        "remember": remember,
        "recall": lambda name: kept.get(name),
        "abort": lambda: (note("about to abort"), os.abort()),
        "segfault": segfault,
        "kill": kill,
        "exit": lambda code: (note("about to exit"), os._exit(code)),
        "sys.exit": lambda: sys.exit(7),
        "hang": lambda: time.sleep(600),
        "chat": chat,
        "garbage": garbage,
        "fail": fail,
        "batches": batches,
        "batches in order": batches_in_order,
        "take memory": take_memory,
        "lambda": lambda: lambda: None,
        "stdin": lambda: sys.stdin.read(),
        "path": lambda: list(sys.path),
        "interrupt": lambda: (signal.raise_signal(signal.SIGINT), "not impressed")[1],
    }


def rtx_handlers(link: Link, log: Path) -> Mapping[str, Callable[..., Any]]:
    """Real builds by TensorRT-RTX, and one that aborts on its way."""
    from precisionlab.backends.tensorrt.build import build, network_layers  # imports onnx, which no other handler needs

    trt = load_tensorrt(RTX)
    keeper = LogKeeper(log)

    def progress(title: str, done: int, total: int) -> None:
        link.tell("progress", title, done, total)

    def build_and_abort(job: BuildJob) -> None:
        build(trt, job, keeper, progress=lambda title, done, total: os.abort() if done > 500 else None)

    return {
        "build": lambda job: build(trt, job, keeper, progress=progress),
        "build and abort": build_and_abort,
        "describe": lambda path, typed=False: network_layers(trt, path, keeper, typed),
    }


if __name__ == "__main__":  # a parent that is itself killed: it prints its child's process, and waits
    import trtchild

    with EngineProcess(trtchild.handlers, Path(sys.argv[1]), log=Path(sys.argv[1])) as process:
        print(process.call("pid"), flush=True)
        if sys.argv[2] == "busy":
            process.call("hang")
        time.sleep(600)
