"""The compiled loop that sums errors over one pair of tensors.

numba earns its place here: one pass over both tensors takes about a third of the time of the same
sums in numpy, accumulates in float64, and gives the same bits whatever the number of threads.
Those of a sum hang on how many values the processor's vectors hold, as it adds that many side by side: with AVX2 they
are the same as with NEON on aarch64 (`benchmarks/aarch64`), with AVX-512 or SSE2 the last ones may be others.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from precisionlab.system.loops import compiled

_CHUNK = 4096
_MAGNITUDE = np.int32(0x7FFFFFFF)
_INFINITY = np.int32(0x7F800000)
# Reassociation lets the compiler add in vectors; NaN and Inf keep their IEEE meaning.
_SUMS = frozenset({"reassoc", "contract", "nsz"})


@compiled(fastmath=_SUMS)
def _sums(r, o):  # type: ignore[no-untyped-def]
    ref2, err2, ref_out, out2 = 0.0, 0.0, 0.0, 0.0
    for i in range(r.size):
        a = np.float64(r[i])
        b = np.float64(o[i])
        e = b - a
        ref2 += a * a
        err2 += e * e
        ref_out += a * b
        out2 += b * b
    return ref2, err2, ref_out, out2


@compiled()
def _counts(r, o, r_bits, o_bits, e, e_bits, limit):  # type: ignore[no-untyped-def]
    # Integer comparisons of IEEE bits: magnitudes order as the values do, Inf above all numbers and
    # NaN above Inf; and unlike float comparisons they vectorise without leave to ignore NaN.
    n = r.size
    for i in range(n):
        e[i] = o[i] - r[i]
    largest_err, largest_ref = np.int32(0), np.int32(0)
    overflow, underflow, nan, inf = np.int32(0), np.int32(0), np.int32(0), np.int32(0)
    for i in range(n):
        a = r_bits[i] & _MAGNITUDE
        b = o_bits[i] & _MAGNITUDE
        largest_err = max(largest_err, e_bits[i] & _MAGNITUDE)
        largest_ref = max(largest_ref, a)
        overflow += np.int32(a > limit)
        underflow += np.int32((b == 0) & (a != 0))
        nan += np.int32(b > _INFINITY)
        inf += np.int32(b == _INFINITY)
    return largest_err, largest_ref, overflow, underflow, nan, inf


@compiled()
def _larger(a, b):  # type: ignore[no-untyped-def]
    """The larger of a sum so far and a new value; NaN once either is."""
    return b if (b > a or b != b) and a == a else a


@compiled()
def _unforced(r_bits, o_bits, overflowing):  # type: ignore[no-untyped-def]
    """How many are Inf where the reference is so small that no rounding makes it so."""
    found = 0
    for i in range(r_bits.size):
        found += ((o_bits[i] & _MAGNITUDE) == _INFINITY) & ((r_bits[i] & _MAGNITUDE) < overflowing)
    return found


@compiled()
def _one_by_one(r, o, r_bits, o_bits, sums, counts, limits):  # type: ignore[no-untyped-def]
    """One chunk whose reference is not finite everywhere, or whose error is beyond float32.

    Only the places where the reference is finite are compared.
    """
    for i in range(r.size):
        a_magnitude = r_bits[i] & _MAGNITUDE
        b_magnitude = o_bits[i] & _MAGNITUDE
        a, b = np.float64(r[i]), np.float64(o[i])
        counts[4] += b_magnitude > _INFINITY
        counts[5] += b_magnitude == _INFINITY
        if a_magnitude >= _INFINITY:
            counts[3] += 1
            counts[9] += a_magnitude > _INFINITY
            # Equal infinities agree, and NaN with NaN; anything else there has changed.
            same = a == b or (a != a and b != b)
            counts[7] += not same
            counts[11] += a == a and not same
            continue
        e = b - a
        sums[0] += a * a
        sums[1] += e * e
        sums[2] += a * b
        sums[3] += b * b
        # The float32 difference, as in the other chunks: the maximum must not depend on how they are cut.
        # Two finite numbers of opposite sign can be further apart than float32 reaches; they are not Inf apart.
        difference = np.float64(np.float32(o[i] - r[i]))
        if b_magnitude < _INFINITY and abs(difference) == np.inf:
            difference = e
        sums[4] = _larger(sums[4], abs(difference))
        sums[5] = _larger(sums[5], abs(a))
        counts[0] += 1
        counts[1] += a_magnitude > limits[0]
        counts[2] += b_magnitude == 0 and a_magnitude != 0
        counts[6] += b_magnitude >= _INFINITY
        counts[8] += b_magnitude > _INFINITY
        counts[10] += b_magnitude == _INFINITY and a_magnitude < limits[1]


@compiled()
def _error_sums(r, o, r_bits, o_bits, e, e_bits, sums, counts, limits):  # type: ignore[no-untyped-def]
    bits = np.empty(2, np.int32)
    values = bits.view(np.float32)
    for start in range(0, r.size, _CHUNK):
        stop = min(start + _CHUNK, r.size)
        n = stop - start
        a, b, a_bits, b_bits = r[start:stop], o[start:stop], r_bits[start:stop], o_bits[start:stop]
        found = _counts(a, b, a_bits, b_bits, e[:n], e_bits[:n], limits[0])
        bits[0], bits[1], overflow, underflow, nan, inf = found
        if bits[1] >= _INFINITY or (bits[0] >= _INFINITY and nan + inf == 0):
            _one_by_one(a, b, a_bits, b_bits, sums, counts, limits)
            continue
        ref2, err2, ref_out, out2 = _sums(a, b)
        sums[0] += ref2
        sums[1] += err2
        sums[2] += ref_out
        sums[3] += out2
        sums[4] = _larger(sums[4], np.float64(values[0]))
        sums[5] = _larger(sums[5], np.float64(values[1]))
        counts[0] += n
        counts[1] += overflow
        counts[2] += underflow
        counts[4] += nan
        counts[5] += inf
        counts[6] += nan + inf
        counts[8] += nan
        if inf:
            counts[10] += _unforced(a_bits, b_bits, limits[1])


def error_sums(
    reference: NDArray[np.float32],
    output: NDArray[np.float32],
    sums: NDArray[np.float64],
    counts: NDArray[np.int64],
    limits: NDArray[np.float32],
) -> None:
    """Add the sums and counts over two float32 tensors of one size to `sums` and `counts`.

    `sums`, float64 (6,): Σref², Σerr², Σref·out, Σout², max |err|, max |ref|, over the elements whose
    reference is finite. `counts`, int64 (12,): those elements, |ref| beyond the first of `limits`, underflow (out is
    0 where ref is not), non-finite in ref, NaN in out, Inf in out, non-finite in out where ref is finite, elements
    whose reference is non-finite and whose output is not the same, NaN in out where ref is finite, NaN in ref, Inf in
    out where |ref| is below the second of `limits`, float32 (2,), and elements whose reference is infinite and whose
    output is not the same.
    """
    r = np.ascontiguousarray(reference).reshape(-1)
    o = np.ascontiguousarray(output).reshape(-1)
    if r.dtype != np.float32 or o.dtype != np.float32 or r.size != o.size:
        raise ValueError(f"two float32 tensors of one size are needed, got {r.dtype} {r.size} and {o.dtype} {o.size}")
    e = np.empty(min(_CHUNK, max(1, r.size)), np.float32)
    bits = r.view(np.int32), o.view(np.int32), e, e.view(np.int32)
    _error_sums(r, o, *bits, sums, counts, limits.view(np.int32))


@compiled()
def _many_error_sums(rows, stops, r, o, sums, counts, limits):  # type: ignore[no-untyped-def]
    e = np.empty(_CHUNK, np.float32)
    r_bits, o_bits, e_bits = r.view(np.int32), o.view(np.int32), e.view(np.int32)
    start = 0
    for i in range(rows.size):
        row, stop = rows[i], stops[i]
        a, b, a_bits, b_bits = r[start:stop], o[start:stop], r_bits[start:stop], o_bits[start:stop]
        _error_sums(a, b, a_bits, b_bits, e, e_bits, sums[row], counts[row], limits[row])
        start = stop


def many_error_sums(
    rows: Sequence[int],
    references: Sequence[NDArray[np.float32]],
    outputs: Sequence[NDArray[np.float32]],
    sums: NDArray[np.float64],
    counts: NDArray[np.int64],
    limits: NDArray[np.float32],
) -> None:
    """As `error_sums` for each pair, in turn, with these rows of `sums` (n, 6), `counts` (n, 12) and `limits` (n, 2).

    In one call, over copies that stand one behind the other: for small tensors calling takes longer than summing. The
    arrays are float32, those of a pair of one shape.
    """
    stops = np.cumsum([array.size for array in references])
    both = np.concatenate(references, axis=None), np.concatenate(outputs, axis=None)
    _many_error_sums(np.array(rows, np.int64), stops, *both, sums, counts, limits.view(np.int32))


@compiled()
def _largest(bits, counts):  # type: ignore[no-untyped-def]
    largest = np.int32(0)
    for i in range(bits.size):
        largest = max(largest, bits[i] & _MAGNITUDE)
    if largest < _INFINITY:
        return largest
    largest = np.int32(0)
    for i in range(bits.size):
        magnitude = bits[i] & _MAGNITUDE
        if magnitude >= _INFINITY:
            counts[0] += 1
        else:
            largest = max(largest, magnitude)
    return largest


@compiled()
def _nonfinite(bits):  # type: ignore[no-untyped-def]
    nan, inf = np.int32(0), np.int32(0)
    for i in range(bits.size):
        magnitude = bits[i] & _MAGNITUDE
        nan += np.int32(magnitude > _INFINITY)
        inf += np.int32(magnitude == _INFINITY)
    return nan, inf


@compiled()
def _many_nonfinite(rows, stops, bits, counts):  # type: ignore[no-untyped-def]
    start = 0
    for i in range(rows.size):
        nan, inf = _nonfinite(bits[start : stops[i]])
        counts[rows[i], 4] += nan
        counts[rows[i], 5] += inf
        start = stops[i]


def many_nonfinite(rows: Sequence[int], tensors: Sequence[NDArray[np.float32]], counts: NDArray[np.int64]) -> None:
    """Add what `nonfinite` tells of each float32 tensor to this row of `counts` (n, 12), columns 4 and 5."""
    stops = np.cumsum([array.size for array in tensors])
    bits = np.concatenate(tensors, axis=None).view(np.int32)
    _many_nonfinite(np.array(rows, np.int64), stops, bits, counts)


def nonfinite(tensor: NDArray[np.float32]) -> tuple[int, int]:
    """How many values of a float32 tensor are NaN, and how many are infinite."""
    nan, inf = _nonfinite(np.ascontiguousarray(tensor).reshape(-1).view(np.int32))
    return int(nan), int(inf)


def largest_magnitude(tensor: NDArray[np.float32]) -> tuple[float, int]:
    """The largest finite |x| of a float32 tensor, and how many of its values are not finite."""
    bits = np.ascontiguousarray(tensor).reshape(-1).view(np.int32)
    counts = np.zeros(1, np.int64)
    largest = np.array([_largest(bits, counts)], np.int32)
    return float(largest.view(np.float32)[0]), int(counts[0])
