"""Constants in another type: converted, quantised or folded when they are written, never all at once in memory."""

from __future__ import annotations

from collections.abc import Mapping

import ml_dtypes
import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from precisionlab.calibration.table import weight_scales
from precisionlab.rewrite.typed.signature import FLOAT

NUMPY = {
    FLOAT: np.dtype(np.float32),
    ir.DataType.FLOAT16: np.dtype(np.float16),
    ir.DataType.BFLOAT16: np.dtype(ml_dtypes.bfloat16),
}


def converted(array: NDArray[np.float32], dtype: ir.DataType) -> NDArray[np.generic]:
    """Rounded to nearest, ties to even, inf beyond the type's range: what a Cast gives."""
    with np.errstate(over="ignore"):
        return np.asarray(array).astype(NUMPY[dtype])


def is_exact(array: NDArray[np.float32], dtype: ir.DataType) -> bool:
    """Whether the type holds every value as it is."""
    return np.array_equal(converted(array, dtype).astype(np.float32), array, equal_nan=True)


def converted_tensor(tensor: ir.TensorProtocol, dtype: ir.DataType) -> ir.LazyTensor:
    """The float32 tensor in another type; read and converted each time that its content is asked for."""
    return ir.LazyTensor(
        lambda: ir.tensor(converted(tensor.numpy(), dtype), dtype=dtype), dtype, ir.Shape(tuple(tensor.shape.numpy()))
    )


def scale_in(scale: NDArray[np.float32], dtype: ir.DataType) -> NDArray[np.generic]:
    """Scales in the type, never below what they are: a range must not shrink, and no scale vanish.

    float16's steps below 2⁻¹⁴ are as coarse as the values that such a scale stands for are in float16 itself.
    """
    near = converted(scale, dtype)
    if dtype == FLOAT:
        return near
    unsigned = np.asarray(near).view(np.uint16)  # the next larger positive number has the next larger bits
    larger = np.asarray(unsigned + (near.astype(np.float32) < scale).astype(np.uint16), np.uint16)
    return np.asarray(larger).view(NUMPY[dtype])


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


def folded_batchnorm(node: ir.Node) -> Mapping[int, NDArray[np.float32]] | None:
    """BatchNormalization's parameters by input index, as a scale and a shift: mean 0, variance 1, epsilon 0.

    In half its own do harm that the folded ones do not: a variance beyond 65504, or one that vanishes. None where the
    parameters are not constants, or the node does more than scale and shift.
    """
    if node.op_type != "BatchNormalization" or len([v for v in node.outputs if v.name]) != 1:
        return None
    if "training_mode" in node.attributes and node.attributes["training_mode"].as_int():
        return None
    tensors = [None if v is None else v.const_value for v in node.inputs[1:5]]
    if len(tensors) != 4:
        return None
    gamma, beta, mean, variance = (None if t is None else t.numpy().astype(np.float64) for t in tensors)
    if gamma is None or beta is None or mean is None or variance is None:
        return None
    epsilon = node.attributes["epsilon"].as_float() if "epsilon" in node.attributes else 1e-5
    with np.errstate(all="ignore"):
        scale = gamma / np.sqrt(variance + epsilon)
        shift = beta - mean * scale
    return {
        1: scale.astype(np.float32),
        2: shift.astype(np.float32),
        3: np.zeros(scale.shape, np.float32),
        4: np.ones(scale.shape, np.float32),
    }
