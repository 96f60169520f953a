"""Inputs and outputs that an engine stores not row by row: channels last, or several channels in one element.

TensorRT tells of each tensor the dimension that is in elements, how many values an element has, and the strides "in
units of elements" (NvInferRuntime.h, `IExecutionContext::getTensorStrides`): with HWC8 a stride of one spans 8 values.
What fills up an element, a row or a plane is zero.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import as_strided
from numpy.typing import NDArray

from precisionlab.backends.tensorrt.jobs import Shape


@dataclass(frozen=True)
class Layout:
    """A format of TensorRT's: `lanes` neighbours along `axis` are one element; with one, `axis` is -1."""

    name: str
    axis: int
    lanes: int


def values_in(shape: Shape, strides: Sequence[int], layout: Layout) -> int:
    """How many values the memory of a tensor of this shape has, those that fill up among them."""
    sizes, steps = _view(shape, strides, layout)
    return max(size * step for size, step in zip(sizes, steps, strict=True)) if min(sizes) else 0


def packed(array: NDArray[Any], strides: Sequence[int], layout: Layout) -> NDArray[Any]:
    """An array as the engine stores it, flat, in its own dtype."""
    memory = np.zeros(values_in(array.shape, strides, layout), array.dtype)
    if array.size:
        _seen(memory, array.shape, strides, layout)[...] = _split(array, layout)
    return memory


def unpacked(memory: NDArray[Any], shape: Shape, strides: Sequence[int], layout: Layout) -> NDArray[Any]:
    """The array of this shape that the engine has stored so."""
    if not min(shape, default=1):
        return np.empty(shape, memory.dtype)
    view = _seen(memory, shape, strides, layout)
    if layout.axis < 0:
        return np.ascontiguousarray(view).reshape(shape)
    joined = np.moveaxis(view, -1, layout.axis + 1)
    sizes = list(shape)
    sizes[layout.axis] = view.shape[layout.axis] * layout.lanes
    return np.ascontiguousarray(np.take(joined.reshape(sizes), range(shape[layout.axis]), axis=layout.axis))


def _view(shape: Shape, strides: Sequence[int], layout: Layout) -> tuple[list[int], list[int]]:
    """Sizes and strides in values: of each dimension, and of the values within an element."""
    sizes = list(shape)
    if layout.axis >= 0:
        sizes[layout.axis] = -(-sizes[layout.axis] // layout.lanes)
    return [*sizes, layout.lanes], [*(stride * layout.lanes for stride in strides), 1]


def _seen(memory: NDArray[Any], shape: Shape, strides: Sequence[int], layout: Layout) -> NDArray[Any]:
    sizes, steps = _view(shape, strides, layout)
    return as_strided(memory, sizes, [step * memory.itemsize for step in steps])


def _split(array: NDArray[Any], layout: Layout) -> NDArray[Any]:
    """The array with its elements in a dimension of their own, the last."""
    if layout.axis < 0:
        return array[..., np.newaxis]
    sizes = array.shape
    short = -sizes[layout.axis] % layout.lanes
    whole = np.pad(array, [(0, short if axis == layout.axis else 0) for axis in range(array.ndim)])
    count = whole.shape[layout.axis] // layout.lanes
    parts = whole.reshape(*sizes[: layout.axis], count, layout.lanes, *sizes[layout.axis + 1 :])
    return np.moveaxis(parts, layout.axis + 1, -1)
