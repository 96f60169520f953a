"""Why a layer breaks in a precision: of which kind that is, and in words that its owner understands."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import Enum

import numpy as np
import onnx_ir as ir

from precisionlab.compare.errors import ErrorSums
from precisionlab.evaluate.running_sums import RunningSum
from precisionlab.evaluate.values import rounded_inside
from precisionlab.model import Layer, Model
from precisionlab.model.flow import is_control
from precisionlab.model.layers import constants_of
from precisionlab.model.recurrent import is_recurrent
from precisionlab.plan.arithmetic import Constants
from precisionlab.plan.assign import around_of, is_lowered, precision_inside, precision_of
from precisionlab.plan.plan import PrecisionPlan
from precisionlab.precision import Precision
from precisionlab.rewrite.constants import UNCLAMPED, clamped_in, round_scalar

# A constant that holds this share of its values in what underflows is worth a word; weights near zero
# underflow in every model and do no harm.
_SCALAR = 8
# A state that is right but for its own last rounding is half a step off, and at 55 dB in bf16, 73 in fp16.
_DRIFTED, _STEPS_OFF = 45.0, 4.0
# Below this a layer has lost more in one step than a rounding of all its values would cost it (73 dB in fp16).
_WORTH_A_WORD = 40.0  # dB
_NOT_AS_THEY_ARE = UNCLAMPED | {"BatchNormalization"}  # whose parameters are folded before they are clamped
_STEEP_AT_ZERO = frozenset({"Sqrt", "Reciprocal", "Div", "Log", "Pow"})


class CauseKind(str, Enum):
    """What breaks; its value is the word that `layers.csv` holds."""

    FIRST = "first_nonfinite"
    OVERFLOW = "overflow"
    INPUT_OVERFLOWS = "input_overflows"
    INPUT_UNDERFLOWS = "input_underflows"
    CONSTANT_OVERFLOWS = "constant_overflows"
    CONSTANT_UNDERFLOWS = "constant_underflows"
    CONSTANT_CLAMPED = "constant_clamped"
    SUM_OVERFLOWS = "sum_overflows"
    DRIFT = "drift"
    NONFINITE = "nonfinite"


@dataclass(frozen=True)
class Cause:
    """Why a layer breaks: the kinds of all that comes together there, the first one first, and the words."""

    kinds: tuple[CauseKind, ...]
    text: str

    def __str__(self) -> str:
        return self.text


def causes(
    model: Model,
    plan: PrecisionPlan,
    inherited: Mapping[str, ErrorSums],
    introduced: Mapping[str, ErrorSums],
    constants: Constants = Constants.CLAMPED,
) -> dict[str, Cause]:
    """Layer name → what breaks in it under the plan; only for layers that do break.

    `inherited` and `introduced` are what comparing that plan found; `constants` tells what it made of those that half
    cannot hold.
    """
    found: dict[str, Cause] = {}
    started = False
    for layer in model.layers:
        alone = [introduced[name] for name in layer.outputs if name in introduced]
        cause = _inside(model, layer, plan, introduced, constants)
        if cause is None and alone:
            cause = _cause(model, layer, plan, alone, inherited, constants)
        broken = any(inherited[name].nonfinite for name in layer.watched if name in inherited)
        if broken and not started:
            started = True
            cause = cause or _underflowing_input(layer, plan.default, inherited)
            cause = _first(_kind(layer, inherited), cause)
        if cause is not None:
            found[layer.name] = cause
    return found


def clamped_constants(
    model: Model, plan: PrecisionPlan, layers: Iterable[Layer], constants: Constants
) -> dict[str, Cause]:
    """Layer name → the constant that it computes with clamped, whether that does harm or not; of layers in half."""
    found = {}
    for layer in layers:
        own = constants_of(model, layer) if precision_of(layer, plan).number_format.clamps_constants else ()
        clamped = [_clamped(value, precision_of(layer, plan), constants) for value in own]
        if cause := _together(clamped):
            found[layer.name] = cause
    return found


def with_sums(
    found: Mapping[str, Cause], sums: Mapping[str, RunningSum], model: Model, plan: PrecisionPlan
) -> dict[str, Cause]:
    """The causes, with those of layers whose sum passes the end of their precision on the way to a result that fits."""
    more = {}
    for name, running in sums.items():
        precision = precision_of(model.layer[name], plan)
        end = precision.number_format.largest
        if running.largest is None or running.result is None or not running.largest > end >= running.result:
            continue
        said = (
            f"its sum passes {end:.5g} on the way, at {running.largest:.6g}, although the result is "
            f"{running.result:.3g}: infinite where the kernel keeps its sums in {precision}"
        )
        before = found.get(name)
        told = None if before is not None and before.kinds[-1] is CauseKind.NONFINITE else before
        more[name] = _together([told, Cause((CauseKind.SUM_OVERFLOWS,), said)])
    return {**found, **{name: cause for name, cause in more.items() if cause is not None}}


def with_insides(
    found: Mapping[str, Cause], largest: Mapping[str, float], model: Model, plan: PrecisionPlan
) -> dict[str, Cause]:
    """The causes, with those of layers that nothing is seen of but what they give: an overflow between their nodes.

    `largest` has the largest |x| of the reference's tensors. A division by Inf, or a mask, makes it finite again.
    """
    more = {}
    for layer in model.layers:
        precision = precision_of(layer, plan)
        if layer.name in found or not precision.is_low_float:
            continue
        for name in rounded_inside(model, layer):
            if largest.get(name, 0.0) > precision.number_format.largest:
                node = model.values[name].producer()
                where = "" if node is None else f": {node.name}"
                said = f"overflow inside{where}, {_beyond(largest[name], precision)}"
                more[layer.name] = Cause((CauseKind.OVERFLOW,), said)
                break
    return {**found, **more}


def _first(kind: str, cause: Cause | None) -> Cause:
    said = f"the first {kind} appears here"
    return (
        Cause((CauseKind.FIRST,), said) if cause is None else Cause((CauseKind.FIRST, *cause.kinds), f"{said}: {cause}")
    )


def _together(parts: Iterable[Cause | None]) -> Cause | None:
    """What comes together, in one sentence; None for nothing."""
    found = [part for part in parts if part is not None]
    kinds = tuple(dict.fromkeys(kind for part in found for kind in part.kinds))
    return Cause(kinds, "; ".join(map(str, found))) if found else None


def _inside(
    model: Model, layer: Layer, plan: PrecisionPlan, introduced: Mapping[str, ErrorSums], constants: Constants
) -> Cause | None:
    """What breaks first in the layer's bodies, given the reference's values at their borders."""
    for name in layer.inside if is_lowered(model, layer, plan) else ():
        errors, inner = introduced.get(name), model.inner[name]
        precision = precision_inside(inner, layer, plan)
        if errors is None or not errors.nonfinite:
            continue
        where = f"inside {inner.where}: {inner.node}"
        if errors.max_ref > precision.number_format.largest:
            return Cause((CauseKind.OVERFLOW,), f"overflow {where}, {_beyond(errors.max_ref, precision)}")
        broken = Cause((CauseKind.NONFINITE,), f"{'NaN' if errors.nan else 'Inf'} {where}")
        return _together([broken, *(_constant(value, precision, constants) for value in inner.constants)])
    return None


def _beyond(largest: float, precision: Precision) -> str:
    return f"values up to {largest:.3g}, {precision} ends at {precision.number_format.largest:.5g}"


def _cause(
    model: Model,
    layer: Layer,
    plan: PrecisionPlan,
    alone: list[ErrorSums],
    inherited: Mapping[str, ErrorSums],
    policy: Constants,
) -> Cause | None:
    precision, constants = precision_of(layer, plan), constants_of(model, layer)
    if precision.is_quantized:
        # Its operands are clipped; what it gives is held in what is around it.
        return _overflow(alone, around_of(layer, plan)) if any(e.nonfinite for e in alone) else None
    if precision is Precision.FP32:
        return None
    if not any(e.nonfinite for e in alone):
        # x + 1e-10 breaks nothing by itself, but the logarithm or division behind it.
        parts = [_drift(model, layer, alone, precision)]
        does_harm = any(e.sqnr < _WORTH_A_WORD for e in alone)
        parts += [_clamped(value, precision, policy, small=does_harm) for value in constants]
        if any(e.underflow for e in alone):
            parts += [_underflowing(value, precision, policy) for value in constants]
            # Nor does the root of a variance that is 0 now, but the division by it.
            if any(model.node[name].op_type in _STEEP_AT_ZERO for name in layer.nodes):
                parts.append(_underflowing_input(layer, precision, inherited))
        return _together(parts)
    parts = [_constant(value, precision, policy) for value in constants]
    largest = precision.number_format.largest
    entering = [inherited[name] for name in layer.inputs if name in inherited]
    before = max((e.max_ref for e in entering), default=0.0)
    if overflow := _overflow(alone, precision):
        is_finite = not any(inherited[name].nonfinite for name in layer.outputs if name in inherited)
        parts.append(_stays_within(alone, precision) if is_finite else overflow)
    elif before > largest:
        parts.append(Cause((CauseKind.INPUT_OVERFLOWS,), f"its input overflows: {_beyond(before, precision)}"))
    else:
        parts.append(_underflowing_input(layer, precision, inherited))
    return _together(parts) or Cause((CauseKind.NONFINITE,), f"NaN or Inf from finite inputs in {precision}")


def _overflow(alone: list[ErrorSums], precision: Precision) -> Cause | None:
    leaving, largest = max(e.max_ref for e in alone), precision.number_format.largest
    if leaving <= largest:
        return None
    return Cause((CauseKind.OVERFLOW,), f"overflow: {_beyond(leaving, precision)}")


def _stays_within(alone: list[ErrorSums], precision: Precision) -> Cause:
    """Of a layer that overflows on the reference's inputs, and not on the variant's: a clamped mask is before it."""
    said = f"the reference has {_beyond(max(e.max_ref for e in alone), precision)}; what comes here stays below that"
    return Cause((), said)


def _drift(model: Model, layer: Layer, alone: list[ErrorSums], precision: Precision) -> Cause | None:
    """How far the state of a recurrent layer or a loop goes astray, where that is more than one rounding would do."""
    nodes = [model.node[name] for name in layer.nodes]
    if not any(is_recurrent(node) or (is_control(node) and node.op_type != "If") for node in nodes):
        return None
    worst = min(alone, key=lambda errors: errors.sqnr)
    if not 0 < worst.max_ref < math.inf:
        return None
    step = 2.0 ** math.floor(math.log2(worst.max_ref)) * precision.number_format.epsilon
    if worst.sqnr >= _DRIFTED or worst.max_error <= _STEPS_OFF * step:
        return None
    return Cause(
        (CauseKind.DRIFT,),
        f"its state is rounded to {precision} at each step, and drifts: values up to {worst.max_ref:.4g} are up to "
        f"{worst.max_error:.3g} off, where {precision} has steps of {step:.2g} and an addend below half a step is lost",
    )


def _underflowing_input(layer: Layer, precision: Precision, inherited: Mapping[str, ErrorSums]) -> Cause | None:
    if not any(inherited[name].underflow for name in layer.inputs if name in inherited):
        return None
    return Cause((CauseKind.INPUT_UNDERFLOWS,), f"its input underflows: values that are not 0 become 0 in {precision}")


def _kind(layer: Layer, inherited: Mapping[str, ErrorSums]) -> str:
    return "NaN" if any(inherited[name].nan for name in layer.watched if name in inherited) else "Inf"


def _constant(constant: ir.Value, precision: Precision, policy: Constants) -> Cause | None:
    if policy is Constants.CLAMPED and precision.number_format.clamps_constants:
        return _clamped(constant, precision, policy)
    values = _values(constant)
    if values is None or values.size == 0:
        return None
    worst = _largest(values)
    if math.isfinite(worst) and math.isinf(round_scalar(worst, precision)):
        said = f"constant {worst:.3g} becomes {'−' if worst < 0 else ''}inf in {precision}"
        return Cause((CauseKind.CONSTANT_OVERFLOWS,), said)
    return _underflowing(constant, precision, policy)


def _clamped(constant: ir.Value, precision: Precision, policy: Constants, *, small: bool = True) -> Cause | None:
    """What TensorRT's builder puts in the place of a constant's largest number, or of a `small` one that would be 0.

    One that lies beyond the precision is worth a word also where it does no harm: a Cast makes Inf of it.
    """
    changed = clamped_in(constant, precision) if policy is Constants.CLAMPED else None
    if changed is None or all(use.node.op_type in _NOT_AS_THEY_ARE for use in constant.uses()):
        return None
    assert constant.const_value is not None
    value, nearest = changed
    if abs(value) < abs(nearest) and (constant.const_value.size > _SCALAR or not small):
        return None
    said = f"constant {value:.3g} is clamped to {nearest:.5g}, the nearest that {precision} has"
    return Cause((CauseKind.CONSTANT_CLAMPED,), said)


def _largest(values: np.ndarray) -> float:
    """The finite number of the largest magnitude, with its sign; NaN where there is none."""
    finite = values[np.isfinite(values)]
    return float(finite.flat[int(np.abs(finite).argmax())]) if finite.size else math.nan


def _underflowing(constant: ir.Value, precision: Precision, policy: Constants) -> Cause | None:
    if policy is Constants.CLAMPED and precision.number_format.clamps_constants:
        return None
    values = _values(constant)
    if values is None or not 0 < values.size <= _SCALAR:
        return None
    for value in values.flat:
        if value != 0 and round_scalar(float(value), precision) == 0:
            said = f"constant {float(value):.3g} becomes 0 in {precision}"
            return Cause((CauseKind.CONSTANT_UNDERFLOWS,), said)
    return None


def _values(constant: ir.Value) -> np.ndarray | None:
    if constant.const_value is None or constant.dtype != ir.DataType.FLOAT:
        return None
    return constant.const_value.numpy()
