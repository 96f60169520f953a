"""What two constants of two models hold: whether they are the same numbers, rounded or quantised perhaps."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

_LEAST = 15.0
"""dB of SQNR that rounded constants agree to at least: 4 bits have about 20, weights with a scale folded in less."""


def alike(first: ir.Value, second: ir.Value) -> bool:
    """Whether both are constants that hold the same, but for what a smaller type has rounded.

    Floats agree to 15 dB and other types to the bit.
    """
    a, b = numbers_of(first), numbers_of(second)
    if a is None or b is None or a.shape != b.shape:
        return False
    if a.dtype.kind != "f" or b.dtype.kind != "f":
        return a.dtype.kind == b.dtype.kind and bool(np.array_equal(a, b))
    true, low = a.astype(np.float64), b.astype(np.float64)
    if not np.isfinite(true).all():
        return bool(np.array_equal(true, low, equal_nan=True))
    noise, signal = float(np.square(low - true).sum()), float(np.square(true).sum())
    return noise == 0 or (np.isfinite(noise) and signal > noise * 10 ** (_LEAST / 10))


def numbers_of(value: ir.Value) -> NDArray[np.generic] | None:
    """What a value holds that constants alone make, through Casts, Q/DQ pairs and DequantizeLinear; None where not.

    Floats of any size are float32. Blocks of scales are not followed.
    """
    if value.const_value is not None:
        return _plain(value.const_value)
    node = value.producer()
    if node is None or not node.inputs or node.inputs[0] is None:
        return None
    if node.op_type in ("Cast", "Identity", "QuantizeLinear"):
        return numbers_of(node.inputs[0])
    if node.op_type != "DequantizeLinear":
        return None
    maker = node.inputs[0].producer()
    is_pair = maker is not None and maker.op_type == "QuantizeLinear"
    return numbers_of(node.inputs[0]) if is_pair else _dequantised(node)


def _plain(tensor: ir.TensorProtocol) -> NDArray[np.generic] | None:
    if tensor.dtype == ir.DataType.STRING:
        return None
    array = np.asarray(tensor.numpy())
    is_float = tensor.dtype.is_floating_point()
    return array.astype(np.float32) if is_float and array.dtype != np.float32 else array


def _dequantised(node: ir.Node) -> NDArray[np.generic] | None:
    """(x − zero point) · scale, along the node's axis. Source: ONNX, DequantizeLinear."""
    held = [numbers_of(value) if value is not None else None for value in node.inputs]
    values, scale = held[0], held[1] if len(held) > 1 else None
    zero = held[2] if len(held) > 2 else None
    if values is None or scale is None or (len(node.inputs) > 2 and node.inputs[2] is not None and zero is None):
        return None
    axis = node.attributes.get_int("axis", 1)
    shape = [1] * values.ndim
    if scale.size != 1:
        if scale.ndim != 1 or not -values.ndim <= axis < values.ndim or values.shape[axis] != scale.size:
            return None
        shape[axis] = scale.size
    lowered = values.astype(np.float32)
    if zero is not None:
        lowered = lowered - (zero.reshape(shape) if zero.size == scale.size else zero).astype(np.float32)
    result: NDArray[np.generic] = lowered * scale.reshape(shape).astype(np.float32)
    return result
