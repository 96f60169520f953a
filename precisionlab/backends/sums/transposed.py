"""Transposed convolutions whose running sum is kept in half, on NumPy's arrays.

In which order kernels add their products up was not measured: it is taken to be that of the convolutions that their
phases are.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from precisionlab.backends.sums.convolution import Geometry, offsets_of, packed, placed, steps_of, with_pads
from precisionlab.backends.sums.kernel import Loop, add_up
from precisionlab.backends.sums.products import Array
from precisionlab.plan.arithmetic import Sums


def transposed_convolution(
    x: Array, w: Array, geometry: Geometry, sizes: Sequence[int], sums: Sums, loop: Loop = add_up
) -> Array:
    """The convolution without its bias: x (n, c, *spatial), w (c, m / group, *kernel), float32 that hold halves.

    `sizes` are the spatial sizes of what it gives. Places that lie equally far from a multiple of the stride take the
    same taps: they are a convolution for each such phase.
    """
    out = np.zeros((x.shape[0], w.shape[1] * geometry.group, *sizes), np.float32)
    for phase in phases_of(geometry.strides) if out.size else ():
        axes = axes_of(phase, geometry, w.shape[2:], sizes)
        if all(axis.taps and axis.count > 0 for axis in axes):
            places = (slice(axis.start, None, s) for axis, s in zip(axes, geometry.strides, strict=True))
            target = (slice(None), slice(None), *places)
            out[target] = _one_phase(x, w, axes, geometry.group, sums, loop)
    return out


def _one_phase(x: Array, w: Array, axes: Sequence[Axis], group: int, sums: Sums, loop: Loop) -> Array:
    """The outputs of one phase: (n, m, *counts)."""
    taken_taps = np.ix_(range(w.shape[0]), range(w.shape[1]), *(axis.taps for axis in axes))
    chosen = w[taken_taps]
    by_group = chosen.reshape(group, w.shape[0] // group, *chosen.shape[1:])
    rows_first = np.moveaxis(by_group, 1, 2).reshape(-1, w.shape[0] // group, *chosen.shape[2:])
    weights, block = packed(rows_first, group, sums)
    room = [axis.room(size) for axis, size in zip(axes, x.shape[2:], strict=True)]
    taken = with_pads(x, [before for before, _ in room], [after for _, after in room])
    steps = steps_of(taken.shape[2:])
    starts = [axis.first + before for axis, (before, _) in zip(axes, room, strict=True)]
    taps = [
        sum((start - shift) * step for start, shift, step in zip(starts, at, steps, strict=True))
        for at in itertools.product(*(axis.shifts for axis in axes))
    ]
    offsets = offsets_of(np.array(taps, np.int64), rows_first.shape[1], math.prod(taken.shape[2:]), sums)
    counts, ones = [axis.count for axis in axes], [1] * len(axes)
    return np.stack([placed(weights, image, offsets, counts, ones, group, block, loop) for image in taken])


def phases_of(strides: Sequence[int]) -> Iterator[tuple[int, ...]]:
    """All phases, by how far their places lie behind a multiple of the stride on each axis."""
    return itertools.product(*map(range, strides))


def axes_of(phase: Sequence[int], geometry: Geometry, kernel: Sequence[int], sizes: Sequence[int]) -> list[Axis]:
    """One phase along each axis."""
    terms = zip(phase, geometry.strides, kernel, geometry.dilations, geometry.before, sizes, strict=True)
    return [axis_of(*of_axis) for of_axis in terms]


@dataclass(frozen=True)
class Axis:
    """One phase along one axis: its outputs are `start`, `start` + stride, …, `count` of them.

    Output number i takes x at `first` + i − shift for each of its `taps`.
    """

    taps: list[int]
    shifts: list[int]
    start: int
    first: int
    count: int

    def room(self, size: int) -> tuple[int, int]:
        """The zeros that x, so long, needs in front and behind."""
        least, most = self.first - max(self.shifts), self.first + self.count - 1 - min(self.shifts)
        return max(0, -least), max(0, most - size + 1)


def axis_of(phase: int, stride: int, kernel: int, dilation: int, before: int, size: int) -> Axis:
    """Output o takes x at i where o + before = i · stride + tap · dilation; those of a phase have the same taps."""
    taps = [tap for tap in range(kernel) if (tap * dilation - phase) % stride == 0]
    first = -((phase - before) // stride)  # the least q with phase − before + q · stride ≥ 0
    start = phase - before + first * stride
    count = -(-(size - start) // stride) if size > start else 0
    return Axis(taps, [(tap * dilation - phase) // stride for tap in taps], start, first, count)
