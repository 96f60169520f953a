"""How many products one value of a Conv, ConvTranspose, Gemm or MatMul is the sum of."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import onnx_ir as ir

from precisionlab.model.graph import TensorInfo
from precisionlab.model.layers import is_anchor


def products_of(node: ir.Node, tensors: Mapping[str, TensorInfo]) -> int | None:
    """The products that one value is the sum of, K; None for other operators, and where the shapes are not known.

    Of a Conv channels / groups × taps; of Gemm and MatMul the inner size; of a ConvTranspose the most that meet in one
    value: channels / groups × ∏ ceil(taps / (stride / gcd(stride, dilation))), as of all its taps only those a stride
    apart reach the same place.
    """
    if not is_anchor(node):
        return None
    left, right = (None if v is None else tensors[str(v.name)].shape for v in node.inputs[:2])
    if node.op_type == "Conv":
        return _product(None if right is None else right[1:])
    if node.op_type == "ConvTranspose":
        if right is None:
            return None
        groups, taps = _whole(node, "group", 1), len(right) - 2
        strides, dilations = _wholes(node, "strides", taps), _wholes(node, "dilations", taps)
        meeting = [
            None if not isinstance(size, int) else -(-size // (stride // math.gcd(stride, dilation)))
            for size, stride, dilation in zip(right[2:], strides, dilations, strict=True)
        ]
        channels = right[0] // groups if isinstance(right[0], int) else None
        return _product([channels, *meeting])
    inner = [] if left is None else left[-2:-1] if _whole(node, "transA", 0) else left[-1:]
    known = _product(inner) if inner else None
    if known is not None or right is None:
        return known
    # The other operand has the same size, on its axis before the last one.
    other = right[-1:] if len(right) == 1 or _whole(node, "transB", 0) else right[-2:-1]
    return _product(other)


def _product(dims: Sequence[int | str | None] | None) -> int | None:
    known = [dim for dim in dims or () if isinstance(dim, int)]
    return math.prod(known) if dims is not None and len(known) == len(dims) else None


def _whole(node: ir.Node, name: str, default: int) -> int:
    return node.attributes[name].as_int() if name in node.attributes else default


def _wholes(node: ir.Node, name: str, count: int) -> Sequence[int]:
    return node.attributes[name].as_ints() if name in node.attributes else [1] * count
