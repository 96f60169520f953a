"""Sensitivity: what one layer's precision does to the final outputs, in statistics that merge over samples."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from precisionlab.compare.errors import Agreement, ErrorSums
from precisionlab.compare.output import OutputErrors, PartErrors
from precisionlab.compare.task import Outputs
from precisionlab.system.plain import of_kind


@dataclass(frozen=True)
class PartSensitivity:
    """How sensitive one part of a tensor that is judged is to one layer; as `Sensitivity`."""

    part: PartErrors
    along: float

    def __add__(self, other: PartSensitivity) -> PartSensitivity:
        return PartSensitivity(self.part + other.part, self.along + other.along)


@dataclass(frozen=True)
class Sensitivity:
    """How sensitive one tensor that is judged, and each of its parts, is to one layer's precision.

    `errors` compares it, that layer toggled, with the reference's. `along`, Σ error · variant's error, says how much
    of the error of the whole variant lies in the direction of this layer's.
    """

    errors: ErrorSums
    along: float
    parts: Mapping[str, PartSensitivity] = field(default_factory=dict)

    def __add__(self, other: Sensitivity) -> Sensitivity:
        parts = {
            name: self.parts[name] + other.parts[name] if name in self.parts and name in other.parts else part
            for name, part in {**self.parts, **other.parts}.items()
        }
        return Sensitivity(self.errors + other.errors, self.along + other.along, parts)

    @property
    def judged(self) -> dict[str, tuple[ErrorSums, float]]:
        """Errors and `along` of what counts: each part on its scale, or under "" the whole (see `OutputErrors`)."""
        whole = OutputErrors(self.errors, Agreement(), {name: own.part for name, own in self.parts.items()})
        return {name: (errors, self.parts[name].along if name else self.along) for name, errors in whole.judged.items()}

    @property
    def gain(self) -> float:
        """How much squared error of the whole variant goes if this layer's goes, were errors to add up: an estimate.

        |D|² − |D − d|² = 2 D·d − |d|², D the variant's error and d this layer's alone; NaN where either is.
        """
        return gain_of(self.errors, self.along)


def gain_of(errors: ErrorSums, along: float) -> float:
    """See `Sensitivity.gain`."""
    return 2 * along - errors.err2


Sensitivities = Mapping[str, Mapping[str, Sensitivity]]
"""Layer → final output → sensitivity; an output that the layer does not reach is left out."""


@dataclass(frozen=True)
class Told:
    """What all that is judged of one sample tells of one layer that was toggled.

    `values` are the final outputs themselves, where they were asked for.
    """

    outputs: Mapping[str, Sensitivity]
    values: Outputs | None = None


@dataclass(frozen=True)
class Toggled:
    """What one sample tells of some layers, each toggled by itself. Without a layer it only says that work goes on."""

    sample: str
    layers: Mapping[str, Told]

    @property
    def sensitivities(self) -> Sensitivities:
        """What is judged of it."""
        return {name: told.outputs for name, told in self.layers.items()}


def merged(parts: Sequence[Sensitivities]) -> Sensitivities:
    """The sensitivities over all samples of the parts together, added in the order given."""
    total: dict[str, dict[str, Sensitivity]] = {}
    for part in parts:
        for layer, outputs in part.items():
            mine = total.setdefault(layer, {})
            for name, sensitivity in outputs.items():
                mine[name] = mine[name] + sensitivity if name in mine else sensitivity
    return total


def worst_sqnr(outputs: Mapping[str, Sensitivity]) -> float:
    """SQNR in dB of the output or part that the layer harms most; NaN if any is NaN, +inf where none is touched."""
    judged = [errors for sensitivity in outputs.values() for errors, _ in sensitivity.judged.values()]
    values = [errors.sqnr for errors in judged if errors.elements]
    return math.nan if any(math.isnan(v) for v in values) else min(values, default=math.inf)


def to_plain(sensitivities: Sensitivities) -> dict[str, Any]:
    """Plain values, for the journal; read back by `from_plain`."""
    return {layer: {name: _listed(own) for name, own in outputs.items()} for layer, outputs in sensitivities.items()}


def from_plain(data: Mapping[str, Any]) -> Sensitivities:
    """What `to_plain` wrote. Raises ValueError where it is something else."""
    found: Sensitivities = of_kind(Mapping[str, Mapping[str, Sensitivity]], data)
    return found


def _listed(sensitivity: Sensitivity) -> list[Any]:
    parts = {name: [e.part.to_list(), e.along] for name, e in sensitivity.parts.items()}
    return [list(sensitivity.errors.to_dict().values()), sensitivity.along, parts]
