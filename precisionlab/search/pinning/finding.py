"""Finds pins that hold what the search is held to, by the aim: few, cheap, or with the least error for a price."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress

from precisionlab.compare.tolerance import meets
from precisionlab.precision import Precision
from precisionlab.search.expectation import Expectation
from precisionlab.search.ladder import lower_rungs, without_needless
from precisionlab.search.pinning.choice import Aim, best, order_of
from precisionlab.search.pinning.evaluations import Evaluations
from precisionlab.search.pinning.nearest import nearest
from precisionlab.search.pinning.task import Task
from precisionlab.search.pins import find_pins
from precisionlab.system.deadline import BudgetExhausted


def found_pins(task: Task, evaluations: Evaluations) -> dict[str, Precision]:
    """The best pins of all that were evaluated by the end: nothing where no pin is any better than none."""
    if task.options.spend is not None:
        return _nearest_within(task, evaluations, task.cost.seconds(task.low_plan) * (1 + task.options.spend))
    return _passing(task, evaluations)


def _passing(task: Task, evaluations: Evaluations) -> dict[str, Precision]:
    """The best plan that passes, each pin on its rung; where none passes the nearest one, or nothing."""
    suspects = evaluations.suspects
    found = find_pins(suspects.ranking, evaluations.verdict, task.options.max_pins, Expectation(suspects.harms))
    if not found.passes:
        tried = evaluations.comparisons
        right = {key: comparison for key, comparison in tried.items() if meets(comparison, task.tolerance)}
        return evaluations.pins_of(nearest(right or tried, evaluations.strict))
    pins = dict.fromkeys(evaluations.in_order(found.pins), Precision.FP32)
    with suppress(BudgetExhausted):
        _come_down(task, evaluations, pins)
    chosen = best(evaluations.trials(evaluations.strict, task.most_seconds), task.aim)
    if chosen is None:  # whatever passes costs too much
        return _nearest_within(task, evaluations, task.most_seconds)
    return evaluations.pins_of(chosen.key)


def _come_down(task: Task, evaluations: Evaluations, pins: Mapping[str, Precision]) -> None:
    """Evaluate the pins on lower rungs, where there are any, and what comes out of that in fp32 as well."""
    if task.rungs == (Precision.FP32,):
        return
    on_rungs = lower_rungs(list(pins), task.rungs, evaluations.passes, task.takes)
    lower = without_needless(on_rungs, evaluations.passes)
    evaluations.evaluate(dict.fromkeys(lower, Precision.FP32))


def _nearest_within(task: Task, evaluations: Evaluations, limit: float) -> dict[str, Precision]:
    """The pins that make the error least and cost no more than `limit` seconds, of all that were evaluated."""
    with suppress(BudgetExhausted):
        for rung in task.rungs:
            steps = _affordable(task, evaluations, rung, limit)
            # A longer prefix is not always the better: half of it and a quarter too.
            for length in sorted({len(steps), len(steps) // 2, len(steps) // 4} - {0}):
                evaluations.evaluate(steps[length - 1])
    within = evaluations.trials(task.tolerance, limit)
    nearest = min(within, key=lambda trial: order_of(Aim.ERROR, trial), default=None)
    return {} if nearest is None else evaluations.pins_of(nearest.key)


def _affordable(task: Task, evaluations: Evaluations, rung: Precision, limit: float) -> list[dict[str, Precision]]:
    """One pin more each time, down the ranking, without those that the limit does not allow."""
    steps: list[dict[str, Precision]] = []
    for name in evaluations.suspects.ranking.order:
        if not task.takes(name, rung):
            continue
        wider = {**(steps[-1] if steps else {}), name: rung}
        if evaluations.cost(wider) <= limit:
            steps.append(wider)
    return steps
