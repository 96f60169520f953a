"""Products whose sums are kept in half, by the GPU's own arithmetic: tensor cores where a block has 16 products."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
from numpy.typing import NDArray

from precisionlab.backends.cuda.arrays import Buffer, DeviceArray
from precisionlab.backends.cuda.kernels import address
from precisionlab.backends.cuda.statistics import Launcher
from precisionlab.backends.sums.convolution import Geometry
from precisionlab.backends.sums.operands import geometry_of, on_cpu, transposed_geometry_of
from precisionlab.backends.sums.transposed import Axis, axes_of, phases_of
from precisionlab.model.contraction import BLOCK
from precisionlab.plan.arithmetic import Sums
from precisionlab.rewrite.sums import CONV, CONV_TRANSPOSE, sums_of

_THREADS, _ROWS, _COLUMNS = 128, 64, 32  # as `sums.cu` has them
_TENSOR_CORES = (8, 0)
"""The compute capability from which `mma.m16n8k16` is there; before it blocks are added up in float32."""

Work = Callable[[Any, Any], Any]


@dataclass(frozen=True)
class _Shape:
    """The struct of that name in `sums.cu`."""

    groups: int
    own: int
    rows: int
    products: int
    channels: int
    size: tuple[int, ...]
    out: tuple[int, ...]
    strides: tuple[int, ...]
    whole: tuple[int, ...]
    first: tuple[int, ...]
    step: tuple[int, ...]
    block: int

    @property
    def numbers(self) -> list[int]:
        """Its members in order."""
        axes = (*self.size, *self.out, *self.strides, *self.whole, *self.first, *self.step)
        return [self.groups, self.own, self.rows, self.products, self.channels, *axes, self.block]


@dataclass(frozen=True)
class _Launch:
    """One launch of a kernel, all but the operands in the GPU's memory; `weights` None: the first operand's own."""

    kernel: str
    grid: tuple[int, int, int]
    shape: Buffer
    taps: Buffer
    weights: Buffer | None


@dataclass(frozen=True)
class _Layout:
    """What a product writes, and the launches that write it."""

    out: tuple[int, ...]
    launches: tuple[_Launch, ...]
    is_whole: bool
    """Whether they write every place."""


_Layouts = dict[tuple[tuple[int, ...], ...], tuple[Any, _Layout | None]]
"""By the operands' shapes: the weight that lies in a convolution's launches, the same in every run but where it is
computed of the inputs; and the layout."""


class _Placed:
    """The second operand of a product: a weight, which is the same array in every run, is sent to the GPU once."""

    def __init__(self) -> None:
        self._last: tuple[Any, Any] = (None, None)

    def of(self, value: Any, place: Callable[[Any], Any]) -> Any:
        """The operand in the GPU's memory; what is computed there is not held on to."""
        if not isinstance(value, np.ndarray):
            return place(value)
        array, known = self._last
        if array is not value:
            known = place(value)
            self._last = value, known
        return known


class DeviceProducts:
    """Makes what computes products on one GPU."""

    def __init__(self, launcher: Launcher, number: int, capability: tuple[int, int]) -> None:
        self._launcher, self._number = launcher, number
        self._has_tensor_cores = capability >= _TENSOR_CORES

    def of(self, node: ir.Node) -> Work:
        """What computes a node of `rewrite.sums`; its layouts live as long."""
        layouts: _Layouts = {}
        return partial(self._run, node, layouts, _Placed(), on_cpu(node))

    def _run(self, node: ir.Node, layouts: _Layouts, placed: _Placed, other: Work, a: Any, b: Any) -> Any:
        """The product; in this machine's memory of operands that lie there (doubles), or fit no layout."""
        shapes = (tuple(a.shape), tuple(b.shape))
        is_convolution = node.op_type in (CONV, CONV_TRANSPOSE)
        known = layouts.get(shapes)
        if known is None or (is_convolution and known[0] is not b):
            if is_convolution:
                known = b, self._convolution(node, shapes, _host(b), sums_of(node))
            else:
                known = None, self._matrix_product(shapes, sums_of(node))
            layouts[shapes] = known
        layout = known[1]
        if layout is None or not isinstance(a, DeviceArray | np.ndarray) or _is_double(a) or _is_double(b):
            return self._there(other(_host(a), _host(b)))
        given = self._device(a)
        taken = given if is_convolution else placed.of(b, self._device)
        out = self._empty(layout)
        for launch in layout.launches:
            weights = given if launch.weights is None else launch.weights
            operands = (weights, taken, launch.taps, launch.shape, out)
            self._launcher.launch_at(launch.kernel, launch.grid, _THREADS, [address(o.address) for o in operands])
        return out

    def _there(self, found: NDArray[Any]) -> Any:
        return found if _is_double(found) else self._device(found)

    def _device(self, value: Any) -> DeviceArray:
        if isinstance(value, DeviceArray):
            return value
        array = np.ascontiguousarray(value, np.float32)
        return DeviceArray(ort.OrtValue.ortvalue_from_numpy(array, "cuda", self._number))

    def _empty(self, layout: _Layout) -> DeviceArray:
        if not layout.is_whole:
            return self._device(np.zeros(layout.out, np.float32))
        made = ort.OrtValue.ortvalue_from_shape_and_type(list(layout.out), np.float32, "cuda", self._number)
        return DeviceArray(made)

    def _matrix_product(self, shapes: Sequence[tuple[int, ...]], sums: Sums) -> _Layout | None:
        left, right = shapes
        if len(left) < 2 or len(right) < 2 or not math.prod((*left, *right)):
            return None
        rows, products, columns = left[-2], left[-1], right[-1]
        batch = np.broadcast_shapes(left[:-2], right[:-2])
        groups, own = math.prod(batch), math.prod(left[:-2])
        if len(right) == 2:
            rows, groups, own = rows * own, 1, 1
        elif math.prod(right[:-2]) != groups or own not in (1, groups):
            return None
        taps = np.zeros((products, 4), np.int32)
        taps[:, 0] = np.arange(products)
        line = (1, 1, columns)
        shape = _Shape(
            *(groups, own, rows, products, products),
            size=line,
            out=line,
            strides=(1, 1, 1),
            whole=line,
            first=(0, 0, 0),
            step=(1, 1, 1),
            block=BLOCK if sums is Sums.HALF else 1,
        )
        one = self._launch(shape, taps, None)
        return _Layout((*batch, left[-2], columns), (one,), True)

    def _convolution(
        self, node: ir.Node, shapes: Sequence[tuple[int, ...]], weight: NDArray[Any], sums: Sums
    ) -> _Layout | None:
        x, w = shapes
        if not 1 <= len(w) - 2 <= 3 or not math.prod((*x, *w)):
            return None
        if node.op_type == CONV:
            return self._forward(geometry_of(node, x, w), x, weight, sums)
        geometry, sizes = transposed_geometry_of(node, x, w)
        return self._transposed(geometry, sizes, x, weight, sums)

    def _forward(self, geometry: Geometry, x: Sequence[int], w: NDArray[Any], sums: Sums) -> _Layout | None:
        kernel = w.shape[2:]
        ends = zip(x[2:], kernel, geometry.dilations, geometry.strides, geometry.before, geometry.after, strict=True)
        out = [(n + b + a - (k - 1) * d - 1) // s + 1 for n, k, d, s, b, a in ends]
        if min(out) <= 0:
            return None
        taps = [
            [i * d - b for i, d, b in zip(at, geometry.dilations, geometry.before, strict=True)]
            for at in itertools.product(*map(range, kernel))
        ]
        zero, one = [0] * len(out), [1] * len(out)
        launch = self._of_taps(w, taps, geometry.group, x, (out, geometry.strides, out, zero, one), sums)
        return _Layout((x[0], w.shape[0], *out), (launch,), True)

    def _transposed(
        self, geometry: Geometry, sizes: Sequence[int], x: Sequence[int], w: NDArray[Any], sums: Sums
    ) -> _Layout | None:
        if min(sizes) <= 0:
            return None
        launches, phases = [], list(phases_of(geometry.strides))
        for phase in phases:
            axes = axes_of(phase, geometry, w.shape[2:], sizes)
            if all(axis.taps and axis.count > 0 for axis in axes):
                launches.append(self._phase(axes, geometry, sizes, x, w, sums))
        out = (x[0], w.shape[1] * geometry.group, *sizes)
        return _Layout(out, tuple(launches), len(launches) == len(phases))

    def _phase(
        self,
        axes: Sequence[Axis],
        geometry: Geometry,
        sizes: Sequence[int],
        x: Sequence[int],
        w: NDArray[Any],
        sums: Sums,
    ) -> _Launch:
        group = geometry.group
        chosen = w[np.ix_(range(w.shape[0]), range(w.shape[1]), *(axis.taps for axis in axes))]
        by_group = chosen.reshape(group, w.shape[0] // group, *chosen.shape[1:])
        weight = np.moveaxis(by_group, 1, 2).reshape(-1, w.shape[0] // group, *chosen.shape[2:])
        shifts = itertools.product(*(axis.shifts for axis in axes))
        taps = [[axis.first - shift for axis, shift in zip(axes, at, strict=True)] for at in shifts]
        starts, counts = [axis.start for axis in axes], [axis.count for axis in axes]
        return self._of_taps(weight, taps, group, x, (counts, [1] * len(axes), sizes, starts, geometry.strides), sums)

    def _of_taps(
        self,
        w: NDArray[Any],
        taps: Sequence[Sequence[int]],
        group: int,
        x: Sequence[int],
        places: tuple[Sequence[int], ...],
        sums: Sums,
    ) -> _Launch:
        """`places`: how many, their strides in x, and the sizes, first places and steps of what is written."""
        rows, channels = w.shape[0] // group, w.shape[1]
        by_tap = w.reshape(group, rows, channels, len(taps))
        table = np.zeros((len(taps), channels, 4), np.int32)
        table[..., 0] = np.arange(channels)
        for axis in range(len(places[0])):
            table[..., 4 - len(places[0]) + axis] = np.array([tap[axis] for tap in taps])[:, np.newaxis]
        if sums is Sums.HALF_SINGLE:
            weights, table, block = by_tap, table.transpose(1, 0, 2), 1
        else:
            weights = by_tap.transpose(0, 1, 3, 2)
            block = channels if group > 1 and channels < BLOCK else BLOCK
        shape = _Shape(
            *(x[0] * group, group, rows, channels * len(taps), channels),
            size=_three(x[2:], 1),
            out=_three(places[0], 1),
            strides=_three(places[1], 1),
            whole=_three(places[2], 1),
            first=_three(places[3], 0),
            step=_three(places[4], 1),
            block=block,
        )
        return self._launch(shape, table.reshape(-1, 4), np.ascontiguousarray(weights, np.float32))

    def _launch(self, shape: _Shape, taps: NDArray[np.int32], weights: NDArray[np.float32] | None) -> _Launch:
        """`weights` None: those of the first operand."""
        places = math.prod(shape.out)
        on_tensor_cores = shape.block == BLOCK and self._has_tensor_cores
        grid = (-(-places // _THREADS), shape.rows, shape.groups)
        if on_tensor_cores:
            grid = (-(-places // _COLUMNS), -(-shape.rows // _ROWS), shape.groups)
        return _Launch(
            "half_sums_tensor" if on_tensor_cores else "half_sums_plain",
            grid,
            self._launcher.given(shape.numbers, np.int32),
            self._launcher.given(np.ascontiguousarray(taps, np.int32).reshape(-1), np.int32),
            None if weights is None else self._launcher.given(weights.reshape(-1), np.float32),
        )


def _three(sizes: Sequence[int], fill: int) -> tuple[int, ...]:
    """Of three axes, the last ones these."""
    return (*[fill] * (3 - len(sizes)), *sizes)


def _host(value: Any) -> NDArray[Any]:
    return value if isinstance(value, np.ndarray) else value.host()


def _is_double(value: Any) -> bool:
    return isinstance(value, np.ndarray) and value.dtype == np.float64
