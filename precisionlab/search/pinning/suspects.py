"""Which layers do the harm, the worst first, and what is known against each."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

from precisionlab.backends.base import SensitivityRequest
from precisionlab.compare.comparison import Comparison
from precisionlab.compare.sensitivity import Sensitivities
from precisionlab.evaluate.samples import worst_samples
from precisionlab.model import Layer
from precisionlab.plan.plan import PrecisionPlan
from precisionlab.precision import Precision
from precisionlab.search.causes import Cause, causes, clamped_constants, with_insides, with_sums
from precisionlab.search.pinning.choice import Aim
from precisionlab.search.pinning.reasons import reason_of
from precisionlab.search.pinning.rounds import ranked_in_rounds
from precisionlab.search.pinning.task import Task
from precisionlab.search.rank import Ranking, by_share, output_shares, rank, rank_by_sensitivity, relative_error
from precisionlab.system.deadline import Watched

_SHARE = 0.5
"""The share of a search's time that ranking may take; with what it has ranked by then the rest is searched."""


@dataclass(frozen=True)
class Suspects:
    """The layers that the precision touches, ranked, with what breaks in each and the outputs' sensitivities to it.

    `clamped` are those that compute with a clamped constant, harmful or not.
    """

    ranking: Ranking
    causes: Mapping[str, Cause]
    clamped: Mapping[str, Cause]
    sensitivities: Sensitivities = field(default_factory=dict)
    sensitivity_samples: Mapping[str, int] = field(default_factory=dict)
    """On how many samples each was measured."""
    by_cost: bool = False
    """Whether the harm was divided by what pinning a layer costs."""

    @cached_property
    def harms(self) -> Mapping[str, float]:
        """What each layer alone does to the output that it harms most; see `relative_error`."""
        return {name: relative_error(outputs) for name, outputs in self.sensitivities.items()}

    @cached_property
    def _told_order(self) -> tuple[str, ...]:
        """The order that people are told of a layer's rank by, as tables have it; by cost it is the search's own."""
        if self.by_cost:
            return self.ranking.order
        return by_share(self.ranking.order, output_shares(self.sensitivities), self.ranking.required)

    def reason(self, layer: Layer, precision: Precision) -> str:
        """Why the layer is pinned to a precision."""
        return reason_of(
            layer,
            precision,
            self._told_order,
            self.causes,
            self.sensitivities,
            by_cost=self.by_cost,
            clamped=self.clamped,
        )


def suspects_by_own_error(task: Task, low: Comparison) -> Suspects:
    """Ranked by the error that each layer introduces, as comparing the low precision has found it."""
    constants = task.evaluator.arithmetic.constants
    why = causes(task.model, task.low_plan, low.inherited, low.introduced, constants)
    clamped = clamped_constants(task.model, task.low_plan, task.touched, constants)
    why = with_insides(why, task.largest, task.model, task.low_plan)
    why = with_sums(why, task.running_sums, task.model, task.low_plan)
    return Suspects(rank(task.touched, low.introduced), why, clamped)


def suspects_by_sensitivity(
    task: Task, first: Suspects, low: Comparison, cost: Callable[[Mapping[str, Precision]], float]
) -> Suspects:
    """Ranked anew by what each layer alone does to the final outputs, in rounds on the samples that it is worst on.

    `cost` is what pins cost, in seconds.
    """
    names = tuple(layer.name for layer in task.touched)
    if task.deadline.left is not None:
        names = first.ranking.order  # where the time does not do for all, those that look worst come first
    plan = PrecisionPlan(task.model.sha256, Precision.FP32)
    watched = replace(task.evaluator, observer=Watched(task.evaluator.observer, task.deadline.part(_SHARE)))
    chosen, worst = task.evaluator.chosen, worst_samples(task.evaluator.chosen.names, low)

    def measured(layers: Sequence[str], samples: Sequence[str]) -> Sensitivities:
        request = SensitivityRequest(
            plan, task.low_plan, tuple(layers), task.table, task.evaluator.judging, task.evaluator.arithmetic
        )
        title = f"{task.precision}, each layer alone" + (f", {len(layers)} on more samples" if layers != names else "")
        return watched.sensitivities(title, request, chosen.only(frozenset(samples)))

    weights = None if task.aim is Aim.PINS else _weights(task, first.ranking, cost)
    found = ranked_in_rounds(
        first.ranking,
        names,
        worst,
        measured,
        lambda ranking, more: rank_by_sensitivity(
            ranking, more, weights, task.measure, lambda name: cost({name: Precision.FP32})
        ),
    )
    if len(found.sensitivities) < len(names) and task.deadline.left:
        task.note(
            f"half of its time is spent, and {len(found.sensitivities)} of {len(names)} layers are ranked by what they "
            "do alone; the others stand behind them, by their own error"
        )
    return replace(
        first,
        ranking=found.ranking,
        sensitivities=found.sensitivities,
        sensitivity_samples=found.samples,
        by_cost=weights is not None,
    )


def _weights(task: Task, ranking: Ranking, cost: Callable[[Mapping[str, Precision]], float]) -> dict[str, float]:
    """What pinning each layer alone costs, in shares of the whole plan."""
    low = task.cost.seconds(task.low_plan)
    # A pin that saves a conversion is as good as free.
    return {name: max((cost({name: Precision.FP32}) - low) / low, 1e-6) for name in ranking.order}
