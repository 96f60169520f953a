"""Why a layer breaks in a precision, in words that its owner understands."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import onnx_ir as ir

from precisionlab.compare.errors import ErrorSums
from precisionlab.model import Layer, Model
from precisionlab.precision import Precision
from precisionlab.rewrite.gates import round_scalar

_LARGEST = {Precision.FP16: 65504.0, Precision.BF16: 3.3895313892515355e38}
# A constant that holds this share of its values in what vanishes is worth a word; weights near zero
# vanish in every model and do no harm.
_SCALAR = 8


def causes(
    model: Model, precision: Precision, inherited: Mapping[str, ErrorSums], introduced: Mapping[str, ErrorSums]
) -> dict[str, str]:
    """Layer name → what breaks in it; only for layers that do break.

    `inherited` and `introduced` are those of the variant without pins.
    """
    found: dict[str, str] = {}
    started = False
    for layer in model.layers:
        alone = [introduced[name] for name in layer.outputs if name in introduced]
        text = _cause(model, layer, precision, alone, inherited) if alone else ""
        broken = any(inherited[name].nonfinite for name in layer.outputs if name in inherited)
        if broken and not started:
            started = True
            text = f"the first {_kind(layer, inherited)} appears here" + (f": {text}" if text else "")
        if text:
            found[layer.name] = text
    return found


def _cause(
    model: Model, layer: Layer, precision: Precision, alone: list[ErrorSums], inherited: Mapping[str, ErrorSums]
) -> str:
    if precision not in _LARGEST:
        return ""
    largest = _LARGEST[precision]
    parts = [_constant(model, name, precision) for name in layer.weights if alone and any(e.nonfinite for e in alone)]
    over = max(e.max_ref for e in alone)
    if any(e.nonfinite for e in alone):
        entering = max((inherited[name].max_ref for name in layer.inputs if name in inherited), default=0.0)
        if over > largest:
            parts.append(f"overflow: values up to {over:.3g}, {precision} ends at {largest:.5g}")
        elif entering > largest:
            parts.append(f"its input overflows: values up to {entering:.3g}, {precision} ends at {largest:.5g}")
    text = "; ".join(part for part in parts if part)
    if not text and any(e.nonfinite for e in alone):
        vanished = [_vanishing(model, name, precision) for name in layer.weights]
        text = "; ".join(v for v in vanished if v) or f"NaN or Inf from finite inputs in {precision}"
    return text


def _kind(layer: Layer, inherited: Mapping[str, ErrorSums]) -> str:
    return "NaN" if any(inherited[name].nan for name in layer.outputs if name in inherited) else "Inf"


def _constant(model: Model, name: str, precision: Precision) -> str:
    values = _values(model, name)
    if values is None or values.size == 0:
        return ""
    worst = float(values.flat[int(np.abs(values).argmax())])
    if math.isfinite(worst) and math.isinf(round_scalar(worst, precision)):
        return f"constant {worst:.3g} becomes {'−' if worst < 0 else ''}inf in {precision}"
    return _vanishing(model, name, precision)


def _vanishing(model: Model, name: str, precision: Precision) -> str:
    values = _values(model, name)
    if values is None or not 0 < values.size <= _SCALAR:
        return ""
    for value in values.flat:
        if value != 0 and round_scalar(float(value), precision) == 0:
            return f"constant {float(value):.3g} becomes 0 in {precision}"
    return ""


def _values(model: Model, name: str) -> np.ndarray | None:
    value = model.onnx.graph.initializers.get(name)
    if value is None or value.const_value is None or value.dtype != ir.DataType.FLOAT:
        return None
    return value.const_value.numpy()
