"""The proof of a plan: its measured figures, and those with each pin, and each repair, released."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from precisionlab.compare.comparison import Comparison
from precisionlab.compare.metrics import SQNR
from precisionlab.compare.tolerance import Tolerance, meets
from precisionlab.errors import PlanError
from precisionlab.model.repair import Repair
from precisionlab.plan.arithmetic import Constants
from precisionlab.precision import Precision
from precisionlab.rewrite.repairs import MIGRATE
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
class RepairRelease:
    """The plan without one of its repairs, and nothing else changed.

    `figures` is None where the others cannot be made without it: they are made of what it has made. `is_needed` says
    whether the plan is not right without it, or clearly worse; see `is_worse`. `together` counts those that were left
    out with it: of channels that are scaled for int8 each group does little by itself, and all are one repair.
    `hangs_on_clamping`: it is needed where constants are rounded, and not where they are clamped, as TensorRT's builder
    does; the figures are those of the first.
    """

    repair: Repair
    figures: Figures | None
    is_needed: bool
    together: int = 1
    hangs_on_clamping: bool = False


@dataclass(frozen=True)
class Certificate:
    """The plan's own figures, and those of each release, held to `bounds`.

    These are the tolerance, or what the search was held to instead because samples that were held out did not
    confirm its first plan.

    `complete` is true where each pin was released to the precision that it would have without the pin, and none of
    that met the tolerance: then no layer can be taken from the set. `repairs` has each repair left out.
    """

    bounds: tuple[str, ...]
    figures: Figures
    releases: tuple[Release, ...]
    complete: bool
    repairs: tuple[RepairRelease, ...] = ()

    @property
    def proven(self) -> bool:
        """Whether pins and repairs suffice, and none of them is needless."""
        needless = any(release.figures.met for release in self.releases)
        return self.complete and self.figures.met and not needless and all(r.is_needed for r in self.repairs)

    def to_dict(self) -> dict[str, Any]:
        """The JSON object of the plan's `certificate`."""
        return {
            "tolerance": list(self.bounds),
            "figures": plain_figures(self.figures),
            "proven": self.proven,
            "releases": [
                {"layer": r.layer, "precision": r.precision.value, **plain_figures(r.figures)} for r in self.releases
            ],
            **({"repairs": [_plain_release(r) for r in self.repairs]} if self.repairs else {}),
        }


_JOINT = frozenset({MIGRATE.name})

WORTH_A_REPAIR = 1.0
"""dB: where a plan loses more without a repair, the repair stays though the tolerance holds; it costs no time."""


def is_worse(found: Comparison, other: Comparison, tolerance: Tolerance) -> bool:
    """Whether another plan is not right, loses more than a decibel, or has more tensors with a NaN or Inf."""
    if not meets(other, tolerance) or len(other.nonfinite) > len(found.nonfinite):
        return True
    decibels = (bound for bound in tolerance if bound.metric == SQNR)
    return any(bound.of(found) - bound.of(other) > WORTH_A_REPAIR for bound in decibels)


def repair_releases(
    repairs: tuple[Repair, ...],
    found: Comparison,
    judged: Callable[[tuple[Repair, ...]], Comparison],
    bounds: Tolerance,
) -> tuple[RepairRelease, ...]:
    """Each repair left out, the plan else the same; `judged` evaluates it with the others, or raises PlanError.

    `found` is the comparison with all of them. Where `judged` raises BudgetExhausted, the rest is missing.
    """
    releases: list[RepairRelease] = []
    for unit in _units(repairs):
        try:
            without = judged(tuple(other for other in repairs if other not in unit))
        except BudgetExhausted:
            break
        except PlanError:
            releases += [RepairRelease(one, None, is_needed=True, together=len(unit)) for one in unit]
        else:
            figures, is_needed = figures_of(without, bounds), is_worse(found, without, bounds)
            releases += [RepairRelease(one, figures, is_needed, len(unit)) for one in unit]
    return tuple(sorted(releases, key=lambda release: repairs.index(release.repair)))


def _units(repairs: tuple[Repair, ...]) -> list[tuple[Repair, ...]]:
    """What is left out at a time."""
    joint = tuple(repair for repair in repairs if repair.kind in _JOINT)
    return [*((repair,) for repair in repairs if repair not in joint), *([joint] if joint else [])]


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


def certificate_without_pins(found: Comparison, bounds: Tolerance) -> Certificate:
    """The proof of a plan that has no pin to release."""
    return Certificate(tuple(map(str, bounds)), figures_of(found, bounds), (), complete=True)


def figures_of(comparison: Comparison, tolerance: Tolerance) -> Figures:
    """What the comparison says of the tolerance."""
    values = {bound.figure: bound.of(comparison) for bound in tolerance}
    return Figures(values, len(comparison.nonfinite), meets(comparison, tolerance))


def json_number(value: float) -> float | str:
    """JSON has no NaN and no infinity: they stand as the words "nan", "inf" and "-inf"."""
    return value if abs(value) < float("inf") else str(value)


def _plain_release(release: RepairRelease) -> dict[str, Any]:
    return {"kind": release.repair.kind, "node": release.repair.nodes[0], **plain_left_out(release)}


def plain_left_out(release: RepairRelease) -> dict[str, Any]:
    """What becomes of the plan without a repair, as JSON holds it."""
    found: dict[str, Any] = {"together": release.together} if release.together > 1 else {}
    found |= {"constants": Constants.ROUNDED.value} if release.hangs_on_clamping else {}
    return found | ({"figures": None} if release.figures is None else plain_figures(release.figures))


def plain_figures(figures: Figures) -> dict[str, Any]:
    """The figures as JSON holds them."""
    values = {name: json_number(value) for name, value in figures.values.items()}
    return {**values, "nonfinite_tensors": figures.nonfinite, "met": figures.met}
