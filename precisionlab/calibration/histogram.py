"""Histograms of |x| that grow by doubling: the same bits whatever the order, the batches or the split of the data.

Bins lie over [0, 2^e). A value beyond doubles the range until it fits, by merging pairs of bins; as bin
edges are binary fractions of a power of two, a value falls into the same bin whether it came before
or after. Counts are integers, so that sums do not depend on order either.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

BINS = 4096
"""Of these at least 2048 are in use (the largest value lies in the upper half), the published algorithm's number."""

_LEAST_EXPONENT = -100  # below it bin edges would not be float32 numbers any more


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

    Not to be shared between threads: give each its own, and merge them.
    """

    def __init__(self, names: Iterable[str]) -> None:
        from precisionlab.calibration import kernel  # numba takes a while: not before it is needed
        from precisionlab.compare.kernel import largest_magnitude

        self._fill, self._largest = kernel.fill, largest_magnitude
        self._row = {name: i for i, name in enumerate(names)}
        rows = len(self._row)
        self._bins = np.zeros((rows, BINS), np.int64)
        self._exponents = [_LEAST_EXPONENT] * rows
        self._amax = [0.0] * rows
        self._zeros = [0] * rows
        self._nonfinite = [0] * rows

    @property
    def names(self) -> tuple[str, ...]:
        """The tensors, in the order given."""
        return tuple(self._row)

    def __getitem__(self, name: str) -> Histogram:
        i = self._row[name]
        return Histogram(self._bins[i].copy(), self._exponents[i], self._amax[i], self._zeros[i], self._nonfinite[i])

    def add(self, name: str, tensor: NDArray[np.float32]) -> None:
        """Count the values of a float32 tensor of any shape."""
        values = np.ascontiguousarray(tensor).reshape(-1)
        i = self._row[name]
        # Nearly always everything fits, and one look at each value is enough.
        counted = self._count(i, values)
        if counted == values.size:
            return
        values = values[counted:]
        amax, nonfinite = self._largest(values)
        self._nonfinite[i] += nonfinite
        if nonfinite:
            values = values[np.isfinite(values)]
        self._widen(name, exponent_of(amax))
        self._count(i, values)

    def settle(self) -> None:
        """Nothing waits: values are counted at once."""

    def _count(self, i: int, values: NDArray[np.float32]) -> int:
        """Count values as far as they fit into the bins; returns how many that were."""
        exponent = self._exponents[i]
        bound = np.float32(math.ldexp(1.0, exponent)) if exponent <= 127 else np.float32(np.inf)
        scale = np.float32(math.ldexp(BINS, -exponent))
        counted, zeros, largest = self._fill(values, scale, bound.view(np.int32), self._bins[i])
        self._zeros[i] += int(zeros)
        self._amax[i] = max(self._amax[i], float(np.int32(largest).view(np.float32)))
        return int(counted)

    def merge(self, name: str, other: Histogram) -> None:
        """Add a histogram of the same tensor over other values."""
        i = self._widen(name, other.exponent)
        self._bins[i] += _widened(other.bins, self._exponents[i] - other.exponent)
        self._amax[i] = max(self._amax[i], other.amax)
        self._zeros[i] += other.zeros
        self._nonfinite[i] += other.nonfinite

    def _widen(self, name: str, exponent: int) -> int:
        i = self._row[name]
        if exponent > self._exponents[i]:
            self._bins[i] = _widened(self._bins[i], exponent - self._exponents[i])
            self._exponents[i] = exponent
        return i


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
