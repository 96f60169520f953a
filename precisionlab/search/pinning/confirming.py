"""Holds a plan that the search took for right to the whole comparison, and to samples that chose nothing."""

from __future__ import annotations

import math

from precisionlab.compare.tolerance import meets
from precisionlab.search.ladder import Assignment
from precisionlab.search.outcome import Variant
from precisionlab.search.pinning.choice import Aim, Key, best, better_than, order_of
from precisionlab.search.pinning.evaluations import Evaluations
from precisionlab.search.pinning.task import Task
from precisionlab.system.deadline import BudgetExhausted

GROWN = (
    "no smallest set of pins that is right on the samples that chose it is right on those held out; "
    "longer prefixes of the ranking are taken instead, so some of the pins may not be needed"
)


class Confirmation:
    """Confirms plans of one search; those that turn out wrong are not asked for again."""

    def __init__(self, task: Task, evaluations: Evaluations) -> None:
        self._task = task
        self._evaluations = evaluations
        self._refuted: set[Key] = set()
        """Plans that are right on the samples that chose, and not on those held out."""

    def confirmed(self, assignment: Assignment) -> Variant:
        """The mixed variant, measured again in full; the search saw of its layers only whether NaN and Inf are new."""
        task, evaluations = self._task, self._evaluations
        plan, name = evaluations.plan(assignment), f"{task.precision} mixed"
        comparison = task.evaluator.compare(f"{name}, in full", plan, task.table)
        evaluations.comparisons[frozenset(assignment.items())] = comparison
        return task.variant(name, plan, comparison)

    def asks_for_another_round(self, mixed: Variant) -> bool:
        """Whether a plan that the search took for right is not, and a stricter search might find one that is."""
        task, evaluations = self._task, self._evaluations
        if mixed.met or task.aim is Aim.ERROR:
            return False
        if not meets(mixed.comparison, evaluations.strict):
            return True  # the whole comparison contradicts the judgement, and stands in its place now
        if mixed.held_out is None or mixed.held_out.broken:
            return False
        margins = [bound.margin(mixed.held_out) for bound in task.tolerance]
        if -math.inf in margins:
            return False
        evaluations.tighten([max(0.0, -margin) for margin in margins])
        strict = ", ".join(map(str, evaluations.strict))
        task.note(f"the held-out samples do not confirm the plan; searching on for {strict}")
        return True

    def owes_it_to_its_samples(self, mixed: Variant) -> bool:
        """Whether the plan is right on the samples that chose it alone."""
        if mixed.met or self._task.aim is Aim.ERROR:
            return False
        return mixed.held_out is not None and meets(mixed.comparison, self._task.tolerance)

    def grown(self, last: Variant) -> Variant | None:
        """A prefix of the ranking that is right on the held-out samples too; None where none is.

        Where every smallest set turns out to owe its figure to the samples that it was chosen on (errors that hang on
        a few samples are like dice), more pins than these samples ask for are what others need.
        """
        task, evaluations = self._task, self._evaluations
        task.note(GROWN)
        evaluations.strict = task.tolerance
        order = evaluations.suspects.ranking.order
        limit = len(order) if task.options.max_pins is None else min(len(order), task.options.max_pins)
        count = max(1, len(evaluations.assignment(last.plan)))
        try:
            while count < limit:
                count = min(2 * count, limit)
                for rung in task.rungs:
                    pins = task.on_rung(order[:count], rung)
                    if evaluations.cost(pins) > task.most_seconds or not evaluations.passes(pins):
                        continue
                    if (variant := self.confirmed(pins)).met:
                        return variant
        except BudgetExhausted:
            pass
        return None

    def undominated(self, mixed: Variant) -> Variant:
        """The variant, or one with no more pins, cost and error that was evaluated, and is right on all samples."""
        if not mixed.met:
            return mixed
        task, evaluations = self._task, self._evaluations
        chosen = evaluations.trial(evaluations.assignment(mixed.plan), task.tolerance)
        candidates = better_than(chosen, evaluations.trials(task.tolerance, task.most_seconds), task.aim)
        if task.aim is not Aim.ERROR:  # such as a plan without a pin that the certificate showed to be needless
            first = best(evaluations.trials(evaluations.strict, task.most_seconds), task.aim)
            if first is not None and order_of(task.aim, first) < order_of(task.aim, chosen):
                candidates.insert(0, first)
        for trial in candidates:
            if trial.key and trial.key not in self._refuted:
                if not evaluations.has_time():
                    break
                variant = self.confirmed(evaluations.pins_of(trial.key))
                if variant.met:
                    return variant
                self._refuted.add(trial.key)
        return mixed
