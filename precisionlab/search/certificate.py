"""The proof of a set of pins: its measured figures, and those with each pin released."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from precisionlab.compare.comparison import Comparison
from precisionlab.compare.tolerance import Tolerance, meets
from precisionlab.precision import Precision
from precisionlab.search.ladder import Assignment
from precisionlab.system.deadline import BudgetExhausted


@dataclass(frozen=True)
class Figures:
    """What a plan was measured to be: each bound's figure, and how many tensors have a new NaN or Inf."""

    values: Mapping[str, float]
    nonfinite: int
    met: bool


@dataclass(frozen=True)
class Release:
    """The plan with one layer given a lower precision than its pin's, and nothing else changed."""

    layer: str
    precision: Precision
    figures: Figures


@dataclass(frozen=True)
class Certificate:
    """The plan's own figures, and those of each release, held to `bounds`.

    These are the tolerance, or what the search was held to instead because samples that were held out did not
    confirm its first plan.

    `complete` is true where each pin was released to the precision that it would have without the pin, and none of
    that met the tolerance: then no layer can be taken from the set.
    """

    bounds: tuple[str, ...]
    figures: Figures
    releases: tuple[Release, ...]
    complete: bool

    @property
    def proven(self) -> bool:
        """Whether the pins suffice, and none of them is needless."""
        return self.complete and self.figures.met and not any(release.figures.met for release in self.releases)

    def to_dict(self) -> dict[str, Any]:
        """The JSON object of the plan's `certificate`."""
        return {
            "tolerance": list(self.bounds),
            "figures": _plain(self.figures),
            "proven": self.proven,
            "releases": [
                {"layer": r.layer, "precision": r.precision.value, **_plain(r.figures)} for r in self.releases
            ],
        }


def certificate_of(
    assignment: Assignment,
    without: Mapping[str, Precision],
    found: Comparison,
    evaluate: Callable[[Assignment], Comparison],
    bounds: Tolerance,
) -> Certificate:
    """The proof of these pins, each released in turn.

    `found` is the comparison with all of them, `without` says what precision each layer has without its pin. Where
    `evaluate` raises BudgetExhausted, the proof ends there, and is not complete.
    """
    releases: list[Release] = []
    try:
        for name in assignment:
            rest = {other: rung for other, rung in assignment.items() if other != name}
            releases.append(Release(name, without[name], figures_of(evaluate(rest), bounds)))
    except BudgetExhausted:
        pass
    complete = len(releases) == len(assignment)
    return Certificate(tuple(map(str, bounds)), figures_of(found, bounds), tuple(releases), complete)


def figures_of(comparison: Comparison, tolerance: Tolerance) -> Figures:
    """What the comparison says of the tolerance."""
    values = {bound.figure: bound.of(comparison) for bound in tolerance}
    return Figures(values, len(comparison.nonfinite), meets(comparison, tolerance))


def json_number(value: float) -> float | str:
    """JSON has no NaN and no infinity: they stand as the words "nan", "inf" and "-inf"."""
    return value if abs(value) < float("inf") else str(value)


def _plain(figures: Figures) -> dict[str, Any]:
    values = {name: json_number(value) for name, value in figures.values.items()}
    return {**values, "nonfinite_tensors": figures.nonfinite, "met": figures.met}
