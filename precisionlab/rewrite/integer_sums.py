"""INT8 matrix products as TensorRT-RTX compiles them in a half model, with a scale for each channel of the weight.

The GEMM gives its integer sums as they are, in half; a kernel behind it multiplies by a half vector of both scales.
Read from the engines of TensorRT-RTX 1.7.1 (see `typed/channels.py`): sums beyond 65504 are Inf, and products of scales
below 3e-8 are 0. Typed models of ours are not written so.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from precisionlab.calibration.table import CalibrationTable, weight_scales
from precisionlab.model.graph import TensorInfo
from precisionlab.model.mapped import let_go
from precisionlab.precision import Precision
from precisionlab.rewrite.builder import GraphBuilder
from precisionlab.rewrite.channel_scales import factors_shape, weight_by_channel
from precisionlab.rewrite.sums import GEMM

_FACTORS = ("alpha", "beta")
_LEAST = np.float32(2.0**-126)


def product_scales(
    node: ir.Node, table: CalibrationTable | None, tensors: Mapping[str, TensorInfo], precision: Precision
) -> NDArray[np.float32] | None:
    """The products of both operands' scales in the precision, float32, in the shape that multiplies the product.

    None where the weight has not a scale for each channel, or the ranks are not known.
    """
    found = weight_by_channel(node)
    if found is None or table is None:
        return None
    index, axis = found
    weight, other = node.inputs[index], node.inputs[1 - index]
    shape = factors_shape(node, index, tensors)
    if weight is None or weight.const_value is None or other is None or other.is_initializer() or shape is None:
        return None
    scales = weight_scales(weight.const_value.numpy(), axis, precision.number_format).astype(np.float64)
    scales *= table.scale(str(other.name), precision)
    let_go(weight.const_value)
    return scales.astype(np.float32).reshape(shape)


def rounded_sums(
    builder: GraphBuilder,
    node: ir.Node,
    inputs: Sequence[ir.Value | None],
    scales: NDArray[np.float32],
    prefix: str,
    attributes: Mapping[str, ir.Attr],
) -> ir.Value:
    """The product of dequantised operands, with its integer sums rounded to half before they are scaled.

    `scales` are the products of both operands' scales, float32, in the shape in which they multiply the product. What
    a Gemm adds and multiplies by comes behind that.
    """
    plain = {name: value for name, value in attributes.items() if name not in _FACTORS}
    product = builder.copy(node, inputs[:2], {}, prefix, plain).outputs[0]
    name = f"{prefix}{node.name}"

    def constant(array: NDArray[np.float32], label: str) -> ir.Value:
        return builder.constant(ir.tensor(np.asarray(array, np.float32)), f"{name}:{label}")

    sums = builder.op("Div", [product, constant(np.maximum(scales, _LEAST), "scales")], f"{name}:sums")
    low = builder.op("Cast", [sums], f"{name}:sums_fp16", to=int(Precision.FP16.number_format.element))
    back = builder.op("Cast", [low], f"{name}:sums_back", to=int(ir.DataType.FLOAT))
    with np.errstate(under="ignore"):
        half = scales.astype(np.float16).astype(np.float32)
    made = builder.op("Mul", [back, constant(half, "scales_fp16")], f"{name}:scaled")
    alpha, beta = (attributes[key].as_float() if key in attributes else 1.0 for key in _FACTORS)
    if alpha != 1.0:
        made = builder.op("Mul", [made, constant(np.asarray(alpha, np.float32), "alpha")], f"{name}:by_alpha")
    addend = inputs[2] if node.op_type == GEMM and len(inputs) > 2 else None
    if addend is None:
        return made
    if beta != 1.0:
        addend = builder.op("Mul", [addend, constant(np.asarray(beta, np.float32), "beta")], f"{name}:by_beta")
    return builder.op("Add", [made, addend], f"{name}:with_bias")
