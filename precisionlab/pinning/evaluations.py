"""The plans of one precision that were evaluated: each once, within what the user allows."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace

from precisionlab.calibration.table import CalibrationTable
from precisionlab.compare.comparison import Comparison
from precisionlab.compare.tolerance import Tolerance, closeness, meets
from precisionlab.deadline import Deadline, Spent, Watched
from precisionlab.evaluator import Evaluator
from precisionlab.pinning.choice import Key, Trial
from precisionlab.precision import Pin, Precision, PrecisionPlan
from precisionlab.search.cost import CostModel
from precisionlab.search.ladder import Assignment
from precisionlab.search.pareto import Point
from precisionlab.wording import counted


class Evaluations:
    """What has been evaluated for one precision. The first is the low precision without pins.

    `order` is the ranking, once it is known: the order that a plan's pins stand in.
    """

    def __init__(
        self,
        evaluator: Evaluator,
        low_plan: PrecisionPlan,
        table: CalibrationTable | None,
        cost: CostModel,
        reason: Callable[[str, Precision], str],
    ) -> None:
        """`reason` says why a layer is pinned to a precision."""
        self.order: Sequence[str] = ()
        self.found: dict[Key, Comparison] = {}
        self.spent = ""
        self._evaluator = evaluator
        self._low_plan = low_plan
        self._table = table
        self._cost = cost
        self._reason = reason
        self._limit: int | None = None
        self._watched = evaluator
        self._deadline = Deadline(None)
        self._costs: dict[Key, float] = {}
        self._fewest: tuple[int, float] | None = None

    def allow(self, limit: int | None, deadline: Deadline) -> None:
        """No more than `limit` evaluations, and none after the deadline; one under way is ended by it."""
        self._limit, self._deadline = limit, deadline
        self._watched = replace(self._evaluator, see=Watched(self._evaluator.see, deadline))

    def evaluate(self, assignment: Assignment, strict: Tolerance) -> Comparison:
        """The comparison with these pins. Raises Spent where no further evaluation is allowed; `spent` says why."""
        key = frozenset(assignment.items())
        if key not in self.found:
            try:
                self._check()
                self.found[key] = self._judged(assignment)
            except Spent as end:
                self.spent = str(end)
                raise
            self._note(assignment, self.found[key], strict)
        return self.found[key]

    def _check(self) -> None:
        if self._limit is not None and len(self.found) >= self._limit:
            raise Spent(f"no more than {counted(self._limit, 'evaluation')} were allowed")
        self._deadline.check()

    def _judged(self, assignment: Assignment) -> Comparison:
        precision = self._low_plan.default
        title = f"{precision}, plan {len(self.found)}: {counted(len(assignment), 'pin')}"
        return self._watched.judge(title, self.plan(assignment), self._table, self.found[frozenset()])

    def _note(self, assignment: Assignment, found: Comparison, strict: Tolerance) -> None:
        passes, cost = meets(found, strict), self.cost(assignment)
        if passes and (self._fewest is None or (len(assignment), cost) < self._fewest):
            self._fewest = (len(assignment), cost)
            self._evaluator.journal.keep_plan(f"{self._low_plan.default}", self.plan(assignment))
        so_far = f"; best so far {counted(self._fewest[0], 'pin')}" if self._fewest else ""
        self._evaluator.see.note(
            f"  {counted(len(assignment), 'pin')}{figures_text(found, strict)}: "
            f"{'holds' if passes else 'does not hold'}{so_far}"
        )

    # What they are

    def plan(self, assignment: Assignment) -> PrecisionPlan:
        """The low precision's plan with these pins too, the worst layer first."""
        layer = self._evaluator.model.layer
        pins = [
            Pin(name, layer[name].nodes, assignment[name], self._reason(name, assignment[name]))
            for name in self.in_order(assignment)
        ]
        return self._low_plan.with_pins((*self._low_plan.pins, *pins))

    def assignment(self, plan: PrecisionPlan) -> dict[str, Precision]:
        """The pins of a plan that `plan` made, without those that the low precision has as well."""
        held = self._low_plan.pinned()
        return {name: precision for name, precision in plan.pinned().items() if name not in held}

    def in_order(self, pins: Iterable[str]) -> list[str]:
        """The layers in the order of the ranking."""
        chosen = frozenset(pins)
        return [name for name in self.order if name in chosen]

    def cost(self, assignment: Assignment) -> float:
        """What a plan costs, in seconds."""
        key = frozenset(assignment.items())
        if key not in self._costs:
            self._costs[key] = self._cost.seconds(self.plan(assignment))
        return self._costs[key]

    def trial(self, assignment: Assignment, tolerance: Tolerance) -> Trial:
        """An evaluated plan as the choice sees it, held to a tolerance."""
        key = frozenset(assignment.items())
        found = self.found[key]
        return Trial(key, len(key), self.cost(assignment), closeness(found, tolerance), meets(found, tolerance))

    def trials(self, tolerance: Tolerance, most: float = math.inf) -> list[Trial]:
        """All that were evaluated and cost no more than `most` seconds."""
        found = [self.trial(dict(key), tolerance) for key in list(self.found)]
        return [trial for trial in found if trial.cost <= most]

    def points(self, tolerance: Tolerance) -> Iterator[Point]:
        """Every plan evaluated, by the error that the first bound is about."""
        bound = tolerance[0]
        for key, found in self.found.items():
            plan = self.plan(dict(key))
            cost = self._cost.of(plan)
            error = bound.of_metric.as_error(bound.of(found))
            pins = tuple(pin.layer for pin in plan.pins)
            yield Point(pins, error, cost.seconds, meets(found, tolerance), cost.figures)


def figures_text(found: Comparison, tolerance: Tolerance) -> str:
    """The figures that the tolerance is about, for a line of progress."""
    figures = [f"{bound.figure} {bound.of(found):.4g}" for bound in tolerance]
    if found.nonfinite:
        figures.append(f"NaN or Inf in {counted(len(found.nonfinite), 'tensor')}")
    return f": {', '.join(figures)}"
