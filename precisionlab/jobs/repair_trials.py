"""Sets of repairs of one model, tried in a low precision: what the search for repairs asks, on real evaluations."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property

from precisionlab.backends.equivalence import Equivalence
from precisionlab.calibration.coarse import CoarseHistogram
from precisionlab.calibration.methods import AUTO, OUTPUT
from precisionlab.calibration.table import CalibrationTable
from precisionlab.compare.comparison import Comparison
from precisionlab.compare.tolerance import Tolerance, closeness, meets
from precisionlab.data import Dataset
from precisionlab.evaluate.block_scales import chosen_blocks
from precisionlab.evaluate.evaluator import Evaluator
from precisionlab.evaluate.ranges import Methods, block_methods, chosen_ranges, compared_with, least_lossy, ranges_by
from precisionlab.evaluate.values import Look, observed_values
from precisionlab.jobs.quantized_ranges import NO_RANGES, Ranges, best_ranges
from precisionlab.jobs.repaired_file import same_in_float32
from precisionlab.model import Model
from precisionlab.model.blocks import LARGEST
from precisionlab.plan.plan import PrecisionPlan
from precisionlab.precision import Precision, quantized_of
from precisionlab.rewrite.plans import plan_for
from precisionlab.rewrite.repairs import repaired_model
from precisionlab.rewrite.repairs.channel_values import ChannelValues, ChannelWatch
from precisionlab.rewrite.repairs.profiles import Profile
from precisionlab.search.alternatives import AlternativeKind, alternatives
from precisionlab.search.causes import causes, with_insides
from precisionlab.search.certificate import RepairRelease, is_worse, repair_releases
from precisionlab.search.repairing import Repairs
from precisionlab.system.deadline import BudgetExhausted
from precisionlab.system.wording import counted


@dataclass(frozen=True)
class Means:
    """What evaluates one model: its evaluator, and what shows its float32 tensors in this process."""

    evaluator: Evaluator
    look: Look

    def methods(self, precision: Precision, block: int = LARGEST) -> Methods:
        """By each calibration method the ranges in a quantized precision, or its scales of weights in blocks."""
        if precision.is_weight_only:
            own = chosen_blocks(self.evaluator, self.look)(block, precision)
            return {**block_methods(block, precision), OUTPUT: own}
        return observed_values(self.evaluator, (precision,), self.look).methods[precision]

    def table(self, method: str, precision: Precision, block: int = LARGEST) -> CalibrationTable:
        """The same by one method."""
        if not precision.is_weight_only:
            return ranges_by(self.evaluator, method, precision)
        if method == OUTPUT:
            return chosen_blocks(self.evaluator, self.look)(block, precision)
        return block_methods(block, precision)[method]


class RepairTrials:
    """One model with repairs, each set of them built once and evaluated without pins; see `Trials`.

    Where a variant is right only as TensorRT's builder clamps constants that the precision cannot hold, it is judged by
    what becomes of it otherwise: a repair costs nothing, and makes it right either way.
    """

    def __init__(
        self,
        original: Means,
        precision: Precision,
        around: Precision,
        tolerance: Tolerance,
        opened: Callable[[Model], Means],
        ranges_of: Callable[[Means], Ranges] = lambda means: NO_RANGES,
        *,
        typed: bool = False,
        block: int = LARGEST,
        expected: Callable[[float], None] = lambda seconds: None,
        is_same: Callable[[Model], bool] = lambda repaired: True,
    ) -> None:
        """`opened` makes the means of a repaired model, `ranges_of` finds the ranges of one.

        `is_same` tells of a repaired model whether its float32 is what its repairs promise.
        `typed`: engines take each layer's type from the model, and constants as they stand there. `block` is the most
        numbers of a weight that have one scale. `expected` is told how many seconds are about to come, as sets are
        tried.
        """
        self._precision, self._around, self._opened, self._ranges_of = precision, around, opened, ranges_of
        self._tolerance, self._typed, self._block, self._is_same = tolerance, typed, block, is_same
        self._means: dict[Repairs, Means] = {(): original}
        self._ranges: dict[Repairs, Ranges] = {}
        self._alike: dict[Repairs, Comparison] = {}
        self._expected, self._seconds = expected, 0.0

    def model(self, repairs: Repairs) -> Model:
        """The model at the shapes of the data. Raises PlanError where a repair cannot be carried out."""
        return self._evaluator(repairs).model

    def keeps_float32(self, repairs: Repairs) -> bool:
        """Whether the repaired model's float32 is what its repairs promise."""
        return self._is_same(self.model(repairs))

    def judged(self, repairs: Repairs) -> Comparison:
        """The final outputs in the precision."""
        return self.judged_under(repairs, *self.plan(repairs))

    def judged_under(self, repairs: Repairs, plan: PrecisionPlan, table: CalibrationTable | None) -> Comparison:
        """The final outputs under a plan for the model with these repairs, with constants clamped or not: the worse."""
        found = self._clamped(repairs, plan, table)
        otherwise = self._unclamped(repairs, plan)
        if otherwise is None:
            return found
        title = f"{self._title(repairs)}, constants not clamped"
        unclamped = otherwise.judge(title, plan, table, self._reference(repairs))
        return min(found, unclamped, key=lambda one: (closeness(one, self._tolerance), -len(one.nonfinite)))

    def _clamped(self, repairs: Repairs, plan: PrecisionPlan, table: CalibrationTable | None) -> Comparison:
        """The same with constants as TensorRT's builder has them."""
        if not repairs and _is_alike((plan, table), self.plan(())):
            return self._compared(())  # which was asked for anyway
        return self._evaluator(repairs).judge(self._title(repairs), plan, table, self._reference(repairs))

    def _reference(self, repairs: Repairs) -> Comparison:
        evaluator = self._evaluator(repairs)
        return evaluator.compare("float32", PrecisionPlan(evaluator.model.sha256, Precision.FP32), None)

    def _unclamped(self, repairs: Repairs, plan: PrecisionPlan) -> Evaluator | None:
        """What evaluates it with constants as they are rounded; None where no constant is clamped."""
        evaluator = self._evaluator(repairs)
        others = alternatives(evaluator.model, plan, evaluator.arithmetic, typed=self._typed)
        arithmetic = others.get(AlternativeKind.ROUNDED_CONSTANTS)
        return None if arithmetic is None else replace(evaluator, arithmetic=arithmetic)

    def judged_with_pins(self, repairs: Repairs, plan: PrecisionPlan) -> Comparison:
        """The final outputs with these repairs alone, and the pins of a plan with more: of nodes that are there.

        A compiled engine's layers are others with other repairs; one of which any node is pinned is pinned.
        """
        return self.judged_under(repairs, *self._pinned_as(repairs, plan))

    def _pinned_as(self, repairs: Repairs, plan: PrecisionPlan) -> tuple[PrecisionPlan, CalibrationTable | None]:
        throughout, table = self._plan_by(plan.calibration, repairs)
        pinned = {node: pin for pin in plan.pins for node in pin.nodes}
        pins = {pin.layer: pin for pin in throughout.pins}
        for layer in self.model(repairs).layers:
            if (pin := next((pinned[node] for node in layer.nodes if node in pinned), None)) is not None:
                pins[layer.name] = replace(pin, layer=layer.name, nodes=layer.nodes)
        return throughout.with_pins(pins.values()), table

    def releases(self, plan: PrecisionPlan) -> tuple[RepairRelease, ...]:
        """Each of a plan's repairs left out, with the pins of the plan."""
        if not plan.repairs:
            return ()
        try:
            found = self.judged_with_pins(plan.repairs, plan)
        except BudgetExhausted:
            return ()
        releases = repair_releases(plan.repairs, found, lambda rest: self.judged_with_pins(rest, plan), self._tolerance)
        return tuple(replace(one, hangs_on_clamping=self._hangs_on_clamping(one, plan)) for one in releases)

    def _hangs_on_clamping(self, release: RepairRelease, plan: PrecisionPlan) -> bool:
        """Whether a repair is needed for constants that are not clamped alone; nothing is evaluated anew."""
        if not release.is_needed or release.figures is None or release.together > 1:
            return False
        rest = tuple(one for one in plan.repairs if one != release.repair)
        found, without = (self._clamped(some, *self._pinned_as(some, plan)) for some in (plan.repairs, rest))
        return not is_worse(found, without, self._tolerance)

    def whole(self, repairs: Repairs) -> tuple[Comparison, Comparison | None]:
        """All tensors in the precision, on the samples that choose, and on those held out."""
        plan, table = self.plan(repairs)
        return self._compared(repairs), self._evaluator(repairs).hold_to(self._title(repairs), plan, table)

    def broken(self, repairs: Repairs) -> Mapping[str, str]:
        """Layer → why it breaks in the precision."""
        evaluator, (plan, table) = self._evaluator(repairs), self.plan(repairs)
        low = self._compared(repairs)
        otherwise = self._unclamped(repairs, plan)
        if otherwise is not None and meets(low, self._tolerance):
            evaluator = otherwise
            title = f"{self._title(repairs)}, constants not clamped"
            low = evaluator.compare(title, plan, table, introduced=True)
        found = causes(evaluator.model, plan, low.inherited, low.introduced, evaluator.arithmetic.constants)
        largest = {name: seen.amax for name, seen in self.histograms(repairs).items()}
        found = with_insides(found, largest, evaluator.model, plan)
        return {name: str(cause) for name, cause in found.items()}

    def histograms(self, repairs: Repairs) -> Mapping[str, CoarseHistogram]:
        """What the tensors hold in float32, on the samples that choose."""
        means = self.means(repairs)
        return observed_values(means.evaluator, quantized_of((self._precision,)), means.look).histograms

    def channels(self, profiles: Mapping[str, Profile], repairs: Repairs = ()) -> Mapping[str, ChannelValues]:
        """What tensors of the model with these repairs hold by channels in float32, on the samples that choose."""
        means, watch = self.means(repairs), ChannelWatch(profiles)
        means.evaluator.observer.stage("channels", len(means.evaluator.chosen))
        means.look(means.evaluator.chosen, watch.add)
        return watch.found()

    def alike(self, repairs: Repairs) -> Comparison:
        """All tensors in int8, and each layer alone: with ranges by the method that is best for the model as it is."""
        if repairs not in self._alike:
            # Opened for this alone: of dozens of sets all at once are as many models.
            method, started = self._method, time.monotonic()
            means = self._open(repairs) if repairs else self.means(())
            evaluator = means.evaluator
            table = means.table(method, self._precision, self._block)
            plan = plan_for(evaluator.model, self._precision, table, around=self._around, calibration=method)
            self._alike[repairs] = evaluator.compare(self._title(repairs), plan, table, introduced=True)
            self._seconds = time.monotonic() - started
        return self._alike[repairs]

    def to_come(self, count: int) -> None:
        """Tell how long so many sets may take, by how long the last one took."""
        if self._seconds:
            self._expected(count * self._seconds)

    @cached_property
    def _method(self) -> str:
        """The method under whose ranges the model as it is loses least."""
        means = self.means(())
        tables = means.methods(self._precision, self._block).items()
        return least_lossy({name: compared_with(means.evaluator, name, table, True) for name, table in tables})

    def same(self, repairs: Repairs, samples: Dataset, threads: int) -> Equivalence:
        """How the repaired model lies beside the original in float32, on these samples.

        Raises ModelError where it is not what its repairs promise.
        """
        evaluator = self._evaluator(repairs)
        return same_in_float32(evaluator.model, samples, threads, evaluator.observer)

    def means(self, repairs: Repairs) -> Means:
        """What evaluates the model with these repairs."""
        if repairs not in self._means:
            self._means[repairs] = self._open(repairs)
        return self._means[repairs]

    def _open(self, repairs: Repairs) -> Means:
        return self._opened(repaired_model(self._evaluator(()).model, repairs))

    def ranges(self, repairs: Repairs) -> Ranges:
        """The ranges of the model with these repairs."""
        if repairs not in self._ranges:
            # Where the model as it is needed other ranges than the default's, so does what is compared with it.
            tries = bool(repairs) and self.ranges(()).method == AUTO
            means = self.means(repairs)
            methods = means.methods(self._precision, self._block) if tries else {}
            self._ranges[repairs] = best_ranges(means.evaluator, methods) if tries else self._ranges_of(means)
        return self._ranges[repairs]

    def plan(self, repairs: Repairs) -> tuple[PrecisionPlan, CalibrationTable | None]:
        """The precision without pins, but for those that it cannot do without, and its ranges."""
        found = self.ranges(repairs)
        model = self.model(repairs)
        plan = plan_for(model, self._precision, found.table, around=self._around, calibration=found.method)
        return plan, found.table

    def _plan_by(self, method: str | None, repairs: Repairs) -> tuple[PrecisionPlan, CalibrationTable | None]:
        """As `plan`, with ranges by this method."""
        if method in (None, self.ranges(repairs).method):
            return self.plan(repairs)
        methods = self.means(repairs).methods(self._precision, self._block)
        table = chosen_ranges(self._evaluator(repairs), methods, method).table
        model = self.model(repairs)
        return plan_for(model, self._precision, table, around=self._around, calibration=method), table

    def _compared(self, repairs: Repairs) -> Comparison:
        plan, table = self.plan(repairs)
        return self._evaluator(repairs).compare(self._title(repairs), plan, table, introduced=True)

    def _evaluator(self, repairs: Repairs) -> Evaluator:
        return self.means(repairs).evaluator

    def _title(self, repairs: Repairs) -> str:
        return f"{self._precision} with {counted(len(repairs), 'repair')}" if repairs else f"{self._precision}"


def _is_alike(
    one: tuple[PrecisionPlan, CalibrationTable | None], other: tuple[PrecisionPlan, CalibrationTable | None]
) -> bool:
    """Whether the two are evaluated alike."""
    digests = [None if table is None else table.digest for _, table in (one, other)]
    return one[0].pins == other[0].pins and digests[0] == digests[1]
