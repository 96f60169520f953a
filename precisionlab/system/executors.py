"""Where work runs beside this process: other processes of this machine, or a Dask cluster. The same bits everywhere.

A worker may die on the way, killed by somebody or for want of memory: what it had in hand is done again. A task
that kills every worker it is given to ends in one error that names it.
"""

from __future__ import annotations

import asyncio
import importlib
import logging
import multiprocessing
import os
import signal
import threading
import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import BrokenExecutor, CancelledError, ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing import resource_tracker
from types import TracebackType
from typing import Any, Protocol, TypeVar

from precisionlab.errors import OptionError, PrecisionLabError
from precisionlab.system.children import end_workers

T = TypeVar("T")
R = TypeVar("R")
Own = TypeVar("Own", bound="_Ordered")

_AHEAD = 2
"""Tasks in flight for each worker: one at work, and one that waits so that no worker does."""

_LIVES = 3
_CONNECT_SECONDS = 10.0
_JOIN_SECONDS = 30.0
_NOBODY_SECONDS = 60.0
_LOOK_SECONDS = 5.0

_WARNINGS = "PYTHONWARNINGS"
_NUMERIC_THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS")


class Executor(Protocol):
    """Runs a function over tasks on several workers. Ended by leaving its `with`."""

    @property
    def workers(self) -> int:
        """How many tasks are at work at a time."""
        ...

    def map(self, function: Callable[[T], R], tasks: Sequence[T]) -> Iterator[R]:
        """The results in the tasks' order, each as soon as it and those before it are there.

        No more than a few tasks for each worker are ahead of what has been taken. One `map` at a time.
        `function` is pickled: a function of a module, or a `partial` of one. What it raises comes through.
        Raises PrecisionLabError, with `str(task)`, where a task's workers die again and again.
        """
        ...

    def close(self) -> None:
        """Let go of the workers."""
        ...

    def __enter__(self) -> Executor: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


def open_executor(processes: int | None, dask: str | None) -> Executor | None:
    """What `--processes` and `--dask` ask for; None where all work stays in this process.

    Raises OptionError for both together, for less than one process, and for a cluster that is not there.
    """
    if processes is not None and dask is not None:
        raise OptionError("processes and dask are two ways to spread the work; give one of them")
    if dask is not None:
        return Dask(dask)
    if processes is not None and processes < 1:
        raise OptionError(f"processes is {processes}; it must be at least 1")
    return Processes(processes) if processes is not None and processes > 1 else None


class _Ordered(ABC):
    """What both executors share: the order of results, the bounded number of tasks ahead, and the second chances."""

    _death: type[Exception]
    """What a task's future raises when its worker has died."""
    _lives = _LIVES
    """How many workers a task may kill by itself."""

    @property
    @abstractmethod
    def workers(self) -> int: ...

    @abstractmethod
    def close(self) -> None: ...

    @abstractmethod
    def _submit(self, function: Callable[[T], R], task: T) -> Any:
        """A future. May raise `_death` itself."""

    @abstractmethod
    def _result(self, future: Any) -> Any: ...

    @abstractmethod
    def _restart(self) -> None:
        """Have workers again after a death."""

    def __enter__(self: Own) -> Own:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def map(self, function: Callable[[T], R], tasks: Sequence[T]) -> Iterator[R]:
        ahead: deque[tuple[T, Any]] = deque()
        window = _AHEAD * max(1, self.workers)
        given = 0
        try:
            while given < len(tasks) or ahead:
                try:
                    while given < len(tasks) and len(ahead) < window:
                        ahead.append((tasks[given], self._submit(function, tasks[given])))
                        given += 1
                    result: R = self._result(ahead[0][1])
                except self._death:
                    yield from self._after_death(function, ahead)
                else:
                    ahead.popleft()
                    yield result
        finally:
            for _, future in ahead:
                future.cancel()

    def _after_death(self, function: Callable[[T], R], ahead: deque[tuple[T, Any]]) -> Iterator[R]:
        """What was in flight, in order. Nobody knows whose worker died, so whatever is not done runs alone.

        Then the guilty one, if there is one, is found; and where memory was too small for all, it may do for each.
        """
        dead = [self._is_dead(future) for _, future in ahead]
        self._restart()
        for is_dead in dead:
            task, future = ahead[0]
            result: R = self._alone(function, task) if is_dead else self._result(future)
            ahead.popleft()
            yield result

    def _is_dead(self, future: Any) -> bool:
        """Wait for it; what a task itself raises is raised when its turn comes."""
        try:
            self._result(future)
        except self._death:
            return True
        except Exception:
            if not future.done():
                raise  # there is nobody left to do it
        return False

    def _alone(self, function: Callable[[T], R], task: T) -> R:
        for _ in range(self._lives):
            try:
                result: R = self._result(self._submit(function, task))
            except self._death:
                self._restart()
            else:
                return result
        raise PrecisionLabError(
            f"{task}: the worker died each time, with nothing else at work, most likely for want of memory; give the "
            "machine more of it or make the samples smaller. (A script that asks for several processes must start "
            'its work under `if __name__ == "__main__":`.)'
        )


class Processes(_Ordered):
    """Processes of this machine, through `concurrent.futures`. Each computes on one thread."""

    _death = BrokenExecutor

    def __init__(self, count: int) -> None:
        self._count = count
        self._pool = self._new()

    @property
    def workers(self) -> int:
        """How many processes."""
        return self._count

    def close(self) -> None:
        """Drop what waits, and wait for what runs."""
        self._pool.shutdown(wait=True, cancel_futures=True)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None and issubclass(kind, KeyboardInterrupt):
            # What runs may take minutes, and nobody waits for it any more.
            end_workers()
        super().__exit__(kind, error, trace)

    def _new(self) -> ProcessPoolExecutor:
        _keep_tracker_quiet()
        # Spawned, not forked: the threads of ONNX Runtime and numba do not live through a fork.
        return ProcessPoolExecutor(self._count, multiprocessing.get_context("spawn"), _begin)

    def _submit(self, function: Callable[[T], R], task: T) -> Any:
        return self._pool.submit(function, task)

    def _result(self, future: Any) -> Any:
        return future.result()

    def _restart(self) -> None:
        self.close()
        self._pool = self._new()


def _keep_tracker_quiet() -> None:
    """Start the process that clears up behind killed ones; that it has to is no news for who has killed them."""
    known = os.environ.get(_WARNINGS)
    os.environ[_WARNINGS] = ",".join(filter(None, (known, "ignore::UserWarning:multiprocessing.resource_tracker")))
    try:
        resource_tracker.ensure_running()
    finally:
        if known is None:
            del os.environ[_WARNINGS]
        else:
            os.environ[_WARNINGS] = known


def _begin() -> None:
    """The first thing that a worker process does, before it imports anything that computes."""
    os.environ.update(dict.fromkeys(_NUMERIC_THREADS, "1"))
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the main process, which ends its workers
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """A main process that is killed cannot end its workers: they would wait for ever."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


class Dask(_Ordered):
    """The workers of a Dask cluster, that see model and data under the same paths as this process.

    Dask itself gives the tasks of a dead worker to others, a few times. A worker with several threads works on as
    many tasks.
    """

    _lives = 1  # each is as many workers as the cluster's `allowed-failures` say, four by default

    def __init__(self, address: str) -> None:
        """Raises OptionError where `distributed` is not installed, or there is no scheduler or no worker."""
        try:
            distributed: Any = importlib.import_module("distributed")  # not typed
        except ImportError:
            raise OptionError('dask is not installed; pip install "precisionlab[dask]"') from None
        # What happens to the cluster is told by the errors here, not by tracebacks beside the progress.
        logging.getLogger("distributed.client").setLevel(logging.CRITICAL)
        self._address = address
        self._distributed = distributed
        self._death = distributed.KilledWorker
        try:
            self._client = distributed.Client(address, timeout=_CONNECT_SECONDS, set_as_default=False)
        except (OSError, ValueError, TimeoutError, distributed.TimeoutError):
            raise OptionError(
                f"{address}: no Dask scheduler answers there; give the address that `dask scheduler` prints"
            ) from None
        try:
            self._client.wait_for_workers(1, timeout=_JOIN_SECONDS)
        except (TimeoutError, distributed.TimeoutError):
            self.close()
            raise OptionError(
                f"{address}: the Dask scheduler has no worker; start some with `dask worker {address}`"
            ) from None

    @property
    def workers(self) -> int:
        """The threads of all workers that are there now."""
        with self._told():
            return sum(self._client.nthreads().values())

    def close(self) -> None:
        """Leave the cluster, which stays as it is."""
        self._client.close()

    def _submit(self, function: Callable[[T], R], task: T) -> Any:
        with self._told():
            return self._client.submit(function, task, pure=False)

    def _result(self, future: Any) -> Any:
        nobody_since = None
        with self._told(future):
            while True:
                try:
                    return future.result(timeout=_LOOK_SECONDS)
                except (TimeoutError, self._distributed.TimeoutError):
                    if future.status == "error":
                        raise  # the task's own
                # Dask would wait for new workers for ever.
                nobody_since = None if self.workers else nobody_since or time.monotonic()
                if nobody_since is not None and time.monotonic() - nobody_since > _NOBODY_SECONDS:
                    raise PrecisionLabError(
                        f"{self._address}: no Dask worker is left; start some with `dask worker {self._address}`, "
                        "and run again"
                    )

    @contextmanager
    def _told(self, future: Any = None) -> Iterator[None]:
        """What the loss of the scheduler raises is told as such; what a task has raised is let through."""
        try:
            yield
        except (OSError, RuntimeError, CancelledError, asyncio.CancelledError):
            if future is not None and future.status == "error":
                raise
            raise PrecisionLabError(
                f"{self._address}: the Dask scheduler is gone; start it and its workers again, and run again"
            ) from None

    def _restart(self) -> None:
        """Dask's nannies start workers again by themselves."""
