"""Constants in another type: converted, quantised or folded when they are written, never all at once in memory."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from precisionlab.calibration.grid import rounded_to_grid, spread_along
from precisionlab.calibration.table import weight_scales
from precisionlab.model.mapped import let_go
from precisionlab.plan.arithmetic import Constants
from precisionlab.precision import Precision
from precisionlab.rewrite.constants import UNCLAMPED, clamped_array, clamped_number
from precisionlab.rewrite.typed.signature import FLOAT
from precisionlab.system.wording import counted

_NAMED = 3  # constants that a note names


@dataclass(frozen=True)
class Written:
    """A float32 constant that a typed model holds in a precision, clamped where that cannot hold it."""

    name: str
    tensor: ir.TensorProtocol
    precision: Precision


def clamping_notes(written: Iterable[Written]) -> tuple[str, ...]:
    """What a user should know of constants that were clamped: those beyond half first, then the smallest tensors.

    Reads them all, one after the other.
    """
    found = []
    for one in written:
        array = one.tensor.numpy()
        if (changed := clamped_number(array, one.precision)) is not None:
            found.append((abs(changed[0]) < abs(changed[1]), array.size, one.name, *changed))
        let_go(one.tensor)
    if not found:
        return ()
    found.sort()
    named = ", ".join(f"{name} ({value:.3g} → {nearest:.5g})" for _, _, name, value, nearest in found[:_NAMED])
    more = f" and {len(found) - _NAMED} more" if len(found) > _NAMED else ""
    return (
        f"{counted(len(found), 'constant')} that fp16 cannot hold {'is' if len(found) == 1 else 'are'} clamped to the "
        f"nearest that it can, as TensorRT's builder does where types are weak: {named}{more}; strongly typed TensorRT "
        "computes with what this file holds",
    )


def converted(array: NDArray[np.float32], dtype: ir.DataType) -> NDArray[np.generic]:
    """Rounded to nearest, ties to even, inf beyond the type's range: what a Cast gives."""
    with np.errstate(over="ignore"):
        return np.asarray(array).astype(dtype.numpy())


def held(array: NDArray[np.float32], dtype: ir.DataType, constants: Constants) -> NDArray[np.generic]:
    """A constant's content in the type: clamped first or not; of the same shape."""
    precision = Precision.of_element(dtype)
    if constants is Constants.CLAMPED and precision is not None:
        array = clamped_array(array, precision)
    return converted(array, dtype)


def constants_of(node: ir.Node, constants: Constants) -> Constants:
    """What becomes of the constants that the node takes: parameters of a layer, as Clip's limits, are not clamped."""
    return Constants.ROUNDED if node.op_type in UNCLAMPED else constants


def is_exact(array: NDArray[np.float32], dtype: ir.DataType) -> bool:
    """Whether the type holds every value as it is."""
    return np.array_equal(converted(array, dtype).astype(np.float32), array, equal_nan=True)


def converted_tensor(tensor: ir.TensorProtocol, dtype: ir.DataType, constants: Constants) -> ir.LazyTensor:
    """The float32 tensor in another type; read and converted each time that its content is asked for."""
    shape = ir.Shape(tuple(tensor.shape.numpy()))
    return ir.LazyTensor(lambda: ir.tensor(held(tensor.numpy(), dtype, constants), dtype=dtype), dtype, shape)


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


def quantised(
    weight: NDArray[np.float32], scales: NDArray[np.float32], axis: int | None, precision: Precision
) -> NDArray[np.generic]:
    """float32 weights in a quantized precision, half to even and saturated, with a scale for each channel of `axis`."""
    number_format = precision.number_format
    steps = np.asarray(weight, np.float32) / spread_along(scales, axis, weight.ndim)
    return np.asarray(rounded_to_grid(steps, number_format).astype(number_format.numpy))


def quantised_tensor(
    tensor: ir.TensorProtocol, axis: int | None, dtype: ir.DataType, precision: Precision
) -> tuple[ir.LazyTensor, NDArray[np.generic]]:
    """The weight in the precision, computed when it is asked for, and its scales in the type: (channels,), or ()."""
    scales = scale_in(weight_scales(tensor.numpy(), axis, precision.number_format), dtype)
    return quantised_by(tensor, scales.astype(np.float32), axis, precision), scales


def quantised_by(
    tensor: ir.TensorProtocol, scales: NDArray[np.float32], axis: int | None, precision: Precision
) -> ir.LazyTensor:
    """The weight in the precision with these scales, computed when it is asked for."""
    shape, element = ir.Shape(tuple(tensor.shape.numpy())), precision.number_format.element

    def quantized() -> ir.TensorProtocol:
        return ir.tensor(quantised(tensor.numpy(), scales, axis, precision), dtype=element)

    return ir.LazyTensor(quantized, element, shape)
