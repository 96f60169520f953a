"""Error sums and histograms of values in the GPU's memory: only the sums and counts leave it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from threading import Lock
from typing import Any

import numpy as np
from numpy.typing import NDArray

from precisionlab.backends.cuda.arrays import Buffer, DeviceArray, Place, Scratch
from precisionlab.backends.cuda.kernels import THREADS, Kernels, address, number
from precisionlab.backends.tensorrt.cuda import Cuda
from precisionlab.calibration.histogram import BINS, Histogram, Histograms, exponent_of
from precisionlab.compare.errors import COUNTS, SUMS, ErrorTable, limits_of
from precisionlab.precision import Format

_BLOCKS = 64  # for each tensor; their parts are added in the same order, whatever ran first


class Launcher:
    """Hands kernels the addresses and sizes of many tensors at once."""

    def __init__(self, cuda: Cuda, kernels: Kernels) -> None:
        self.cuda, self._kernels = cuda, kernels
        self.scratch, self.lock = Scratch(cuda), Lock()

    def buffer(self, shape: tuple[int, ...], dtype: Any) -> Buffer:
        """GPU memory, zero at first."""
        self._kernels.bind()
        return Buffer(self.cuda, shape, dtype)

    def given(self, values: Sequence[float] | NDArray[Any], dtype: Any) -> Buffer:
        """GPU memory that holds these values."""
        buffer = self.buffer((len(values),), dtype)
        buffer.write(values)
        return buffer

    def launch(self, name: str, tensors: int, threads: int, arguments: Sequence[Any], blocks: int = _BLOCKS) -> None:
        """Queue a kernel with a row of the grid for each tensor; buffers are handed over by their address."""
        values = [address(a.address) if isinstance(a, Buffer | Place) else number(a) for a in arguments]
        self.launch_at(name, (blocks, tensors, 1), threads, values)

    def launch_at(self, name: str, grid: tuple[int, int, int], threads: int, values: Sequence[tuple[int, Any]]) -> None:
        """Queue a kernel with this grid; `values` as `Kernels.launch` takes them."""
        self._kernels.bind()
        self._kernels.launch(name, grid, threads, values)

    def settle(self) -> None:
        """Wait for all that is queued: then what it reads may be freed. Raises EngineError where it failed."""
        self.cuda.wait(0)


class DeviceErrorTable:
    """As `ErrorTable`, over tensors in the GPU's memory. Pairs wait until `settle`, which takes them all at once."""

    def __init__(self, launcher: Launcher, formats: Sequence[Format]) -> None:
        rows = len(formats)
        self._launcher, self._rows = launcher, rows
        self._limits = limits_of(formats)
        self._sums = launcher.buffer((max(1, rows), SUMS), np.float64)
        self._counts = launcher.buffer((max(1, rows), COUNTS), np.int64)
        self._host = ErrorTable(rows, formats)
        self._waiting: list[tuple[int, DeviceArray | None, DeviceArray]] = []

    def add(self, row: int, reference: Any, output: Any) -> None:
        """Add one float tensor against its reference to a row; doubles lie in the host's memory."""
        if isinstance(output, np.ndarray):
            self._host.add(row, reference, output)
        elif reference.shape != output.shape:
            self._host.add_reshaped(row)
        elif output.size:
            self._waiting.append((row, reference, output))

    def count_nonfinite(self, row: int, output: Any) -> None:
        """Add only how many values of a float tensor are NaN or Inf."""
        if isinstance(output, np.ndarray):
            self._host.count_nonfinite(row, output)
        elif output.size:
            self._waiting.append((row, None, output))

    def settle(self) -> None:
        """Take what waits; then it may be freed."""
        # A row comes once in a launch: two blocks must not add to it at the same time.
        while self._waiting:
            now: dict[int, tuple[DeviceArray | None, DeviceArray]] = {}
            later = []
            for row, reference, output in self._waiting:
                if row in now:
                    later.append((row, reference, output))
                else:
                    now[row] = (reference, output)
            self._take(now)
            self._waiting = later

    def result(self) -> ErrorTable:
        """The table in the host's memory."""
        self.settle()
        total = ErrorTable(self._rows)
        if self._rows:
            total.sums[:], total.counts[:] = self._sums.read(), self._counts.read()
        total.merge(self._host)
        return total

    def _take(self, pairs: dict[int, tuple[DeviceArray | None, DeviceArray]]) -> None:
        launcher, count = self._launcher, len(pairs)
        with launcher.lock:  # one launch at a time has the scratch
            references, outputs, sizes, limits, rows = launcher.scratch.given(
                np.asarray([0 if r is None else r.address for r, _ in pairs.values()], np.uint64),
                np.asarray([o.address for _, o in pairs.values()], np.uint64),
                np.asarray([o.size for _, o in pairs.values()], np.uint64),
                self._limits[list(pairs)].reshape(-1),
                np.asarray(list(pairs), np.int32),
            )
            # Each block writes its own part, so that nothing has to be zero before.
            sums, counts = launcher.scratch.empty(8 * count * _BLOCKS * SUMS, 8 * count * _BLOCKS * COUNTS)
            launcher.launch("error_sums", count, THREADS, [references, outputs, sizes, limits, sums, counts])
            gathered = [sums, counts, _BLOCKS, rows, self._sums, self._counts]
            launcher.launch("gather_sums", 1, SUMS + COUNTS, gathered, blocks=count)
            launcher.settle()


class DeviceHistograms:
    """As `Histograms`, over tensors in the GPU's memory: to the same bits. Tensors wait until `settle`."""

    def __init__(self, launcher: Launcher, names: Iterable[str]) -> None:
        self._launcher = launcher
        self._host = Histograms(names)
        self._row = {name: row for row, name in enumerate(self._host.names)}
        self._bins = launcher.buffer((max(1, len(self._row)), BINS), np.uint64)
        self._exponents: dict[str, int] = {}
        self._counted: set[str] = set()  # those with something in their bins
        self._waiting: list[tuple[str, DeviceArray]] = []

    def __getitem__(self, name: str) -> Histogram:
        self._fetch(list(self._exponents))
        return self._host[name]

    def add(self, name: str, tensor: DeviceArray | NDArray[np.float32]) -> None:
        """Count the values of a float32 tensor; the model's own inputs lie in the host's memory."""
        if isinstance(tensor, np.ndarray):
            self._host.add(name, tensor)
        elif tensor.size:
            self._waiting.append((name, tensor))

    def add_all(self, tensors: Iterable[tuple[str, DeviceArray | NDArray[np.float32]]]) -> None:
        """The same for each of these."""
        for name, tensor in tensors:
            self.add(name, tensor)

    def merge(self, name: str, other: Histogram) -> None:
        """Add a histogram of the same tensor over other values."""
        self._host.merge(name, other)

    def settle(self) -> None:
        """Count what waits; then it may be freed."""
        if not self._waiting:
            return
        launcher, waiting, self._waiting = self._launcher, self._waiting, []
        tensors = launcher.given([tensor.address for _, tensor in waiting], np.uint64)
        sizes = launcher.given([tensor.size for _, tensor in waiting], np.uint64)
        largest = launcher.buffer((len(waiting),), np.uint32)
        zeros, broken = (launcher.buffer((len(waiting),), np.uint64) for _ in range(2))
        launcher.launch("look", len(waiting), THREADS, [tensors, sizes, largest, zeros, broken])
        amax = largest.read().view(np.float32)
        most: dict[str, float] = {}
        for (name, _), value in zip(waiting, amax, strict=True):
            most[name] = max(most.get(name, 0.0), float(value))
        exponents = {name: exponent_of(value) for name, value in most.items()}
        grown = [name for name, e in exponents.items() if e > self._exponents.get(name, e - 1)]
        self._fetch(grown)  # what was counted so far has other bins
        self._exponents.update((name, exponents[name]) for name in grown)
        # The largest values and the counts of zeros and of what is not finite are kept here; only bins are there.
        empty = np.zeros(BINS, np.int64)
        for (name, _), value, zero, lost in zip(waiting, amax, zeros.read(), broken.read(), strict=True):
            self._host.merge(name, Histogram(empty, self._exponents[name], float(value), int(zero), int(lost)))
        scales = launcher.given([math.ldexp(BINS, -self._exponents[name]) for name, _ in waiting], np.float32)
        rows = launcher.given([self._row[name] for name, _ in waiting], np.int32)
        launcher.launch("fill", len(waiting), THREADS, [tensors, sizes, scales, rows, self._bins], blocks=32)
        launcher.settle()
        self._counted.update(most)

    def _fetch(self, names: Sequence[str]) -> None:
        """Take the bins of these tensors to the host's memory, and begin anew."""
        self.settle()
        known = [name for name in names if name in self._counted]
        if not known:
            return
        bins = self._bins.read().astype(np.int64)
        for name in known:
            self._host.merge(name, Histogram(bins[self._row[name]].copy(), self._exponents[name]))
            bins[self._row[name]] = 0
        self._bins.write(bins)
        self._counted.difference_update(known)
