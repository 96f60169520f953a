"""Layers that an engine computes in floats though the plan quantises them: their operands are rounded for nothing.

A compiler that has no kernel of the kind dequantises both operands and multiplies floats: TensorRT-RTX 1.7.1 does so
with every ConvTranspose in FP8.
"""

from __future__ import annotations

from collections.abc import Sequence

from precisionlab.backends.tensorrt.inspector import ARITHMETIC
from precisionlab.backends.tensorrt.jobs import EngineLayer
from precisionlab.backends.tensorrt.pin_report import layers_running
from precisionlab.model import Model
from precisionlab.plan.assign import precision_of
from precisionlab.plan.plan import PrecisionPlan


def not_quantized(model: Model, plan: PrecisionPlan, layers: Sequence[EngineLayer]) -> tuple[str, ...]:
    """The layers that the plan quantises and the engine computes in floats, in the model's order.

    Those of which a kernel that runs the product is known, with the types of what it takes, and none of these is the
    plan's.
    """
    quantized = [layer for layer in model.layers if precision_of(layer, plan).needs_ranges]
    running = layers_running(layers, [(layer.nodes[:1], (), layer.nodes[:1]) for layer in quantized])
    found = []
    for layer, kernels in zip(quantized, running, strict=True):
        taken = {t.dtype for kernel in kernels for t in kernel.inputs if t.dtype in ARITHMETIC}
        if taken and precision_of(layer, plan).value not in taken:
            found.append(layer.name)
    return tuple(found)


def not_fused(model: Model, plan: PrecisionPlan, layers: Sequence[EngineLayer]) -> tuple[str, ...]:
    """The layers whose weight alone the plan quantises, and of which no kernel that runs the product holds it so.

    It is dequantised by a kernel of its own then, in memory, and nothing is won but the engine's size. Those alone of
    which the constants of all such kernels are known.
    """
    blocked = [layer for layer in model.layers if precision_of(layer, plan).is_weight_only]
    running = layers_running(layers, [(layer.nodes[:1], (), layer.nodes[:1]) for layer in blocked])
    found = []
    for layer, kernels in zip(blocked, running, strict=True):
        held = [kernel.constants for kernel in kernels]
        known = [constants for constants in held if constants is not None]
        types = {tensor.dtype for constants in known for tensor in constants}
        if held and len(known) == len(held) and precision_of(layer, plan).value not in types:
            found.append(layer.name)
    return tuple(found)
