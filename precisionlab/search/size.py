"""How many bytes the weights of a plan take."""

from __future__ import annotations

import onnx_ir as ir

from precisionlab.model import Model
from precisionlab.plan.assign import precision_of
from precisionlab.plan.plan import PrecisionPlan
from precisionlab.precision import Precision


def weight_bytes(model: Model, plan: PrecisionPlan) -> int:
    """The bytes of all float32 weights, each in the precision of the layer that holds it.

    A weight that layers of two precisions share is there in both. Of an int8 layer the operand alone is int8; its bias
    is kept in float32, as TensorRT adds it in the accumulator.
    """
    kept: dict[tuple[str, Precision], int] = {}
    for layer in model.layers:
        precision = precision_of(layer, plan).stored_as
        for place, name in enumerate(layer.nodes):
            for position, value in enumerate(model.node[name].inputs):
                if value is None or not value.is_initializer() or value.dtype != ir.DataType.FLOAT:
                    continue
                is_operand = place == 0 and position < 2
                held = Precision.FP32 if precision.is_quantized and not is_operand else precision
                kept[str(value.name), held] = _elements(value) * held.number_format.itemsize
    return sum(kept.values())


def _elements(value: ir.Value) -> int:
    return 0 if value.const_value is None else int(value.const_value.size)
