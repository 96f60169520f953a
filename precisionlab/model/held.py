"""What of a model cannot be emulated in any precision, so that every export holds it at float32."""

from __future__ import annotations

from collections import Counter

from precisionlab.model.flow import LEFT
from precisionlab.model.graph import Layer, Model
from precisionlab.system.wording import counted

_MOST = 3


def held_layers(model: Model) -> tuple[Layer, ...]:
    """The layers that compute in floats and can be given no precision; in order.

    Custom operators, values of unknown type or in double, bodies that hold such. Not those of integers, shapes and
    conversions, which have no float arithmetic.
    """
    return tuple(layer for layer in model.layers if layer.held)


def held_text(model: Model) -> str:
    """One sentence on these layers; empty where there are none."""
    held = held_layers(model)
    if not held:
        return ""
    reasons = Counter(str(layer.fixed).removesuffix(LEFT) for layer in held).most_common()
    told = "; ".join(reason if count == 1 else f"{count} × {reason}" for reason, count in reasons[:_MOST])
    more = f"; and {counted(len(reasons) - _MOST, 'other reason')}" if len(reasons) > _MOST else ""
    return f"{counted(len(held), 'layer')} could not be emulated ({told}{more}): held at float32 in every export"
