"""What single layers do to the final outputs: statistics that merge over samples."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from precisionlab.compare.errors import ErrorSums


@dataclass(frozen=True)
class Effect:
    """What toggling one layer does to one final output.

    `errors` compares the output with the reference's. `along`, Σ error · variant's error, says how much of the
    error of the whole variant lies in the direction of this layer's.
    """

    errors: ErrorSums
    along: float

    def __add__(self, other: Effect) -> Effect:
        return Effect(self.errors + other.errors, self.along + other.along)

    @property
    def gain(self) -> float:
        """How much squared error of the whole variant goes if this layer's goes, were errors to add up: an estimate.

        |D|² − |D − d|² = 2 D·d − |d|², D the variant's error and d this layer's alone; NaN where either is.
        """
        return 2 * self.along - self.errors.err2


Effects = Mapping[str, Mapping[str, Effect]]
"""Layer → final output → effect; an output that the layer does not reach is left out."""

SampleEffects = Effects


def merged(parts: Sequence[Effects]) -> Effects:
    """The effects over all samples of the parts together, added in the order given."""
    total: dict[str, dict[str, Effect]] = {}
    for part in parts:
        for layer, outputs in part.items():
            mine = total.setdefault(layer, {})
            for name, effect in outputs.items():
                mine[name] = mine[name] + effect if name in mine else effect
    return total


def worst_sqnr(outputs: Mapping[str, Effect]) -> float:
    """SQNR in dB of the final output that the layer harms most; NaN if any is NaN, +inf where none is touched."""
    values = [effect.errors.sqnr for effect in outputs.values() if effect.errors.elements]
    return math.nan if any(math.isnan(v) for v in values) else min(values, default=math.inf)


def to_plain(effects: Effects) -> dict[str, Any]:
    """Plain values, for the journal; read back by `from_plain`."""
    return {
        layer: {name: [list(e.errors.to_dict().values()), e.along] for name, e in outputs.items()}
        for layer, outputs in effects.items()
    }


def from_plain(data: Mapping[str, Any]) -> Effects:
    """What `to_plain` wrote."""
    return {
        layer: {name: Effect(ErrorSums(*sums), along) for name, (sums, along) in outputs.items()}
        for layer, outputs in data.items()
    }
