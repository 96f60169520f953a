"""Convolutions whose running sum is kept in half, on NumPy's arrays.

The order of the products is that of an implicit GEMM on tensor cores, as cuDNN's half convolutions on an H200 have it
bit for bit: taps outside, channels inside, packed densely across the taps, in blocks of 16; where a group has fewer
channels than that, as in a depthwise convolution, the sum is rounded at every tap. Without tensor cores
(`Sums.HALF_SINGLE`) channels are outside, and every single product is rounded. TensorRT's own kernels are others, and
were not seen.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from precisionlab.backends.sums.kernel import Loop, add_up
from precisionlab.backends.sums.products import Array, padded, plain
from precisionlab.model.contraction import BLOCK
from precisionlab.plan.arithmetic import Sums


@dataclass(frozen=True)
class Geometry:
    """How a convolution's kernel moves; each but `group` has a number for each spatial axis, and pads two."""

    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    before: tuple[int, ...]
    after: tuple[int, ...]
    group: int


def packed(w: Array, group: int, sums: Sums) -> tuple[Array, int]:
    """A convolution's weight (rows, channels, *kernel) as (group, rows / group, K), and the products of a block."""
    channels, taps = w.shape[1], math.prod(w.shape[2:])
    if sums is Sums.HALF_SINGLE:
        return plain(w.reshape(group, -1, channels * taps)), 1
    ordered = np.moveaxis(w.reshape(group, w.shape[0] // group, channels, taps), 2, 3)
    block = channels if group > 1 and channels < BLOCK else BLOCK
    return padded(ordered.reshape(group, -1, taps * channels), block), block


def convolution(x: Array, w: Array, geometry: Geometry, sums: Sums, loop: Loop = add_up) -> Array:
    """The convolution without its bias: x (n, c, *spatial), w (m, c / group, *kernel), float32 that hold halves."""
    kernel, group = w.shape[2:], geometry.group
    weights, block = packed(w, group, sums)
    taken = with_pads(x, geometry.before, geometry.after)
    reach = [(size - 1) * dilation + 1 for size, dilation in zip(kernel, geometry.dilations, strict=True)]
    spatial = taken.shape[2:]
    sizes = [(n - r) // s + 1 for n, r, s in zip(spatial, reach, geometry.strides, strict=True)]
    steps = steps_of(spatial)
    taps = [
        sum(i * d * step for i, d, step in zip(at, geometry.dilations, steps, strict=True))
        for at in itertools.product(*map(range, kernel))
    ]
    offsets = offsets_of(np.array(taps, np.int64), w.shape[1], math.prod(spatial), sums)
    images = [placed(weights, image, offsets, sizes, geometry.strides, group, block, loop) for image in taken]
    return np.stack(images) if images else np.zeros((0, w.shape[0], *sizes), np.float32)


def placed(
    weights: Array,
    image: Array,
    offsets: NDArray[np.int64],
    sizes: Sequence[int],
    strides: Sequence[int],
    group: int,
    block: int,
    loop: Loop,
) -> Array:
    """One padded image (c, *spatial) convolved: (m, *sizes)."""
    spatial = image.shape[1:]
    x = plain(image).reshape(group, -1)
    rows = weights.shape[0] * weights.shape[1]
    steps = steps_of(spatial)
    if min(sizes) <= 0:
        return np.zeros((rows, *sizes), np.float32)
    if all(stride == 1 for stride in strides):
        # One long stretch, with the places between the rows, is faster than many short ones.
        length = sum((n - 1) * step for n, step in zip(sizes, steps, strict=True)) + 1
        out = np.empty((*weights.shape[:2], sizes[0] * steps[0]), np.float32)
        loop(weights, x, offsets, np.zeros(1, np.int64), length, 1, block, out)
        within = (slice(None), *(slice(n) for n in sizes))
        crop: Array = out.reshape(rows, sizes[0], *spatial[1:])[within]
        return crop
    outer = [range(0, n * stride * step, stride * step) for n, stride, step in zip(sizes, strides, steps, strict=True)]
    starts = np.array([sum(at) for at in itertools.product(*outer[:-1])], np.int64)
    out = np.empty((*weights.shape[:2], math.prod(sizes)), np.float32)
    loop(weights, x, offsets, starts, sizes[-1], strides[-1], block, out)
    placed_out: Array = out.reshape(rows, *sizes)
    return placed_out


def offsets_of(taps: NDArray[np.int64], channels: int, plane: int, sums: Sums) -> NDArray[np.int64]:
    """Where each product's factor lies in a padded image, in the order in which products are added up."""
    planes = np.arange(channels, dtype=np.int64) * plane
    table = planes[:, np.newaxis] + taps if sums is Sums.HALF_SINGLE else taps[:, np.newaxis] + planes
    return np.ascontiguousarray(table.reshape(-1))


def steps_of(spatial: Sequence[int]) -> list[int]:
    """How far neighbours along each axis of a contiguous array lie apart."""
    return [math.prod(spatial[i + 1 :]) for i in range(len(spatial))]


def with_pads(x: Array, before: Sequence[int], after: Sequence[int]) -> Array:
    """(n, c, *spatial) with zeros around the spatial axes."""
    if not any(before) and not any(after):
        return x
    inner = x.shape[2:]
    wide = np.zeros((*x.shape[:2], *(b + n + a for b, n, a in zip(before, inner, after, strict=True))), np.float32)
    places = tuple(slice(b, b + n) for b, n in zip(before, inner, strict=True))
    inside = (slice(None), slice(None), *places)
    wide[inside] = x
    return wide
