"""What a search found of one precision: its variants, emulated and as engines, with their verdict."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING

from precisionlab.backends.equivalence import Equivalence
from precisionlab.calibration.methods import AUTO
from precisionlab.calibration.table import CalibrationTable
from precisionlab.compare.comparison import Comparison
from precisionlab.compare.metrics import SQNR
from precisionlab.compare.sensitivity import Sensitivities
from precisionlab.compare.tolerance import Bound, Tolerance
from precisionlab.evaluate.each_layer import EachLayer
from precisionlab.evaluate.running_sums import RunningSum
from precisionlab.model import Model
from precisionlab.model.repair import Repair
from precisionlab.plan.arithmetic import TENSORRT, Arithmetic
from precisionlab.plan.plan import PrecisionPlan
from precisionlab.precision import Precision
from precisionlab.search.alternatives import Alternative, AlternativeKind
from precisionlab.search.carriers import Carriers, carriers_of
from precisionlab.search.causes import Cause
from precisionlab.search.certificate import Certificate
from precisionlab.search.cost import PlanCost
from precisionlab.search.pareto import Point
from precisionlab.search.rank import output_shares, shares_of
from precisionlab.search.unscaled import UnscaledSums
from precisionlab.search.verdict import NO_TERMS, Condition, Evidence, Mark, State, Terms, Verdict, verdict_of
from precisionlab.system.wording import counted, decibel, number, rungs

if TYPE_CHECKING:
    from precisionlab.backends.tensorrt.backend import Inside
    from precisionlab.backends.tensorrt.jobs import Latency


@dataclass(frozen=True)
class Variant:
    """The model under one plan, and what comparing it found.

    `name` is the precision, or "<precision> mixed" with pins, "<precision> repaired" with repairs alone. `figures` says
    where its error figures come from: "emulated" or "measured". `comparison` rests on the samples that chose the pins,
    `held_out` on those that did not (None where there are none); `met` says whether the tolerance holds on both. `cost`
    is what the plan costs on the target, an estimate unless it says that it was measured. `alternatives` are its
    figures under what else kernels may do.
    """

    name: str
    plan: PrecisionPlan
    comparison: Comparison
    figures: str
    tolerance: Tolerance
    met: bool
    held_out: Comparison | None = None
    cost: PlanCost | None = None
    alternatives: tuple[Alternative, ...] = ()

    @property
    def refuted(self) -> tuple[Alternative, ...]:
        """What kernels might do that it is not right under, although it is; an engine is seen to be right as it is."""
        others = (other for other in self.alternatives if other.kind is not AlternativeKind.ENGINE_SUMS)
        return tuple(other for other in others if self.met and not other.met)

    def mark(self, terms: Terms) -> Mark:
        """What its figures alone say of it."""
        if terms.random and not terms.random_asked:
            return Mark(State.NOT_KNOWN, on_random=True)
        sums = any(other.is_half_sums for other in self.refuted)
        state = State.MET if self.met else State.NOT_MET
        return Mark(state, terms.random, needs_float32_sums=sums, as_onnx=self.met and bool(terms.otherwise))


@dataclass(frozen=True)
class EngineVariant:
    """A variant as a real engine: measured errors, what the engine is inside, and its time for one sample.

    `times` has the milliseconds of each layer whose time could be told apart, `kernels` those of the engine's layers.
    """

    variant: Variant
    inside: Inside
    latency: Latency
    times: Mapping[str, float]
    kernels: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class EngineResult:
    """One low precision on the GPU.

    `low` is the engine without pins, `mixed` the one that was taken: `low` itself where that is right. None for what
    TensorRT would not build, last for the reason in `refused`. `builds` counts the engines tried, `notes` say what was
    seen on the way.
    """

    low: EngineVariant | None
    mixed: EngineVariant | None
    builds: int
    notes: tuple[str, ...]
    refused: str = ""

    @property
    def met(self) -> bool:
        """Whether the engine that was taken meets the tolerance, and keeps to its pins."""
        return self.mixed is not None and self.mixed.variant.met and not self.mixed.inside.overridden


@dataclass(frozen=True)
class CompiledVariant:
    """A variant that was compiled for a GPU that is not here: what is inside the engine, and nothing of its errors.

    `name` is the variant's. `inside` is None where the compiler refused, for the reason in `refused`.
    """

    name: str
    target: str
    inside: Inside | None
    refused: str


@dataclass(frozen=True)
class Repaired:
    """The model with repairs, in one low precision.

    `bare` is the variant of it without pins, `ranges` are those of the model as it is, None without int8. `released`
    are repairs that were found, and are not needed or do not help. `same` says how it lies beside the original in
    float32, over all samples.
    """

    model: Model
    bare: Variant
    released: tuple[Repair, ...]
    same: Equivalence
    ranges: CalibrationTable | None

    @property
    def repairs(self) -> tuple[Repair, ...]:
        """Those that were made, in their order."""
        return self.model.repairs


@dataclass(frozen=True)
class PrecisionResult:
    """One low precision: the variant without pins, and the one with the pins that were found.

    `mixed` is `low` itself where nothing was needed. `ranked` are the layers that the precision touches,
    the worst first. `causes` says for layers that break in it why. `evaluations` counts the plans that
    were run and compared on the way. `sensitivities` are the final outputs' to each layer, on the samples where the
    precision is worst (`sensitivity_samples`: on how many of them); empty where no pin was needed. `certificate` is the
    proof of the pins, None where there are none. `points` are all plans evaluated, by cost and error. `remark` is what
    else is to be said of the pins. `limit` says what the user allowed that the search ran into, `stopped` what ended it
    before it was through.
    `unknown` says why the reference is no ground for a verdict, `caveat` what of it is none (see `search.grounds`).
    `engine` is what was measured on the GPU; None where all is emulated. `compiled` are its variants
    compiled for a GPU that is not here. `terms` are what the verdict hangs on besides the figures.
    `arithmetic` is how its variants were emulated. `running_sums` are those of layers whose kernels may keep sums in
    the precision, without pins. `repairs` are those that apply where it breaks without pins, where none was tried.
    `repaired` is the model that the plan is for, with its repairs; None where it is for the model as it is. `low` is
    that as it is in any case, and of it are ranking and causes.
    `each_layer` has each layer of it by itself, None where that was not asked for.
    `unscaled` is what would become of the plan were the integer sums of int8 kept in half; None where nothing would.
    """

    precision: Precision
    low: Variant
    mixed: Variant
    ranked: tuple[str, ...]
    causes: Mapping[str, Cause]
    evaluations: int
    table: CalibrationTable | None
    sensitivities: Sensitivities = field(default_factory=dict)
    certificate: Certificate | None = None
    points: tuple[Point, ...] = ()
    remark: str = ""
    limit: str = ""
    stopped: str = ""
    unknown: str = ""
    caveat: str = ""
    engine: EngineResult | None = None
    compiled: tuple[CompiledVariant, ...] = ()
    terms: Terms = NO_TERMS
    arithmetic: Arithmetic = TENSORRT
    running_sums: Mapping[str, RunningSum] = field(default_factory=dict)
    repairs: tuple[Repair, ...] = ()
    unscaled: UnscaledSums | None = None
    sensitivity_samples: Mapping[str, int] = field(default_factory=dict)
    repaired: Repaired | None = None
    each_layer: EachLayer | None = None

    @property
    def own_ranges(self) -> CalibrationTable | None:
        """The int8 ranges of the model as it is; None without int8."""
        return self.table if self.repaired is None else self.repaired.ranges

    @cached_property
    def output_shares(self) -> Mapping[str, float]:
        """Each layer's share of the outputs' error: by the ranking; without one as each was measured by itself."""
        if self.sensitivities or self.each_layer is None:
            return output_shares(self.sensitivities)
        return shares_of({name: 10 ** (-found.sqnr / 10) for name, found in self.each_layer.one_on.items()})

    @cached_property
    def carriers(self) -> Carriers | None:
        """How many layers make most of the outputs' error; None where that was not measured, or is not finite."""
        return carriers_of(self.output_shares.values())

    @property
    def met(self) -> bool:
        """Whether the verdict is that the tolerance is met: on the GPU, where it was measured there."""
        return self.verdict.met

    @cached_property
    def verdict(self) -> Verdict:
        """What is said of this precision."""
        bare, found = self.before, self.after
        return verdict_of(
            Evidence(
                precision=self.precision.value,
                met=found.met,
                pins=len(self.plan.pins),
                touched=len({*self.ranked, *self.plan.pinned()}),  # what int8 cannot hold is pinned, and not ranked
                left=self._left(found),
                rungs=rungs(pin.precision for pin in self.plan.pins),
                figure=_change(bare, found),
                cost=self._share(found),
                bare_cost=self._share(bare),
                terms=self.terms,
                limit=self.limit,
                stopped=self.stopped,
                unknown=self.unknown,
                caveat=self.caveat,
                conditions=tuple(_condition(found, other) for other in found.refuted),
                refused=self.refused,
                overridden=() if self.inside is None else overridden_text(self.inside),
                repairs=len(self.plan.repairs),
            )
        )

    def mark_of(self, variant: Variant) -> Mark:
        """A variant's verdict in short: of the plan found this precision's, of others what their figures say."""
        if variant is self.after or self.unknown:
            return self.verdict.mark
        return replace(variant.mark(self.terms), in_part=bool(self.caveat))

    def _left(self, variant: Variant) -> int:
        """How many of the touched layers still run in the precision swept."""
        pinned = variant.plan.pinned()
        runs_in = {cost.layer: cost.precision for cost in variant.cost.layers} if variant.cost else {}
        return sum(runs_in.get(name, pinned.get(name, self.precision)) is self.precision for name in self.ranked)

    def _share(self, variant: Variant) -> float | None:
        """The variant's cost as a share of float32's."""
        seconds = self.terms.fp32_seconds
        return variant.cost.seconds / seconds if variant.cost and seconds else None

    @property
    def plan(self) -> PrecisionPlan:
        """The plan found: the one that was taken on the GPU, where there is one."""
        taken = None if self.engine is None else self.engine.mixed
        return self.mixed.plan if taken is None else taken.variant.plan

    @property
    def ranges_text(self) -> str:
        """By which method int8 ranges were found, of how many samples, and what `auto` took; empty without ranges.

        Of weights alone how their scales were.
        """
        if self.table is None:
            return ""
        if (blocks := self.table.blocks) is not None:
            return f"of blocks of up to {blocks.size} weights, by {blocks.method}"
        said = f"{self.low.plan.calibration} over {counted(self.table.samples, 'sample')}"
        if self.low.plan.calibration != AUTO:
            return said
        methods = self.table.methods
        taken = (f"{method} for {counted(count, 'tensor')}" for method, count in methods.items())
        return f"{said}: took {', '.join(taken) if len(methods) > 1 else next(iter(methods), 'none')}"

    @property
    def inside(self) -> Inside | None:
        """What the engine of the plan found is inside, run or only compiled; None where there is none."""
        if self.engine is not None:
            return None if self.engine.mixed is None else self.engine.mixed.inside
        return self.compiled[-1].inside if self.compiled else None

    @property
    def refused(self) -> str:
        """That no engine of the plan found could be built, and why; empty where one was, or none was asked for."""
        if self.engine is not None:
            why = self.engine.refused or "the reason is not known"
            return "" if self.engine.mixed is not None else f"NOT built: {why}"
        last = self.compiled[-1] if self.compiled else None
        return "" if last is None or last.inside is not None else f"NOT compiled for {last.target}: {last.refused}"

    @property
    def before(self) -> Variant:
        """The variant without pins: as measured on the GPU, where it was, else as emulated."""
        engine = None if self.engine is None else self.engine.low
        return self.low if engine is None else engine.variant

    @property
    def after(self) -> Variant:
        """The variant of the plan found: as measured on the GPU, where it was, else as emulated."""
        engine = None if self.engine is None else self.engine.mixed
        return self.mixed if engine is None else engine.variant

    @property
    def first_nonfinite(self) -> str | None:
        """The first tensor with a NaN or Inf that the reference does not have, without pins."""
        found = self.low.comparison.nonfinite
        return found[0] if found else None


def overridden_text(inside: Inside) -> tuple[str, ...]:
    """Of each pin that an engine does not keep to, what its layer runs in."""
    return tuple(f"{pin.layer} runs in {' and '.join(pin.got)}, not {pin.asked}" for pin in inside.overridden)


def _condition(variant: Variant, other: Alternative) -> Condition:
    """What the verdict hangs on there, by the first bound that the alternative misses."""
    bound = next(b for b in variant.tolerance if not b.holds(other.comparison))
    figure = f"{'' if bound.figure == SQNR else f'{bound.figure} '}{_text(bound, other.comparison)}"
    return Condition(other.is_half_sums, figure)


def _text(bound: Bound, comparison: Comparison) -> str:
    figure = bound.of(comparison)
    if bound.metric != SQNR:
        return f"{figure:.4g}"
    return "NaN" if math.isnan(figure) else f"{decibel(figure)} dB"


def _change(before: Variant, after: Variant) -> str:
    """What the verdict hangs on, without pins and of the plan found, and the task metric: `-0.3 → 53.8 dB`.

    Of several bounds it is the first that the plan found misses, else the first that asked for pins. Behind it what the
    figure of the plan found is with sums in half.
    """
    missed = (b for variant in (after, before) for b in after.tolerance if not b.holds(variant.comparison))
    bound = next(missed, after.tolerance[0])
    variants = [before] if before is after else [before, after]
    texts = [_text(bound, variant.comparison) for variant in variants]
    name = "" if bound.figure == SQNR else f"{bound.figure} "
    said = name + " → ".join([*(text.removesuffix(" dB") for text in texts[:-1]), texts[-1]])
    shown = (other for other in after.alternatives if other.kind is not AlternativeKind.ROUNDED_CONSTANTS)
    said += "".join(f", {_text(bound, other.comparison)} {other.kind.words}" for other in shown)
    if after.plan.repairs:
        hung = (other for other in before.refuted if other.kind is AlternativeKind.ROUNDED_CONSTANTS)
        said += "".join(f", as it is {_text(bound, other.comparison)} {other.kind.words}" for other in hung)
    metrics = [v.comparison.metric for v in variants if v.comparison.metric is not None]
    if bound.metric == "metric" or len(metrics) < len(variants):
        return said
    return f"{said}, {after.comparison.metric_name} {' → '.join(number(metric, 3) for metric in metrics)}"
