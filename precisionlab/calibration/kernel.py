"""The compiled loops of calibration: filling a histogram, and searching its thresholds.

numba earns its place: filling takes a fifteenth of the time of `numpy.histogram` and of boost-histogram (0.5 ms for
a million values against 7 to 17; `benchmarks/histogram.py`), because bins of a power of two need no search, their
numbers are worked out in vector registers, and four tables side by side need not wait for each other.
"""

from __future__ import annotations

import numpy as np
from numba import njit

LEVELS = 128
"""Magnitudes that int8 tells apart; what the published algorithm quantises to."""

_FEW = 8192  # below it adding up four tables costs more than waiting for one
_CHUNK = 4096  # bin numbers that are worked out together, in vector registers, before they are counted


@njit(nogil=True, cache=True, error_model="numpy")
def _numbers(values, scale, numbers):  # type: ignore[no-untyped-def]
    """Write each |x|'s bin to `numbers`; returns how many are exactly 0."""
    zeros = np.int32(0)
    for i in range(values.size):
        numbers[i] = np.int32(abs(values[i]) * scale)
        zeros += np.int32(values[i] == np.float32(0))
    return zeros


@njit(nogil=True, cache=True, error_model="numpy")
def _count_side_by_side(numbers, first, second, third, fourth):  # type: ignore[no-untyped-def]
    even = numbers.size // 4 * 4
    for i in range(0, even, 4):
        first[np.uint32(numbers[i])] += np.uint32(1)
        second[np.uint32(numbers[i + 1])] += np.uint32(1)
        third[np.uint32(numbers[i + 2])] += np.uint32(1)
        fourth[np.uint32(numbers[i + 3])] += np.uint32(1)
    for i in range(even, numbers.size):
        first[np.uint32(numbers[i])] += np.uint32(1)


@njit(nogil=True, cache=True, error_model="numpy")
def fill(values, scale, bins):  # type: ignore[no-untyped-def]
    """Add each |x| to bin floor(|x| · scale); returns how many are exactly 0, which stand in bin 0 too.

    `values` float32 (n,), all finite; `scale` float32, a power of two; `bins` int64 (b,), changed.
    """
    zeros = np.int64(0)
    numbers = np.empty(min(_CHUNK, values.size), np.int32)
    if values.size < _FEW:
        for start in range(0, values.size, _CHUNK):
            part = values[start : start + _CHUNK]
            zeros += _numbers(part, scale, numbers)
            for i in range(part.size):
                bins[np.uint32(numbers[i])] += 1
        return zeros
    tables = np.zeros((4, bins.size), np.uint32)
    for start in range(0, values.size, _CHUNK):
        part = values[start : start + _CHUNK]
        zeros += _numbers(part, scale, numbers)
        _count_side_by_side(numbers[: part.size], tables[0], tables[1], tables[2], tables[3])
    for i in range(bins.size):
        bins[i] += np.int64(tables[0, i]) + np.int64(tables[1, i]) + np.int64(tables[2, i]) + np.int64(tables[3, i])
    return zeros


@njit(nogil=True, cache=True, error_model="numpy")
def divergences(counts):  # type: ignore[no-untyped-def]
    """KL(P‖Q) for each number of bins kept, i = 128 … n; float64 (n − 127,), inf where Q misses a bin of P.

    `counts` float64 (n,). With prefix sums of c, of c·log c and of the bins that are not empty, each
    candidate costs its 128 levels instead of its i bins.
    """
    n = counts.size
    total = np.zeros(n + 1)
    plogp = np.zeros(n + 1)
    filled = np.zeros(n + 1)
    for j in range(n):
        c = counts[j]
        total[j + 1] = total[j] + c
        plogp[j + 1] = plogp[j] + (c * np.log(c) if c > 0 else 0.0)
        filled[j + 1] = filled[j] + (1.0 if c > 0 else 0.0)
    found = np.empty(max(0, n - LEVELS + 1))
    everything = total[n]
    for i in range(LEVELS, n + 1):
        kept = total[i]
        outliers = everything - kept
        last = counts[i - 1]
        if kept == 0 or (outliers > 0 and last == 0):
            # Q has nothing in the last bin, where P has all the outliers.
            found[i - LEVELS] = np.inf
            continue
        # Σ p log p over the bins of P, whose last bin holds the outliers too; p = c / everything.
        with_outliers = last + outliers
        sum_plogp = plogp[i]
        if outliers > 0:
            sum_plogp += with_outliers * np.log(with_outliers) - last * np.log(last)
        # Σ p log q, one level after the other; q = (level's sum / its filled bins) / kept.
        sum_plogq = 0.0
        low = 0
        for k in range(LEVELS):
            high = ((k + 1) * i + LEVELS - 1) // LEVELS
            mass = total[high] - total[low]
            if mass > 0:
                q = mass / (filled[high] - filled[low])
                p = mass + outliers if high == i else mass
                sum_plogq += p * np.log(q)
            low = high
        found[i - LEVELS] = (sum_plogp - sum_plogq) / everything - np.log(everything) + np.log(kept)
    return found


@njit(nogil=True, cache=True, error_model="numpy")
def squared_errors(counts, width, candidates, levels):  # type: ignore[no-untyped-def]
    """Σ count · (centre − its int8 value)² for each candidate number of bins kept; float64 as `candidates`.

    Values are taken at their bins' centres, (j + 0.5) · width; int8 has `levels` steps up to the threshold.
    """
    found = np.empty(candidates.size)
    for index in range(candidates.size):
        step = candidates[index] * width / levels
        error = 0.0
        for j in range(counts.size):
            if counts[j] > 0:
                centre = (j + 0.5) * width
                # Both positive: floor(x + 0.5) rounds to nearest, and centres seldom stand on a tie.
                level = min(np.floor(centre / step + 0.5), levels)
                error += counts[j] * (centre - level * step) ** 2
        found[index] = error
    return found
