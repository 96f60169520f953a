"""A sweep's `each_layer`: which samples it is measured on, what it costs, and what of it there is time for."""

from __future__ import annotations

from dataclasses import replace

from precisionlab.calibration.table import CalibrationTable
from precisionlab.evaluate.each_layer import each_layer
from precisionlab.evaluate.evaluator import Evaluator
from precisionlab.jobs.sweep_schedule import BY_ITSELF
from precisionlab.model import Model
from precisionlab.search.outcome import PrecisionResult
from precisionlab.system.deadline import BudgetExhausted, Deadline, Watched
from precisionlab.system.wording import counted, duration


def with_each_layer(
    found: PrecisionResult, evaluator: Evaluator, table: CalibrationTable | None, count: int | None, deadline: Deadline
) -> PrecisionResult:
    """The result with each layer measured by itself, on the first `count` of the samples that choose; None: on none.

    `evaluator` is of the model as it is, and `table` has its ranges. What the deadline leaves no time for is left out.
    """
    if count is None or not found.ranked:
        return found
    chosen, precision, plan = evaluator.chosen, found.precision, found.low.plan
    samples = chosen.only(frozenset(chosen.names[:count]))
    watched = replace(evaluator, observer=Watched(evaluator.observer, deadline), chosen=samples, held_out=None)
    evaluator.observer.note(f"{precision}: {announcement(found, len(samples))}")
    try:
        whole = found.low.comparison
        if len(samples) < len(chosen):
            whole = watched.compare(f"{precision} on {counted(len(samples), 'sample')}", plan, table)
        each = each_layer(watched, plan, table, _in_order(found, evaluator.model, deadline), samples, whole)
    except BudgetExhausted as end:
        evaluator.observer.note(f"{precision}: {end}: no layer was measured by itself")
        return found
    done = min(len(each.one_on), len(each.one_off))
    if done < len(found.ranked):
        said = f"{deadline.said}: {done} of {counted(len(found.ranked), 'layer')} were measured by themselves"
        evaluator.observer.note(f"{precision}: {said}")
    return replace(found, each_layer=each)


def announcement(found: PrecisionResult, samples: int) -> str:
    """How much there is to do: a pass runs what follows the layer, so half of the model on average."""
    layers = len(found.ranked)
    comparison = found.low.comparison
    one = comparison.seconds / max(1, comparison.samples) / BY_ITSELF
    return (
        f"each of {counted(layers, 'layer')} by itself, alone in {found.precision} and alone in fp32, on "
        f"{counted(samples, 'sample')}: {2 * layers * samples:,} passes through what follows the layer, "
        f"about {duration(2 * layers * samples * one)}"
    )


def _in_order(found: PrecisionResult, model: Model, deadline: Deadline) -> tuple[str, ...]:
    """The worst first where time may not do for all; else the network's order, in which neighbours share work."""
    if deadline.left is not None:
        return found.ranked
    ranked = frozenset(found.ranked)
    return tuple(layer.name for layer in model.layers if layer.name in ranked)
