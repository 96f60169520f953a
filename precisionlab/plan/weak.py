"""What a plan may ask for that weakly typed TensorRT cannot be told."""

from __future__ import annotations

from precisionlab.errors import PlanError
from precisionlab.model import Layer, Model
from precisionlab.model.quantized import own_flags
from precisionlab.plan.assign import precision_of
from precisionlab.plan.plan import PrecisionPlan

CANNOT_CHOOSE_SUMS = "no option of weakly typed TensorRT (8.6 to 10.16) chooses what its kernels in half add up in"


def explicit_layer(model: Model, plan: PrecisionPlan) -> Layer | None:
    """The first layer in a precision that takes Q/DQ nodes in the model; None where ranges are enough for all."""
    found = ((layer, precision_of(layer, plan)) for layer in model.layers)
    quantized = (one for one in found if one[1].is_quantized)
    return next((layer for layer, precision in quantized if not precision.number_format.is_implicit), None)


def check_weak(model: Model, plan: PrecisionPlan) -> None:
    """Raises PlanError where the plan asks for what only a model's own types and nodes can ask for.

    Those are sums, precisions that take Q/DQ nodes, and int8 beside a model's own Q/DQ nodes: with these in it TensorRT
    takes no other ranges.
    """
    asked = [pin for pin in plan.pins if pin.precision.is_for_pins]
    if asked:
        pin = asked[0]
        raise PlanError(
            f"the plan pins layer {pin.layer!r} to {pin.precision}, and {CANNOT_CHOOSE_SUMS}; pin it to bf16 or fp32, "
            "or export the plan as typed-onnx, for strongly typed TensorRT"
        )
    explicit = explicit_layer(model, plan)
    if explicit is not None:
        precision = precision_of(explicit, plan)
        raise PlanError(
            f"the plan has layer {explicit.name!r} in {precision}, and weakly typed TensorRT (8.6 to 10.16) quantises "
            f"to {precision} by Q/DQ nodes in the model alone; have it strongly typed (--typed, or the export "
            "typed-onnx)"
        )
    low = next((layer for layer in model.layers if precision_of(layer, plan).is_quantized), None)
    own = own_flags(model)
    if low is not None and own:
        raise PlanError(
            f"the plan has layer {low.name!r} in int8, and {model.path.name} is quantised by nodes of its own "
            f"({next(iter(own.values()))!r}): beside these, weakly typed TensorRT (8.6 to 10.16) takes no other "
            "ranges; leave int8 to those nodes, or have it strongly typed (--typed, or the export typed-onnx)"
        )
