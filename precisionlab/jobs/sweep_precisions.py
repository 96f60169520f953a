"""Each low precision of a sweep: as it is, then with repairs, then with pins, whichever takes least."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from precisionlab.backends.equivalence import Equivalence
from precisionlab.calibration.table import CalibrationTable
from precisionlab.compare.tolerance import closeness
from precisionlab.evaluate.evaluator import Evaluator
from precisionlab.evaluate.ranges import Methods
from precisionlab.jobs.each_layer import with_each_layer
from precisionlab.jobs.plan_source import repaired_for
from precisionlab.jobs.quantized_ranges import NO_RANGES, Ranges
from precisionlab.jobs.repair_trials import Means, RepairTrials
from precisionlab.jobs.repaired_file import beside_original, check_promise, is_as_promised, repairs_text
from precisionlab.jobs.sweep_schedule import Schedule, seconds_of
from precisionlab.jobs.sweep_search import SweepJob
from precisionlab.jobs.sweep_work import SweepWork
from precisionlab.model import Model
from precisionlab.model.repair import Repair
from precisionlab.plan.assign import read_plan_for
from precisionlab.precision import Precision, quantized_of
from precisionlab.rewrite.repairs import is_repairable
from precisionlab.search.alternatives import AlternativeKind
from precisionlab.search.certificate import certificate_without_pins
from precisionlab.search.options import Minimize
from precisionlab.search.outcome import EngineResult, PrecisionResult, Repaired, Variant
from precisionlab.search.quantized_repairs import find_quantized_repairs
from precisionlab.search.repairing import Found, find_repairs
from precisionlab.system.deadline import Deadline, Watched

_TRIES = 0.5
"""The share of a precision's time in which repairs are tried: what they do not mend is left to pins."""


def results(
    job: SweepJob, work: SweepWork, methods: Mapping[Precision, Methods], schedule: Schedule
) -> tuple[PrecisionResult, ...]:
    """Each low precision, one after the other; each may take an equal part of the time that is left."""
    found = []
    for precision in work.options.precisions:
        one = _Precision(job, work, precision, methods, schedule.to_search())
        ranges = one.ranges()
        bare = job.bare(precision, ranges)
        schedule.compared(bare.before)
        result = replace(one, deadline=schedule.to_search()).result(ranges, bare)
        schedule.searched()
        found.append(_by_itself(result, bare.table, work, schedule.to_search()))
        schedule.finished()
    return tuple(found)


def measured(job: SweepJob, work: SweepWork, plan: Path, methods: Mapping[Precision, Methods]) -> PrecisionResult:
    """The user's own plan, beside the precision without pins, of the model as it is."""
    asked = work.plan
    assert asked is not None
    if not asked.repairs:
        found = job.measure(asked, methods)
        return _compiled(_by_itself(found, found.table, work, Deadline(None)), found.table, work, work)
    repaired = work.repaired(repaired_for(work.evaluator.model, plan))
    sub = _job_of(job, repaired)
    outcome = sub.measure(read_plan_for(sub.model, plan), sub.methods)
    same = _same(repaired.evaluator.model, work)
    bare = job.bare(asked.default, job.ranges_of(asked.with_pins(()), methods))
    kept = Repaired(sub.model, outcome.low, (), same, bare.table)
    combined = _combined(bare, replace(outcome, certificate=None), kept)
    return _compiled(_by_itself(combined, bare.table, work, Deadline(None)), bare.table, work, repaired)


def _by_itself(
    found: PrecisionResult, table: CalibrationTable | None, work: SweepWork, deadline: Deadline
) -> PrecisionResult:
    return with_each_layer(found, work.evaluator, table, work.options.each_layer, deadline)


@dataclass(frozen=True)
class _Precision:
    """One low precision under way; what may be left out of it ends by the deadline."""

    job: SweepJob
    work: SweepWork
    precision: Precision
    methods: Mapping[Precision, Methods]
    deadline: Deadline

    def ranges(self) -> Ranges:
        """The ranges of the model as it is; none for a float precision."""
        return self.job.ranges(self.precision, self.methods, self.deadline)

    def result(self, ranges: Ranges, bare: PrecisionResult) -> PrecisionResult:
        """The plan that is right with least: of repairs alone, of repairs and pins, of pins alone.

        `bare` is the precision as it is.
        """
        if not self._may_be_repaired() or (bare.before.met and not _hangs_on_constants(bare.before)):
            return self._pinned(ranges)
        tries = self.deadline.part(_TRIES)
        trials = _trials(self.job, self.work, self.precision, self.methods, tries)
        found = self._found(trials)
        tries.move_to(self.deadline)  # for the proof that each repair is needed
        if not found.repairs:
            return self._pinned(ranges)
        if not found.broken:  # what is left is to look at it once more, and to leave each repair out
            self.job.expected(seconds_of(bare.before))
        means = self.work.repaired(trials.model(found.repairs))
        repaired = self._repaired(bare, trials, found, means)
        if needless := _needless(repaired):
            self._note(f"with the pins {', '.join(map(str, needless))} is not needed")
            left = tuple(repair for repair in found.repairs if repair not in needless)
            if not left:
                return self._pinned(ranges)
            found = replace(found, repairs=left, released=(*found.released, *needless))
            means = self.work.repaired(trials.model(left))
            repaired = self._repaired(bare, trials, found, means)
        if bare.before.met and _hangs_on_constants(repaired.after):
            return self._pinned(ranges)
        if not (repaired.after.met and not _chosen_pins(repaired)):
            self._note("pins alone are tried too: the repairs do not make it right by themselves")
            pinned = self._pinned(ranges)
            if not self._is_better(repaired, pinned):
                return pinned
        return _compiled(repaired, bare.table, self.work, means)

    def _pinned(self, ranges: Ranges) -> PrecisionResult:
        """The search for pins on the model as it is."""
        found = self.job.search(self.precision, ranges, self.deadline)
        return _compiled(found, found.table, self.work, self.work)

    def _may_be_repaired(self) -> bool:
        options, model = self.work.options, self.work.evaluator.model
        if not options.repair or self.job.grounds.unknown(options.tolerance_of(self.precision)):
            return False
        return is_repairable(model, self.precision, options.around_of(self.precision))

    def _found(self, trials: RepairTrials) -> Found:
        tolerance, note = self.work.options.tolerance_of(self.precision), self.work.evaluator.observer.note
        if not self.precision.is_quantized:
            return find_repairs(trials, self.precision, tolerance, note)
        around = self.work.options.around_of(self.precision)
        return find_quantized_repairs(trials, self.precision, around, tolerance, note)

    def _repaired(self, bare: PrecisionResult, trials: RepairTrials, found: Found, means: SweepWork) -> PrecisionResult:
        """The search for pins on the repaired model, and what each repair does for the plan that it finds."""
        same = _same(trials.model(found.repairs), self.work)
        sub = _job_of(self.job, means)
        outcome = sub.search(self.precision, sub.ranges(self.precision, sub.methods, self.deadline), self.deadline)

        releases = trials.releases(outcome.mixed.plan)
        proof = outcome.certificate or certificate_without_pins(outcome.mixed.comparison, outcome.mixed.tolerance)
        # Of pins that nobody has released nothing is proven.
        is_seen = outcome.certificate is not None or outcome.mixed.plan.pins == outcome.low.plan.pins
        complete = proof.complete and is_seen and len(releases) == len(found.repairs)
        outcome = replace(
            outcome,
            certificate=replace(proof, repairs=releases, complete=complete),
            evaluations=bare.evaluations + found.evaluations + outcome.evaluations,
        )
        return _combined(bare, outcome, Repaired(sub.model, outcome.low, found.released, same, bare.table))

    def _is_better(self, repaired: PrecisionResult, pinned: PrecisionResult) -> bool:
        """Whether the plan with repairs is right with less, or nearer to it where neither is."""
        one, other = repaired.after, pinned.after
        if not (one.met and other.met):
            near, far = (closeness(v.held_out or v.comparison, v.tolerance) for v in (one, other))
            return (one.met, near) > (other.met, far)
        return self._spent(one) < self._spent(other)

    def _spent(self, variant: Variant) -> tuple[float, float, bool]:
        """What it takes; of two that take as much, one that hangs on no clamped constant is right in more engines."""
        cost = variant.cost.seconds if variant.cost is not None else 0.0
        pins = float(len(variant.plan.pins))
        first, second = (pins, cost) if self.work.options.minimize is Minimize.PINS else (cost, pins)
        return first, second, _hangs_on_constants(variant)

    def _note(self, text: str) -> None:
        self.work.evaluator.observer.note(f"{self.precision}: {text}")


def _trials(
    job: SweepJob,
    work: SweepWork,
    precision: Precision,
    methods: Mapping[Precision, Methods],
    deadline: Deadline,
) -> RepairTrials:
    """The model with repairs, in emulation; what is evaluated ends by the deadline."""

    def watched(means: Means) -> Means:
        evaluator = means.evaluator
        return replace(means, evaluator=replace(evaluator, observer=Watched(evaluator.observer, deadline)))

    def ranges_of(means: Means) -> Ranges:
        if not precision.is_quantized:
            return NO_RANGES
        sub = SweepJob(means.evaluator, work.options, work.cost, means.look)
        sub.grounds = job.grounds
        own = methods if means.evaluator.model is work.evaluator.model else sub.observed(work.options.quantized).methods
        return sub.ranges(precision, own, deadline)

    def opened(model: Model) -> Means:
        return watched(work.emulated(model))

    options = work.options
    tolerance = options.tolerance_of(precision)
    original = watched(work.means)

    def is_same(model: Model) -> bool:
        return is_as_promised(model, _beside_original(model, work, original.evaluator))

    return RepairTrials(
        original,
        precision,
        options.around_of(precision),
        tolerance,
        opened,
        ranges_of,
        typed=options.typed,
        block=options.block,
        expected=job.trying,
        is_same=is_same,
    )


def _same(repaired: Model, work: SweepWork) -> Equivalence:
    """What a plan with repairs needs to be seen, however little time is left."""
    same = _beside_original(repaired, work, work.evaluator)
    check_promise(repaired, same)
    return same


def _beside_original(repaired: Model, work: SweepWork, evaluator: Evaluator) -> Equivalence:
    """How a repaired model lies beside the original in float32, over all samples; the evaluator's journal keeps it."""
    ready = work.ready

    def compared() -> dict[str, Any]:
        return beside_original(repaired, ready.dataset, ready.local.threads, evaluator.observer).to_plain()

    key = {"equivalence": len(ready.dataset), "repaired": repaired.content}
    title = f"float32 with {repairs_text(repaired)}"
    return evaluator.journalled(
        title, key, compared, Equivalence.from_plain, lambda same: same.samples == len(ready.dataset)
    )


def _job_of(job: SweepJob, work: SweepWork) -> SweepJob:
    """The same job for the repaired model."""
    sub = SweepJob(work.evaluator, work.options, work.cost, work.ready.local.look, work.stage)
    sub.grounds, sub.expected, sub.trying = job.grounds, job.expected, job.trying
    sub.observed(quantized_of((*work.options.quantized, *(work.plan.precisions if work.plan else ()))))
    return sub


def _hangs_on_constants(variant: Variant) -> bool:
    """Whether it is right only where the builder clamps constants that the precision cannot hold."""
    return any(other.kind is AlternativeKind.ROUNDED_CONSTANTS for other in variant.refuted)


def _needless(found: PrecisionResult) -> tuple[Repair, ...]:
    """The repairs without which the plan is right as well."""
    proof = found.certificate
    return () if proof is None else tuple(release.repair for release in proof.repairs if not release.is_needed)


def _chosen_pins(found: PrecisionResult) -> int:
    """How many pins the search has chosen: those that the precision cannot do without are none."""
    bare = found.low if found.repaired is None else found.repaired.bare
    return len(found.plan.pinned().keys() - bare.plan.pinned().keys())


def _combined(bare: PrecisionResult, outcome: PrecisionResult, repaired: Repaired) -> PrecisionResult:
    """What was found on the repaired model, beside the model as it is: of that are its layers' figures and causes."""
    return replace(
        outcome,
        low=bare.low,
        mixed=_named(outcome.mixed, outcome),
        ranked=bare.ranked,
        causes=bare.causes,
        points=(*bare.points, *(replace(point, repairs=len(outcome.plan.repairs)) for point in outcome.points)),
        engine=_combined_engines(bare, outcome),
        running_sums=bare.running_sums,
        repaired=repaired,
    )


def _combined_engines(bare: PrecisionResult, outcome: PrecisionResult) -> EngineResult | None:
    engine = outcome.engine
    if engine is None:
        return None
    low = None if bare.engine is None else bare.engine.low
    mixed = engine.mixed
    if mixed is not None and mixed is engine.low:
        mixed = replace(mixed, variant=replace(mixed.variant, name=f"{outcome.precision} repaired engine"))
    return replace(engine, low=low, mixed=mixed, builds=engine.builds + 1)


def _named(variant: Variant, outcome: PrecisionResult) -> Variant:
    """The variant of the plan found, by the name that it has beside the model as it is."""
    is_bare = variant is outcome.low or variant.plan.pins == outcome.low.plan.pins  # a plan that was given is another
    return replace(variant, name=f"{outcome.precision} repaired") if is_bare else variant


def _compiled(
    found: PrecisionResult, bare: CalibrationTable | None, original: SweepWork, means: SweepWork
) -> PrecisionResult:
    """The result with its variants compiled, where that alone can be done here: each of its own model and ranges.

    `bare` are those of the model as it is: of tensors that only the repaired one has, they have none, and other ones.
    """
    if original.compiler is None or means.compiler is None:
        return found
    engines = [original.compiler.of(found.low, bare)]
    if found.mixed is not found.low:
        engines.append(means.compiler.of(found.mixed, found.table))
    return replace(found, compiled=tuple(engines))
