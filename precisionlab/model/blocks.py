"""Weights that can be quantised in blocks along what a product sums over: which, along which axis, in which blocks."""

from __future__ import annotations

import onnx_ir as ir

from precisionlab.model.flow import ONNX_DOMAINS

SIZES = (128, 64, 32, 16)
"""The sizes that blocks may have, in numbers. TensorRT's documentation has 64 and 128; TensorRT-RTX 1.7.1 takes all.

Source: NVIDIA TensorRT documentation, "Quantization Schemes", INT4. ONNX Runtime's MatMulNBits wants powers of two from
16 on.
"""

LARGEST = SIZES[0]
WEIGHT = 1
"""The input that can be such a weight: TensorRT-RTX has no kernel for one on the left, and blocks for no Conv's."""


def block_of(length: int, most: int = LARGEST) -> int | None:
    """The largest block of at most so many numbers that divides the axis into two or more; None where none does.

    Whole ones alone: TensorRT takes the length over the number of scales for the size, whatever ONNX's attribute says,
    so that a short last block would be dequantised by other numbers' scales. And an axis of a single block is
    dequantised by a kernel of its own, before a product in float (TensorRT-RTX 1.7.1).
    """
    return next((size for size in SIZES if size <= most and length % size == 0 and length > size), None)


def blocked_axis(node: ir.Node) -> int | None:
    """The axis of the node's weight that it sums over, where that can be quantised in blocks; None where it cannot.

    The second operand of a MatMul or Gemm, a float32 constant of two axes, the one it sums over of blocks.
    """
    if node.domain not in ONNX_DOMAINS or node.op_type not in ("Gemm", "MatMul"):
        return None
    value = node.inputs[WEIGHT]
    if value is None or not value.is_initializer() or value.shape is None or value.dtype != ir.DataType.FLOAT:
        return None
    shape = value.shape.numpy() if value.shape.is_static() else ()
    if len(shape) != 2:
        return None
    is_turned = node.op_type == "Gemm" and "transB" in node.attributes and node.attributes["transB"].as_int()
    axis = int(bool(is_turned))
    return axis if block_of(shape[axis]) is not None else None
