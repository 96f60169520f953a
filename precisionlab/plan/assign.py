"""Which layer runs in which precision under a plan."""

from __future__ import annotations

from pathlib import Path

import onnx_ir as ir

from precisionlab.errors import ModelError, PlanError
from precisionlab.model import Layer, Model
from precisionlab.model.graph import InnerTensor
from precisionlab.model.opset import opset_of
from precisionlab.plan.file import read_plan
from precisionlab.plan.plan import PrecisionPlan
from precisionlab.precision import Format, Precision

_BY_ARITHMETIC = 9
"""The first opset with a Where, which the emulation rounds by to values that are not all as far apart."""


def precision_of(layer: Layer, plan: PrecisionPlan) -> Precision:
    """The precision that the layer runs in under the plan."""
    return precision_under(layer, plan, plan.pin_of(layer.name))


def precision_under(layer: Layer, plan: PrecisionPlan, pinned: Precision | None) -> Precision:
    """The precision that the layer runs in under the plan, which pins it to this (None: does not pin it).

    What the model itself has in half stays so, whatever the others run in, until a pin says otherwise: but for the
    reference, which reads all as float32, and for a model that is in half throughout, where the plan's own default
    takes the place of it.
    """
    if layer.fixed is not None:
        return Precision.FP32 if is_reference(plan) else layer.own or Precision.FP32
    precision = plan.default if pinned is None else pinned
    if precision.is_quantized:
        return precision if layer.takes(precision) else around_of(layer, plan)
    if not can_have(layer, precision):
        return precision.stored_as
    if pinned is None and layer.is_island and not is_reference(plan):
        return layer.own or precision
    return precision


def can_have(layer: Layer, precision: Precision) -> bool:
    """Whether the precision is another one for this layer than that which its values are stored as."""
    if precision.is_quantized:
        return layer.quantizable
    return layer.is_matrix_product or not precision.is_for_pins


def read_plan_for(model: Model, path: Path) -> PrecisionPlan:
    """Read a plan's file for this model. Raises PlanError as `read_plan`, and where a layer cannot have its pin."""
    plan = read_plan(path, model.sha256, {layer.name: layer.nodes for layer in model.layers})
    for pin in plan.pins:
        layer = model.layer[pin.layer]
        if layer.fixed is None and pin.precision.is_for_pins and not can_have(layer, pin.precision):
            raise PlanError(
                f"{path}: pins layer {pin.layer!r} ({layer.kind}) to {pin.precision}, which is for MatMul and Gemm; "
                f"pin it to {pin.precision.stored_as}, bf16 or fp32"
            )
    return plan


def computed_in(layer: Layer, plan: PrecisionPlan) -> Precision:
    """The precision that the layer's arithmetic is done in: of weights alone that of the floats around."""
    precision = precision_of(layer, plan)
    return around_of(layer, plan) if precision.is_weight_only else precision


def is_reference(plan: PrecisionPlan) -> bool:
    """Whether the plan is float32 alone: then nothing is rounded, not even what the model itself has in half."""
    return plan.default is Precision.FP32 and not plan.pins


def around_of(layer: Layer, plan: PrecisionPlan) -> Precision:
    """The precision of the floats that the layer gives where its product is int8."""
    return layer.own or plan.around


def precision_inside(inner: InnerTensor, layer: Layer, plan: PrecisionPlan) -> Precision:
    """The precision that a tensor in the bodies of the layer has under the plan."""
    if inner.own is not None and plan.pin_of(layer.name) is None and not is_reference(plan):
        return inner.own
    return precision_of(layer, plan)


def is_lowered(model: Model, layer: Layer, plan: PrecisionPlan) -> bool:
    """Whether the plan has the layer, or anything inside of it, in less than float32."""
    return lowest_of(model, layer, plan) is not Precision.FP32


def lowest_of(model: Model, layer: Layer, plan: PrecisionPlan) -> Precision:
    """The precision that the layer runs in, or where that is float32, the first half that the file has inside of it."""
    inside = (precision_inside(model.inner[name], layer, plan) for name in layer.inside)
    lowered = (p for p in (precision_of(layer, plan), *inside) if p is not Precision.FP32)
    return next(lowered, Precision.FP32)


def format_of(layer: Layer, plan: PrecisionPlan) -> Format:
    """What the layer's outputs are held in under the plan: those of int8 layers in the precision around them."""
    return stored_in(layer, plan).number_format


def stored_in(layer: Layer, plan: PrecisionPlan) -> Precision:
    """The precision that the layer's outputs are held in under the plan: of int8 layers that around them."""
    precision = precision_of(layer, plan)
    return around_of(layer, plan) if precision.is_quantized else precision.stored_as


def inside_format(inner: InnerTensor, layer: Layer, plan: PrecisionPlan) -> Format:
    """What a tensor in the bodies of the layer is held in under the plan."""
    return precision_inside(inner, layer, plan).number_format


def check_opset(model: ir.Model, plan: PrecisionPlan) -> None:
    """Raises ModelError where the model's opset has no cast to a precision of the plan."""
    opset = opset_of(model)
    for precision in (plan.default, plan.around, *(pin.precision for pin in plan.pins)):
        needed = precision.number_format.opset
        if precision.is_quantized:  # integers go through operators of Microsoft's, at any opset
            needed = 0 if precision.number_format.is_uniform else _BY_ARITHMETIC
        if precision.is_low and opset < needed:
            raise ModelError(
                f"{precision} needs opset {needed} or newer, the model has {opset}; convert it "
                f"(onnx.version_converter.convert_version) or leave {precision} out"
            )
