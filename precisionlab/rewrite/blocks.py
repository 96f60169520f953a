"""Weights quantised in blocks: as constants of a graph, read and quantised when their content is asked for."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from precisionlab.calibration.blocks import block_levels, block_scales, dequantized_blocks
from precisionlab.calibration.table import CalibrationTable
from precisionlab.errors import PlanError
from precisionlab.model.blocks import WEIGHT, block_of, blocked_axis
from precisionlab.model.mapped import let_go
from precisionlab.precision import Precision
from precisionlab.rewrite.constants import rounded_array


def scales_in_blocks(node: ir.Node, table: CalibrationTable) -> NDArray[np.float32]:
    """The scales of the blocks of a product's weight, float32: those chosen for the node, or found once for a weight.

    Raises PlanError where no block divides the axis, and for a weight that is not finite.
    """
    blocks, value, axis = table.blocks, node.inputs[WEIGHT], blocked_axis(node)
    assert blocks is not None
    assert axis is not None
    assert value is not None
    assert value.const_value is not None
    if str(node.name) in blocks.scales:
        return blocks.scales[str(node.name)]
    length = int(value.const_value.shape.numpy()[axis])
    size = block_of(length, blocks.size)
    if size is None:
        raise PlanError(f"no block of {table.precision} divides the {length} rows of weight {value.name}")
    key = f"precisionlab.{table.precision} in blocks of {size} along {axis} by {blocks.method}"
    if key not in value.meta:
        weight = value.const_value.numpy()
        if not np.isfinite(weight).all():
            raise PlanError(
                f"weight {value.name} of node {node.name} holds NaN or Inf, for which {table.precision} has no scale; "
                f"mend the model, or leave {table.precision} out"
            )
        value.meta[key] = block_scales(weight, axis, size, table.precision.number_format, blocks.method)
        let_go(value.const_value)
    found: NDArray[np.float32] = value.meta[key]
    return found


def blocked_tensor(
    tensor: ir.TensorProtocol, scales: NDArray[np.float32], axis: int, precision: Precision, border: Precision
) -> ir.LazyTensor:
    """A float32 tensor as DequantizeLinear gives it in the float `border`, in float32."""

    def dequantized() -> ir.TensorProtocol:
        found = dequantized_blocks(tensor.numpy(), scales, axis, precision.number_format)
        return ir.tensor(rounded_array(found, border))

    return ir.LazyTensor(dequantized, tensor.dtype, ir.Shape(tuple(tensor.shape.numpy())))


def levels_tensor(
    tensor: ir.TensorProtocol, scales: NDArray[np.float32], axis: int, precision: Precision
) -> ir.LazyTensor:
    """A float32 tensor in steps of its blocks' scales, in the precision's own element type."""
    number_format = precision.number_format

    def levels() -> ir.TensorProtocol:
        found = block_levels(tensor.numpy(), scales, axis, number_format)
        return ir.tensor(found.astype(number_format.numpy), dtype=number_format.element)

    return ir.LazyTensor(levels, number_format.element, ir.Shape(tuple(tensor.shape.numpy())))
