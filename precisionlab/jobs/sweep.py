"""The main job: reference → variants → comparison → ranking → pins → the mixed variant, measured again."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path

from precisionlab.backends.options import EngineOptions
from precisionlab.backends.steadiness import steadiness
from precisionlab.errors import PrecisionLabError
from precisionlab.evaluate.samples import spaced_samples
from precisionlab.evaluate.values import ObservedValues
from precisionlab.jobs.objects import DataSource, MetricSource, ModelSource, takes_objects
from precisionlab.jobs.result import SweepResult
from precisionlab.jobs.run_place import REQUEST, request_digest
from precisionlab.jobs.sweep_checks import check_target, check_tolerance
from precisionlab.jobs.sweep_precisions import measured, results
from precisionlab.jobs.sweep_request import SweepRequest, data_options, run_options, sweep_options
from precisionlab.jobs.sweep_schedule import Foretelling, Schedule, announcement
from precisionlab.jobs.sweep_search import SweepJob
from precisionlab.jobs.sweep_work import SweepWork, open_work
from precisionlab.model.portable import read_otherwise
from precisionlab.precision import quantized_of
from precisionlab.report.files import run_facts, write_results
from precisionlab.report.kernel_times import kernel_times
from precisionlab.results.sweep import SampleNames
from precisionlab.search.grounds import Grounds
from precisionlab.search.outcome import PrecisionResult, Variant
from precisionlab.search.undefined import undefined_outputs
from precisionlab.search.verdict import Terms
from precisionlab.system.notebook import observer_of
from precisionlab.system.observer import Observer
from precisionlab.system.runlog import RunLog


@takes_objects
def sweep(
    model: ModelSource,
    data: DataSource | None = None,
    *,
    precisions: str | Iterable[str] = ("fp16", "int8"),
    tolerance: str | Iterable[str] = (),
    backend: str = "auto",
    out: str | Path | None = None,
    samples: int | None = None,
    seed: int = 0,
    holdout: str | float = 0.25,
    plan: str | Path | None = None,
    max_pins: int | None = None,
    repair: bool = True,
    minimize: str = "pins",
    spend: str | float | None = None,
    ladder: str | Iterable[str] | None = None,
    target: str | None = None,
    budget: str | float | None = None,
    max_evaluations: int | None = None,
    threads: int | None = None,
    memory: str | int | None = None,
    device: str = "cpu",
    batch: int = 1,
    processes: int | None = None,
    dask: str | None = None,
    around: str | None = None,
    block: int = 128,
    calibration: str | None = None,
    metric: MetricSource | None = None,
    shapes: Mapping[str, tuple[int, ...]] | None = None,
    random: bool = False,
    max_cost: str | float | None = None,
    skip_bad: bool = False,
    layers: str | None = None,
    kernels: str = "tensorrt",
    sums: str = "float32",
    each_layer: int | None = None,
    engine: EngineOptions | None = None,
    observer: Observer | None = None,
) -> SweepResult:
    """Find the layers of an ONNX model that break in low precision, pin them, and check the result.

    `data` is a folder of samples; without it the inputs are random, which finds the wrong layers: no tolerance is known
    to be met then, unless random inputs were asked for (`random`). The share `holdout` of the samples chooses nothing:
    ranges and pins come from the others, and must hold on both. `precisions` are swept one after the other, each held
    to `tolerance` (such as "sqnr>=30", or "sqnr[logits]>=40" for one output). With `plan` that plan alone is built and
    measured, and nothing is searched.

    Repairs are tried first, then pins: where a rewritten part of the model, that gives the same in float32, does not
    break, no layer needs one; `repair` False leaves the graph alone.

    A search ends with as few pins as it can, or with `minimize` "cost" with as cheap ones; with `spend` (such as
    "5%") it makes the error as small as that added cost allows. `max_cost` (such as "80%" of float32's) is the most
    that a plan may cost. Cost is estimated for `target`, the GPU that the model will run on (by default the first of
    `precisionlab.search.devices` that has the precisions). `ladder` names the
    precisions that pins may have (such as "fp16,fp32"). `budget` (such as "30m", for all of it: what is not searched
    is done whatever it takes) and `max_evaluations` (plans with pins of each precision) end the search early, with the
    best plan so far. `processes` or a Dask cluster (the address of its scheduler)
    share the work, to the same bits. `memory` (such as "4G") is what each process may take; by default half of what the
    machine has. `device` "cuda" or "cuda:1" has the emulation run on a GPU, by ONNX Runtime's CUDA provider; processes
    take the machine's GPUs in turn. `batch` samples of one shape run together, where the model's batch is dynamic:
    faster for short inputs, and last bits may differ from those of samples by themselves.

    `backend` is "onnxruntime" (all is emulated), "tensorrt" (the emulation ranks and searches, and real engines are
    built, measured and verified, as `engine` says), "tensorrt-rtx" (the same from typed models; where no GPU is, the
    engines are compiled for `target` and told of, and all figures are emulated), or "auto": TensorRT where it and a
    GPU are.

    `layers` "compiled" takes the fused kernels of an engine as the units that are emulated and pinned, in the place of
    our "patterns": of the backend's, or where that builds none of one that TensorRT-RTX compiles. With "tensorrt-rtx"
    that is the default, and patterns where it compiles nothing (which is said); a plan keeps the layers of its run.

    `kernels` says whose rounding inside of layers in half is emulated: "tensorrt", or "onnxruntime" (its CUDA
    provider's). `sums` is what TensorRT's kernels in half keep the running sum of their products in: "float32", and
    what is found is measured once more with sums in half; or "half" (tensor cores) or "half-single" (without them), and
    pins are searched for under these.

    `around` is the precision of the float layers around quantized ones (by default fp32, and fp16 around int4), `block`
    the most numbers of a weight in int4 that have one scale, `calibration` the method that finds ranges
    (one of `precisionlab.calibration.methods`, or auto). `skip_bad` goes on past samples that cannot be used. `metric`
    names the user's own task metric, `package.module:name`. With `each_layer` every layer is measured by itself too, on
    so many of the samples that choose: the outputs and the task metric with it alone in the low precision, and with it
    alone in float32; that takes about a pass for each layer and sample. The files of the run go to `out`, by default
    `reports/<model>`, or beside a run with other options that lies there; a run that was killed goes on from there.

    Raises PrecisionLabError (ModelError, DataError, PlanError, OptionError) for input that cannot be used.
    """
    request = SweepRequest(
        model=Path(model),
        options=sweep_options(
            precisions=precisions,
            tolerance=tolerance,
            max_pins=max_pins,
            repair=repair,
            around=around,
            block=block,
            calibration=calibration,
            metric=metric,
            minimize=minimize,
            spend=spend,
            ladder=ladder,
            budget=budget,
            max_evaluations=max_evaluations,
            max_cost=max_cost,
            kernels=kernels,
            sums=sums,
            each_layer=each_layer,
        ),
        source=data_options(
            data, shapes=shapes, samples=samples, seed=seed, holdout=holdout, skip_bad=skip_bad, random=random
        ),
        run=run_options(
            backend=backend,
            out=out,
            threads=threads,
            memory=memory,
            device=device,
            batch=batch,
            processes=processes,
            dask=dask,
            layers=layers,
            target=target,
            precisions=precisions,
            ladder=ladder,
            plan=plan,
            engine=engine,
        ),
        plan=None if plan is None else Path(plan),
        random_asked=random,
    )
    return run_sweep(request, observer_of(observer))


def run_sweep(request: SweepRequest, observer: Observer) -> SweepResult:
    """The whole job, as `sweep` tells it."""
    check_target(request.options, request.run.target)
    started, schedule = time.perf_counter(), Schedule(request.options.budget)
    log = RunLog(Foretelling(observer, schedule))
    with open_work(request, log) as work:
        job = SweepJob(work.evaluator, work.options, work.cost, work.ready.local.look, work.stage)
        options, layers = work.options, len(work.evaluator.model.layers)
        log.note(announcement(options.precisions, layers, len(work.ready.chosen), searched=work.plan is None))
        reference, values = _reference(job, work)
        log.begin(work.run.path)
        begun = time.perf_counter()
        fp32_engine = job.reference_engine(reference)
        an_engine = 0.0 if fp32_engine is None else time.perf_counter() - begun
        share = min(options.each_layer or 0, len(work.ready.chosen)) / len(work.ready.dataset)
        schedule.begin(reference, options.precisions, layers, an_engine, searched=work.plan is None, by_itself=share)
        job.expected, job.trying = schedule.searching, schedule.trying
        if work.stage is not None:
            # All costs are shares of this one: measured times on one side and estimates on the other do not compare.
            reference = replace(reference, cost=work.stage.cost.of(reference.plan))
        if request.plan is not None:
            found: tuple[PrecisionResult, ...] = (measured(job, work, request.plan, values.methods),)
        else:
            if schedule.said:
                log.note(schedule.said)
            found = results(job, work, values.methods, schedule)
        on_terms = tuple(_on_its_terms(one, reference, request, work) for one in found)
        facts = _facts(request, work, job.grounds, on_terms, time.perf_counter() - started)
        facts["fp32_times"] = kernel_times(fp32_engine)
        ready = work.ready
        names = SampleNames(ready.chosen.names, ready.held_out.names if ready.held_out else ())
        result = SweepResult(ready.backend.model, reference, on_terms, facts, values, names, work.run.path, fp32_engine)
        write_results(work.run, result, result.variants, result.layers, measured=work.plan is not None)
        return result


def _reference(job: SweepJob, work: SweepWork) -> tuple[Variant, ObservedValues]:
    """The reference and its values; with it all is checked that only it can show to be wrong."""
    options, plan = work.options, work.plan
    try:
        reference = job.reference()
        job.grounds = _grounds(work, reference)
        check_tolerance(options, reference.comparison, job.grounds)
        return reference, job.observed(quantized_of((*options.quantized, *(plan.precisions if plan else ()))))
    except PrecisionLabError:
        work.run.discard()  # labels or a tolerance that only the reference could show to be wrong
        raise


def _grounds(work: SweepWork, reference: Variant) -> Grounds:
    """What is known of the reference itself: where it has no number, and how steady it answers."""
    ready, evaluator = work.ready, work.evaluator
    parts = [(reference.comparison, ready.chosen.names)]
    if reference.held_out is not None and ready.held_out is not None:
        parts.append((reference.held_out, ready.held_out.names))
    few = spaced_samples(ready.chosen, reference.comparison)
    steady = evaluator.steadiness(partial(steadiness, ready.local, evaluator.judging), few)
    return Grounds(undefined_outputs(evaluator.model, parts), steady)


def _on_its_terms(
    found: PrecisionResult, reference: Variant, request: SweepRequest, work: SweepWork
) -> PrecisionResult:
    """The result with what its verdict hangs on besides the figures."""
    terms = Terms(
        random=work.ready.dataset.is_random,
        random_asked=request.random_asked,
        max_cost=work.options.max_cost,
        fp32_seconds=reference.cost.seconds if reference.cost else None,
        searched=work.plan is None,
        otherwise="" if work.stage is not None else read_otherwise(work.ready.local.model),
    )
    return replace(found, terms=terms)


def _facts(
    request: SweepRequest, work: SweepWork, grounds: Grounds, results: tuple[PrecisionResult, ...], seconds: float
) -> dict[str, object]:
    """The content of `run.json`."""
    options, target = work.options, request.run.target
    facts = run_facts(
        work.ready, request.source, options, target, results, work.engines, work.grouped.fusions, work.run.path, seconds
    )
    facts[REQUEST] = request_digest(request, work.ready.local.model)
    facts["layers"]["note"] = work.grouped.note
    facts["not_swept"] = dict(work.not_swept)
    facts["judging"] = list(work.judging.notes)
    facts["arithmetic"] = {**options.arithmetic.to_plain(), "words": options.arithmetic.words}
    facts["reference"] = grounds.to_dict({p.value: options.tolerance_of(p) for p in options.precisions})
    return facts
