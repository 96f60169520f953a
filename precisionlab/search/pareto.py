"""The trade between error and cost: which of the plans that were evaluated are worth having."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Point:
    """One evaluated set of pins, of the model with so many `repairs`.

    `error` is lower where the plan is better: a relative error, or an SQNR with its sign turned. `cost` is in
    seconds. `meets` says whether the plan meets the tolerance, `figures` what kind of figures `cost` is
    ("estimated", "measured", "partly measured"): points with different figures or from different devices
    do not belong into one comparison.
    """

    pins: tuple[str, ...]
    error: float
    cost: float
    meets: bool
    figures: str
    repairs: int = 0


def front(points: Iterable[Point]) -> tuple[Point, ...]:
    """The points that no other beats, the cheapest first; each costs more and errs less than the one before.

    A point is beaten by one that is no worse in both error and cost and better in one. Of points that are equal in
    both, the one with the fewest pins stays, and of these that with the fewest repairs. A point whose error or cost is
    NaN is never on the front.
    """
    found: list[Point] = []
    for point in sorted(_comparable(points), key=lambda p: (p.cost, p.error, *_tie(p))):
        if not found or point.error < found[-1].error:
            found.append(point)
    return tuple(found)


def cheapest_meeting(points: Iterable[Point]) -> Point | None:
    """The cheapest point that meets the tolerance, of equal ones that with the least error; None if none meets it."""
    return min((p for p in _comparable(points) if p.meets), key=lambda p: (p.cost, p.error, *_tie(p)), default=None)


def best_within(points: Iterable[Point], budget_cost: float) -> Point | None:
    """The point with the least error that costs no more than the budget (seconds), of equal ones the cheapest.

    None where no point is within the budget.
    """
    affordable = (p for p in _comparable(points) if p.cost <= budget_cost)
    return min(affordable, key=lambda p: (p.error, p.cost, *_tie(p)), default=None)


def _comparable(points: Iterable[Point]) -> Iterable[Point]:
    return (p for p in points if not (math.isnan(p.error) or math.isnan(p.cost)))


def _tie(point: Point) -> tuple[int, int, tuple[str, ...], bool, str]:
    """Orders equal points, so that the choice does not depend on the order that they come in."""
    return len(point.pins), point.repairs, point.pins, not point.meets, point.figures
