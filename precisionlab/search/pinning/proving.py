"""The proof of the plan that was found, and what other plans beside it would give."""

from __future__ import annotations

from contextlib import suppress

from precisionlab.plan.assign import lowest_of
from precisionlab.precision import Precision
from precisionlab.search.certificate import Certificate, certificate_of
from precisionlab.search.outcome import Variant
from precisionlab.search.pinning.evaluations import Evaluations
from precisionlab.search.pinning.task import Task
from precisionlab.system.deadline import BudgetExhausted


def certificate(task: Task, evaluations: Evaluations, mixed: Variant) -> Certificate:
    """The plan's figures, and those with each pin released, one at a time; most of that is evaluated already."""
    assignment, model = evaluations.assignment(mixed.plan), task.model
    without = {name: lowest_of(model, model.layer[name], task.low_plan) for name in assignment}
    return certificate_of(assignment, without, mixed.comparison, evaluations.evaluate, evaluations.strict)


def widen_front(task: Task, evaluations: Evaluations, mixed: Variant) -> None:
    """Evaluate a few plans around the one found, so that the front shows what fewer and more pins would give."""
    ranked = evaluations.suspects.ranking.order
    chosen = evaluations.assignment(mixed.plan)
    limit = len(ranked) if task.options.max_pins is None else task.options.max_pins
    others = [name for name in ranked if name not in chosen]
    order = list(chosen)
    fewer = [{name: chosen[name] for name in order[:count]} for count in _spread(len(order))]
    counts = [count for count in (1, 2, 4, 8) if count <= min(len(others), limit - len(chosen))]
    more = [{**chosen, **dict.fromkeys(others[:count], Precision.FP32)} for count in counts]
    with suppress(BudgetExhausted):
        for assignment in [*fewer, *more]:
            evaluations.evaluate(assignment)


def _spread(count: int) -> list[int]:
    """A few numbers below `count`: a quarter, a half, three quarters, one less."""
    return sorted({count // 4, count // 2, count * 3 // 4, count - 1} - {0, -1})
