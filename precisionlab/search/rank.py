"""Puts the layers that a precision touches in order, the worst first."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from precisionlab.compare.errors import ErrorSums
from precisionlab.model import Layer


@dataclass(frozen=True)
class Ranking:
    """Layer names, the worst first, and those among them that must be pinned whatever else is."""

    order: tuple[str, ...]
    free: tuple[str, ...]


def rank(layers: Sequence[Layer], introduced: Mapping[str, ErrorSums]) -> Ranking:
    """Rank by the error that each layer introduces on its own.

    Layers that give NaN or Inf from the reference's finite inputs come first, the earliest first, and
    are free pins. Then by SQNR, the lowest first; ties by place.
    """
    must: set[str] = set()
    keys: dict[str, tuple[int, float]] = {}
    for layer in layers:
        errors = [introduced[name] for name in layer.outputs if name in introduced]
        if any(e.nonfinite for e in errors):
            must.add(layer.name)
        sqnr = min((e.sqnr for e in errors if not math.isnan(e.sqnr)), default=math.inf)
        keys[layer.name] = (0, 0.0) if layer.name in must else (1, sqnr)
    order = sorted(keys, key=keys.__getitem__)
    return Ranking(tuple(order), tuple(name for name in order if name in must))
