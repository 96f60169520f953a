"""Constants in another type: converted, quantised or folded when they are written, never all at once in memory."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from precisionlab.calibration.table import weight_scales
from precisionlab.rewrite.typed.signature import FLOAT


def converted(array: NDArray[np.float32], dtype: ir.DataType) -> NDArray[np.generic]:
    """Rounded to nearest, ties to even, inf beyond the type's range: what a Cast gives."""
    with np.errstate(over="ignore"):
        return np.asarray(array).astype(dtype.numpy())


def is_exact(array: NDArray[np.float32], dtype: ir.DataType) -> bool:
    """Whether the type holds every value as it is."""
    return np.array_equal(converted(array, dtype).astype(np.float32), array, equal_nan=True)


def converted_tensor(tensor: ir.TensorProtocol, dtype: ir.DataType) -> ir.LazyTensor:
    """The float32 tensor in another type; read and converted each time that its content is asked for."""
    return ir.LazyTensor(
        lambda: ir.tensor(converted(tensor.numpy(), dtype), dtype=dtype), dtype, ir.Shape(tuple(tensor.shape.numpy()))
    )


def scale_in(scale: NDArray[np.float32], dtype: ir.DataType) -> NDArray[np.generic]:
    """Scales in the type, never below what they are: a range must not shrink, and no scale underflow.

    float16's steps below 2⁻¹⁴ are as coarse as the values that such a scale stands for are in float16 itself.
    """
    near = converted(scale, dtype)
    if dtype == FLOAT:
        return near
    unsigned = np.asarray(near).view(np.uint16)  # the next larger positive number has the next larger bits
    larger = np.asarray(unsigned + (near.astype(np.float32) < scale).astype(np.uint16), np.uint16)
    return np.asarray(larger).view(dtype.numpy())


def quantised(weight: NDArray[np.float32], scales: NDArray[np.float32], axis: int | None) -> NDArray[np.int8]:
    """int8 of float32 weights, rounded half to even and saturated, with a scale for each channel along `axis`."""
    shape = [1] * weight.ndim
    if axis is not None:
        shape[axis] = -1
    levels = np.rint(np.asarray(weight, np.float32) / scales.reshape(shape))
    return np.asarray(np.clip(levels, -128, 127), np.int8)


def quantised_tensor(
    tensor: ir.TensorProtocol, axis: int | None, dtype: ir.DataType
) -> tuple[ir.LazyTensor, NDArray[np.generic]]:
    """The weight in int8, computed when it is asked for, and its scales in the type: (channels,), or ()."""
    scales = scale_in(weight_scales(tensor.numpy(), axis), dtype)
    used = scales.astype(np.float32)
    levels = ir.LazyTensor(
        lambda: ir.tensor(quantised(tensor.numpy(), used, axis)),
        ir.DataType.INT8,
        ir.Shape(tuple(tensor.shape.numpy())),
    )
    return levels, scales
