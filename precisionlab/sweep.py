"""The main job: reference → variants → comparison → ranking → pins → the mixed variant, measured again."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Mapping
from contextlib import ExitStack, nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from precisionlab.backends import EMULATION, RTX, place_of, which_backend
from precisionlab.backends.steadiness import steadiness
from precisionlab.calibration.table import CalibrationTable
from precisionlab.calibration.thresholds import AUTO, DEFAULT_METHOD, table_of
from precisionlab.compare.comparison import Comparison
from precisionlab.compare.errors import STATISTICS
from precisionlab.compare.tolerance import meets, parse_tolerance
from precisionlab.deadline import Deadline, Spent, Watched
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
from precisionlab.pinning import PinSearch, figures_text
from precisionlab.precision import Precision, PrecisionPlan, read_plan
from precisionlab.prepare import Prepared, Source, parse_holdout, prepare
from precisionlab.ranges import chosen_ranges, compared_with
from precisionlab.report.files import run_facts, write_results
from precisionlab.results import EngineVariant, PrecisionResult, SampleNames, SweepResult, Variant
from precisionlab.rewrite.flow import precision_of, with_held_pins
from precisionlab.rewrite.gates import WEIGHT_SCALES, check_opset
from precisionlab.rewrite.observe import is_observed
from precisionlab.run import RunFolder
from precisionlab.samples import spaced_samples
from precisionlab.search.causes import causes
from precisionlab.search.cost import CostModel
from precisionlab.search.devices import find_device
from precisionlab.search.grounds import Grounds
from precisionlab.search.rank import rank
from precisionlab.search.undefined import undefined_outputs
from precisionlab.values import observed_values
from precisionlab.verdict import Terms
from precisionlab.versions import RULES, versions
from precisionlab.wording import counted

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
    (entropy, capped, percentile, mse, max, auto). `skip_bad` goes on past samples that cannot be used. `metric`
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
    _check_opset(loaded, options, asked)
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
        job = _Job(evaluator, options, cost, stage)
        try:
            reference = job.reference()
            job.grounds = grounds = _grounds(evaluator, ready, reference)
            _check_tolerance(options, reference.comparison, grounds)
            _check_cost(options, cost)
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


class _Job:
    """One sweep under way."""

    def __init__(
        self, evaluator: Evaluator, options: Options, cost: CostModel, engines: EngineStage | None = None
    ) -> None:
        self._evaluator = evaluator
        self._options = options
        self._cost = cost
        self._engines = engines
        self._model = evaluator.model
        self.grounds = Grounds()
        """What its verdicts stand on, once the reference is known."""
        self._deadline = Deadline(options.budget)

    def results(self, methods: Mapping[str, CalibrationTable]) -> tuple[PrecisionResult, ...]:
        """Each low precision, one after the other; each may take an equal part of the time that is left."""
        found = []
        for place, precision in enumerate(self._options.precisions):
            part = self._deadline.part(1 / (len(self._options.precisions) - place))
            if precision is Precision.INT8:
                found.append(self._int8(methods, part))
            else:
                found.append(self._search(precision, None, None, part))
        return tuple(found)

    def reference(self) -> Variant:
        """The fp32 variant."""
        plan = PrecisionPlan(self._model.sha256, Precision.FP32)
        comparison = self._evaluator.compare("fp32", plan, None)
        tolerance = self._options.tolerance_of(Precision.FP32)
        held_out = self._evaluator.hold_to("fp32", plan, None)
        figures, cost = self._evaluator.backend.figures, self._cost.of(plan)
        return Variant("fp32", plan, comparison, figures, tolerance, meets(comparison, tolerance), held_out, cost)

    def reference_engine(self, reference: Variant) -> EngineVariant | None:
        """The model as an FP32 engine, TF32 off: what the GPU's own arithmetic does; None without engines."""
        if self._engines is None:
            return None
        self._engines.announce(self._options.precisions)
        return self._engines.measure("fp32", reference.plan, None, reference.tolerance)

    def _int8(self, methods: Mapping[str, CalibrationTable], deadline: Deadline) -> PrecisionResult:
        """As `_search`; but where the default ranges do not hold, better ones are tried before any pin.

        Ranges cost nothing at run time, pins do. They are judged with float32 around the int8 layers, whatever
        `around` is: what fp16 does there is not theirs to mend. Where there is no time for that, the default's stay.
        """
        asked, default = self._options.calibration, methods[DEFAULT_METHOD]
        tolerance = self._options.tolerance_of(Precision.INT8)
        low = compared_with(self._evaluator, DEFAULT_METHOD, default, introduced=True) if asked is None else None
        method = DEFAULT_METHOD
        if low is None:
            method = asked or DEFAULT_METHOD
        elif not meets(low, tolerance) and not self.grounds.unknown(tolerance):
            self._evaluator.see.note(
                f"int8 with {DEFAULT_METHOD} ranges{figures_text(low, tolerance)}: trying others before any pin"
            )
            method = AUTO
        watched = replace(self._evaluator, see=Watched(self._evaluator.see, deadline))
        try:
            table = chosen_ranges(watched, methods, method)
        except Spent as end:
            self._evaluator.see.note(f"int8: {end} while ranges were tried: those by {DEFAULT_METHOD} are taken")
            method, table = DEFAULT_METHOD, default
        if asked is None and table.digest == default.digest:
            method = DEFAULT_METHOD
        return self._search(Precision.INT8, method, table, deadline)

    def _search(
        self, precision: Precision, method: str | None, table: CalibrationTable | None, deadline: Deadline
    ) -> PrecisionResult:
        """Compare one low precision, and pin layers until its tolerance holds; on the GPU too, where there is one."""
        unknown = self.grounds.unknown(self._options.tolerance_of(precision))
        if self._engines is None:
            return self._judged(
                PinSearch(self._evaluator, self._options, self._cost, precision, method, table, deadline).run(unknown)
            )
        engines, wide = self._engines, self._engine_ranges(table)
        plan = PrecisionPlan(self._model.sha256, precision, around=self._options.around, calibration=method)
        bare = with_held_pins(self._model, plan, table)
        low = engines.measure(f"{precision}", bare, wide, self._options.tolerance_of(precision))
        # Times that were measured just now are what the search goes by, in place of estimates.
        search = PinSearch(self._evaluator, self._options, engines.cost, precision, method, table, deadline)
        found = self._judged(search.run(unknown))
        return replace(found, engine=engines.verify(found, low, wide))

    def _judged(self, found: PrecisionResult) -> PrecisionResult:
        """The result with what the reference leaves open of its verdict."""
        tolerance = self._options.tolerance_of(found.precision)
        return replace(found, unknown=self.grounds.unknown(tolerance), caveat=self.grounds.caveat(tolerance))

    def _engine_ranges(self, table: CalibrationTable | None) -> CalibrationTable | None:
        """The table with ranges for all that an int8 layer's nodes give too, its inside included.

        TensorRT looks at ranges before it fuses, and a layer that gives a tensor without one does not run in int8.
        Other layers get none, so that they stay in float as the plan has them. What is no operand gets its largest
        value, which clips nothing.
        """
        if table is None:
            return None
        nodes = [self._model.node[name] for layer in self._model.layers if layer.quantizable for name in layer.nodes]
        given = (str(value.name) for node in nodes for value in node.outputs if value.name)
        tensors = tuple(name for name in given if name not in table.ranges and is_observed(self._model, name))
        self._evaluator.see.stage("int8 ranges inside layers", len(self._evaluator.chosen))
        collector = self._evaluator.backend.collector(tensors)
        collector.add(self._evaluator.chosen, self._evaluator.see.advance)
        others = table_of(collector.histograms(), "max", table.samples)
        return CalibrationTable({**others.ranges, **table.ranges}, table.samples)

    def measure(self, plan: PrecisionPlan, methods: Mapping[str, CalibrationTable]) -> PrecisionResult:
        """Compare the user's own plan, beside the same precision without pins."""
        table = None
        if methods:
            method = self._options.calibration or plan.calibration or DEFAULT_METHOD
            table, plan = chosen_ranges(self._evaluator, methods, method), replace(plan, calibration=method)
        precision = plan.default
        bare = with_held_pins(self._model, plan.with_pins(()), table)
        plan = with_held_pins(self._model, plan, table)
        search = PinSearch(self._evaluator, self._options, self._cost, precision, plan.calibration, table)
        low = self._evaluator.compare(f"{precision}", bare, table, introduced=True)
        touched = [layer for layer in self._model.layers if precision_of(layer, bare) is not Precision.FP32]
        mixed = self._evaluator.compare(f"{precision} mixed: {counted(len(plan.pins), 'pin')}", plan, table)
        engine = None
        if self._engines is not None:
            wide, tolerance = self._engine_ranges(table), self._options.tolerance_of(precision)
            engine = self._engines.measure_plan(precision, bare, plan, wide, tolerance)
        return self._judged(
            PrecisionResult(
                precision,
                search.variant(f"{precision}", bare, low),
                search.variant(f"{precision} mixed", plan, mixed),
                rank(touched, low.introduced).order,
                causes(self._model, bare, low.inherited, low.introduced),
                2,
                table,
                engine=engine,
            )
        )


def _check_opset(model: Model, options: Options, plan: PrecisionPlan | None) -> None:
    """Raises ModelError where a precision asked for cannot be had at the model's opset."""
    for precision in options.precisions:
        check_opset(model.onnx, plan or PrecisionPlan(model.sha256, precision, around=options.around))


_WITHOUT_FLOATS = (
    "the model has no float output that is finite in the reference; "
    'for class numbers, masks and the like ask for "top1>=0.99", for others give a metric'
)


def _check_tolerance(options: Options, reference: Comparison, grounds: Grounds) -> None:
    """Raises OptionError where the reference itself has not the figure that a tolerance asks for."""
    for precision in options.precisions:
        for bound in options.tolerance_of(precision):
            if math.isnan(bound.of(reference)) and not grounds.unknown((bound,)):
                why = {
                    "metric": "the data has no labels with a metric",
                    "metric_drop": "the data has no labels with a metric",
                    "top1": "no output of the model has a class axis",
                }.get(bound.metric, _WITHOUT_FLOATS)
                raise OptionError(f"tolerance {bound} cannot be judged: {why}")


def _check_cost(options: Options, cost: CostModel) -> None:
    """Raises OptionError where the target has no arithmetic in a precision asked for."""
    for precision in (*options.precisions, options.around):
        if precision not in cost.device.compute:
            raise OptionError(f"target {cost.device.name} has no {precision}; choose another --target or precision")


def _needs_ranges(options: Options, plan: PrecisionPlan | None) -> bool:
    pinned = {pin.precision for pin in plan.pins} if plan else set()
    return Precision.INT8 in {*options.precisions, *pinned}


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
