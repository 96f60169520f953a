"""What a weakly typed TensorRT (8.6 to 10.x) must be held to, so that it builds a plan."""

from __future__ import annotations

from collections.abc import Iterable

import onnx_ir as ir

from precisionlab.backends.tensorrt.jobs import LayerPin
from precisionlab.model import Layer, Model
from precisionlab.model.flow import is_control
from precisionlab.plan.assign import precision_of
from precisionlab.plan.plan import PrecisionPlan
from precisionlab.precision import Precision

_FLOAT_TYPES = frozenset({ir.DataType.DOUBLE, *(precision.number_format.element for precision in Precision.floats())})


def pins_of(model: Model, plan: PrecisionPlan, hold_float: bool = False) -> tuple[LayerPin, ...]:
    """What a weakly typed TensorRT must be held to, so that it builds this plan; in the order of the model's layers.

    Those are the plan's own pins, and the layers that one of the enabled precisions (`enabled_in`) would else be free
    for though the plan gives them a better or another one: with a single layer in fp16, all others are held in fp32.
    Layers that int8 is meant for may always have more. With `hold_float`, all that the plan has in float is held beside
    int8, and not the Convs and MatMuls alone: TensorRT may run any layer in INT8 that has scales on both sides. A layer
    that could not be emulated is held in fp32; what has no float arithmetic is left to TensorRT. The layers inside of
    an If, Loop or Scan belong to its pin.
    """
    pinned = plan.pinned()
    enabled = enabled_in(model, plan)
    found = []
    for layer in model.layers:
        precision = precision_of(layer, plan)
        tensors = _float_outputs(model, layer)
        if not (tensors or layer.held or any(is_control(model.node[name]) for name in layer.nodes)):
            continue
        strays = layer.fixed is None and _strays(layer, precision, enabled, hold_float)
        if layer.name in pinned or strays or (layer.held and enabled):
            found.append(LayerPin(layer.name, layer.nodes, tensors, precision))
    return tuple(found)


def enabled_of(plan: PrecisionPlan) -> frozenset[Precision]:
    """The low precisions that kernels may have under this plan."""
    asked = {plan.default, *(pin.precision for pin in plan.pins)}
    if any(precision.is_quantized for precision in asked):
        asked.add(plan.around)
    return frozenset(asked - {Precision.FP32})


def enabled_in(model: Model, plan: PrecisionPlan) -> frozenset[Precision]:
    """Those, and the half precisions that layers of the model keep of their own; int8 only where a layer is to have it.

    INT8 without a range or a Q/DQ node in the network would end the build.
    """
    given = {precision_of(layer, plan) for layer in model.layers}
    own = {precision_of(layer, plan) for layer in model.layers if layer.own is not None}
    asked = {precision for precision in enabled_of(plan) if not precision.is_quantized or precision in given}
    return frozenset(asked) | {precision for precision in own if precision.is_low_float}


def _strays(layer: Layer, precision: Precision, enabled: Iterable[Precision], hold_float: bool) -> bool:
    """Whether TensorRT could run the layer in a precision that the plan does not give it."""
    if precision.is_quantized:
        return False
    others = {other for other in enabled if other is not precision}
    if not (layer.quantizable or hold_float):
        others = {other for other in others if not other.is_quantized}
    return bool(others)


def _float_outputs(model: Model, layer: Layer) -> tuple[str, ...]:
    """All float tensors that the layer's nodes give, inside it too; of unknown type too where it is held.

    With those that idle nodes of the file make of them: TensorRT's parser has a layer for an Identity, which would
    else be free to store a pinned layer's result in half.
    """
    names = (str(value.name) for node in layer.nodes for value in model.node[node].outputs if value.name)
    kinds = {*_FLOAT_TYPES, None} if layer.held else _FLOAT_TYPES
    given = [name for name in names if model.tensors[name].dtype in kinds]
    return (*given, *(idle.tensor for name in given for idle in model.idle_behind.get(name, ())))
