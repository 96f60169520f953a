"""The plans of one precision that were evaluated: each once, within what the user allows."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

from precisionlab.compare.comparison import Comparison
from precisionlab.compare.tolerance import Tolerance, closeness, excess, meets
from precisionlab.plan.plan import Pin, PrecisionPlan
from precisionlab.precision import Precision
from precisionlab.search.ladder import Assignment
from precisionlab.search.nonfinite_origins import nonfinite_starts
from precisionlab.search.pareto import Point
from precisionlab.search.pinning.choice import Key, Trial
from precisionlab.search.pinning.suspects import Suspects
from precisionlab.search.pinning.task import Task
from precisionlab.search.pins import Verdict, likely_pins, most_evaluations, most_left
from precisionlab.system.deadline import BudgetExhausted, Deadline, Watched
from precisionlab.system.observer import Tried, tell_of
from precisionlab.system.wording import counted


class Evaluations:
    """What has been evaluated for one precision. The first is the low precision without pins.

    `strict` is what plans are held to: the tolerance, or a stricter one after held-out samples said no. `spent` says
    what ended the work, once something has. A plan's pins stand in the order of the `suspects`.
    """

    def __init__(self, task: Task) -> None:
        self.strict = task.tolerance
        self.comparisons: dict[Key, Comparison] = {}
        self.spent = ""
        self.suspects: Suspects
        self._task = task
        self._limit: int | None = None
        self._watched = task.evaluator
        self._deadline = Deadline(None)
        self._costs: dict[Key, float] = {}
        self._fewest: tuple[int, float] | None = None

    def begin(self, low: Comparison, suspects: Suspects) -> None:
        """The low precision without pins has been compared, and shows whom to suspect."""
        self.comparisons[frozenset()] = low
        self.suspects = suspects

    def allow(self, limit: int | None, deadline: Deadline) -> None:
        """No more than `limit` evaluations, and none after the deadline; one under way is ended by it."""
        self._limit, self._deadline = limit, deadline
        evaluator = self._task.evaluator
        self._watched = replace(evaluator, observer=Watched(evaluator.observer, deadline))

    def tighten(self, by: Sequence[float]) -> None:
        """Hold plans to more than before: to so much more of each bound."""
        self.strict = tuple(bound.tighter(more) for bound, more in zip(self.strict, by, strict=True))

    def evaluate(self, assignment: Assignment) -> Comparison:
        """The comparison with these pins.

        Raises BudgetExhausted where no further evaluation is allowed; `spent` says why.
        """
        key = frozenset(assignment.items())
        if key not in self.comparisons:
            try:
                self._check()
                self.comparisons[key] = self._judged(assignment)
            except BudgetExhausted as end:
                self.spent = str(end)
                raise
            self._note(assignment, self.comparisons[key])
        return self.comparisons[key]

    def has_time(self) -> bool:
        """Whether more may be measured; where not, `spent` says why."""
        try:
            self._deadline.check()
        except BudgetExhausted as end:
            self.spent = str(end)
            return False
        return True

    def passes(self, assignment: Assignment) -> bool:
        """Whether these pins hold what plans are held to. Raises BudgetExhausted as `evaluate`."""
        return meets(self.evaluate(assignment), self.strict)

    def verdict(self, pins: frozenset[str]) -> Verdict:
        """What evaluating these layers in float32 finds. Raises BudgetExhausted as `evaluate`."""
        comparison = self.evaluate(dict.fromkeys(pins, Precision.FP32))
        unpinned = set(self.suspects.ranking.order) - pins
        starts = nonfinite_starts(self._task.model, comparison, unpinned)
        strict = self.strict
        return Verdict(meets(comparison, strict), closeness(comparison, strict), starts, excess(comparison, strict))

    def _check(self) -> None:
        if self._limit is not None and len(self.comparisons) >= self._limit:
            raise BudgetExhausted(f"no more than {counted(self._limit, 'evaluation')} were allowed")
        self._deadline.check()

    @property
    def _to_come(self) -> int:
        """About how many plans are still evaluated: until one holds, to release its pins, to prove them, around it."""
        layers, tried = len(self.suspects.ranking.order), len(self.comparisons)
        until, pins = most_evaluations(layers) - tried, likely_pins(layers)
        if self._fewest is not None:
            until, pins = 0, self._fewest[0]
        most = max(0, until) + most_left(pins)
        return most if self._limit is None else min(most, self._limit - tried)

    def _judged(self, assignment: Assignment) -> Comparison:
        longest = max(comparison.seconds for comparison in self.comparisons.values())
        self._task.expected(self._to_come * longest)
        title = f"{self._task.precision}, plan {len(self.comparisons)}: {counted(len(assignment), 'pin')}"
        return self._watched.judge(title, self.plan(assignment), self._task.table, self.comparisons[frozenset()])

    def _note(self, assignment: Assignment, comparison: Comparison) -> None:
        passes, cost = meets(comparison, self.strict), self.cost(assignment)
        if passes and (self._fewest is None or (len(assignment), cost) < self._fewest):
            self._fewest = (len(assignment), cost)
            self._task.evaluator.journal.keep_plan(f"{self._task.precision}", self.plan(assignment))
        plan = Tried(
            precision=f"{self._task.precision}",
            number=len(self.comparisons) - 1,
            pins=len(assignment),
            figures=figures_text(comparison, self.strict),
            holds=passes,
            best=self._fewest[0] if self._fewest else None,
            seconds=comparison.seconds,
        )
        tell_of(plan, self._task.evaluator.observer)

    # What they are

    def plan(self, assignment: Assignment) -> PrecisionPlan:
        """The low precision's plan with these pins too, the worst layer first."""
        layers = [self._task.model.layer[name] for name in self.in_order(assignment)]
        reason = self.suspects.reason
        pins = [Pin(x.name, x.nodes, assignment[x.name], reason(x, assignment[x.name])) for x in layers]
        low = self._task.low_plan
        return low.with_pins((*low.pins, *pins))

    def assignment(self, plan: PrecisionPlan) -> dict[str, Precision]:
        """The pins of a plan that `plan` made, without those that the low precision has as well."""
        held = self._task.low_plan.pinned()
        return {name: precision for name, precision in plan.pinned().items() if name not in held}

    def in_order(self, pins: Iterable[str]) -> list[str]:
        """The layers in the order of the ranking."""
        chosen = frozenset(pins)
        return [name for name in self.suspects.ranking.order if name in chosen]

    def pins_of(self, key: Key) -> dict[str, Precision]:
        """The pins of a plan that was evaluated, in the order of the ranking."""
        pins = dict(key)
        return {name: pins[name] for name in self.in_order(pins)}

    def cost(self, assignment: Assignment) -> float:
        """What a plan costs, in seconds."""
        key = frozenset(assignment.items())
        if key not in self._costs:
            self._costs[key] = self._task.cost.seconds(self.plan(assignment))
        return self._costs[key]

    def trial(self, assignment: Assignment, tolerance: Tolerance) -> Trial:
        """An evaluated plan as the choice sees it, held to a tolerance."""
        key = frozenset(assignment.items())
        comparison = self.comparisons[key]
        return Trial(
            key, len(key), self.cost(assignment), closeness(comparison, tolerance), meets(comparison, tolerance)
        )

    def trials(self, tolerance: Tolerance, most: float = math.inf) -> list[Trial]:
        """All that were evaluated and cost no more than `most` seconds."""
        trials = [self.trial(dict(key), tolerance) for key in list(self.comparisons)]
        return [trial for trial in trials if trial.cost <= most]

    def points(self, tolerance: Tolerance) -> Iterator[Point]:
        """Every plan evaluated, by the error that the first bound is about."""
        bound = tolerance[0]
        for key, comparison in self.comparisons.items():
            plan = self.plan(dict(key))
            cost = self._task.cost.of(plan)
            error = bound.of_metric.as_error(bound.of(comparison))
            pins = tuple(pin.layer for pin in plan.pins)
            yield Point(pins, error, cost.seconds, meets(comparison, tolerance), cost.figures)


def figures_text(comparison: Comparison, tolerance: Tolerance) -> str:
    """The figures that the tolerance is about, for a line of progress."""
    figures = [f"{bound.figure} {bound.of(comparison):.4g}" for bound in tolerance]
    if comparison.nonfinite:
        figures.append(f"NaN or Inf in {counted(len(comparison.nonfinite), 'tensor')}")
    return ", ".join(figures)
