"""How many products one value of a Conv, ConvTranspose, Gemm or MatMul is the sum of."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import onnx_ir as ir

from precisionlab.model.graph import TensorInfo
from precisionlab.model.layers import is_anchor

BLOCK = 16
"""Products that a tensor core adds up exactly before it rounds the sum: `m16n8k16` of half, on SM80 to SM90."""


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


def blocks_of(node: ir.Node, tensors: Mapping[str, TensorInfo]) -> int | None:
    """The blocks in which tensor cores add those products up: after each a sum that is kept in half is rounded.

    Of `BLOCK` products, packed densely; a group of fewer channels than that is a block at every tap. None where
    `products_of` is.
    """
    products = products_of(node, tensors)
    if products is None:
        return None
    right = None if node.inputs[1] is None else tensors[str(node.inputs[1].name)].shape
    groups = _whole(node, "group", 1) if node.op_type in ("Conv", "ConvTranspose") else 1
    if groups == 1 or not right:
        return -(-products // BLOCK)
    channels = right[1] if node.op_type == "Conv" else _product(right[:1])
    if node.op_type == "ConvTranspose" and isinstance(channels, int):
        channels //= groups
    return -(-products // min(channels, BLOCK)) if isinstance(channels, int) else None


def _product(dims: Sequence[int | str | None] | None) -> int | None:
    known = [dim for dim in dims or () if isinstance(dim, int)]
    return math.prod(known) if dims is not None and len(known) == len(dims) else None


def _whole(node: ir.Node, name: str, default: int) -> int:
    return node.attributes[name].as_int() if name in node.attributes else default


def _wholes(node: ir.Node, name: str, count: int) -> Sequence[int]:
    return node.attributes[name].as_ints() if name in node.attributes else [1] * count
