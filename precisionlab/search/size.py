"""How many bytes the weights of a plan take."""

from __future__ import annotations

import math

import onnx_ir as ir

from precisionlab.model import Layer, Model
from precisionlab.model.blocks import LARGEST, WEIGHT, block_of, blocked_axis
from precisionlab.plan.assign import around_of, precision_of
from precisionlab.plan.plan import PrecisionPlan
from precisionlab.precision import Precision
from precisionlab.system.wording import counted


def weight_bytes(model: Model, plan: PrecisionPlan) -> int:
    """The bytes of all float32 weights, each in the precision of the layer that holds it.

    A weight that layers of two precisions share is there in both. Of an int8 layer the operand alone is int8; its bias
    is kept in float32, as TensorRT adds it in the accumulator. Of a layer with weights alone quantised the scales of
    their blocks count too, and all else is in the float around.
    """
    kept: dict[tuple[str, Precision], int] = {}
    for layer in model.layers:
        for place, name in enumerate(layer.nodes):
            node = model.node[name]
            for position, value in enumerate(node.inputs):
                if value is None or not value.is_initializer() or value.dtype != ir.DataType.FLOAT:
                    continue
                held = _held_in(layer, plan, place, position)
                size = _elements(value) * held.number_format.itemsize
                size += _scale_bytes(node, layer, plan) if held.is_weight_only else 0
                kept[str(value.name), held] = math.ceil(size)
    return sum(kept.values())


def saved_words(model: Model, plan: PrecisionPlan) -> str:
    """What a plan that quantises weights alone saves of their bytes; empty for any other.

    As a typed model of the plan holds them, scales included.
    """
    if not plan.default.is_weight_only:
        return ""
    whole, left = weight_bytes(model, PrecisionPlan(model.sha256, Precision.FP32)), weight_bytes(model, plan)
    halves = weight_bytes(model, PrecisionPlan(model.sha256, plan.around))
    saved = f"{100 * (1 - left / whole):.0f} % saved" if whole else "none there"
    beside = "" if plan.around is Precision.FP32 else f" ({plan.around.number_format.title}: {_size(halves)})"
    held = sum(precision_of(layer, plan) is plan.default for layer in model.layers)
    stored = f"{held} of {counted(_products(model), 'product')} in {plan.default.number_format.title}"
    return f"{stored}; {_size(left)} with their scales, of {_size(whole)} in FP32{beside}: {saved}"


def _products(model: Model) -> int:
    """How many MatMul and Gemm hold a weight."""
    found = (model.node[layer.nodes[0]].inputs[:2] for layer in model.layers if layer.is_matrix_product)
    return sum(any(value is not None and value.is_initializer() for value in operands) for operands in found)


def _size(size: int) -> str:
    return f"{size / 1e6:.3g} MB" if size >= 1e6 else f"{size / 1e3:.3g} kB"


def _held_in(layer: Layer, plan: PrecisionPlan, place: int, position: int) -> Precision:
    """What a constant is kept in: the input `position` of the layer's node number `place`."""
    precision = precision_of(layer, plan).stored_as
    if precision.is_weight_only:
        return precision if (place, position) == (0, WEIGHT) else around_of(layer, plan)
    is_operand = place == 0 and position < 2
    return Precision.FP32 if precision.is_quantized and not is_operand else precision


def _scale_bytes(node: ir.Node, layer: Layer, plan: PrecisionPlan) -> int:
    """The bytes of a weight's scales, which are in the float around."""
    weight, axis = node.inputs[WEIGHT], blocked_axis(node)
    assert weight is not None
    assert weight.const_value is not None
    assert axis is not None
    size = block_of(int(weight.const_value.shape.numpy()[axis]), plan.block or LARGEST)
    assert size is not None
    return _elements(weight) // size * int(around_of(layer, plan).number_format.itemsize)


def _elements(value: ir.Value) -> int:
    return 0 if value.const_value is None else int(value.const_value.size)
