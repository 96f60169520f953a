"""What single layers do to the final outputs: statistics that merge over samples."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from precisionlab.compare.errors import Agreement, ErrorSums
from precisionlab.compare.output import OutputErrors, PartErrors
from precisionlab.system.plain import of_kind


@dataclass(frozen=True)
class PartEffect:
    """What toggling one layer does to one part of a tensor that is judged; as `Effect`."""

    part: PartErrors
    along: float

    def __add__(self, other: PartEffect) -> PartEffect:
        return PartEffect(self.part + other.part, self.along + other.along)


@dataclass(frozen=True)
class Effect:
    """What toggling one layer does to one tensor that is judged, and to each of its parts.

    `errors` compares the output with the reference's. `along`, Σ error · variant's error, says how much of the
    error of the whole variant lies in the direction of this layer's.
    """

    errors: ErrorSums
    along: float
    parts: Mapping[str, PartEffect] = field(default_factory=dict)

    def __add__(self, other: Effect) -> Effect:
        parts = {
            name: self.parts[name] + other.parts[name] if name in self.parts and name in other.parts else part
            for name, part in {**self.parts, **other.parts}.items()
        }
        return Effect(self.errors + other.errors, self.along + other.along, parts)

    @property
    def judged(self) -> dict[str, tuple[ErrorSums, float]]:
        """Errors and `along` of what counts: each part on its scale, or under "" the whole (see `OutputErrors`)."""
        whole = OutputErrors(self.errors, Agreement(), {name: effect.part for name, effect in self.parts.items()})
        return {name: (errors, self.parts[name].along if name else self.along) for name, errors in whole.judged.items()}

    @property
    def gain(self) -> float:
        """How much squared error of the whole variant goes if this layer's goes, were errors to add up: an estimate.

        |D|² − |D − d|² = 2 D·d − |d|², D the variant's error and d this layer's alone; NaN where either is.
        """
        return gain_of(self.errors, self.along)


def gain_of(errors: ErrorSums, along: float) -> float:
    """See `Effect.gain`."""
    return 2 * along - errors.err2


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
    """SQNR in dB of the output or part that the layer harms most; NaN if any is NaN, +inf where none is touched."""
    judged = [errors for effect in outputs.values() for errors, _ in effect.judged.values()]
    values = [errors.sqnr for errors in judged if errors.elements]
    return math.nan if any(math.isnan(v) for v in values) else min(values, default=math.inf)


def to_plain(effects: Effects) -> dict[str, Any]:
    """Plain values, for the journal; read back by `from_plain`."""
    return {layer: {name: _listed(effect) for name, effect in found.items()} for layer, found in effects.items()}


def from_plain(data: Mapping[str, Any]) -> Effects:
    """What `to_plain` wrote. Raises ValueError where it is something else."""
    found: Effects = of_kind(Mapping[str, Mapping[str, Effect]], data)
    return found


def _listed(effect: Effect) -> list[Any]:
    parts = {name: [e.part.to_list(), e.along] for name, e in effect.parts.items()}
    return [list(effect.errors.to_dict().values()), effect.along, parts]
