"""Weights in blocks of int4 for ONNX Runtime: its own MatMulNBits, which it has at every opset.

ONNX's DequantizeLinear with blocks needs opset 21, which few models have; ONNX Runtime makes a MatMulNBits of one with
a MatMul behind it anyway. Source: ONNX Runtime, `docs/ContribOperators.md`, com.microsoft.MatMulNBits.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from precisionlab.calibration.blocks import block_levels
from precisionlab.calibration.table import CalibrationTable
from precisionlab.errors import PlanError
from precisionlab.model.blocks import WEIGHT, blocked_axis
from precisionlab.model.mapped import let_go
from precisionlab.rewrite.blocks import scales_in_blocks

OPERATOR = "MatMulNBits"
_ZERO = 8  # what stands for 0 in the unsigned numbers that it holds, where it has no zero points


@dataclass(frozen=True)
class Packed:
    """What the operator takes: uint8 (columns, blocks, size / 2), float32 (columns · blocks,), and its attributes."""

    weight: NDArray[np.uint8]
    scales: NDArray[np.float32]
    attributes: Mapping[str, int]


def packed_weight(node: ir.Node, table: CalibrationTable) -> Packed:
    """The weight of a MatMul or Gemm in blocks. Raises PlanError for a Gemm that the operator cannot stand for."""
    _check(node)
    axis, weight = blocked_axis(node), node.inputs[WEIGHT]
    assert axis is not None
    assert weight is not None
    assert weight.const_value is not None
    scales = scales_in_blocks(node, table)
    levels = block_levels(weight.const_value.numpy(), scales, axis, table.precision.number_format)
    let_go(weight.const_value)
    levels, scales = (np.moveaxis(array, axis, -1) for array in (levels, scales))
    columns, length = levels.shape
    size = length // scales.shape[-1]
    attributes = {"K": length, "N": columns, "bits": 4, "block_size": size}
    return Packed(in_bytes(levels, size), np.ascontiguousarray(scales).reshape(-1), attributes)


def in_bytes(levels: NDArray[np.float32], size: int) -> NDArray[np.uint8]:
    """Levels −8 … 7, (columns, length), as uint8 (columns, blocks, size / 2): the first of two in the low half."""
    unsigned = np.ascontiguousarray(levels + _ZERO).astype(np.uint8).reshape(levels.shape[0], -1, size)
    return np.asarray(unsigned[..., ::2] | (unsigned[..., 1::2] << 4), np.uint8)


def _check(node: ir.Node) -> None:
    attributes = node.attributes
    factors = [attributes[name].as_float() for name in ("alpha", "beta") if name in attributes]
    if any(factor != 1 for factor in factors) or ("transA" in attributes and attributes["transA"].as_int()):
        raise PlanError(
            f"Gemm {node.name} has factors or turns its input, which ONNX Runtime's {OPERATOR} does not; pin it to "
            "fp16, or export the plan as typed-onnx"
        )
