"""Layers that cannot be had in truth in a precision, each with the reason."""

from __future__ import annotations

import math

from precisionlab.model import Layer, Model
from precisionlab.model.flow import is_control
from precisionlab.model.opset import opset_of
from precisionlab.plan.assign import precision_of
from precisionlab.plan.plan import PrecisionPlan
from precisionlab.precision import Precision
from precisionlab.rewrite.real_float8 import reason_against
from precisionlab.rewrite.typed.signature import places

_EXACT = 2**24
"""Sums of products of int8 stay below this for float32 to hold every one of them."""


def unsupported(model: Model, plan: PrecisionPlan) -> dict[str, str]:
    """Layer → why it cannot be had in truth in the precision that the plan gives it, for those that cannot."""
    found = {}
    for layer in model.layers:
        precision = precision_of(layer, plan)
        reason = None
        if precision.is_low_float:
            reason = _no_half(model, layer, precision)
        elif precision.is_quantized:
            reason_for = _no_integers if precision.number_format.is_uniform else reason_against
            reason = reason_for(model, layer)
        if reason is not None:
            found[layer.name] = reason
    return found


def _no_half(model: Model, layer: Layer, precision: Precision) -> str | None:
    opset = opset_of(model.onnx)
    for name in layer.nodes:
        node = model.node[name]
        if is_control(node):
            return f"the nodes inside of {node.op_type} are not run in {precision}"
        if not places(node, precision.number_format.element, opset, model.tensors).outputs:
            return f"ONNX does not define {node.op_type} in {precision} at opset {opset}"
    return None


def _no_integers(model: Model, layer: Layer) -> str | None:
    node = model.node[layer.nodes[0]]
    if node.op_type != "ConvTranspose":
        return None
    weight = node.inputs[1]
    shape = None if weight is None else model.tensors[str(weight.name)].shape
    known = [] if shape is None else [dim for i, dim in enumerate(shape) if i != 1 and isinstance(dim, int)]
    if shape is None or len(known) != len(shape) - 1 or math.prod(known) * 127 * 128 >= _EXACT:
        return "ONNX has no ConvTranspose of integers, and float32 does not hold the sums of this one"
    return None
