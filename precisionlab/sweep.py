"""The main job: reference → variants → comparison → ranking → pins → the mixed variant, measured again."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from contextlib import ExitStack, nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from precisionlab.backends import EMULATION, RTX, place_of, which_backend
from precisionlab.backends.steadiness import steadiness
from precisionlab.compare.errors import STATISTICS
from precisionlab.compare.tolerance import parse_tolerance
from precisionlab.engines import Compiler, EngineStage
from precisionlab.errors import OptionError, PrecisionLabError
from precisionlab.evaluator import Evaluator
from precisionlab.executors import open_executor
from precisionlab.lock import held_folder
from precisionlab.metric import source_of
from precisionlab.model import Model, load_model
from precisionlab.model.compiled import Fusions, completed, with_compiled_layers
from precisionlab.model.measurable import check_lowerable, own_types, quantized_already
from precisionlab.model.portable import tensorrt_notes
from precisionlab.observer import Observer, Silent
from precisionlab.options import (
    EngineOptions,
    Grouping,
    Options,
    check_at_least,
    check_calibration,
    check_workers,
    parse_around,
    parse_duration,
    parse_grouping,
    parse_ladder,
    parse_memory,
    parse_minimize,
    parse_precisions,
    parse_share,
)
from precisionlab.precision import Precision, PrecisionPlan, any_quantized, read_plan
from precisionlab.prepare import Prepared, Source, parse_holdout, prepare
from precisionlab.report.files import run_facts, write_results
from precisionlab.results import PrecisionResult, SampleNames, SweepResult, Variant
from precisionlab.rewrite.gates import WEIGHT_SCALES
from precisionlab.run import RunFolder
from precisionlab.samples import spaced_samples
from precisionlab.search.cost import CostModel
from precisionlab.search.devices import find_device
from precisionlab.search.grounds import Grounds
from precisionlab.search.undefined import undefined_outputs
from precisionlab.sweep_checks import check_cost, check_precisions, check_tolerance
from precisionlab.sweep_job import SweepJob
from precisionlab.values import observed_values
from precisionlab.verdict import Terms
from precisionlab.versions import RULES, versions

if TYPE_CHECKING:
    from precisionlab.backends.tensorrt.backend import TensorRTBackend


def sweep(
    model: str | Path,
    data: str | Path | None = None,
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
    minimize: str = "pins",
    spend: str | float | None = None,
    ladder: str | Iterable[str] | None = None,
    target: str = "a100",
    budget: str | float | None = None,
    max_evaluations: int | None = None,
    threads: int | None = None,
    memory: str | int | None = None,
    device: str = "cpu",
    processes: int | None = None,
    dask: str | None = None,
    around: str = "fp32",
    calibration: str | None = None,
    metric: str | None = None,
    shapes: Mapping[str, tuple[int, ...]] | None = None,
    random: bool = False,
    max_cost: str | float | None = None,
    skip_bad: bool = False,
    layers: str = "patterns",
    engine: EngineOptions | None = None,
    observer: Observer | None = None,
) -> SweepResult:
    """Find the layers of an ONNX model that break in low precision, pin them, and check the result.

    `data` is a folder of samples; without it the inputs are random, which finds the wrong layers: no tolerance is known
    to be met then, unless random inputs were asked for (`random`). The share `holdout` of the samples chooses nothing:
    ranges and pins come from the others, and must hold on both. `precisions` are swept one after the other, each held
    to `tolerance` (such as "sqnr>=30", or "sqnr[logits]>=40" for one output). With `plan` that plan alone is built and
    measured, and nothing is searched.

    A search ends with as few pins as it can, or with `minimize` "cost" with as cheap ones; with `spend` (such as
    "5%") it makes the error as small as that added cost allows. `max_cost` (such as "80%" of float32's) is the most
    that a plan may cost. Cost is estimated for `target`, the GPU that the model will run on. `ladder` names the
    precisions that pins may have (such as "fp16,fp32"). `budget` (such as "30m", for the
    ranges, the ranking and the search of all precisions together) and `max_evaluations` (plans of each precision) end
    the work early, with the best plan so far. `processes` or a Dask cluster (the address of its scheduler)
    share the work, to the same bits. `memory` (such as "4G") is what each process may take; by default half of what the
    machine has. `device` "cuda" or "cuda:1" has the emulation run on a GPU, by ONNX Runtime's CUDA provider; processes
    take the machine's GPUs in turn.

    `backend` is "onnxruntime" (all is emulated), "tensorrt" (the emulation ranks and searches, and real engines are
    built, measured and verified, as `engine` says), "tensorrt-rtx" (the same from typed models; where no GPU is, the
    engines are compiled for `target` and told of, and all figures are emulated), or "auto": TensorRT where it and a
    GPU are.

    `layers` "compiled" takes the fused kernels of an engine as the units that are emulated and pinned, in the place of
    our patterns: of the backend's, or where that builds none of one that TensorRT-RTX compiles.

    `around` is the precision of the float layers around int8 ones, `calibration` the method that finds int8 ranges
    (one of `precisionlab.calibration.methods`, or auto). `skip_bad` goes on past samples that cannot be used. `metric`
    names the user's own task metric, `package.module:name`. The files of the run go to `out`, by default
    `reports/<model>`; a run that was killed goes on from there.

    Raises PrecisionLabError (ModelError, DataError, PlanError, OptionError) for input that cannot be used.
    """
    started = time.perf_counter()
    see = observer or Silent()
    options = Options(
        precisions=parse_precisions(precisions),
        tolerance=parse_tolerance([tolerance] if isinstance(tolerance, str) else tolerance),
        max_pins=max_pins,
        around=parse_around(around),
        calibration=calibration,
        metric=metric,
        minimize=parse_minimize(minimize),
        spend=parse_share(spend, "spend"),
        ladder=parse_ladder(ladder),
        budget=parse_duration(budget, "budget"),
        max_evaluations=max_evaluations,
        max_cost=parse_share(max_cost, "max_cost"),
    )
    check_calibration(calibration)
    check_at_least(0, max_pins=max_pins, seed=seed)
    check_at_least(1, samples=samples, max_evaluations=max_evaluations)
    check_workers(threads, processes)
    place_of(device)  # a GPU that cannot be used is told before the samples are read
    gpu, chosen_backend, grouping = find_device(target), which_backend(backend), parse_grouping(layers)
    if grouping is Grouping.COMPILED and (processes or dask):
        raise OptionError("layers from a compiled engine are known to this process alone; leave --processes and --dask")
    if random and data is not None:
        raise OptionError("random asks for random inputs; leave it, or the data")
    source = Source(data, shapes or {}, samples, seed, parse_holdout(holdout), skip_bad)
    loaded = load_model(Path(model))
    check_lowerable(loaded)
    for said in _said_of(loaded):
        see.note(said)
    asked = None
    if plan is not None:
        asked = read_plan(Path(plan), loaded.sha256, {layer.name: layer.nodes for layer in loaded.layers})
        check_calibration(asked.calibration)
        options = replace(options, precisions=(asked.default,), around=asked.around)
    check_precisions(loaded, options, asked)
    with open_executor(processes, dask) or nullcontext() as executor, ExitStack() as opened:
        folder = Path(out) if out else _default_folder(loaded, asked)
        opened.enter_context(held_folder(folder, see.note))
        ready = prepare(loaded, source, metric, threads, executor, see, parse_memory(memory), device)
        how = replace(engine or EngineOptions(), compute=gpu.capability.upper())
        fusions = None
        if grouping is Grouping.COMPILED:
            by = RTX if chosen_backend == EMULATION else chosen_backend
            loaded, fusions = _compiled_layers(by, loaded, ready, how, folder, options, see)
            ready = ready.of(loaded, threads)
            if plan is not None:
                asked = read_plan(Path(plan), loaded.sha256, {layer.name: layer.nodes for layer in loaded.layers})
        cost = CostModel(ready.backend.model, gpu)
        engines = None
        if chosen_backend != EMULATION:
            engines = opened.enter_context(ready.engines(chosen_backend, how, folder, see))
            options = replace(options, no_new_precision=not engines.is_typed)
        judging = ready.judging(*map(options.tolerance_of, (Precision.FP32, *options.precisions)))
        for note in judging.notes:
            see.note(note)
        run = RunFolder(folder, _context(loaded, ready, options, engines), see.note)
        judging = ready.with_groups(judging, run, see)
        evaluator = ready.evaluator(run, see, judging)
        stage, compiler = None, None
        if engines is not None and engines.can_run:
            stage = EngineStage(ready.evaluator(run, see, judging, engines), engines, gpu, how.builds)
        elif engines is not None:
            compiler = Compiler(engines, see)
        job = SweepJob(evaluator, options, cost, stage)
        try:
            reference = job.reference()
            job.grounds = grounds = _grounds(evaluator, ready, reference)
            check_tolerance(options, reference.comparison, grounds)
            check_cost(options, cost)
            values = observed_values(evaluator, _needs_ranges(options, asked), ready.local.look)
        except PrecisionLabError:
            run.discard()  # labels or a tolerance that only the reference could show to be wrong
            raise
        fp32_engine = job.reference_engine(reference)
        if stage is not None:
            # All costs are shares of this one: measured times on one side and estimates on the other do not compare.
            reference = replace(reference, cost=stage.cost.of(reference.plan))
        if asked:
            results: tuple[PrecisionResult, ...] = (job.measure(asked, values.methods),)
        else:
            results = job.results(values.methods)
        if compiler is not None:
            results = tuple(replace(found, compiled=compiler.of(found)) for found in results)
        terms = Terms(
            random=ready.dataset.is_random,
            random_asked=random,
            max_cost=options.max_cost,
            fp32_seconds=reference.cost.seconds if reference.cost else None,
            searched=asked is None,
        )
        results = tuple(replace(found, terms=terms) for found in results)
        seconds = time.perf_counter() - started
        facts = run_facts(ready, source, options, gpu, results, engines, fusions, run.path, seconds)
        facts["judging"] = list(judging.notes)
        facts["reference"] = grounds.to_dict({p.value: options.tolerance_of(p) for p in options.precisions})
        names = SampleNames(ready.chosen.names, ready.held_out.names if ready.held_out else ())
        result = SweepResult(ready.backend.model, reference, results, facts, values, names, run.path, fp32_engine)
        write_results(run, result, measured=asked is not None)
        return result


def _grounds(evaluator: Evaluator, ready: Prepared, reference: Variant) -> Grounds:
    """What is known of the reference itself: where it has no number, and how steady it answers."""
    parts = [(reference.comparison, ready.chosen.names)]
    if reference.held_out is not None and ready.held_out is not None:
        parts.append((reference.held_out, ready.held_out.names))
    few = spaced_samples(ready.chosen, reference.comparison)
    steady = evaluator.steadiness(partial(steadiness, ready.local, evaluator.judging), few)
    return Grounds(undefined_outputs(evaluator.model, parts), steady)


def _said_of(model: Model) -> list[str]:
    """What is to be known of a model before its figures."""
    cut = None if model.tail is None else f"{model.path.name}: {model.tail.text}"
    return [said for said in (cut, quantized_already(model), own_types(model), *tensorrt_notes(model)) if said]


def _compiled_layers(
    backend: str,
    model: Model,
    ready: Prepared,
    how: EngineOptions,
    folder: Path,
    options: Options,
    see: Observer,
) -> tuple[Model, Fusions]:
    """The model with the fusions of an engine as its layers: in half precision where that is swept, else in float32."""
    precision = Precision.FP16 if Precision.FP16 in options.precisions else Precision.FP32
    with ready.engines(backend, how, folder, see) as engines:
        kernels = engines.kernels(precision)
    found, fusions = with_compiled_layers(model, completed(model, kernels))
    see.note(fusions.text)
    return found, fusions


def _needs_ranges(options: Options, plan: PrecisionPlan | None) -> bool:
    return any_quantized((*options.precisions, *(plan.precisions if plan else ())))


def _default_folder(model: Model, plan: PrecisionPlan | None) -> Path:
    """`reports/<model>`; measuring a plan must not overwrite the sweep that found it."""
    return Path("reports") / (model.name if plan is None else f"{model.name}-plan")


def _context(model: Model, ready: Prepared, options: Options, engines: TensorRTBackend | None) -> dict[str, Any]:
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
        "device": ready.local.place.name,
        "cuts": ready.local.cuts,  # of the memory budget only this: the last bits of a pooling may hang on it
        "statistics": STATISTICS,
        "rules": RULES,
        "weights": WEIGHT_SCALES,
        "versions": versions(),
    }
