"""INT8 matrix products whose weight has a scale for each channel: which, and how scales stand behind the product."""

from __future__ import annotations

from collections.abc import Mapping

import onnx_ir as ir

from precisionlab.model.graph import TensorInfo
from precisionlab.rewrite.gates import weight_axis
from precisionlab.rewrite.sums import GEMM, MATMUL


def weight_by_channel(node: ir.Node) -> tuple[int, int] | None:
    """Which input of an int8 matrix product is a constant with a scale for each channel, and along which axis.

    None for other operators, products of activations, and weights of a single channel: these have one scale.
    """
    if node.op_type not in (GEMM, MATMUL):
        return None
    for index, value in enumerate(node.inputs[:2]):
        if value is None or not value.is_initializer() or value.shape is None:
            continue
        axis = weight_axis(node, index)
        if axis is not None and value.shape[axis] != 1:
            return index, axis
    return None


def factors_shape(node: ir.Node, index: int, tensors: Mapping[str, TensorInfo]) -> tuple[int, ...] | None:
    """The shape in which factors for each channel multiply the product; None where a rank is not known."""
    if index == 1:
        return (-1,)  # the product's last axis
    other = node.inputs[1]
    known = None if other is None else tensors.get(str(other.name))
    if known is None or known.shape is None:
        return None
    return (-1,) if len(known.shape) == 1 else (-1, 1)
