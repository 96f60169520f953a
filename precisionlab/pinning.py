"""The search for one low precision's pins: compare → rank → search → rungs → certificate, on real evaluations."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from precisionlab.backends.base import Toggling
from precisionlab.calibration.table import CalibrationTable
from precisionlab.compare.comparison import LOWER_IS_BETTER, Comparison
from precisionlab.compare.effects import Effects
from precisionlab.compare.tolerance import Tolerance, closeness, meets
from precisionlab.evaluator import Evaluator
from precisionlab.model import Layer
from precisionlab.options import Minimize, Options
from precisionlab.precision import Pin, Precision, PrecisionPlan
from precisionlab.results import PrecisionResult, Variant
from precisionlab.rewrite.flow import precision_of, with_held_pins
from precisionlab.samples import worst_samples
from precisionlab.search.causes import causes
from precisionlab.search.certificate import Certificate, certificate_of
from precisionlab.search.cost import CostModel
from precisionlab.search.ladder import RUNGS, Assignment, lower_rungs, without_needless
from precisionlab.search.pareto import Point
from precisionlab.search.pins import Found, Spent, Verdict, find_pins, most_evaluations
from precisionlab.search.rank import Ranking, rank, rank_by_effects
from precisionlab.search.starts import nonfinite_starts
from precisionlab.wording import counted, duration

_ROUNDS = 2
"""How often the search starts over with a stricter tolerance where the held-out samples do not confirm its plan."""

_GROWN = (
    "no smallest set of pins that is right on the samples that chose it is right on those held out; "
    "longer prefixes of the ranking are taken instead, so some of the pins may not be needed"
)

_Key = frozenset[tuple[str, Precision]]


@dataclass
class _Evaluations:
    """What has been evaluated for one precision, and what that has cost."""

    budget: float | None
    limit: int | None
    started: float = field(default_factory=time.perf_counter)
    found: dict[_Key, Comparison] = field(default_factory=dict)
    spent: str = ""

    def check(self) -> None:
        """Raises Spent where no further evaluation is allowed, and keeps the reason."""
        if self.limit is not None and len(self.found) >= self.limit:
            self.spent = f"the {counted(self.limit, 'evaluation')} allowed are spent"
        if self.budget is not None and time.perf_counter() - self.started >= self.budget:
            self.spent = f"the budget of {duration(self.budget)} is spent"
        if self.spent:
            raise Spent


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
    ) -> None:
        self._evaluator = evaluator
        self._options = options
        self._cost = cost
        self._precision = precision
        self._table = table
        self._tolerance = options.tolerance_of(precision)
        self._strict = self._tolerance
        """What the search holds its plans to: the tolerance, or a stricter one after held-out samples said no."""
        plan = PrecisionPlan(evaluator.model.sha256, precision, around=options.around, calibration=method)
        self._low_plan = with_held_pins(evaluator.model, plan, table)
        self._evaluations = _Evaluations(options.budget, options.max_evaluations)
        self._low: Comparison
        self._ranking: Ranking
        self._why: Mapping[str, str]
        self._best: tuple[int, float] | None = None

    def run(self, unknown: str = "") -> PrecisionResult:
        """Compare the low precision, and pin layers until its tolerance holds, as few or as cheap as asked.

        `unknown` says why nothing can be said of its tolerance: then no pin is searched for, as none can help.
        """
        evaluator, precision = self._evaluator, self._precision
        self._low = evaluator.compare(f"{precision}", self._low_plan, self._table, introduced=True)
        self._evaluations.found[frozenset()] = self._low
        low = self.variant(f"{precision}", self._low_plan, self._low)
        touched = self._touched()
        self._ranking = rank(touched, self._low.introduced)
        self._why = causes(evaluator.model, self._low_plan, self._low.inherited, self._low.introduced)
        effects: Effects = {}
        if low.met or not touched or unknown:
            return self._result(low, low, effects, None)
        effects = self._effects(touched)
        self._ranking = rank_by_effects(self._ranking, effects, self._weights())
        self._announce(len(touched))
        mixed = low
        for _ in range(_ROUNDS):
            assignment = self._spend() if self._options.spend is not None else self._assignment()
            mixed = self._confirmed(assignment) if assignment else low
            if not self._is_worth_another_round(assignment, mixed):
                break
        if self._owes_it_to_its_samples(mixed) and (grown := self._grown(mixed)) is not None:
            return self._result(low, grown, effects, None, _GROWN)
        certificate = self._certificate(mixed) if mixed is not low else None
        self._widen_front(mixed)
        return self._result(low, mixed, effects, certificate)

    def variant(self, name: str, plan: PrecisionPlan, comparison: Comparison) -> Variant:
        """The variant with its verdict: on the samples that chose, and on those held out."""
        held_out = self._evaluator.hold_to(name, plan, self._table)
        met = meets(comparison, self._tolerance) and (held_out is None or meets(held_out, self._tolerance))
        figures = self._evaluator.backend.figures
        return Variant(name, plan, comparison, figures, self._tolerance, met, held_out, self._cost.of(plan))

    def _result(
        self, low: Variant, mixed: Variant, effects: Effects, certificate: Certificate | None, remark: str = ""
    ) -> PrecisionResult:
        return PrecisionResult(
            self._precision,
            low,
            mixed,
            self._ranking.order,
            self._why,
            len(self._evaluations.found),
            self._table,
            effects,
            certificate,
            tuple(self._points()),
            remark,
            limit=self._limit(),
            stopped=self._evaluations.spent,
        )

    def _limit(self) -> str:
        """What the user allowed that leaves out plans with more pins; nothing where it leaves out none."""
        most = self._options.max_pins
        if most is None or most >= len(self._ranking.order):
            return ""
        return f"at most {counted(most, 'pin')}, and more were not allowed"

    # What is known before the search

    def _touched(self) -> list[Layer]:
        layers = self._evaluator.model.layers
        return [layer for layer in layers if precision_of(layer, self._low_plan) is not Precision.FP32]

    def _effects(self, touched: Iterable[Layer]) -> Effects:
        """What each layer alone does to all that is judged, on the samples where the low precision is worst."""
        plan = PrecisionPlan(self._evaluator.model.sha256, Precision.FP32)
        names = tuple(layer.name for layer in touched)
        toggling = Toggling(plan, self._low_plan, names, self._table, self._evaluator.judging)
        title = f"{self._precision}, each layer alone"
        return self._evaluator.effects(title, toggling, worst_samples(self._evaluator.chosen, self._low))

    def _weights(self) -> dict[str, float] | None:
        """What pinning each layer alone costs, in shares of the whole plan; None where pins are counted."""
        if self._options.minimize is Minimize.PINS and self._options.spend is None:
            return None
        low = self._cost.seconds(self._low_plan)
        weights = {}
        for name in self._ranking.order:
            added = self._cost.seconds(self._plan({name: Precision.FP32})) - low
            weights[name] = max(added / low, 1e-6)  # a pin that saves a conversion is as good as free
        return weights

    def _announce(self, layers: int) -> None:
        each = self._low.seconds
        most = most_evaluations(layers)
        limits = [
            f"{self._options.budget:.0f} s" if self._options.budget is not None else "",
            f"{self._options.max_evaluations} evaluations" if self._options.max_evaluations is not None else "",
        ]
        stop = " or ".join(filter(None, limits))
        self._evaluator.see.note(
            f"{self._precision}: {', '.join(map(str, self._tolerance))} does not hold; searching {layers} layers: "
            f"at most {most} plans of under {each:.1f} s each (about {duration(most * each)}) until one holds, then "
            "about 2·k·log2(L/k) to release what is not needed and to prove the k pins that are"
            + (f"; stops after {stop}" if stop else "")
        )

    # Evaluations

    def _evaluate(self, assignment: Assignment) -> Comparison:
        key = frozenset(assignment.items())
        if key not in self._evaluations.found:
            self._evaluations.check()
            title = f"{self._precision}, plan {len(self._evaluations.found)}: {counted(len(assignment), 'pin')}"
            found = self._evaluator.judge(title, self._plan(assignment), self._table, self._low)
            self._evaluations.found[key] = found
            self._note(assignment, found)
        return self._evaluations.found[key]

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

    def _note(self, assignment: Assignment, found: Comparison) -> None:
        passes = meets(found, self._strict)
        cost = self._cost.seconds(self._plan(assignment))
        if passes and (self._best is None or (len(assignment), cost) < self._best):
            self._best = (len(assignment), cost)
            self._evaluator.journal.keep_plan(f"{self._precision}", self._plan(assignment))
        so_far = f"; best so far {counted(self._best[0], 'pin')}" if self._best else ""
        self._evaluator.see.note(
            f"  {counted(len(assignment), 'pin')}{figures_text(found, self._tolerance)}: "
            f"{'holds' if passes else 'does not hold'}{so_far}"
        )

    # The search

    def _assignment(self) -> dict[str, Precision]:
        """The pins, each on its rung; empty where no set that was evaluated helps."""
        found = find_pins(self._ranking, self._verdict, self._options.max_pins)
        if not found.passes:
            return dict.fromkeys(self._in_order(found.pins), Precision.FP32)
        return self._on_rungs(found)

    def _on_rungs(self, found: Found) -> dict[str, Precision]:
        pins = lower_rungs(self._in_order(found.pins), self._rungs(), self._passes)
        try:
            return without_needless(pins, self._passes)
        except Spent:
            return pins

    def _rungs(self) -> tuple[Precision, ...]:
        asked = self._options.ladder
        opset = self._evaluator.model.onnx.graph.opset_imports.get("", 0)
        possible = [
            rung
            for rung in RUNGS[self._precision]
            if (self._is_at_hand(rung) if asked is None else rung in asked)
            and rung in self._cost.device.compute
            and (rung is not Precision.BF16 or opset >= 13)
        ]
        return tuple(possible)

    def _is_at_hand(self, rung: Precision) -> bool:
        around = self._options.around if self._precision is Precision.INT8 else self._precision
        return not self._options.no_new_precision or rung in (Precision.FP32, around)

    def _spend(self) -> dict[str, Precision]:
        """The pins that make the error least within what may be spent, of all that were evaluated."""
        assert self._options.spend is not None
        limit = self._cost.seconds(self._low_plan) * (1 + self._options.spend)
        try:
            for rung in self._rungs():
                affordable: dict[str, Precision] = {}
                steps: list[dict[str, Precision]] = []
                for name in self._ranking.order:
                    wider = {**affordable, name: rung}
                    if self._cost.seconds(self._plan(wider)) <= limit:
                        affordable = wider
                        steps.append(wider)
                # A longer prefix is not always the better: half of it and a quarter too.
                for length in sorted({len(steps), len(steps) // 2, len(steps) // 4} - {0}):
                    self._evaluate(steps[length - 1])
        except Spent:
            pass
        within = {
            key: found
            for key, found in self._evaluations.found.items()
            if self._cost.seconds(self._plan(dict(key))) <= limit
        }
        best = max(within, key=lambda key: (closeness(within[key], self._tolerance), -len(key)))
        chosen = dict(best)
        return {name: chosen[name] for name in self._in_order(chosen)}

    def _confirmed(self, assignment: Assignment) -> Variant:
        """The mixed variant, measured again in full; the search saw of its layers only whether NaN and Inf are new."""
        plan = self._plan(assignment)
        name = f"{self._precision} mixed"
        comparison = self._evaluator.compare(f"{name}, in full", plan, self._table)
        self._evaluations.found[frozenset(assignment.items())] = comparison
        return self.variant(name, plan, comparison)

    def _is_worth_another_round(self, assignment: Assignment, mixed: Variant) -> bool:
        """Whether a plan that the search takes for right is not, and a stricter search might find one that is."""
        if mixed.met or self._options.spend is not None or not self._passes(assignment):
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
        if mixed.met or self._options.spend is not None:
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
        count = max(1, len(last.plan.pins) - len(self._low_plan.pins))
        try:
            while count < limit:
                count = min(2 * count, limit)
                for rung in self._rungs():
                    pins = dict.fromkeys(order[:count], rung)
                    if meets(self._evaluate(pins), self._tolerance) and (variant := self._confirmed(pins)).met:
                        return variant
        except Spent:
            pass
        return None

    # The proof, and the trade beside it

    def _certificate(self, mixed: Variant) -> Certificate:
        """The plan's figures, and those with each pin released, one at a time; most of that is evaluated already."""
        assignment = {pin.layer: pin.precision for pin in mixed.plan.pins if pin.layer in self._ranking.order}
        layer = self._evaluator.model.layer
        without = {name: precision_of(layer[name], self._low_plan) for name in assignment}
        return certificate_of(assignment, without, mixed.comparison, self._evaluate, self._strict)

    def _widen_front(self, mixed: Variant) -> None:
        """Evaluate a few plans around the one found, so that the front shows what fewer and more pins would give."""
        chosen = {pin.layer: pin.precision for pin in mixed.plan.pins if pin.layer in self._ranking.order}
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

    def _points(self) -> Iterable[Point]:
        """Every plan evaluated, by the error that the first bound is about."""
        bound = self._tolerance[0]
        for key, found in self._evaluations.found.items():
            plan = self._plan(dict(key))
            cost = self._cost.of(plan)
            value = bound.of(found)
            error = value if bound.metric in LOWER_IS_BETTER else -value
            pins = tuple(pin.layer for pin in plan.pins)
            yield Point(pins, error, cost.seconds, meets(found, self._tolerance), cost.figures)

    # Plans

    def _plan(self, assignment: Assignment) -> PrecisionPlan:
        pins = [self._pin(name, assignment[name]) for name in self._in_order(assignment)]
        return self._low_plan.with_pins((*self._low_plan.pins, *pins))

    def _pin(self, name: str, precision: Precision) -> Pin:
        return Pin(name, self._evaluator.model.layer[name].nodes, precision, self._reason(name))

    def _in_order(self, pins: Iterable[str]) -> list[str]:
        chosen = frozenset(pins)
        return [name for name in self._ranking.order if name in chosen]

    def _reason(self, name: str) -> str:
        if name in self._why:
            return self._why[name]
        layer = self._evaluator.model.layer[name]
        errors = [self._low.introduced[o] for o in layer.outputs if o in self._low.introduced]
        place = f"rank {self._ranking.order.index(name) + 1} of {len(self._ranking.order)}"
        return f"{place}: {min(e.sqnr for e in errors):.1f} dB SQNR by itself" if errors else place


def figures_text(found: Comparison, tolerance: Tolerance) -> str:
    """The figures that the tolerance is about, for a line of progress."""
    figures = [f"{bound.figure} {bound.of(found):.4g}" for bound in tolerance]
    if found.nonfinite:
        figures.append(f"NaN or Inf in {counted(len(found.nonfinite), 'tensor')}")
    return f": {', '.join(figures)}"


def _spread(count: int) -> list[int]:
    """A few numbers below `count`: a quarter, a half, three quarters, one less."""
    return sorted({count // 4, count // 2, count * 3 // 4, count - 1} - {0, -1})
