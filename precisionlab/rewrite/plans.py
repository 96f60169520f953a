"""Plans that can be carried out: with the pins that no variant can do without."""

from __future__ import annotations

import math

import numpy as np
import onnx_ir as ir

from precisionlab.calibration.table import CalibrationTable
from precisionlab.model import Model
from precisionlab.model.mapped import let_go
from precisionlab.plan.plan import Pin, PrecisionPlan
from precisionlab.precision import Precision


def plan_for(
    model: Model,
    precision: Precision,
    table: CalibrationTable | None = None,
    *,
    around: Precision = Precision.FP32,
    calibration: str | None = None,
) -> PrecisionPlan:
    """The precision throughout, with the pins that it cannot do without; `table` has the ranges of a quantized one.

    `around` is what the float layers around quantized ones run in, `calibration` the method that found the ranges.
    """
    block = None if table is None or table.blocks is None else table.blocks.size
    plan = PrecisionPlan(model.sha256, precision, (), around, calibration, model.repairs, block)
    return completed(model, plan, table)


def completed(model: Model, plan: PrecisionPlan, table: CalibrationTable | None) -> PrecisionPlan:
    """The plan with pins for the layers that it cannot quantise at all, and that it does not pin already.

    There is no variant without them: their weights or ranges are not finite.
    """
    if not plan.default.is_quantized or table is None:
        return plan
    pinned = plan.pinned()
    held = []
    for layer in model.layers:
        if layer.takes(plan.default) and layer.name not in pinned:
            reason = unquantizable(model.node[layer.nodes[0]], table.of(plan.default))
            if reason is not None:
                held.append(Pin(layer.name, layer.nodes, Precision.FP32, reason))
    return plan.with_pins((*plan.pins, *held))


def unquantizable(node: ir.Node, table: CalibrationTable) -> str | None:
    """Why this layer's operands cannot be quantised (non-finite weights or ranges); None where they can."""
    for value in node.inputs[:2]:
        if value is None:
            continue
        if value.is_initializer():
            assert value.const_value is not None
            is_finite = np.isfinite(value.const_value.numpy()).all()
            let_go(value.const_value)
            if not is_finite:
                return f"weight {value.name} holds values that are not finite"
        elif table.precision.needs_ranges:
            found = table.ranges.get(str(value.name))
            if found is None:
                return f"no range was found for {value.name}"
            if found.is_empty:
                return f"{value.name} never held an element in the samples"
            if found.nonfinite or not math.isfinite(found.amax):
                return f"{value.name} is not finite in the reference ({found.nonfinite} values)"
    return None
