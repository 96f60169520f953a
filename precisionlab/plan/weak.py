"""What a plan may hold that weakly typed TensorRT cannot be told."""

from __future__ import annotations

from precisionlab.errors import PlanError
from precisionlab.plan.plan import PrecisionPlan

CANNOT_CHOOSE_SUMS = "no option of weakly typed TensorRT (8.6 to 10.16) chooses what its kernels in half add up in"


def check_weak(plan: PrecisionPlan) -> None:
    """Raises PlanError where the plan asks for sums that only a model's own types can ask for."""
    asked = [pin for pin in plan.pins if pin.precision.is_for_pins]
    if asked:
        pin = asked[0]
        raise PlanError(
            f"the plan pins layer {pin.layer!r} to {pin.precision}, and {CANNOT_CHOOSE_SUMS}; pin it to bf16 or fp32, "
            "or export the plan as typed-onnx, for strongly typed TensorRT"
        )
