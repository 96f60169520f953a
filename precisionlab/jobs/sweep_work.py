"""What a sweep works with, opened in order: model, samples, layers, engines, the run's folder with its journal."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from precisionlab.backends.registry import EMULATION
from precisionlab.compare.errors import STATISTICS
from precisionlab.compare.judging import Judging
from precisionlab.evaluate.evaluator import Evaluator
from precisionlab.evaluate.prepare import Prepared, prepare
from precisionlab.evaluate.run_folder import RunFolder
from precisionlab.evaluate.task_metric import source_of
from precisionlab.jobs.grouping import (
    Grouped,
    Opener,
    as_compiled,
    as_far_as_kept,
    as_the_plan,
    by_default,
    grouped_anew,
)
from precisionlab.jobs.plan_source import repaired_for
from precisionlab.jobs.repair_trials import Means
from precisionlab.jobs.repaired_file import repairs_text
from precisionlab.jobs.run_place import default_folder
from precisionlab.jobs.sweep_checks import check_ahead, check_choosable, check_precisions, without_needless
from precisionlab.jobs.sweep_request import RunOptions, SweepRequest
from precisionlab.model import Model, load_model
from precisionlab.model.measurable import check_lowerable, own_types, quantized_already
from precisionlab.model.portable import tensorrt_notes
from precisionlab.plan.arithmetic import Fusing, Kernels
from precisionlab.plan.assign import read_plan_for
from precisionlab.plan.plan import PrecisionPlan
from precisionlab.precision import Precision
from precisionlab.rewrite.gates import WEIGHT_SCALES
from precisionlab.search.cost import CostModel
from precisionlab.search.on_engine import Compiler, EngineStage
from precisionlab.search.options import Options, check_calibration
from precisionlab.system.executors import Executor, open_executor
from precisionlab.system.lock import held_folder
from precisionlab.system.observer import Observer
from precisionlab.system.versions import RULES, versions

if TYPE_CHECKING:
    from precisionlab.backends.engine import EngineBackend


@dataclass(frozen=True)
class SweepWork:
    """One sweep's means, for one model: as it is, or repaired.

    `options` are the request's, as the plan that is asked for and the backend have them. `plan` is that plan, None
    where pins are searched for. `engines` None: all is emulated; `stage` measures on them where they can run here,
    `compiler` only compiles. `grouped` says where the layers come from. `emulated` opens the emulation alone of the
    same model with repairs, `repaired` all of its means; both live as long as this does. `not_swept` says of precisions
    that were asked for, by name, why they are not swept.
    """

    options: Options
    plan: PrecisionPlan | None
    ready: Prepared
    cost: CostModel
    judging: Judging
    run: RunFolder
    evaluator: Evaluator
    engines: EngineBackend | None
    stage: EngineStage | None
    compiler: Compiler | None
    grouped: Grouped
    emulated: Callable[[Model], Means]
    repaired: Callable[[Model], SweepWork]
    not_swept: Mapping[str, str] = field(default_factory=dict)

    @property
    def means(self) -> Means:
        """What evaluates the model in emulation."""
        return Means(self.evaluator, self.ready.local.look)


@contextmanager
def open_work(request: SweepRequest, observer: Observer) -> Iterator[SweepWork]:
    """Open all that the sweep needs, for as long as the context lasts.

    Raises PrecisionLabError (ModelError, DataError, PlanError, OptionError) for input that cannot be used.
    """
    run = request.run
    for note in run.notes:
        observer.note(note)
    loaded = _loaded(request.model, observer)
    grouped = as_the_plan(loaded, request.plan, run)
    plan = _plan_of(request, grouped.model)
    options, needless = without_needless(grouped.model, _as_planned(request.options, plan))
    check_precisions(grouped.model, options, plan)
    check_ahead(grouped.model, options, run.backend)
    not_swept = {precision.value: f"{why}: it is not swept" for precision, why in needless.items()}
    for precision, why in not_swept.items():
        observer.note(f"{precision}: {why}")
    with open_executor(run.processes, run.dask) or nullcontext() as executor, ExitStack() as opened:
        folder = run.out or default_folder(request, grouped.model, observer.note)
        opened.enter_context(held_folder(folder, observer.note))
        given = grouped.model
        how = run.threads, executor, observer, run.memory, run.device, run.batch
        ready = prepare(given, request.source, options.metric, *how)
        opening = _Opening(run, options, executor, opened, folder, observer)
        if plan is None:
            grouped = by_default(grouped, run, options, opening.engines_of(ready), observer)
        grouped = as_compiled(grouped, run, options, opening.engines_of(ready), observer)
        if grouped.model is not given:
            ready = ready.of(grouped.model, run.threads)
            plan = _plan_of(request, grouped.model)
        for said in (grouped.note, "" if grouped.fusions is None else grouped.fusions.text):
            if said:
                observer.note(said)
        yield replace(opening.work(ready, grouped, plan), not_swept=not_swept)


@dataclass(frozen=True)
class _Opening:
    """What opens the means of a model of this sweep: the model that it was given, and later the same with repairs."""

    run: RunOptions
    options: Options
    executor: Executor | None
    opened: ExitStack
    folder: Path
    observer: Observer

    def engines_of(self, ready: Prepared) -> Opener:
        """What opens a backend of engines on the model at hand."""
        how = replace(self.run.engine, compute=self.run.target.capability.upper())
        return partial(ready.engines, options=how, folder=self.folder, observer=self.observer)

    def work(self, ready: Prepared, grouped: Grouped, plan: PrecisionPlan | None) -> SweepWork:
        """All means for the model as it is."""
        options, engines = self._with_engines(ready, grouped, plan)
        judging = ready.judging(*map(options.tolerance_of, (Precision.FP32, *options.precisions)))
        for note in judging.notes:
            self.observer.note(note)
        kept = RunFolder(self.folder, _context(grouped.model, ready, options, engines), self.observer.note)
        judging = ready.with_groups(judging, kept, self.observer)
        return self._work(options, plan, ready, engines, grouped, judging, kept)

    def _repaired(self, work: SweepWork, model: Model) -> SweepWork:
        """All means for the same model with repairs: its own engines, and the layers that these have."""
        self.observer.note(f"with {repairs_text(model)}")
        ready = work.ready.of(model, self.run.threads, self.executor)
        grouped = Grouped(model)
        if work.grouped.fusions is not None:
            grouped = grouped_anew(model, work.grouped, self.run, self.options, self.engines_of(ready), self.observer)
            ready = work.ready.of(grouped.model, self.run.threads)
        options, engines = self._with_engines(ready, grouped, work.plan)
        found = self._work(options, work.plan, ready, engines, grouped, work.judging, work.run)
        if found.stage is not None and work.stage is not None:
            found.stage.take_times(work.stage)
        # What was evaluated of it while repairs were tried is known.
        return replace(found, evaluator=replace(work.evaluator, backend=ready.backend, arithmetic=options.arithmetic))

    def _emulated(self, work: SweepWork, model: Model) -> Means:
        grouped = as_far_as_kept(model, work.grouped)
        ready = work.ready.of(grouped, self.run.threads, self.executor)
        return Means(replace(work.evaluator, backend=ready.backend), ready.local.look)

    def _with_engines(
        self, ready: Prepared, grouped: Grouped, plan: PrecisionPlan | None
    ) -> tuple[Options, EngineBackend | None]:
        """The options as the engines have them, and these; None where all is emulated."""
        options = self.options
        if self.run.backend == EMULATION:
            return options, None
        engines = self.opened.enter_context(self.engines_of(ready)(self.run.backend))
        options = replace(options, no_new_precision=not engines.is_typed, typed=engines.is_typed)
        options = _as_fused(options, grouped)
        check_choosable(grouped.model, engines, options, plan)
        return options, engines

    def _work(
        self,
        options: Options,
        plan: PrecisionPlan | None,
        ready: Prepared,
        engines: EngineBackend | None,
        grouped: Grouped,
        judging: Judging,
        kept: RunFolder,
    ) -> SweepWork:
        run, observer, stage, compiler = self.run, self.observer, None, None
        if engines is not None and engines.can_run:
            stage = EngineStage(
                ready.evaluator(kept, observer, judging, engines), engines, run.target, run.engine.builds
            )
        elif engines is not None:
            compiler = Compiler(engines, observer)
        evaluator = replace(ready.evaluator(kept, observer, judging), arithmetic=options.arithmetic)
        work = SweepWork(
            options=options,
            plan=plan,
            ready=ready,
            cost=CostModel(ready.backend.model, run.target),
            judging=judging,
            run=kept,
            evaluator=evaluator,
            engines=engines,
            stage=stage,
            compiler=compiler,
            grouped=grouped,
            emulated=lambda model: self._emulated(work, model),
            repaired=lambda model: self._repaired(work, model),
        )
        return work


def _loaded(path: Path, observer: Observer) -> Model:
    """The model, and what is to be known of it before its figures."""
    model = load_model(path)
    check_lowerable(model)
    cut = None if model.tail is None else f"{model.path.name}: {model.tail.text}"
    noted = (f"{model.path.name}: {note}" for note in tensorrt_notes(model))
    for said in (cut, quantized_already(model), own_types(model), *noted):
        if said:
            observer.note(said)
    return model


def _plan_of(request: SweepRequest, model: Model) -> PrecisionPlan | None:
    """The user's own plan, for the layers of the model with the plan's repairs; None where none is asked for.

    Raises PlanError as `repaired_for` and `read_plan_for`.
    """
    if request.plan is None:
        return None
    return read_plan_for(repaired_for(model, request.plan), request.plan)


def _as_planned(options: Options, plan: PrecisionPlan | None) -> Options:
    """The options with the plan's precision in the place of those that are swept otherwise."""
    if plan is None:
        return options
    check_calibration(plan.calibration)
    return replace(options, precisions=(plan.default,), around=plan.around)


def _as_fused(options: Options, grouped: Grouped) -> Options:
    """The options with the arithmetic of typed engines, which keep apart what others fold."""
    if not options.typed or options.arithmetic.kernels is not Kernels.TENSORRT:
        return options
    fusing = Fusing.TYPED if grouped.fusions is None else Fusing.COMPILED
    return replace(options, arithmetic=replace(options.arithmetic, fusing=fusing))


def _context(model: Model, ready: Prepared, options: Options, engines: EngineBackend | None) -> dict[str, Any]:
    """What finished evaluations depend on: with another context none of them is taken over."""
    dataset = ready.dataset
    return {
        "model": model.sha256,
        "data": dataset.sha256,
        "samples": [] if dataset.is_random else list(dataset.names),
        "shapes": {name: list(shape) for name, shape in dataset.random_shapes.items()},
        "metric": options.metric and [options.metric, source_of(options.metric)],
        "backend": ready.backend.name,
        "engines": None if engines is None else engines.identity,
        "layers": [[*layer.nodes, *layer.inside] for layer in model.layers],
        "device": ready.local.runs_on.name,
        "batch": ready.local.batching.size,
        "cuts": ready.local.cuts,  # of the memory budget only this: the last bits of a pooling may hang on it
        "statistics": STATISTICS,
        "rules": RULES,
        "weights": WEIGHT_SCALES,
        "versions": versions(),
    }
