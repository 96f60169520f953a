"""One sweep under way: its reference, then each low precision, searched or as the user's plan has it."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from functools import partial

from precisionlab.calibration.find import table_of
from precisionlab.calibration.methods import AUTO, OUTPUT, default_method
from precisionlab.calibration.table import CalibrationTable
from precisionlab.compare.tolerance import meets
from precisionlab.evaluate.block_scales import chosen_blocks
from precisionlab.evaluate.evaluator import Evaluator
from precisionlab.evaluate.ranges import Methods, block_methods, ranges_of_plan
from precisionlab.evaluate.running_sums import RunningSum, running_sums
from precisionlab.evaluate.values import Look, ObservedValues, observed_values
from precisionlab.jobs.quantized_ranges import NO_RANGES, Ranges, ranges_of_method, ranges_that_hold
from precisionlab.model import Model
from precisionlab.model.repair import Repair
from precisionlab.plan.plan import PrecisionPlan
from precisionlab.precision import Precision, any_scaled, quantized_of
from precisionlab.rewrite.observe import is_observed
from precisionlab.rewrite.plans import completed, plan_for
from precisionlab.rewrite.repairs import Sight, found_repairs, is_repairable
from precisionlab.search.alternatives import Alternative, AlternativeKind, alternatives, engine_arithmetic
from precisionlab.search.cost import CostModel
from precisionlab.search.grounds import Grounds
from precisionlab.search.on_engine import EngineStage
from precisionlab.search.options import Options
from precisionlab.search.outcome import EngineResult, EngineVariant, PrecisionResult, Variant
from precisionlab.search.pinning import PinSearch, Task
from precisionlab.search.pinning.suspects import suspects_by_own_error
from precisionlab.search.unscaled import unscaled_sums
from precisionlab.system.deadline import BudgetExhausted, Deadline, Watched
from precisionlab.system.wording import counted


class SweepJob:
    """One sweep under way: what finds the results, once samples, options and costs are known."""

    def __init__(
        self,
        evaluator: Evaluator,
        options: Options,
        cost: CostModel,
        look: Look,
        engines: EngineStage | None = None,
    ) -> None:
        """`look` shows the reference's tensors in this process."""
        self._look = look
        self._evaluator = evaluator
        self._options = options
        self._cost = cost
        self._engines = engines
        self._model = evaluator.model
        self.grounds = Grounds()
        """What its verdicts stand on, once the reference is known."""
        self.values: ObservedValues | None = None
        """What the reference's tensors hold, once that is known."""
        self.expected: Callable[[float], None] = lambda seconds: None
        """Is told how many seconds a search may still take at most, as it goes on."""
        self.trying: Callable[[float], None] = lambda seconds: None
        """Is told how many seconds it may still take to try repairs."""
        self._bare_engines: dict[Precision, EngineVariant | None] = {}
        self._chosen: dict[tuple[int, Precision], CalibrationTable] = {}
        self._wide: dict[str, CalibrationTable] = {}
        self._sums: tuple[PrecisionPlan, Mapping[str, RunningSum]] | None = None

    @property
    def model(self) -> Model:
        """The model at the shapes of the data."""
        return self._model

    @property
    def methods(self) -> Mapping[Precision, Methods]:
        """By quantized precision and calibration method the ranges, once the values are known."""
        return {} if self.values is None else self.values.methods

    def observed(self, quantized: Collection[Precision]) -> ObservedValues:
        """What the reference's tensors hold, and ranges in quantized precisions. Kept as the values from then on."""
        self.values = observed_values(self._evaluator, quantized, self._look)
        return self.values

    def reference(self) -> Variant:
        """The fp32 variant."""
        plan = PrecisionPlan(self._model.sha256, Precision.FP32)
        name = str(Precision.FP32)
        comparison = self._evaluator.compare(name, plan, None)
        tolerance = self._options.tolerance_of(Precision.FP32)
        held_out = self._evaluator.hold_to(name, plan, None)
        figures, cost = self._evaluator.backend.figures, self._cost.of(plan)
        return Variant(name, plan, comparison, figures, tolerance, meets(comparison, tolerance), held_out, cost)

    def reference_engine(self, reference: Variant) -> EngineVariant | None:
        """The model as an FP32 engine, TF32 off: what the GPU's own arithmetic does; None without engines."""
        if self._engines is None:
            return None
        self._engines.announce(self._options.precisions)
        return self._engines.measure(reference.name, reference.plan, None, reference.tolerance)

    def ranges(self, precision: Precision, methods: Mapping[Precision, Methods], deadline: Deadline) -> Ranges:
        """The precision's ranges; none for a float one. Where the default's do not hold, better ones are tried.

        Where there is no time for that, the default's stay. Beside them stand those of other quantized precisions that
        pins may have, by their usual method: those that the ladder names, and for weights alone those swept beside it.
        """
        if not precision.is_quantized:
            return NO_RANGES
        found = self._own_ranges(precision, methods, deadline)
        named = self._options.quantized if precision.is_weight_only else quantized_of(self._options.ladder or ())
        rungs = [rung for rung in named if rung in precision.rungs]
        if found.table is None or not rungs:
            return found
        others = tuple(methods[rung][default_method(rung)] for rung in rungs)
        return replace(found, table=replace(found.table, others=others))

    def _own_ranges(self, precision: Precision, methods: Mapping[Precision, Methods], deadline: Deadline) -> Ranges:
        asked, usual = self._options.calibration, default_method(precision)
        own, others = methods.get(precision, {}), partial(dict[str, CalibrationTable])
        if precision.is_weight_only:
            own = block_methods(self._options.block, precision)
            others = partial(self._chosen_methods, self._options.block, precision)
            own = {**own, **others()} if asked in (OUTPUT, AUTO) else own
        default = Ranges(usual, own[usual])
        tolerance = self._options.tolerance_of(precision)
        if asked is None and self.grounds.unknown(tolerance):
            return default
        watched = replace(self._evaluator, observer=Watched(self._evaluator.observer, deadline))
        try:
            if asked is not None:
                return ranges_of_method(watched, own, asked)
            return ranges_that_hold(self._evaluator, own, tolerance, watched, others)
        except BudgetExhausted as end:
            self._evaluator.observer.note(f"{precision}: {end} while ranges were tried: those by {usual} are taken")
            return default

    def _chosen_methods(self, size: int, precision: Precision) -> dict[str, CalibrationTable]:
        """The scales of weights by what the samples multiply them with; found once."""
        if (size, precision) not in self._chosen:
            self._chosen[size, precision] = chosen_blocks(self._evaluator, self._look)(size, precision)
        return {OUTPUT: self._chosen[size, precision]}

    def note_figures(self, ranges: Ranges) -> None:
        """Say what the ranges were chosen by, where they were."""
        if ranges.figures:
            self._evaluator.observer.note(ranges.figures)

    def bare(self, precision: Precision, ranges: Ranges) -> PrecisionResult:
        """The low precision without pins, and nothing searched for; on the GPU too, where there is one."""
        plan, table = self._bare_plan(precision, ranges), ranges.table
        low = self._bare_engine(precision, ranges)
        found = self._judged(PinSearch(self._task(plan, table, self._costs, Deadline(None))).bare())
        if low is None:
            return found
        engine = EngineResult(low, low, 1, ())
        return replace(found, engine=self._with_own_sums(found, engine))

    def search(self, precision: Precision, ranges: Ranges, deadline: Deadline) -> PrecisionResult:
        """Compare one low precision, and pin layers until its tolerance holds; on the GPU too, where there is one."""
        self.note_figures(ranges)
        unknown = self.grounds.unknown(self._options.tolerance_of(precision))
        plan, table = self._bare_plan(precision, ranges), ranges.table
        if self._engines is None:
            return self._judged(PinSearch(self._task(plan, table, self._cost, deadline)).run(unknown))
        low = self._bare_engine(precision, ranges)
        # Times that were measured just now are what the search goes by, in place of estimates.
        search = PinSearch(self._task(plan, table, self._engines.cost, deadline))
        outcome = self._judged(search.run(unknown))
        verified = self._engines.verify(outcome, low, self._engine_ranges(table), deadline)
        return replace(outcome, engine=self._with_own_sums(outcome, verified))

    def _bare_plan(self, precision: Precision, ranges: Ranges) -> PrecisionPlan:
        return plan_for(
            self._model, precision, ranges.table, around=self._options.around_of(precision), calibration=ranges.method
        )

    def _bare_engine(self, precision: Precision, ranges: Ranges) -> EngineVariant | None:
        """The engine without pins, measured once; None without engines, or where it cannot be built."""
        if self._engines is not None and precision not in self._bare_engines:
            plan, wide = self._bare_plan(precision, ranges), self._engine_ranges(ranges.table)
            tolerance = self._options.tolerance_of(precision)
            self._bare_engines[precision] = self._engines.measure(f"{precision}", plan, wide, tolerance)
        return self._bare_engines.get(precision)

    def _task(
        self, low_plan: PrecisionPlan, table: CalibrationTable | None, cost: CostModel, deadline: Deadline
    ) -> Task:
        sums, largest = self._running_sums(low_plan), self._largest
        return Task(
            self._evaluator,
            self._options,
            cost,
            low_plan,
            table,
            deadline,
            running_sums=sums,
            largest=largest,
            expected=self.expected,
        )

    @property
    def _costs(self) -> CostModel:
        """What plans cost: where times were measured, shares of these, as the reference's is."""
        return self._cost if self._engines is None else self._engines.cost

    @property
    def _largest(self) -> Mapping[str, float]:
        return {} if self.values is None else {name: seen.amax for name, seen in self.values.histograms.items()}

    def _judged(self, found: PrecisionResult) -> PrecisionResult:
        """The result with what the reference leaves open of its verdict."""
        tolerance = self._options.tolerance_of(found.precision)
        unknown, caveat = self.grounds.unknown(tolerance), self.grounds.caveat(tolerance)
        found = replace(found, unknown=unknown, caveat=caveat, arithmetic=self._evaluator.arithmetic)
        if not self._options.repair:
            found = replace(found, repairs=self._applicable(found))
        return found if found.unknown else self._with_unscaled(self._with_alternatives(found))

    def _with_unscaled(self, found: PrecisionResult) -> PrecisionResult:
        """The result with what other tools' models of it come to; weakly typed engines have no such models."""
        if not found.precision.needs_ranges or (self._engines is not None and not self._options.typed):
            return found
        plan, tolerance, known = found.mixed.plan, found.mixed.tolerance, found.low.comparison
        unscaled = unscaled_sums(self._evaluator, plan, found.table, tolerance, known, self._look)
        return replace(found, unscaled=unscaled)

    def _applicable(self, found: PrecisionResult) -> tuple[Repair, ...]:
        """The repairs that apply where the precision breaks without pins; of a quantized one where the floats do."""
        precision = found.precision
        broken = self._options.around_of(precision) if precision.is_quantized else precision
        if not broken.is_low_float or found.low.met or self.values is None:
            return ()
        if not is_repairable(self._model, broken):
            return ()
        sight = Sight(self._model, self.values.histograms, frozenset(found.causes), broken.number_format)
        return found_repairs(sight)

    def _with_own_sums(self, outcome: PrecisionResult, engine: EngineResult) -> EngineResult:
        """The engines, each with what the emulation makes of its plan with the sums that its kernels' names tell."""
        low = self._emulated_as(engine.low, outcome)
        mixed = low if engine.mixed is engine.low else self._emulated_as(engine.mixed, outcome)
        return replace(engine, low=low, mixed=mixed)

    def _emulated_as(self, engine: EngineVariant | None, outcome: PrecisionResult) -> EngineVariant | None:
        arithmetic = None if engine is None else engine_arithmetic(self._evaluator.arithmetic, engine.inside.sums)
        if engine is None or arithmetic is None or outcome.unknown:
            return engine
        variant, under = engine.variant, replace(self._evaluator, arithmetic=arithmetic)
        comparison = under.judge(
            f"{variant.name}, emulated with its own sums", variant.plan, outcome.table, outcome.low.comparison
        )
        other = Alternative.of(AlternativeKind.ENGINE_SUMS, arithmetic, comparison, variant.tolerance)
        return replace(engine, variant=replace(variant, alternatives=(other,)))

    def _running_sums(self, bare: PrecisionPlan) -> Mapping[str, RunningSum]:
        """How far the sums go of layers whose kernels may keep them in the plan's own precision."""
        if self.values is None or not any(p.number_format.sums_in_itself for p in bare.precisions):
            return {}
        if self._sums is None or self._sums[0] != bare:
            self._sums = bare, running_sums(self._evaluator, bare, self._largest, self._look)
        return self._sums[1]

    def _with_alternatives(self, found: PrecisionResult) -> PrecisionResult:
        """The result with its two variants measured under what else kernels may do."""
        low = self._under_others(found.low, found)
        return replace(
            found, low=low, mixed=low if found.mixed is found.low else self._under_others(found.mixed, found)
        )

    def _under_others(self, variant: Variant, found: PrecisionResult) -> Variant:
        evaluator, others = self._evaluator, []
        others_of = alternatives(self._model, variant.plan, evaluator.arithmetic, typed=self._options.typed)
        for kind, arithmetic in others_of.items():
            under = replace(evaluator, arithmetic=arithmetic)
            title = f"{variant.name}, {kind.words.removeprefix('with ')}"
            comparison = under.judge(title, variant.plan, found.table, found.low.comparison)
            others.append(Alternative.of(kind, arithmetic, comparison, variant.tolerance))
        return replace(variant, alternatives=tuple(others))

    def _engine_ranges(self, table: CalibrationTable | None) -> CalibrationTable | None:
        """The table with ranges for all that a quantized layer's nodes give too, its inside included.

        Weakly typed TensorRT looks at ranges before it fuses, and a layer that gives a tensor without one is in float.
        Other layers get none, so that they stay in float as the plan has them. What is no operand gets its largest
        value, which clips nothing.
        """
        if table is None or not table.precision.number_format.is_implicit:
            return table
        if table.digest not in self._wide:
            self._wide[table.digest] = self._with_insides(table)
        return self._wide[table.digest]

    def _with_insides(self, table: CalibrationTable) -> CalibrationTable:
        nodes = [self._model.node[name] for layer in self._model.layers if layer.quantizable for name in layer.nodes]
        given = (str(value.name) for node in nodes for value in node.outputs if value.name)
        tensors = tuple(name for name in given if name not in table.ranges and is_observed(self._model, name))
        self._evaluator.observer.stage("ranges inside layers", len(self._evaluator.chosen))
        collector = self._evaluator.backend.collector(tensors)
        collector.add(self._evaluator.chosen, self._evaluator.observer.advance)
        others = table_of(collector.histograms(), "max", table.samples)
        return replace(table, ranges={**others.ranges, **table.ranges})

    def ranges_of(self, plan: PrecisionPlan, methods: Mapping[Precision, Methods]) -> Ranges:
        """The ranges by a plan's own method, or the one that is asked for; none for a plan of floats."""
        if not any_scaled(plan.precisions):
            return NO_RANGES
        asked = replace(plan, calibration=self._options.calibration or plan.calibration)
        blocks = chosen_blocks(self._evaluator, self._look)
        asked, found = ranges_of_plan(self._evaluator, asked, methods, blocks)
        return Ranges(asked.calibration, found.table, found.figures)

    def measure(self, plan: PrecisionPlan, methods: Mapping[Precision, Methods]) -> PrecisionResult:
        """Compare the user's own plan, beside the same precision without pins."""
        ranges = self.ranges_of(plan, methods)
        table = ranges.table
        if table is not None:
            self.note_figures(ranges)
            plan = replace(plan, calibration=ranges.method)
        precision = plan.default
        bare = completed(self._model, plan.with_pins(()), table)
        plan = completed(self._model, plan, table)
        engine = None
        if self._engines is not None:
            wide, tolerance = self._engine_ranges(table), self._options.tolerance_of(precision)
            engine = self._engines.measure_plan(precision, bare, plan, wide, tolerance)
        task = self._task(bare, table, self._costs, Deadline(None))
        low = self._evaluator.compare(f"{precision}", bare, table, introduced=True)
        mixed = self._evaluator.compare(f"{precision} mixed: {counted(len(plan.pins), 'pin')}", plan, table)
        suspects = suspects_by_own_error(task, low)
        outcome = self._judged(
            PrecisionResult(
                precision,
                task.variant(f"{precision}", bare, low),
                task.variant(f"{precision} mixed", plan, mixed),
                suspects.ranking.order,
                suspects.causes,
                2,
                table,
                engine=engine,
                running_sums=task.running_sums,
            )
        )
        return outcome if engine is None else replace(outcome, engine=self._with_own_sums(outcome, engine))
