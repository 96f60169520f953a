"""The search for one low precision's pins: compare → rank → search → choose → certificate, on real evaluations."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import replace

from precisionlab.backends.base import Toggling
from precisionlab.calibration.table import CalibrationTable
from precisionlab.compare.comparison import Comparison
from precisionlab.compare.effects import Effects
from precisionlab.compare.tolerance import closeness, meets
from precisionlab.deadline import Deadline, Spent, Watched
from precisionlab.evaluator import Evaluator
from precisionlab.model import Layer
from precisionlab.options import Minimize, Options
from precisionlab.pinning.choice import Aim, Key, best, better_than, order_of
from precisionlab.pinning.evaluations import Evaluations
from precisionlab.pinning.reasons import reason_of
from precisionlab.precision import Precision, PrecisionPlan
from precisionlab.results import PrecisionResult, Variant
from precisionlab.rewrite.flow import is_lowered, lowest_of, with_held_pins
from precisionlab.samples import worst_samples
from precisionlab.search.causes import Cause, causes
from precisionlab.search.certificate import Certificate, certificate_of
from precisionlab.search.cost import CostModel
from precisionlab.search.ladder import Assignment, lower_rungs, without_needless
from precisionlab.search.pins import Verdict, find_pins, most_evaluations
from precisionlab.search.rank import ALONE, Measure, Ranking, rank, rank_by_effects
from precisionlab.search.starts import nonfinite_starts
from precisionlab.wording import counted, duration

_ROUNDS = 2
"""How often the search starts over with a stricter tolerance where the held-out samples do not confirm its plan."""

_RANKING = 0.5
"""The share of a search's time that ranking may take; with what it has ranked by then the rest is searched."""

_GROWN = (
    "no smallest set of pins that is right on the samples that chose it is right on those held out; "
    "longer prefixes of the ranking are taken instead, so some of the pins may not be needed"
)


class PinSearch:
    """One search under way."""

    def __init__(
        self,
        evaluator: Evaluator,
        options: Options,
        cost: CostModel,
        precision: Precision,
        method: str | None,
        table: CalibrationTable | None,
        deadline: Deadline | None = None,
        measure: Measure = ALONE,
    ) -> None:
        """`deadline` is when the search has to end (None: as the options' budget has it, from now on).

        `measure` is what layers are ranked by.
        """
        self._evaluator = evaluator
        self._options = options
        self._cost = cost
        self._precision = precision
        self._table = table
        self._deadline = deadline or Deadline(options.budget)
        self._measure = measure
        self._tolerance = options.tolerance_of(precision)
        self._strict = self._tolerance
        """What the search holds its plans to: the tolerance, or a stricter one after held-out samples said no."""
        plan = PrecisionPlan(evaluator.model.sha256, precision, around=options.around, calibration=method)
        self._low_plan = with_held_pins(evaluator.model, plan, table)
        self._evaluations = Evaluations(evaluator, self._low_plan, table, cost, self._reason)
        self._aim = _aim_of(options)
        self._most = math.inf if options.max_cost is None else options.max_cost * self._fp32_seconds()
        self._stopped = ""
        self._refuted: set[Key] = set()
        """Plans that are right on the samples that chose, and not on those held out."""
        self._low: Comparison
        self._ranking: Ranking
        self._effects: Effects = {}
        self._why: Mapping[str, Cause]

    def run(self, unknown: str = "") -> PrecisionResult:
        """Compare the low precision, and pin layers until its tolerance holds, as few or as cheap as asked.

        `unknown` says why nothing can be said of its tolerance: then no pin is searched for, as none can help.
        """
        evaluator, precision = self._evaluator, self._precision
        self._low = evaluator.compare(f"{precision}", self._low_plan, self._table, introduced=True)
        self._evaluations.found[frozenset()] = self._low
        low = self.variant(f"{precision}", self._low_plan, self._low)
        touched = self._touched()
        self._rank(rank(touched, self._low.introduced))
        self._why = causes(evaluator.model, self._low_plan, self._low.inherited, self._low.introduced)
        if low.met or not touched or unknown:
            return self._result(low, low, None)
        self._announce(len(touched))
        self._evaluations.allow(self._options.max_evaluations, self._deadline)
        self._rank_by_effects(touched)
        mixed = low
        for _ in range(_ROUNDS):
            assignment = self._spend() if self._aim is Aim.ERROR else self._assignment()
            believed = bool(assignment) and self._passes(assignment)
            mixed = self._confirmed(assignment) if assignment else low
            if not believed or not self._is_worth_another_round(mixed):
                break
        self._stopped = self._stopped or self._evaluations.spent
        if self._owes_it_to_its_samples(mixed) and (grown := self._grown(mixed)) is not None:
            return self._result(low, self._undominated(grown), None, _GROWN)
        if mixed is low:
            self._widen_front(mixed)
            return self._result(low, low, None)
        return self._proven(low, mixed)

    def variant(self, name: str, plan: PrecisionPlan, comparison: Comparison) -> Variant:
        """The variant with its verdict: on the samples that chose, and on those held out."""
        held_out = self._evaluator.hold_to(name, plan, self._table)
        met = meets(comparison, self._tolerance) and (held_out is None or meets(held_out, self._tolerance))
        figures = self._evaluator.backend.figures
        return Variant(name, plan, comparison, figures, self._tolerance, met, held_out, self._cost.of(plan))

    def _result(
        self, low: Variant, mixed: Variant, certificate: Certificate | None, remark: str = ""
    ) -> PrecisionResult:
        return PrecisionResult(
            self._precision,
            low,
            mixed,
            self._ranking.order,
            self._why,
            len(self._evaluations.found),
            self._table,
            self._effects,
            certificate,
            tuple(self._evaluations.points(self._tolerance)),
            remark,
            limit=self._limit(),
            stopped=self._stopped,
        )

    def _limit(self) -> str:
        """What the user allowed that leaves out other plans; nothing where it leaves out none."""
        most = self._options.max_pins
        if most is not None and most < len(self._ranking.order):
            return f"at most {counted(most, 'pin')}, and more were not allowed"
        if self._options.max_cost is None:
            return ""
        limit = f"at most {self._options.max_cost:.0%} of FP32's cost"
        right = best(self._evaluations.trials(self._tolerance), Aim.COST)
        if right is None:
            return limit
        held = f"{counted(right.pins, 'pin')} at {right.cost / self._fp32_seconds():.0%}"
        return f"{limit} ({held} held on the samples that chose)"

    # What is known before the search

    def _touched(self) -> list[Layer]:
        model = self._evaluator.model
        return [layer for layer in model.layers if is_lowered(model, layer, self._low_plan)]

    def _rank(self, ranking: Ranking) -> None:
        self._ranking = ranking
        self._evaluations.order = ranking.order

    def _rank_by_effects(self, touched: Iterable[Layer]) -> None:
        """Rank by what each layer alone does to the final outputs, on the samples where the low precision is worst."""
        plan = PrecisionPlan(self._evaluator.model.sha256, Precision.FP32)
        names = tuple(layer.name for layer in touched)
        toggling = Toggling(plan, self._low_plan, names, self._table, self._evaluator.judging)
        title = f"{self._precision}, each layer alone"
        deadline = self._deadline.part(_RANKING)
        evaluator = replace(self._evaluator, see=Watched(self._evaluator.see, deadline))
        self._effects = evaluator.effects(title, toggling, worst_samples(self._evaluator.chosen, self._low))
        if len(self._effects) < len(names) and self._deadline.left:
            self._evaluator.see.note(
                f"{self._precision}: half of its time is spent, and {len(self._effects)} of {len(names)} layers are "
                "ranked by what they do alone; the others stand behind them, by their own error"
            )
        self._rank(rank_by_effects(self._ranking, self._effects, self._weights(), self._measure))

    def _weights(self) -> dict[str, float] | None:
        """What pinning each layer alone costs, in shares of the whole plan; None where pins are counted."""
        if self._aim is Aim.PINS:
            return None
        low = self._cost.seconds(self._low_plan)
        weights = {}
        for name in self._ranking.order:
            added = self._evaluations.cost({name: Precision.FP32}) - low
            weights[name] = max(added / low, 1e-6)  # a pin that saves a conversion is as good as free
        return weights

    def _fp32_seconds(self) -> float:
        return self._cost.seconds(PrecisionPlan(self._evaluator.model.sha256, Precision.FP32))

    def _announce(self, layers: int) -> None:
        each, left = max(self._low.seconds, 0.1), self._deadline.left
        most = most_evaluations(layers)
        limits = [
            f"{duration(left)}, its part of what is left of the run's --budget" if left is not None else "",
            counted(self._options.max_evaluations, "evaluation") if self._options.max_evaluations is not None else "",
        ]
        stop = " or ".join(filter(None, limits))
        self._evaluator.see.note(
            f"{self._precision}: {', '.join(map(str, self._tolerance))} does not hold; searching "
            f"{counted(layers, 'layer')}: "
            f"at most {most} plans of under {each:.1f} s each (about {duration(most * each)}) until one holds, then "
            "about 2·k·log2(L/k) to release what is not needed and to prove the k pins that are"
            + (f"; stops after {stop}" if stop else "")
        )

    def _reason(self, name: str, precision: Precision) -> str:
        return reason_of(self._evaluator.model.layer[name], precision, self._ranking.order, self._why, self._effects)

    # Evaluations

    def _evaluate(self, assignment: Assignment) -> Comparison:
        return self._evaluations.evaluate(assignment, self._strict)

    def _passes(self, assignment: Assignment) -> bool:
        return meets(self._evaluate(assignment), self._strict)

    def _verdict(self, pins: frozenset[str]) -> Verdict:
        found = self._evaluate(dict.fromkeys(pins, Precision.FP32))
        unpinned = set(self._ranking.order) - pins
        return Verdict(
            meets(found, self._strict),
            closeness(found, self._strict),
            nonfinite_starts(self._evaluator.model, found, unpinned),
        )

    # The search

    def _assignment(self) -> dict[str, Precision]:
        """The best plan that was evaluated, each pin on its rung; where none passes the nearest one, or nothing."""
        found = find_pins(self._ranking, self._verdict, self._options.max_pins)
        if not found.passes:
            return dict.fromkeys(self._evaluations.in_order(found.pins), Precision.FP32)
        with suppress(Spent):
            self._come_down(dict.fromkeys(self._evaluations.in_order(found.pins), Precision.FP32))
        chosen = best(self._evaluations.trials(self._strict, self._most), self._aim)
        if chosen is None:  # whatever passes costs too much
            return self._nearest_within(self._most)
        return self._of(chosen.key)

    def _come_down(self, pins: Mapping[str, Precision]) -> None:
        """Evaluate the pins on lower rungs, where there are any, and what comes out of that in fp32 as well."""
        rungs = self._rungs()
        if rungs == (Precision.FP32,):
            return
        lower = without_needless(lower_rungs(list(pins), rungs, self._passes), self._passes)
        self._evaluate(dict.fromkeys(lower, Precision.FP32))

    def _rungs(self) -> tuple[Precision, ...]:
        """The precisions that pins may have. FP32 alone is enough where pins are counted: others need no fewer."""
        asked = self._options.ladder
        if asked is None and self._aim is Aim.PINS:
            return (Precision.FP32,)
        opset = self._evaluator.model.opset
        possible = [
            rung
            for rung in self._precision.rungs
            if (self._is_at_hand(rung) if asked is None else rung in asked)
            and self._cost.device.peak(rung) is not None
            and rung.number_format.opset <= opset
        ]
        return tuple(possible)

    def _is_at_hand(self, rung: Precision) -> bool:
        around = self._options.around if self._precision.is_quantized else self._precision
        return not self._options.no_new_precision or rung in (Precision.FP32, around)

    def _spend(self) -> dict[str, Precision]:
        """The pins that make the error least within what may be spent, of all that were evaluated."""
        assert self._options.spend is not None
        return self._nearest_within(self._cost.seconds(self._low_plan) * (1 + self._options.spend))

    def _nearest_within(self, limit: float) -> dict[str, Precision]:
        """The pins that make the error least and cost no more than `limit` seconds, of all that were evaluated."""
        try:
            for rung in self._rungs():
                affordable: dict[str, Precision] = {}
                steps: list[dict[str, Precision]] = []
                for name in self._ranking.order:
                    wider = {**affordable, name: rung}
                    if self._evaluations.cost(wider) <= limit:
                        affordable = wider
                        steps.append(wider)
                # A longer prefix is not always the better: half of it and a quarter too.
                for length in sorted({len(steps), len(steps) // 2, len(steps) // 4} - {0}):
                    self._evaluate(steps[length - 1])
        except Spent:
            pass
        within = self._evaluations.trials(self._tolerance, limit)
        nearest = min(within, key=lambda trial: order_of(Aim.ERROR, trial), default=None)
        return {} if nearest is None else self._of(nearest.key)

    def _of(self, key: Key) -> dict[str, Precision]:
        pins = dict(key)
        return {name: pins[name] for name in self._evaluations.in_order(pins)}

    # Confirmed in full, and on the samples held out

    def _confirmed(self, assignment: Assignment) -> Variant:
        """The mixed variant, measured again in full; the search saw of its layers only whether NaN and Inf are new."""
        plan = self._evaluations.plan(assignment)
        name = f"{self._precision} mixed"
        comparison = self._evaluator.compare(f"{name}, in full", plan, self._table)
        self._evaluations.found[frozenset(assignment.items())] = comparison
        return self.variant(name, plan, comparison)

    def _is_worth_another_round(self, mixed: Variant) -> bool:
        """Whether a plan that the search took for right is not, and a stricter search might find one that is."""
        if mixed.met or self._aim is Aim.ERROR:
            return False
        if not meets(mixed.comparison, self._strict):
            return True  # the whole comparison contradicts the judgement, and stands in its place now
        if mixed.held_out is None or mixed.held_out.broken:
            return False
        margins = [bound.margin(mixed.held_out) for bound in self._tolerance]
        if -math.inf in margins:
            return False
        self._strict = tuple(b.tighter(max(0.0, -m)) for b, m in zip(self._strict, margins, strict=True))
        self._evaluator.see.note(
            f"{self._precision}: the held-out samples do not confirm the plan; searching on for "
            f"{', '.join(map(str, self._strict))}"
        )
        return True

    def _owes_it_to_its_samples(self, mixed: Variant) -> bool:
        """Whether the plan is right on the samples that chose it alone."""
        if mixed.met or self._aim is Aim.ERROR:
            return False
        return mixed.held_out is not None and meets(mixed.comparison, self._tolerance)

    def _grown(self, last: Variant) -> Variant | None:
        """A prefix of the ranking that is right on the held-out samples too; None where none is.

        Where every smallest set turns out to owe its figure to the samples that it was chosen on (errors that hang on
        a few samples are like dice), more pins than these samples ask for are what others need.
        """
        self._evaluator.see.note(f"{self._precision}: {_GROWN}")
        self._strict = self._tolerance
        order = self._ranking.order
        limit = len(order) if self._options.max_pins is None else min(len(order), self._options.max_pins)
        count = max(1, len(self._evaluations.assignment(last.plan)))
        try:
            while count < limit:
                count = min(2 * count, limit)
                for rung in self._rungs():
                    pins = dict.fromkeys(order[:count], rung)
                    if self._evaluations.cost(pins) > self._most or not self._passes(pins):
                        continue
                    if (variant := self._confirmed(pins)).met:
                        return variant
        except Spent:
            self._stopped = self._evaluations.spent
        return None

    # The proof, and the trade beside it

    def _proven(self, low: Variant, mixed: Variant) -> PrecisionResult:
        """The plan with its certificate; one that proves better on the way takes its place."""
        self._certificate(mixed)
        self._widen_front(mixed)
        while (better := self._undominated(mixed)) is not mixed:
            mixed = better
            self._certificate(mixed)
        return self._result(low, mixed, self._certificate(mixed))

    def _undominated(self, mixed: Variant) -> Variant:
        """The variant, or one with no more pins, cost and error that was evaluated, and is right on all samples."""
        if not mixed.met:
            return mixed
        chosen = self._evaluations.trial(self._evaluations.assignment(mixed.plan), self._tolerance)
        trials = self._evaluations.trials(self._tolerance, self._most)
        candidates = better_than(chosen, trials, self._aim)
        if self._aim is not Aim.ERROR:  # such as a plan without a pin that the certificate showed to be needless
            first = best(self._evaluations.trials(self._strict, self._most), self._aim)
            if first is not None and order_of(self._aim, first) < order_of(self._aim, chosen):
                candidates.insert(0, first)
        for trial in candidates:
            if trial.key and trial.key not in self._refuted:
                variant = self._confirmed(self._of(trial.key))
                if variant.met:
                    return variant
                self._refuted.add(trial.key)
        return mixed

    def _certificate(self, mixed: Variant) -> Certificate:
        """The plan's figures, and those with each pin released, one at a time; most of that is evaluated already."""
        assignment = self._evaluations.assignment(mixed.plan)
        model = self._evaluator.model
        without = {name: lowest_of(model, model.layer[name], self._low_plan) for name in assignment}
        return certificate_of(assignment, without, mixed.comparison, self._evaluate, self._strict)

    def _widen_front(self, mixed: Variant) -> None:
        """Evaluate a few plans around the one found, so that the front shows what fewer and more pins would give."""
        chosen = self._evaluations.assignment(mixed.plan)
        limit = len(self._ranking.order) if self._options.max_pins is None else self._options.max_pins
        others = [name for name in self._ranking.order if name not in chosen]
        order = list(chosen)
        fewer = [{name: chosen[name] for name in order[:count]} for count in _spread(len(order))]
        counts = [count for count in (1, 2, 4, 8) if count <= min(len(others), limit - len(chosen))]
        more = [{**chosen, **dict.fromkeys(others[:count], Precision.FP32)} for count in counts]
        try:
            for assignment in [*fewer, *more]:
                self._evaluate(assignment)
        except Spent:
            pass


def _aim_of(options: Options) -> Aim:
    if options.spend is not None:
        return Aim.ERROR
    return Aim.PINS if options.minimize is Minimize.PINS and options.max_cost is None else Aim.COST


def _spread(count: int) -> list[int]:
    """A few numbers below `count`: a quarter, a half, three quarters, one less."""
    return sorted({count // 4, count // 2, count * 3 // 4, count - 1} - {0, -1})
