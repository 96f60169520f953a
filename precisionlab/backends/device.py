"""Where a backend's graphs run and its values are summed up: this machine's CPU, or a GPU."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import AbstractContextManager
from typing import Any, Protocol

import onnx_ir as ir
from numpy.typing import NDArray

from precisionlab.backends.handed import lookup_tables
from precisionlab.backends.session import Session
from precisionlab.backends.sums.operands import on_cpu
from precisionlab.backends.sums.session import HalfSumsSession, has_products
from precisionlab.calibration.histogram import Histogram, Histograms
from precisionlab.compare.batch import ErrorBatch
from precisionlab.compare.errors import ErrorTable
from precisionlab.errors import OptionError
from precisionlab.precision import Format


class Running(Protocol):
    """A graph that is ready to run. Its values are numpy's arrays, or stay where the device has them."""

    def run(self, feeds: Mapping[str, Any]) -> dict[str, Any]:
        """All outputs by name."""
        ...

    def close(self) -> None:
        """Let go of it."""
        ...


class Summing(Protocol):
    """An error table that values of the device can be added to."""

    def add(self, row: int, reference: Any, output: Any) -> None:
        """Add one float32 tensor against its reference to a row."""
        ...

    def count_nonfinite(self, row: int, output: Any) -> None:
        """Add only how many values of a float32 tensor are NaN or Inf."""
        ...

    def settle(self) -> None:
        """Be done with all values added so far: they may be freed."""
        ...

    def result(self) -> ErrorTable:
        """What was added up."""
        ...


class Counting(Protocol):
    """Histograms that values of the device can be added to."""

    def __getitem__(self, name: str) -> Histogram: ...

    def add(self, name: str, tensor: Any) -> None:
        """Count the values of a float32 tensor."""
        ...

    def add_all(self, tensors: Iterable[tuple[str, Any]]) -> None:
        """The same for each of these."""
        ...

    def merge(self, name: str, other: Histogram) -> None:
        """Add a histogram of the same tensor over other values."""
        ...

    def settle(self) -> None:
        """Be done with all values added so far."""
        ...


class Device(Protocol):
    """Runs graphs, and sums up what they give, in one memory."""

    name: str
    """`cpu`, or `cuda:0`."""
    title: str
    """What a report says that the emulation ran on."""

    def threads(self, asked: int, each: int) -> int:
        """How many samples of so many bytes run side by side, where so many threads may be used."""
        ...

    def pool(self, threads: int) -> AbstractContextManager[Executor]:
        """What runs so many of them."""
        ...

    def session(self, graph: ir.Model) -> Running:
        """A graph ready to run, on one thread."""
        ...

    def repeated(self, graph: ir.Model) -> Running:
        """The same for one that many plans run at the same shapes."""
        ...

    def replayed(self, session: Running, switches: Mapping[str, bool]) -> Running | None:
        """What runs such a session with these inputs set; None where samples side by side are faster.

        One sample after the other: its values hold until its next run.
        """
        ...

    def errors(self, formats: Sequence[Format]) -> Summing:
        """An empty error table, with a row for each of these, which its outputs are held in."""
        ...

    def histograms(self, names: Iterable[str]) -> Counting:
        """Empty histograms."""
        ...

    def host(self, value: Any) -> NDArray[Any]:
        """A value as numpy's array."""
        ...

    def value(self, array: NDArray[Any]) -> Any:
        """An array as a value of the device's."""
        ...


class Cpu:
    """This machine's processor and memory."""

    name = "cpu"
    title = "this machine’s CPU"

    def threads(self, asked: int, each: int) -> int:
        """All of them: each sample has one."""
        return asked

    def pool(self, threads: int) -> ThreadPoolExecutor:
        """A pool of its own."""
        return ThreadPoolExecutor(threads)

    def session(self, graph: ir.Model) -> Running:
        """A graph ready to run, on one thread."""
        return HalfSumsSession(graph, self._plain, on_cpu) if has_products(graph) else self._plain(graph)

    def repeated(self, graph: ir.Model) -> Running:
        """The same."""
        return self.session(graph)

    def replayed(self, session: Running, switches: Mapping[str, bool]) -> None:
        """Samples run side by side."""

    def _plain(self, graph: ir.Model) -> Session:
        return Session(graph, 1, handed=lookup_tables(graph))

    def errors(self, formats: Sequence[Format]) -> Summing:
        """An empty error table."""
        return ErrorBatch(formats)

    def histograms(self, names: Iterable[str]) -> Histograms:
        """Empty histograms."""
        return Histograms(names)

    def host(self, value: NDArray[Any]) -> NDArray[Any]:
        """The value itself."""
        return value

    def value(self, array: NDArray[Any]) -> NDArray[Any]:
        """The array itself."""
        return array


CPU = Cpu()


def parse_device(device: str) -> int | None:
    """The GPU's number of `cuda` or `cuda:N`; None for `cpu`. Raises OptionError for anything else."""
    if device == "cpu":
        return None
    match = re.fullmatch(r"cuda(?::(\d{1,3}))?", device)
    if match is None:
        raise OptionError(f"device {device!r}: write cpu, cuda or cuda:N, such as cuda:1")
    return int(match[1] or 0)
