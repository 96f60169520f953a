"""Why a layer is pinned: what breaks in it, or the figure that it was ranked by."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from types import MappingProxyType

from precisionlab.compare.sensitivity import Sensitivities, worst_sqnr
from precisionlab.model import Layer
from precisionlab.precision import Precision
from precisionlab.search.causes import Cause

_NONE: Mapping[str, Cause] = MappingProxyType({})


def reason_of(
    layer: Layer,
    precision: Precision,
    order: Sequence[str],
    causes: Mapping[str, Cause],
    sensitivities: Sensitivities,
    *,
    by_cost: bool = False,
    clamped: Mapping[str, Cause] = _NONE,
) -> str:
    """The cause where one is known, else the layer's rank and what put it there; and why not fp32, where it is not.

    `by_cost`: the harm was divided by what pinning the layer costs. `clamped` tells of constants that half cannot hold:
    a sum that loses nothing of its own by that may do the harm behind it.
    """
    name = layer.name
    cause, measure = causes.get(name), " by harm for its cost" if by_cost else ""
    why = cause.text if cause else f"rank {order.index(name) + 1} of {len(order)}{measure}{_harm(sensitivities, name)}"
    if cause is None and name in clamped:
        why = f"{why}; its {clamped[name]}"
    return why if precision is Precision.FP32 else f"{why}; {precision} is enough, at less cost than fp32"


def _harm(sensitivities: Sensitivities, name: str) -> str:
    """What the layer alone does to the model's worst output; nothing where that was not measured."""
    if name not in sensitivities:
        return ", by its own error; what it does alone was not measured"
    sqnr = worst_sqnr(sensitivities[name])
    if math.isnan(sqnr):
        return ": alone it makes an output NaN or Inf"
    if sqnr == math.inf:
        return ": alone it changes no output"
    return f": alone it leaves the output at {sqnr:.1f} dB" if sqnr > -math.inf else ": alone it ruins an output"
