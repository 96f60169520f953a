"""Products of E4M3 in truth: ONNX Runtime's GemmFloat8, a kernel of cuBLASLt's on a GPU that has them.

It adds up in the tensor cores' own way ("fast accumulation"): for normal data 83 dB from exact sums of 64 products, 57
from those of 4,096, where rounding the operands to E4M3 leaves 28.5 dB whatever their number.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from precisionlab.model import Layer, Model
from precisionlab.precision import Precision
from precisionlab.rewrite.builder import MICROSOFT, GraphBuilder

ELEMENT = Precision.FP8.number_format.element
OPSET = 19
"""ONNX's first whose QuantizeLinear gives E4M3."""

_MULTIPLE = 16
"""cuBLASLt wants lengths of E4M3 matrices to be multiples of it; zeros are added, which change no sum."""
_NODES = frozenset({"MatMul", "Gemm"})


def reason_against(model: Model, layer: Layer) -> str | None:
    """Why a layer's product cannot be had in E4M3 in truth; None where it can."""
    node = model.node[layer.nodes[0]]
    if node.op_type not in _NODES:
        return f"ONNX Runtime has no {node.op_type} in fp8"
    first, second = node.inputs[:2]
    weight = None if second is None or not second.is_initializer() else second.const_value
    if first is None or first.is_initializer() or weight is None or len(weight.shape) != 2:
        return "ONNX Runtime's product in fp8 is that of a matrix and a constant one, which stands behind it"
    if "transA" in node.attributes and node.attributes["transA"].as_int():
        return "ONNX Runtime's product in fp8 takes no first matrix that is transposed"
    if model.tensors[str(first.name)].shape is None:
        return "how many dimensions its input has is not known"
    return None


def padded(length: int) -> int:
    """The next length that cuBLASLt takes."""
    return -(-length // _MULTIPLE) * _MULTIPLE


def columns_in_float8(weight: NDArray[np.generic]) -> ir.TensorProtocol:
    """A weight's columns (N, K) in E4M3, with zeros up to lengths that cuBLASLt takes."""
    whole = np.zeros([padded(length) for length in weight.shape], ELEMENT.numpy())
    whole[: weight.shape[0], : weight.shape[1]] = weight
    return ir.tensor(whole, dtype=ELEMENT)


def rows_in_float8(builder: GraphBuilder, value: ir.Value, scale: np.float32, length: int) -> ir.Value:
    """A float32 tensor (…, K) as rows (M, K) of E4M3, in steps of the scale, saturated; K is `length`, or longer."""
    name = str(value.name)
    rank = 0 if value.shape is None else len(value.shape)
    rows = value if rank == 2 else builder.op("Flatten", [value], f"{name}:rows", axis=rank - 1)
    if (missing := padded(length) - length) > 0:
        ends = builder.constant(ir.tensor(np.array([0, 0, 0, missing], np.int64)), f"{name}:missing")
        rows = builder.op("Pad", [rows, ends], f"{name}:padded")
    step = builder.constant(ir.tensor(np.asarray(scale)), f"{name}:scale")
    zero = builder.constant(ir.tensor(np.zeros((), ELEMENT.numpy()), dtype=ELEMENT), f"{name}:zero")
    low = builder.op("QuantizeLinear", [rows, step, zero], f"{name}:float8")
    low.type = ir.TensorType(ELEMENT)
    return low


def product(builder: GraphBuilder, rows: ir.Value, columns: ir.Value, count: int, name: str) -> ir.Value:
    """The sums of products of E4M3 rows (M, K) and columns (N, K), float32 (M, N), where N is `count`.

    Both may have zeros beyond that; no scale is in the sums.
    """
    one = builder.constant(ir.tensor(np.ones(1, np.float32)), f"{name}:one")
    attributes = {"transA": 0, "transB": 1, "alpha": 1.0, "dtype": int(ir.DataType.FLOAT)}
    sums = builder.op("GemmFloat8", [rows, columns, None, one, one], name, domain=MICROSOFT, **attributes)
    sums.type = ir.TensorType(ir.DataType.FLOAT)
    if padded(count) == count:
        return sums
    places = [_integers(builder, f"{name}:{label}", [n]) for label, n in (("first", 0), ("last", count), ("axis", 1))]
    return builder.op("Slice", [sums, *places], f"{name}:columns")


def as_leading(builder: GraphBuilder, rows: ir.Value, like: ir.Value, name: str) -> ir.Value:
    """Rows (M, N) with the leading dimensions of `like`, (…, K): (…, N)."""
    if like.shape is not None and len(like.shape) == 2:
        return rows
    shape = builder.op("Shape", [like], f"{name}:shape")
    ends = [_integers(builder, f"{name}:{label}", [n]) for label, n in (("start", 0), ("rest", -1))]
    leading = builder.op("Slice", [shape, *ends], f"{name}:leading")
    whole = builder.op("Concat", [leading, ends[1]], f"{name}:whole", axis=0)
    return builder.op("Reshape", [rows, whole], f"{name}:shaped")


def _integers(builder: GraphBuilder, name: str, numbers: Sequence[int]) -> ir.Value:
    return builder.constant(ir.tensor(np.asarray(numbers, np.int64)), name)
