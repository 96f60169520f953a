"""Layers that an engine runs in INT8 though the plan has them in float.

Where INT8 is enabled and ranges come from a calibration cache, TensorRT may run in it any layer that has scales on both
sides: an Add, a pooling, a Concat between two convolutions. What it did can be read from the engine alone.
"""

from __future__ import annotations

from collections.abc import Sequence, Set

from precisionlab.backends.tensorrt.inspector import ARITHMETIC
from precisionlab.backends.tensorrt.jobs import EngineLayer
from precisionlab.backends.tensorrt.pin_report import layers_running
from precisionlab.backends.tensorrt.pins import enabled_in
from precisionlab.model import Layer, Model
from precisionlab.plan.assign import precision_of
from precisionlab.plan.plan import PrecisionPlan


def int8_beyond(model: Model, plan: PrecisionPlan, layers: Sequence[EngineLayer]) -> tuple[str, ...]:
    """The layers of the model that the plan has in float and the engine in INT8, in the model's order.

    Those whose result is stored in it, and those whose kernels take and give nothing else. A kernel that only takes
    INT8 converts what an INT8 layer gave, and computes in float. What the model's own QuantizeLinear asks for is no
    matter of the plan.
    """
    low = {precision.value for precision in enabled_in(model, plan) if precision.is_quantized}
    if not low:
        return ()
    floats = [layer for layer in model.layers if layer.fixed is None and not precision_of(layer, plan).is_quantized]
    quantizing = {str(node.name) for node in model.onnx.graph if node.op_type == "QuantizeLinear"}
    running = layers_running(layers, [(layer.nodes, layer.outputs, layer.nodes) for layer in floats])
    found = []
    for layer, kernels in zip(floats, running, strict=True):
        own = [kernel for kernel in kernels if quantizing.isdisjoint(kernel.nodes)]
        if _is_quantized(layer, own, low):
            found.append(layer.name)
    return tuple(found)


def _is_quantized(layer: Layer, kernels: Sequence[EngineLayer], low: Set[str]) -> bool:
    stored = {t.dtype for kernel in kernels for t in kernel.outputs if t.name in layer.outputs}
    types = {t.dtype for kernel in kernels for t in (*kernel.inputs, *kernel.outputs) if t.dtype in ARITHMETIC}
    return not low.isdisjoint(stored) or (bool(types) and types <= low)
