"""The compiled loops that add products up in half.

How tensor cores do it was measured on an H200, with cuBLAS and cuDNN in their half compute types, and agrees with
these loops in 99 to 100 % of all bits: acc = half(acc + the exact sum of a block of 16 products), block by block along
K. Products of two halves are exact in float32, so that neither a fused multiply-add nor the width of vector registers
changes a bit here, and every machine gives the same.

numba earns its place by depthwise convolutions, and by memory: as nodes of ONNX Runtime a chain of taps takes 10 to 28
times as long as the convolution in float32, these loops 2 to 5 times; a Scan over blocks takes 2 to 4 times, as these
do, but of its operand unfolded, as often as a kernel has taps (`benchmarks/sums.py`).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
from llvmlite import binding
from llvmlite import ir as llvm
from numba import types
from numba.extending import intrinsic

from precisionlab.errors import OptionError
from precisionlab.model.contraction import BLOCK
from precisionlab.system.loops import compiled

Loop = Callable[..., None]
"""`add_up`, or what takes the same and writes something else of the sums."""

_TILE = 512
"""Outputs that are worked on at a time: their sums and 16 rows of what they take stay in a core's first cache."""


@cache
def check_processor() -> None:
    """Raises OptionError on a processor that cannot round to half by itself (x86-64 of before 2013)."""
    features = binding.get_host_cpu_features()
    if binding.get_default_triple().startswith("x86_64") and not features.get("f16c", False):
        raise OptionError("sums in half need a processor with F16C instructions; leave --sums")


@intrinsic
def _in_half(typingctx: Any, value: Any) -> Any:
    """float32 rounded to half, to nearest, ties to even (IEEE 754's conversion), and back to float32."""

    def code(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.fpext(builder.fptrunc(arguments[0], llvm.HalfType()), llvm.FloatType())

    return types.float32(types.float32), code


_half: Any = _in_half  # as compiled loops call it: with the value alone


# Fused multiply-adds: the product is exact, so that they round no otherwise than a product and an addition.
_FUSED = frozenset({"contract"})


@compiled(_FUSED)
def _sixteen(sums, m, w, g, k, taken, count):  # type: ignore[no-untyped-def]
    """Add sixteen products to each of the first `count` sums. Written out, as loops in a loop do not vectorise."""
    w0, w1, w2, w3 = w[g, m, k], w[g, m, k + 1], w[g, m, k + 2], w[g, m, k + 3]
    w4, w5, w6, w7 = w[g, m, k + 4], w[g, m, k + 5], w[g, m, k + 6], w[g, m, k + 7]
    w8, w9, w10, w11 = w[g, m, k + 8], w[g, m, k + 9], w[g, m, k + 10], w[g, m, k + 11]
    w12, w13, w14, w15 = w[g, m, k + 12], w[g, m, k + 13], w[g, m, k + 14], w[g, m, k + 15]
    for j in range(count):
        s = w0 * taken[0, j] + w1 * taken[1, j] + w2 * taken[2, j] + w3 * taken[3, j]
        s = s + w4 * taken[4, j] + w5 * taken[5, j] + w6 * taken[6, j] + w7 * taken[7, j]
        s = s + w8 * taken[8, j] + w9 * taken[9, j] + w10 * taken[10, j] + w11 * taken[11, j]
        s = s + w12 * taken[12, j] + w13 * taken[13, j] + w14 * taken[14, j] + w15 * taken[15, j]
        sums[m, j] = _half(sums[m, j] + s)


@compiled(_FUSED)
def _some(sums, m, w, g, k, taken, block, count):  # type: ignore[no-untyped-def]
    """The same for blocks of another length."""
    for j in range(count):
        s = np.float32(0)
        for i in range(block):
            s += w[g, m, k + i] * taken[i, j]
        sums[m, j] = _half(sums[m, j] + s)


@compiled(_FUSED)
def _one(sums, m, weight, rows, g, start, count):  # type: ignore[no-untyped-def]
    """Add one product to each of the first `count` sums."""
    at = np.uint64(start)
    for j in range(count):
        sums[m, j] = _half(sums[m, j] + weight * rows[g, at + np.uint64(j)])


@compiled()
def _take(taken, i, place, x, g, start, step, count):  # type: ignore[no-untyped-def]
    # Unsigned: an index that might be negative, for all that the compiler knows, is not read in vectors.
    to, at = np.uint64(place), np.uint64(start)
    if step == 1:
        for j in range(count):
            taken[i, to + np.uint64(j)] = x[g, at + np.uint64(j)]
    else:
        for j in range(count):
            taken[i, to + np.uint64(j)] = x[g, at + np.uint64(j) * np.uint64(step)]


@compiled()
def add_up(w, x, offsets, starts, length, step, block, out):  # type: ignore[no-untyped-def]
    """Σ over k of w[g, m, k] · x[g, offsets[k] + place], rounded to half after every `block` products.

    `w` float32 (groups, rows, K), zeros to a whole number of blocks; `x` float32 (groups, n); `offsets` int64 (K,) as
    far as there are products; `starts` int64 (s,): where stretches of `length` places begin in x, each `step` further
    than the one before; `out` float32 (groups, rows, s · length), written.
    """
    groups, rows, products = w.shape
    taken = np.zeros((block, _TILE), np.float32)
    sums = np.empty((rows, _TILE), np.float32)
    stretches = max(1, _TILE // length)  # whole ones that a tile takes; of longer ones it takes a piece
    for g in range(groups):
        for first in range(0, starts.size, stretches):
            last = min(first + stretches, starts.size)
            for begin in range(0, length, _TILE):
                width = min(length - begin, _TILE)
                count = width * (last - first)
                for m in range(rows):
                    for j in range(count):
                        sums[m, j] = 0
                for k in range(0, products, block):
                    if block == 1 and step == 1 and last - first == 1:
                        at = starts[first] + offsets[k] + begin
                        for m in range(rows):
                            _one(sums, m, w[g, m, k], x, g, at, count)
                        continue
                    for i in range(block):
                        if k + i < offsets.size:
                            for s in range(first, last):
                                at = starts[s] + offsets[k + i] + begin * step
                                _take(taken, i, (s - first) * width, x, g, at, step, width)
                        else:
                            for j in range(count):
                                taken[i, j] = 0
                    for m in range(rows):
                        if block == BLOCK:
                            _sixteen(sums, m, w, g, k, taken, count)
                        elif block == 1:
                            _one(sums, m, w[g, m, k], taken, 0, 0, count)
                        else:
                            _some(sums, m, w, g, k, taken, block, count)
                place = np.uint64(first * length + begin)
                for m in range(rows):
                    for j in range(count):
                        out[g, m, place + np.uint64(j)] = sums[m, j]


@compiled(_FUSED)
def largest_on_the_way(w, x, offsets, starts, length, step, block, out):  # type: ignore[no-untyped-def]
    """As `add_up`, but in float32 throughout, and `out` has the largest magnitude that each sum has behind a block."""
    groups, rows, _ = w.shape
    for g in range(groups):
        for m in range(rows):
            for s in range(starts.size):
                for j in range(length):
                    total, largest = np.float32(0), np.float32(0)
                    for k in range(offsets.size):
                        total += w[g, m, k] * x[g, starts[s] + offsets[k] + j * step]
                        if (k + 1) % block == 0 or k + 1 == offsets.size:
                            largest = max(largest, abs(total))
                    out[g, m, s * length + j] = largest


@compiled(_FUSED)
def in_the_end(w, x, offsets, starts, length, step, block, out):  # type: ignore[no-untyped-def]
    """As `add_up`, but in float32 throughout: what each sum comes to."""
    groups, rows, _ = w.shape
    for g in range(groups):
        for m in range(rows):
            for s in range(starts.size):
                for j in range(length):
                    total = np.float32(0)
                    for k in range(offsets.size):
                        total += w[g, m, k] * x[g, starts[s] + offsets[k] + j * step]
                    out[g, m, s * length + j] = total
