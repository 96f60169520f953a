"""The compiled loops of calibration: filling a histogram, and searching its thresholds.

numba earns its place: filling takes a fifteenth of the time of `numpy.histogram` and of boost-histogram (0.5 ms for
a million values against 7 to 17; `benchmarks/histogram.py`), because bins of a power of two need no search, their
numbers are worked out in vector registers, and four tables side by side need not wait for each other.
"""

from __future__ import annotations

import math

import numpy as np

from precisionlab.system.loops import compiled

LEVELS = 128
"""Magnitudes that int8 tells apart; what the published algorithm quantises to."""

_FEW = 8192  # below it adding up four tables costs more than waiting for one
_MAGNITUDE = np.int32(0x7FFFFFFF)  # all bits of a float32 but its sign
_CHUNK = 4096  # bin numbers that are worked out together, in vector registers, before they are counted


@compiled()
def _numbers(values, bits, scale, numbers):  # type: ignore[no-untyped-def]
    """Write each |x|'s bin to `numbers`; returns how many are exactly 0, and the bits of the largest |x|.

    Magnitudes' bits order as the values do, Inf above all numbers and NaN above Inf (IEEE 754), and their largest is
    found in vector registers; a comparison of floats that must not lose NaN is not.
    """
    zeros, largest = np.int32(0), np.int32(0)
    for i in range(values.size):
        numbers[i] = np.int32(abs(values[i]) * scale)
        magnitude = bits[i] & _MAGNITUDE
        zeros += np.int32(magnitude == 0)
        largest = max(largest, magnitude)
    return zeros, largest


@compiled()
def _count_side_by_side(numbers, first, second, third, fourth):  # type: ignore[no-untyped-def]
    even = numbers.size // 4 * 4
    for i in range(0, even, 4):
        first[np.uint32(numbers[i])] += np.uint32(1)
        second[np.uint32(numbers[i + 1])] += np.uint32(1)
        third[np.uint32(numbers[i + 2])] += np.uint32(1)
        fourth[np.uint32(numbers[i + 3])] += np.uint32(1)
    for i in range(even, numbers.size):
        first[np.uint32(numbers[i])] += np.uint32(1)


@compiled()
def fill(values, scale, bound, bins):  # type: ignore[no-untyped-def]
    """Add each |x| to bin floor(|x| · scale), as far as all are below `bound`.

    `values` float32 (n,); `scale` float32, a power of two; `bound` the bits of the float32 where the bins end, int32;
    `bins` int64 (b,), changed. Values are taken in pieces, and the first piece that holds one beyond the bound (or
    NaN, or Inf) ends the work: returns how many values were counted, how many of them are exactly 0 (which stand in
    bin 0 too), and the bits of the largest.
    """
    done, zeros, largest = 0, np.int64(0), np.int32(0)
    numbers = np.empty(min(_CHUNK, values.size), np.int32)
    bits = values.view(np.int32)
    # Four tables side by side need not wait for each other, but have to be added up.
    tables = np.zeros((4, bins.size if values.size >= _FEW else 0), np.uint32)
    while done < values.size:
        part = values[done : done + _CHUNK]
        nothing, magnitude = _numbers(part, bits[done : done + _CHUNK], scale, numbers)
        if magnitude >= bound:
            break
        if values.size < _FEW:
            for i in range(part.size):
                bins[np.uint32(numbers[i])] += 1
        else:
            _count_side_by_side(numbers[: part.size], tables[0], tables[1], tables[2], tables[3])
        zeros += nothing
        largest = max(largest, magnitude)
        done += part.size
    for i in range(tables.shape[1]):
        bins[i] += np.int64(tables[0, i]) + np.int64(tables[1, i]) + np.int64(tables[2, i]) + np.int64(tables[3, i])
    return done, zeros, largest


@compiled()
def fill_many(rows, stops, values, exponents, bins, amax, zeros):  # type: ignore[no-untyped-def]
    """Fill the histograms of these rows, int64 (t,), with tensors that stand one behind the other and end at `stops`.

    `values` float32 (n,). Changed are `bins`, int64 (rows, b), over [0, 2^e) with e in `exponents`, int64 (rows,), the
    largest values `amax`, float64 (rows,), and `zeros`, int64 (rows,). Returns how many values of each tensor were
    counted, int64 (t,): as `fill` does.
    """
    counted = np.empty(rows.size, np.int64)
    largest_bits = np.empty(1, np.int32)
    start = 0
    for i in range(rows.size):
        row = rows[i]
        exponent = exponents[row]
        bound = np.int32((min(exponent, 128) + 127) << 23)  # the bits of 2^e, of Inf beyond float32
        scale = np.float32(math.ldexp(np.float64(bins.shape[1]), -exponent))
        counted[i], nothing, largest_bits[0] = fill(values[start : stops[i]], scale, bound, bins[row])
        zeros[row] += nothing
        amax[row] = max(amax[row], np.float64(largest_bits.view(np.float32)[0]))
        start = stops[i]
    return counted


@compiled()
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


@compiled()
def squared_errors(counts, width, candidates, largest, normal, epsilon):  # type: ignore[no-untyped-def]
    """Σ count · (centre − its quantized value)² for each candidate number of bins kept; float64 as `candidates`.

    Values are taken at their bins' centres, (j + 0.5) · width; the threshold is the format's `largest` value. From its
    `normal` value on the distance to the next is `epsilon` of the power of two below, and before it as at `normal`.
    """
    found = np.empty(candidates.size)
    least = normal * epsilon
    for index in range(candidates.size):
        step = candidates[index] * width / largest
        error = 0.0
        for j in range(counts.size):
            if counts[j] > 0:
                centre = (j + 0.5) * width
                # Both positive: floor(x + 0.5) rounds to nearest, and centres seldom stand on a tie.
                steps = min(centre / step, largest)
                apart = least if steps < normal else epsilon * 2.0 ** math.floor(math.log2(steps))
                level = min(np.floor(steps / apart + 0.5) * apart, largest)
                error += counts[j] * (centre - level * step) ** 2
        found[index] = error
    return found
