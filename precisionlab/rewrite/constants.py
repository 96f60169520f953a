"""What a constant becomes in a precision."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from precisionlab.calibration.grid import quantized_array
from precisionlab.model.mapped import let_go
from precisionlab.plan.arithmetic import Constants
from precisionlab.precision import Precision

UNCLAMPED = frozenset({"Cast", "Clip"})
"""Operators whose constants are rounded and never clamped.

TensorRT makes parameters of a Clip's layer of its limits, in float32; and a Cast that the model's own file has is one.
"""

_PIECE = 1 << 15

_LARGE = 1 << 16
"""From so many numbers on the compiled loop is worth its loading."""


def rounded_array(array: NDArray[np.float32], precision: Precision) -> NDArray[np.float32]:
    """Rounded to nearest, ties to even, as IEEE 754 binary16 or bfloat16; Inf beyond the precision. float32, any shape.

    Of float32 and quantized precisions the array itself: those are not rounded ahead.
    """
    if not precision.is_low_float:
        return array
    if precision.stored_as is Precision.FP16 and np.size(array) >= _LARGE:
        from precisionlab.rewrite.half import rounded_to_half

        return rounded_to_half(array)
    with np.errstate(over="ignore", invalid="ignore"):
        return np.asarray(array).astype(precision.number_format.numpy).astype(np.float32)


def round_scalar(value: float, precision: Precision) -> float:
    """One number rounded as `rounded_array` does."""
    return float(rounded_array(np.asarray(value, np.float32), precision)) if precision.is_low_float else value


def clamped_array(array: NDArray[np.float32], precision: Precision) -> NDArray[np.float32]:
    """The array as TensorRT's builder has it before it rounds: float32, of the same shape.

    A finite number beyond the precision becomes its largest, and one that is not 0 but would be rounded to it the
    smallest subnormal, each with its sign (which of the two signs TensorRT gives a small negative one is not known; no
    public log tells). Inf and NaN stay.
    """
    number_format = precision.number_format
    if not number_format.clamps_constants:
        return array
    clamped = np.array(array, np.float32, order="C")
    for part, beyond, underflow in _clamped_parts(array, precision):
        values = clamped.reshape(-1)[part]
        for places, limit in ((beyond, number_format.largest), (underflow, number_format.least)):
            if places.any():
                values[places] = np.copysign(np.float32(limit), values[places])
    return clamped


def constant_array(array: NDArray[np.float32], precision: Precision, constants: Constants) -> NDArray[np.float32]:
    """What a kernel in the precision is handed of a constant: float32, of the same shape."""
    if constants is not Constants.CLAMPED:
        return rounded_array(array, precision)
    if precision.stored_as is Precision.FP16 and precision.number_format.clamps_constants and np.size(array) >= _LARGE:
        from precisionlab.rewrite.half import clamped_to_half

        return clamped_to_half(array)
    return rounded_array(clamped_array(array, precision), precision)


def is_clamped(value: ir.Value, precision: Precision) -> bool:
    """Whether an initialiser holds a number that the precision clamps; looked up once for a value.

    Raises nothing for other types than float32: they are not clamped.
    """
    return clamped_in(value, precision) is not None


def clamped_in(value: ir.Value, precision: Precision) -> tuple[float, float] | None:
    """`clamped_number` of an initialiser; None for other types than float32. Looked up once for a value."""
    if not precision.number_format.clamps_constants or value.dtype != ir.DataType.FLOAT:
        return None
    key = f"precisionlab.clamped.{precision}"
    if key not in value.meta:
        assert value.const_value is not None
        value.meta[key] = clamped_number(value.const_value.numpy(), precision)
        let_go(value.const_value)
    found: tuple[float, float] | None = value.meta[key]
    return found


def clamped_number(array: NDArray[np.float32], precision: Precision) -> tuple[float, float] | None:
    """A number of the array that is clamped, and what it becomes; None where none is.

    The largest, where that lies beyond the precision, else the first that would be 0.
    """
    if not precision.number_format.clamps_constants:
        return None
    place = _clamped_place(array, precision)
    if place is None:
        return None
    number = np.asarray(array, np.float32).reshape(-1)[place]
    return float(number), float(clamped_array(number.reshape(1), precision)[0])


def held_tensor(tensor: ir.TensorProtocol, precision: Precision, constants: Constants) -> ir.LazyTensor:
    """What a kernel in the precision is handed of a float32 tensor; read and rounded when its content is asked for.

    Of a tensor it is always the same one, so that who keeps its content knows it again.
    """

    def held() -> ir.TensorProtocol:
        return ir.tensor(constant_array(tensor.numpy(), precision, constants))

    return _once_of(tensor, f"held.{precision}.{constants}", held)


def quantized_tensor(
    tensor: ir.TensorProtocol, scales: NDArray[np.float32], axis: int | None, precision: Precision
) -> ir.LazyTensor:
    """A float32 tensor in steps of its scales, as QuantizeLinear and DequantizeLinear to the precision leave it.

    `scales` are those of the channels along `axis`, float32 (channels,), or of all, float32 (). The content is read and
    rounded when it is asked for; of a tensor and scales it is always the same one. Source: the ONNX operators of these
    names: q = saturate(round(x / scale)), ties to even, and q · scale.
    """

    def quantized() -> ir.TensorProtocol:
        return ir.tensor(quantized_array(tensor.numpy(), scales, axis, precision.number_format))

    of = hashlib.sha256(scales.tobytes()).hexdigest()
    return _once_of(tensor, f"quantized.{precision}.{axis}.{of}", quantized)


def clamped_tensor(tensor: ir.TensorProtocol, precision: Precision) -> ir.LazyTensor:
    """The float32 tensor clamped, and not rounded yet; read and clamped each time that its content is asked for."""
    return _once_of(tensor, f"clamped.{precision}", lambda: ir.tensor(clamped_array(tensor.numpy(), precision)))


def _once_of(tensor: ir.TensorProtocol, what: str, content: Callable[[], ir.TensorProtocol]) -> ir.LazyTensor:
    """A float32 tensor of the same shape with this content, computed when it is asked for; made once of a tensor."""
    key = f"precisionlab.{what}"
    if key not in tensor.meta:
        tensor.meta[key] = ir.LazyTensor(content, ir.DataType.FLOAT, ir.Shape(tuple(tensor.shape.numpy())))
    made: ir.LazyTensor = tensor.meta[key]
    return made


def _clamped_place(array: NDArray[np.float32], precision: Precision) -> int | None:
    """Where the number stands in the flat array that `clamped_number` tells."""
    if np.size(array) >= _LARGE:
        from precisionlab.rewrite.half import clamped_place

        return clamped_place(array, *_limits(precision))
    flat = np.asarray(array, np.float32).reshape(-1)
    beyond, underflow = _clamped_in_a_piece(flat, *_limits(precision))
    if beyond.any():
        return int(np.where(beyond, np.abs(flat), 0).argmax())
    return int(underflow.argmax()) if underflow.any() else None


def _limits(precision: Precision) -> tuple[np.float32, np.float32]:
    """The least magnitude that is rounded beyond the precision, and the largest that is rounded to 0."""
    number_format = precision.number_format
    # The middle between the largest number and what would be the next: what is rounded to the largest lies below it.
    step = 2.0 ** math.floor(math.log2(number_format.largest)) * number_format.epsilon
    return np.float32(number_format.largest + step / 2), np.float32(number_format.least / 2)


def _clamped_parts(
    array: NDArray[np.float32], precision: Precision
) -> Iterator[tuple[slice, NDArray[np.bool_], NDArray[np.bool_]]]:
    """Part by part of the flat array, which of its numbers are beyond the precision, and which would be rounded to 0.

    By their magnitudes, in pieces that a core's cache holds: rounding an array and comparing takes copies of its size,
    and fifteen times as long.
    """
    limits = _limits(precision)
    flat = np.ascontiguousarray(array).reshape(-1)
    for start in range(0, flat.size, _PIECE):
        part = slice(start, start + _PIECE)
        yield part, *_clamped_in_a_piece(flat[part], *limits)


def _clamped_in_a_piece(
    piece: NDArray[np.float32], first_beyond: np.float32, last_underflow: np.float32
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Which of the numbers are beyond the precision, and which would be rounded to 0."""
    magnitude = np.abs(piece)
    with np.errstate(invalid="ignore"):
        return (magnitude >= first_beyond) & (magnitude < np.inf), (magnitude <= last_underflow) & (magnitude > 0)
