"""Histograms of |x| that grow by doubling: the same bits whatever the order, the batches or the split of the data.

Bins lie over [0, 2^e). A value beyond doubles the range until it fits, by merging pairs of bins; as bin
edges are binary fractions of a power of two, a value falls into the same bin whether it came before
or after. Counts are integers, so that sums do not depend on order either.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from threading import Lock

import numpy as np
from numpy.typing import NDArray

BINS = 4096
"""Of these at least 2048 are in use (the largest value lies in the upper half), the published algorithm's number."""

_LEAST_EXPONENT = -100  # below it bin edges would not be float32 numbers any more

_SMALL, _TOGETHER = 1 << 14, 1 << 16
"""Values of a tensor up to which it is counted together with others, and of these together: what a cache holds."""


@dataclass(frozen=True)
class Histogram:
    """|x| of a tensor over any number of samples.

    `bins`, int64 (BINS,), counts the finite values in [j, j + 1) · 2^exponent / BINS, zeros among them.
    `zeros` counts exact zeros, `nonfinite` NaN and Inf, which stand in no bin. `amax` is the largest
    finite |x|, exactly.
    """

    bins: NDArray[np.int64] = field(default_factory=lambda: np.zeros(BINS, np.int64))
    exponent: int = _LEAST_EXPONENT
    amax: float = 0.0
    zeros: int = 0
    nonfinite: int = 0

    @property
    def width(self) -> float:
        """The width of one bin; a power of two."""
        return math.ldexp(1.0, self.exponent) / BINS

    @property
    def count(self) -> int:
        """How many finite values."""
        return int(self.bins.sum())

    def merge(self, other: Histogram) -> Histogram:
        """The histogram of both sets of values."""
        exponent = max(self.exponent, other.exponent)
        return Histogram(
            _widened(self.bins, exponent - self.exponent) + _widened(other.bins, exponent - other.exponent),
            exponent,
            max(self.amax, other.amax),
            self.zeros + other.zeros,
            self.nonfinite + other.nonfinite,
        )

    def clipped(self, threshold: float) -> int:
        """How many values lie in bins that begin at or beyond the threshold."""
        return int(self.bins[math.ceil(threshold / self.width) :].sum()) if threshold < self.amax else 0


def histogram_of(tensor: NDArray[np.float32]) -> Histogram:
    """The histogram of one float32 tensor of any shape."""
    histograms = Histograms(("",))
    histograms.add("", tensor)
    return histograms[""]


class Histograms:
    """The histograms of many tensors under construction; `add` is all that happens while data goes by.

    Threads may share it: which of them counts first leaves no trace in integers.
    """

    def __init__(self, names: Iterable[str]) -> None:
        from precisionlab.calibration import kernel  # numba takes a while: not before it is needed
        from precisionlab.compare.kernel import largest_magnitude

        self._fill, self._largest = kernel.fill_many, largest_magnitude
        self._row = {name: i for i, name in enumerate(names)}
        rows = len(self._row)
        self._bins = np.zeros((rows, BINS), np.int64)
        self._exponents = np.full(rows, _LEAST_EXPONENT, np.int64)
        self._amax = np.zeros(rows, np.float64)
        self._zeros = np.zeros(rows, np.int64)
        self._nonfinite = np.zeros(rows, np.int64)
        self._locks = [Lock() for _ in self._row]

    @property
    def names(self) -> tuple[str, ...]:
        """The tensors, in the order given."""
        return tuple(self._row)

    def __getitem__(self, name: str) -> Histogram:
        i = self._row[name]
        counts = int(self._zeros[i]), int(self._nonfinite[i])
        return Histogram(self._bins[i].copy(), int(self._exponents[i]), float(self._amax[i]), *counts)

    def add(self, name: str, tensor: NDArray[np.float32]) -> None:
        """Count the values of a float32 tensor of any shape."""
        self._count([self._row[name]], [tensor])

    def add_all(self, tensors: Iterable[tuple[str, NDArray[np.float32]]]) -> None:
        """The same for each of these; small ones together, as calling the loop takes longer than counting them."""
        small: list[tuple[int, NDArray[np.float32]]] = []
        waiting = 0
        for name, array in tensors:
            if array.size > _SMALL:
                self.add(name, array)
                continue
            if waiting + array.size > _TOGETHER:
                self._count(*zip(*small, strict=True))
                small, waiting = [], 0
            small.append((self._row[name], array))
            waiting += array.size
        if small:
            self._count(*zip(*small, strict=True))

    def settle(self) -> None:
        """Nothing waits: values are counted at once."""

    def _count(self, rows: Sequence[int], tensors: Sequence[NDArray[np.float32]]) -> None:
        """Count the values of each tensor into its row."""
        values = np.ascontiguousarray(tensors[0]).reshape(-1) if len(tensors) == 1 else np.concatenate(tensors, None)
        stops = list(accumulate(tensor.size for tensor in tensors))
        locks = [self._locks[row] for row in sorted(set(rows))]  # in one order: no two threads wait for each other
        for lock in locks:
            lock.acquire()
        try:
            into = self._exponents, self._bins, self._amax, self._zeros
            counted = self._fill(np.array(rows), np.array(stops), values, *into).tolist()
            if sum(counted) == values.size:  # nearly always, and one look at each value was enough
                return
            for row, tensor, stop, done in zip(rows, tensors, stops, counted, strict=True):
                if done < tensor.size:
                    self._count_beyond(row, values[stop - tensor.size + done : stop])
        finally:
            for lock in locks:
                lock.release()

    def _count_beyond(self, row: int, values: NDArray[np.float32]) -> None:
        """Count values that do not all fit into the bins; the row's lock is held."""
        amax, nonfinite = self._largest(values)
        self._nonfinite[row] += nonfinite
        if nonfinite:
            values = values[np.isfinite(values)]
        self._widen(row, exponent_of(amax))
        rows, stops = np.array([row]), np.array([values.size])
        self._fill(rows, stops, values, self._exponents, self._bins, self._amax, self._zeros)

    def merge(self, name: str, other: Histogram) -> None:
        """Add a histogram of the same tensor over other values."""
        i = self._row[name]
        self._widen(i, other.exponent)
        self._bins[i] += _widened(other.bins, int(self._exponents[i]) - other.exponent)
        self._amax[i] = max(self._amax[i], other.amax)
        self._zeros[i] += other.zeros
        self._nonfinite[i] += other.nonfinite

    def _widen(self, i: int, exponent: int) -> None:
        if exponent > self._exponents[i]:
            self._bins[i] = _widened(self._bins[i], exponent - int(self._exponents[i]))
            self._exponents[i] = exponent


def exponent_of(amax: float) -> int:
    """The smallest e with amax < 2^e, but at least −100."""
    # frexp(0) is 2^0: zeros alone, all in bin 0, must not widen the range.
    return max(math.frexp(amax)[1], _LEAST_EXPONENT) if amax else _LEAST_EXPONENT


def _widened(bins: NDArray[np.int64], doublings: int) -> NDArray[np.int64]:
    """The same counts over a range 2^doublings as large."""
    if doublings == 0:
        return bins
    if doublings >= BINS.bit_length():
        merged = np.array([bins.sum()])
    else:
        merged = bins.reshape(-1, 1 << min(doublings, BINS.bit_length() - 1)).sum(1)
    return np.concatenate([merged, np.zeros(BINS - merged.size, np.int64)])
