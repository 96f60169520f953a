"""Verification: a plan and its certificate are measured again, from nothing but the model and the data."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from precisionlab.backends.base import Backend, Detail, Evaluation
from precisionlab.backends.equivalence import Equivalence
from precisionlab.backends.options import EngineOptions
from precisionlab.backends.registry import EMULATION, choose_backend
from precisionlab.calibration.table import CalibrationTable
from precisionlab.compare.comparison import Comparison
from precisionlab.compare.tolerance import Tolerance, default_tolerance, parse_tolerance
from precisionlab.data import Dataset
from precisionlab.errors import EngineError, PlanError
from precisionlab.evaluate.block_scales import chosen_blocks
from precisionlab.evaluate.evaluator import Evaluator
from precisionlab.evaluate.journal import NoJournal
from precisionlab.evaluate.prepare import Prepared, prepare
from precisionlab.evaluate.ranges import ranges_of_plan
from precisionlab.evaluate.run_results import RunResults
from precisionlab.jobs.grouping import Grouped, as_far_as_kept
from precisionlab.jobs.objects import DataSource, MetricSource, ModelSource, takes_objects
from precisionlab.jobs.plan_source import (
    arithmetic_of,
    grouped_as_in,
    layered_for,
    metric_of,
    model_of,
    run_beside,
    source_of,
)
from precisionlab.jobs.quantized_ranges import NO_RANGES, Ranges
from precisionlab.jobs.repair_trials import Means, RepairTrials
from precisionlab.model import Model, load_model
from precisionlab.plan.arithmetic import Fusing
from precisionlab.plan.assign import lowest_of, read_plan_for
from precisionlab.plan.file import read_plan_content
from precisionlab.plan.plan import PrecisionPlan
from precisionlab.precision import any_scaled
from precisionlab.report.fragment import verification_card
from precisionlab.rewrite.plans import completed
from precisionlab.search.certificate import (
    Certificate,
    Figures,
    certificate_of,
    figures_of,
)
from precisionlab.search.ladder import Assignment
from precisionlab.search.options import check_calibration
from precisionlab.search.outcome import overridden_text
from precisionlab.system.executors import open_executor
from precisionlab.system.lock import held_folder
from precisionlab.system.notebook import observer_of
from precisionlab.system.observer import Observer
from precisionlab.system.parsing import check_workers, parse_memory
from precisionlab.system.wording import counted


@dataclass(frozen=True, repr=False)
class Verification:
    """What a plan was measured to be, beside what it says of itself.

    `certificate` holds the plan's figures and those with each pin released, and each repair left out (always emulated),
    `held_out` the plan's on the samples that chose nothing (None where there are none), `samples` how many each of the
    two rests on. `claimed` are the figures that the plan's file has for the same: under "" the whole plan's, under a
    layer's name those without its pin, under `repair_name` those without a repair; a plan without a certificate claims
    nothing. `figures` says "emulated" or "measured". `overridden` are the pins that the plan's engine does not keep to,
    in words. `same` says how the model with the plan's repairs lies beside the original in float32, over all samples;
    None for a plan without.
    """

    plan: PrecisionPlan
    certificate: Certificate
    held_out: Figures | None
    samples: tuple[int, int]
    claimed: Mapping[str, Mapping[str, float]]
    figures: str
    overridden: tuple[str, ...] = ()
    same: Equivalence | None = None

    @property
    def holds(self) -> bool:
        """Whether the plan meets its tolerance on all samples, needs each of its pins, and its engine keeps to them."""
        if self.overridden:
            return False
        return self.certificate.proven and (self.held_out is None or self.held_out.met)

    @property
    def sentence(self) -> str:
        """What came of it."""
        what = f"{counted(len(self.plan.pins), 'pin')} and {counted(len(self.plan.repairs), 'repair')}"
        how = "verified" if self.holds else "NOT verified"
        return f"{how}: {self.plan.default} with {what}, {self.figures} on {counted(sum(self.samples), 'sample')}"

    def __repr__(self) -> str:
        """One line."""
        return f"Verification({self.sentence})"

    def _repr_html_(self) -> str:
        """How a notebook shows it: the plan's figures, those with each pin released, and what was claimed."""
        releases = [(f"without the pin of {r.layer}", r.layer, r.figures.values) for r in self.certificate.releases]
        rows = [("the plan", "", self.certificate.figures.values), *releases]
        return verification_card(self.sentence, self.holds, rows, self.claimed, self.overridden)


@takes_objects
def verify(
    plan: str | Path,
    *,
    model: ModelSource | None = None,
    data: DataSource | None = None,
    metric: MetricSource | None = None,
    backend: str = "auto",
    threads: int | None = None,
    memory: str | int | None = None,
    device: str = "cpu",
    processes: int | None = None,
    dask: str | None = None,
    engine: EngineOptions | None = None,
    save_outputs: str | Path | None = None,
    observer: Observer | None = None,
) -> Verification:
    """Measure a plan and its certificate again: its figures, and those with each pin released.

    Model, data, and how these were sampled are those of the `run.json` beside the plan, unless `model` and `data` name
    others; a hook or a task metric of the run is code, and must be named again. INT8 ranges are found anew, by the
    plan's own method. With `backend` "tensorrt" each figure is an engine's. Nothing is taken from the run's journal,
    and nothing is written but engines, and to `save_outputs` the final outputs of all samples, in float32 and under the
    plan, as Polygraphy's RunResults. Raises PlanError where the plan cannot be read, is another model's, says neither
    model nor data, or where its run names code.
    """
    observer = observer_of(observer)
    check_workers(threads, processes)
    path = Path(plan)
    content = read_plan_content(path)
    run = run_beside(path)
    loaded = layered_for(run, load_model(Path(model if model is not None else model_of(run, path))), path)
    asked = read_plan_for(loaded, path)
    check_calibration(asked.calibration)
    arithmetic = arithmetic_of(content, path)
    source = source_of(run, data)
    bounds = _held_to(content, asked)
    metric = metric_of(run, metric)
    by, notes = choose_backend(backend)
    for note in notes:
        observer.note(note)
    with open_executor(processes, dask) or nullcontext() as executor, ExitStack() as opened:
        ready = prepare(loaded, source, metric, threads, executor, observer, parse_memory(memory), device)
        measuring: Backend = ready.backend
        if by != EMULATION:
            opened.enter_context(held_folder(path.parent, observer.note, "copy the plan elsewhere"))
            engines = opened.enter_context(ready.engines(by, engine or EngineOptions(), path.parent, observer))
            if not engines.can_run:
                raise EngineError(f"--backend {by}: no GPU is here to measure on; use --backend onnxruntime to emulate")
            measuring = engines
        judging = ready.with_groups(ready.judging(bounds, _asked_for(content, asked)), NoJournal(), observer)
        emulated, evaluator = (
            replace(ready.evaluator(NoJournal(), observer, judging, b), arithmetic=arithmetic)
            for b in (ready.backend, measuring)
        )
        table = None
        if any_scaled(asked.precisions):
            asked, chosen = ranges_of_plan(emulated, asked, None, chosen_blocks(emulated, ready.local.look))
            table = chosen.table
        bare = completed(evaluator.model, asked.with_pins(()), table)
        asked = completed(evaluator.model, asked, table)
        found = evaluator.compare("the plan", asked, table)
        held_out = evaluator.hold_to("the plan", asked, table)
        certificate = _proof(evaluator, asked, bare, table, found, bounds)
        if save_outputs is not None:
            _save_outputs(Path(save_outputs), evaluator, asked, table, ready.dataset)
        same = None
        if asked.repairs:
            known = Grouped(*grouped_as_in(run, _original(loaded)))
            trials = _trials(ready, emulated, asked, bounds, threads, known)
            certificate = replace(certificate, repairs=trials.releases(asked))
            same = trials.same(asked.repairs, ready.dataset, ready.local.threads)
        return Verification(
            asked,
            certificate,
            None if held_out is None else figures_of(held_out, _asked_for(content, asked)),
            (found.samples, 0 if held_out is None else held_out.samples),
            _claims(content),
            measuring.figures,
            () if by == EMULATION else overridden_text(engines.inside(asked, table)),
            same,
        )


def _proof(
    evaluator: Evaluator,
    plan: PrecisionPlan,
    bare: PrecisionPlan,
    table: CalibrationTable | None,
    found: Comparison,
    bounds: Tolerance,
) -> Certificate:
    """The certificate, measured."""
    model = evaluator.model
    # Held pins, and those of layers that run in float32 anyway, cannot be released: nothing would change.
    without = {name: lowest_of(model, model.layer[name], bare) for name in plan.pinned()}
    releasable = {name: rung for name, rung in plan.pinned().items() if without[name] is not rung}

    def judged(assignment: Assignment) -> Comparison:
        pins = [pin for pin in plan.pins if pin.layer not in releasable or pin.layer in assignment]
        (released,) = releasable.keys() - assignment.keys()
        return evaluator.judge(f"without the pin of {released}", plan.with_pins(pins), table, found)

    return certificate_of(releasable, without, found, judged, bounds)


def _save_outputs(
    path: Path, evaluator: Evaluator, plan: PrecisionPlan, table: CalibrationTable | None, samples: Dataset
) -> None:
    runners = ("precisionlab float32", f"precisionlab {plan.default} plan, {evaluator.backend.figures}")
    kept = RunResults(runners, [info.name for info in evaluator.model.outputs])
    evaluator.observer.stage("outputs to save", len(samples))
    asked = Evaluation(plan, table, Detail.NONFINITE, True, evaluator.judging, evaluator.arithmetic)
    for done, found in enumerate(evaluator.backend.results(asked, samples), 1):
        assert found.values is not None
        kept.add(*found.values)
        evaluator.observer.advance(done)
    kept.write(path)


def _trials(
    ready: Prepared, evaluator: Evaluator, plan: PrecisionPlan, bounds: Tolerance, threads: int | None, known: Grouped
) -> RepairTrials:
    """The model with fewer repairs, in emulation, its layers as the run had them while repairs were tried.

    `known` is the model without any, with the run's layers.
    """

    def opened(model: Model) -> Means:
        made = ready.of(as_far_as_kept(model, known) if model.repairs else known.model, threads)
        return Means(replace(evaluator, backend=made.backend), made.local.look)

    def ranges_of(means: Means) -> Ranges:
        if not any_scaled(plan.precisions):
            return NO_RANGES
        of, found = ranges_of_plan(means.evaluator, plan, None, chosen_blocks(means.evaluator, means.look))
        return Ranges(of.calibration, found.table, found.figures)

    return RepairTrials(
        opened(known.model), plan.default, plan.around, bounds, opened, ranges_of,
        typed=evaluator.arithmetic.fusing is not Fusing.FOLDED,
    )  # fmt: skip


def _original(repaired: Model) -> Model:
    assert repaired.original is not None
    return repaired.original


def _asked_for(content: Any, plan: PrecisionPlan) -> Tolerance:
    """The tolerance that the plan's file names; the default of its precision where it names none."""
    texts = content.get("tolerance") or ()
    if not isinstance(texts, list | tuple) or not all(isinstance(text, str) for text in texts):
        raise PlanError("the plan's `tolerance` must be a list of conditions such as sqnr>=30")
    return parse_tolerance(texts) or default_tolerance(plan.default)


def _held_to(content: Any, plan: PrecisionPlan) -> Tolerance:
    """What the search held the plan to: the tolerance, or the stricter one that its certificate names."""
    certificate = content.get("certificate")
    return _asked_for(certificate if isinstance(certificate, Mapping) else content, plan)


def _claims(content: Any) -> dict[str, Mapping[str, float]]:
    """The figures that a plan's file has in its certificate."""
    certificate = content.get("certificate")
    if not isinstance(certificate, Mapping):
        return {}
    releases, repairs = certificate.get("releases"), certificate.get("repairs")
    found = {"": certificate.get("figures")}
    if isinstance(repairs, list):
        found.update((repair_name(number), each) for number, each in enumerate(repairs) if isinstance(each, Mapping))
    if isinstance(releases, list):
        found.update((str(release.get("layer")), release) for release in releases if isinstance(release, Mapping))
    return {name: _numbers(claim) for name, claim in found.items() if isinstance(claim, Mapping)}


def repair_name(number: int) -> str:
    """What the claims call the plan without its repair of this number, from 0."""
    return f"repair {number + 1}"


def _numbers(claim: Mapping[Any, Any]) -> dict[str, float]:
    """The numbers among the values; NaN and infinities stand as words in JSON."""
    numbers = {str(name): value for name, value in claim.items() if isinstance(value, int | float)}
    words = {name: float(value) for name, value in claim.items() if value in ("nan", "inf", "-inf")}
    return {**numbers, **words}
