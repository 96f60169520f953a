"""The main job: reference → variants → comparison → ranking → pins → the mixed variant, measured again."""

from __future__ import annotations

import datetime
import hashlib
import importlib
import importlib.metadata
import json
import math
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from precisionlab.backends import choose_backend
from precisionlab.backends.base import Backend
from precisionlab.calibration.table import CalibrationTable
from precisionlab.calibration.thresholds import AUTO, DEFAULT_METHOD, METHODS, table_of
from precisionlab.compare.comparison import Comparison
from precisionlab.compare.task import Accuracy, Outputs, TaskMetric, load_metric
from precisionlab.compare.tolerance import Tolerance, closeness, default_tolerance, meets, parse_tolerance
from precisionlab.data import Dataset, open_dataset, random_dataset
from precisionlab.errors import DataError, OptionError, PrecisionLabError
from precisionlab.model import Model, load_model
from precisionlab.observer import Observer, Silent
from precisionlab.options import check_at_least, check_calibration
from precisionlab.precision import Pin, Precision, PrecisionPlan, plan_files, read_plan
from precisionlab.ranges import best_table
from precisionlab.results import PrecisionResult, SweepResult, Variant
from precisionlab.rewrite.flow import int8_operands, precision_of, with_held_pins
from precisionlab.rewrite.gates import check_opset
from precisionlab.run import RunFolder
from precisionlab.samples import checked
from precisionlab.search.causes import causes
from precisionlab.search.pins import Verdict, find_pins, most_evaluations
from precisionlab.search.rank import Ranking, rank
from precisionlab.search.starts import nonfinite_starts
from precisionlab.versions import versions


@dataclass(frozen=True)
class Options:
    """What the user asked for. `tolerance` empty: the default of each precision."""

    precisions: tuple[Precision, ...] = (Precision.FP16, Precision.INT8)
    tolerance: Tolerance = ()
    max_pins: int | None = None
    around: Precision = Precision.FP32
    calibration: str | None = None
    metric: str | None = None

    def tolerance_of(self, precision: Precision) -> Tolerance:
        """The tolerance that this precision is held to."""
        return self.tolerance or default_tolerance(precision)


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
    plan: str | Path | None = None,
    max_pins: int | None = None,
    threads: int | None = None,
    around: str = "fp32",
    calibration: str | None = None,
    metric: str | None = None,
    shapes: Mapping[str, tuple[int, ...]] | None = None,
    skip_bad: bool = False,
    observer: Observer | None = None,
) -> SweepResult:
    """Find the layers of an ONNX model that break in low precision, pin them, and check the result.

    `data` is a folder of samples; without it the inputs are random, which finds the wrong layers.
    `precisions` are swept one after the other, each held to `tolerance` (such as "sqnr>=30"). With `plan`
    that plan alone is built and measured, and nothing is searched. `around` is the precision of the
    float layers around int8 ones, `calibration` the method that finds int8 ranges (entropy,
    capped, percentile, mse, max, auto).
    `skip_bad` goes on past samples that cannot be used. `metric` names the user's own task metric,
    `package.module:name`.
    The files of the run go to `out`, by default `reports/<model>`; a run that was killed goes on from
    there.

    Raises PrecisionLabError (ModelError, DataError, PlanError, OptionError) for input that cannot be used.
    """
    started = time.perf_counter()
    see = observer or Silent()
    options = Options(
        precisions=_precisions(precisions),
        tolerance=parse_tolerance([tolerance] if isinstance(tolerance, str) else tolerance),
        max_pins=max_pins,
        around=_around(around),
        calibration=calibration,
        metric=metric,
    )
    check_calibration(calibration)
    check_at_least(0, max_pins=max_pins, seed=seed)
    check_at_least(1, samples=samples, threads=threads)
    loaded = load_model(Path(model))
    asked = None
    if plan is not None:
        asked = read_plan(Path(plan), loaded.sha256, {layer.name: layer.nodes for layer in loaded.layers})
        check_calibration(asked.calibration)
        options = replace(options, precisions=(asked.default,), around=asked.around)
    _check_opset(loaded, options, asked)
    dataset = checked(_dataset(loaded, data, shapes or {}, samples, seed), skip_bad, see)
    user_metric = _metric_of(options, dataset)
    ready = choose_backend(backend, loaded, next(iter(dataset)), threads)
    run = RunFolder(Path(out) if out else _default_folder(loaded, asked), _context(loaded, dataset, options, ready))
    job = _Job(ready, dataset, options, run, see, user_metric)

    try:
        reference = job.reference()
        _check_tolerance(options, reference.comparison)
        methods = job.calibrate() if _needs_ranges(options, asked) else {}
    except PrecisionLabError:
        run.discard()  # labels or a tolerance that only the reference could show to be wrong
        raise
    if asked:
        results: tuple[PrecisionResult, ...] = (job.measure(asked, methods),)
    else:
        results = tuple(
            job.int8(methods) if p is Precision.INT8 else job.search(p, None, None) for p in options.precisions
        )
    facts = _facts(job, results, time.perf_counter() - started)
    result = SweepResult(ready.model, reference, results, facts, run.path)
    _write(run, result, measured=asked is not None)
    return result


@dataclass(frozen=True)
class _Job:
    """One sweep under way: what is compared with what, and where results are noted."""

    backend: Backend
    dataset: Dataset
    options: Options
    run: RunFolder
    see: Observer
    metric: Callable[[], TaskMetric] | None
    done: dict[str, Comparison] = field(default_factory=dict)

    @property
    def model(self) -> Model:
        return self.backend.model

    def calibrate(self) -> Mapping[str, CalibrationTable]:
        """By each method the ranges of every tensor that an int8 layer quantises; from one pass."""
        operands = dict.fromkeys(name for layer in self.model.layers for name in int8_operands(self.model, layer))
        self.see.stage("int8 ranges", len(self.dataset))
        collector = self.backend.collector(tuple(operands))
        collector.add(self.dataset, self.see.advance)
        found, samples = collector.histograms(), len(self.dataset)
        return {name: table_of(found, name, samples) for name in METHODS}

    def ranges(self, methods: Mapping[str, CalibrationTable], method: str) -> CalibrationTable:
        """The ranges by one method, or the best of all."""
        return best_table(self.model, methods, self._with_ranges, self.see) if method == AUTO else methods[method]

    def _with_ranges(self, name: str, table: CalibrationTable, introduced: bool) -> Comparison:
        plan = with_held_pins(self.model, PrecisionPlan(self.model.sha256, Precision.INT8), table)
        title = "int8" if name == DEFAULT_METHOD else f"int8, ranges by {name}"
        return self._compare(title, plan, table, introduced=introduced)

    def reference(self) -> Variant:
        """The fp32 variant."""
        plan = PrecisionPlan(self.model.sha256, Precision.FP32)
        return self._variant("fp32", plan, self._compare("fp32", plan, None, introduced=False), Precision.FP32)

    def int8(self, methods: Mapping[str, CalibrationTable]) -> PrecisionResult:
        """As `search`; but where the default ranges do not hold, better ones are tried before any pin.

        Ranges cost nothing at run time, pins do. They are judged with float32 around the int8 layers, whatever
        `around` is: what fp16 does there is not theirs to mend.
        """
        asked = self.options.calibration
        if asked is not None:
            return self.search(Precision.INT8, asked, self.ranges(methods, asked))
        default = methods[DEFAULT_METHOD]
        low = self._with_ranges(DEFAULT_METHOD, default, introduced=True)
        tolerance = self.options.tolerance_of(Precision.INT8)
        if not meets(low, tolerance):
            self.see.note(f"int8 with {DEFAULT_METHOD} ranges{_figures(low, tolerance)}: trying others before any pin")
            best = self.ranges(methods, AUTO)
            if best.digest != default.digest:
                return self.search(Precision.INT8, AUTO, best)
        return self.search(Precision.INT8, DEFAULT_METHOD, default)

    def search(self, precision: Precision, method: str | None, table: CalibrationTable | None) -> PrecisionResult:
        """Compare one low precision, and pin layers until its tolerance holds."""
        low_plan = PrecisionPlan(self.model.sha256, precision, around=self.options.around, calibration=method)
        low_plan = with_held_pins(self.model, low_plan, table)
        low = self._compare(f"{precision}", low_plan, table, introduced=True)
        touched = [layer for layer in self.model.layers if precision_of(layer, low_plan) is not Precision.FP32]
        ranking = rank(touched, low.introduced)
        why = causes(self.model, low_plan, low.inherited, low.introduced)
        tolerance = self.options.tolerance_of(precision)
        evaluated = {frozenset[str](): low}

        def plan_of(pins: frozenset[str]) -> PrecisionPlan:
            chosen = [name for name in ranking.order if name in pins]
            added = (self._pin(name, self._reason(name, why, low, ranking)) for name in chosen)
            return low_plan.with_pins((*low_plan.pins, *added))

        def evaluate(pins: frozenset[str]) -> Verdict:
            if pins not in evaluated:
                title = f"{precision}, plan {len(evaluated)}: {_count(len(pins), 'pin')}"
                found = self._judge(title, plan_of(pins), table, low)
                if meets(found, tolerance):  # nothing is accepted but by a whole comparison
                    found = self._compare(f"{title}, in full", plan_of(pins), table, introduced=False)
                evaluated[pins] = found
                self.see.note(_progress(pins, found, tolerance))
            found = evaluated[pins]
            return Verdict(
                meets(found, tolerance),
                closeness(found, tolerance),
                nonfinite_starts(self.model, found, {layer.name for layer in touched} - pins),
            )

        if not meets(low, tolerance) and touched:
            self.see.note(
                f"{precision}: {', '.join(map(str, tolerance))} does not hold; searching {len(touched)} layers, "
                f"at most {most_evaluations(len(touched))} plans of under {low.seconds:.1f} s each until one holds, "
                "then pins are released one group after the other"
            )
        found = find_pins(ranking, evaluate, self.options.max_pins)
        low_variant = self._variant(f"{precision}", low_plan, low, precision)
        mixed = low_variant
        if found.pins:
            plan = plan_of(found.pins)
            again = self._compare(f"{precision} mixed, measured again", plan, table, introduced=False, verify=True)
            mixed = self._variant(f"{precision} mixed", plan, again, precision)
        return PrecisionResult(precision, low_variant, mixed, ranking.order, why, len(evaluated), table)

    def measure(self, plan: PrecisionPlan, methods: Mapping[str, CalibrationTable]) -> PrecisionResult:
        """Compare the user's own plan, beside the same precision without pins."""
        table = None
        if methods:
            method = self.options.calibration or plan.calibration or DEFAULT_METHOD
            table, plan = self.ranges(methods, method), replace(plan, calibration=method)
        precision = plan.default
        bare = with_held_pins(self.model, plan.with_pins(()), table)
        plan = with_held_pins(self.model, plan, table)
        low = self._compare(f"{precision}", bare, table, introduced=True)
        touched = [layer for layer in self.model.layers if precision_of(layer, bare) is not Precision.FP32]
        mixed = self._compare(f"{precision} mixed: {_count(len(plan.pins), 'pin')}", plan, table, introduced=False)
        return PrecisionResult(
            precision,
            self._variant(f"{precision}", bare, low, precision),
            self._variant(f"{precision} mixed", plan, mixed, precision),
            rank(touched, low.introduced).order,
            causes(self.model, bare, low.inherited, low.introduced),
            2,
            table,
        )

    def _compare(
        self, title: str, plan: PrecisionPlan, table: CalibrationTable | None, *, introduced: bool, verify: bool = False
    ) -> Comparison:
        """Compare the variant in full."""
        kind = {"introduced": introduced, "verify": verify}
        work = partial(self.backend.compare, metric=self.metric, introduced=introduced)
        return self._journalled(title, plan, table, kind, work)

    def _judge(self, title: str, plan: PrecisionPlan, table: CalibrationTable | None, known: Comparison) -> Comparison:
        """Compare the final outputs alone, and look for new NaN and Inf."""
        work = partial(self.backend.judge, metric=self.metric, known=known)
        return self._journalled(title, plan, table, {"judge": True}, work)

    def _journalled(
        self,
        title: str,
        plan: PrecisionPlan,
        table: CalibrationTable | None,
        kind: Mapping[str, bool],
        work: Callable[..., Comparison],
    ) -> Comparison:
        """What the journal knows already of this plan; else do the work, and note it there."""
        key = {
            "default": plan.default.value,
            "around": plan.around.value,
            "ranges": None if table is None else table.digest,
            "pins": {layer: p.value for layer, p in plan.pinned().items()},
            **kind,
        }
        name = json.dumps(key, sort_keys=True)
        if name not in self.done:
            if (known := self.run.known(key)) is not None:
                self.see.note(f"{title}: taken from the journal of an earlier run")
                self.done[name] = Comparison.from_dict(known)
            else:
                self.see.stage(title, len(self.dataset))
                self.done[name] = work(plan, table, self.dataset, self.see.advance)
                self.run.record(key, self.done[name].to_dict())
        return self.done[name]

    def _variant(self, name: str, plan: PrecisionPlan, comparison: Comparison, precision: Precision) -> Variant:
        tolerance = self.options.tolerance_of(precision)
        return Variant(name, plan, comparison, self.backend.figures, tolerance, meets(comparison, tolerance))

    def _pin(self, layer: str, reason: str) -> Pin:
        return Pin(layer, self.model.layer[layer].nodes, Precision.FP32, reason)

    def _reason(self, name: str, why: Mapping[str, str], low: Comparison, ranking: Ranking) -> str:
        if name in why:
            return why[name]
        errors = [low.introduced[o] for o in self.model.layer[name].outputs if o in low.introduced]
        place = f"rank {ranking.order.index(name) + 1} of {len(ranking.order)}"
        return f"{place}: {min(e.sqnr for e in errors):.1f} dB SQNR by itself" if errors else place


def _progress(pins: frozenset[str], found: Comparison, tolerance: Tolerance) -> str:
    outcome = "holds" if meets(found, tolerance) else "does not hold"
    return f"  {_count(len(pins), 'pin')}{_figures(found, tolerance)}: {outcome}"


def _figures(found: Comparison, tolerance: Tolerance) -> str:
    figures = [f"{b.metric} {found.worst(b.metric):.4g}" for b in tolerance]
    if found.nonfinite:
        figures.append(f"NaN or Inf in {_count(len(found.nonfinite), 'tensor')}")
    return f": {', '.join(figures)}"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _dataset(
    model: Model, data: str | Path | None, shapes: Mapping[str, tuple[int, ...]], samples: int | None, seed: int
) -> Dataset:
    if data is None:
        return random_dataset(model, shapes, seed)
    if shapes:
        raise OptionError("shapes are for random inputs; with a data folder the samples say the shapes")
    return open_dataset(data, model, samples, seed)


def _check_opset(model: Model, options: Options, plan: PrecisionPlan | None) -> None:
    """Raises ModelError where a precision asked for cannot be had at the model's opset."""
    for precision in options.precisions:
        check_opset(model.onnx, plan or PrecisionPlan(model.sha256, precision, around=options.around))


def _check_tolerance(options: Options, reference: Comparison) -> None:
    """Raises OptionError where the reference itself has not the figure that a tolerance asks for."""
    for precision in options.precisions:
        for bound in options.tolerance_of(precision):
            if math.isnan(reference.worst(bound.metric)):
                why = {
                    "metric": "the data has no labels with a metric",
                    "metric_drop": "the data has no labels with a metric",
                    "top1": "no output of the model has a class axis",
                }.get(bound.metric, "the model has no float32 output that is finite in the reference")
                raise OptionError(f"tolerance {bound} cannot be judged: {why}")


def _metric_of(options: Options, dataset: Dataset) -> Callable[[], TaskMetric] | None:
    manifest = dataset.manifest
    if options.metric is None and manifest.metric is None:
        return None
    if not dataset.is_labelled:
        if dataset.is_random:
            raise DataError("no data folder: random inputs have no labels, which the metric needs")
        missing = next(name for name in dataset.names if name not in dataset.labels)
        raise DataError(f"{dataset.origin}: sample {missing} has no label, which the metric needs")
    if options.metric is not None:
        return _users_own(options.metric)
    outputs = [info.name for info in dataset.model_outputs]
    return partial(Accuracy, manifest.output or outputs[0])


def _users_own(spec: str) -> Callable[[], TaskMetric]:
    """The user's metric; what goes wrong inside it is told as an OptionError that names the line."""

    @contextmanager
    def told() -> Iterator[None]:
        try:
            yield
        except PrecisionLabError:
            raise
        except Exception as error:
            frame = traceback.extract_tb(error.__traceback__)[-1]
            what = " ".join(f"{type(error).__name__}: {error}".split())
            raise OptionError(f"metric {spec!r}: {what} ({frame.filename}, line {frame.lineno})") from error

    class Told:
        def __init__(self) -> None:
            with told():
                self._metric = made()
                self.name = str(getattr(self._metric, "name", spec.rpartition(":")[2]))
                self.higher_is_better = bool(getattr(self._metric, "higher_is_better", True))

        def update(self, outputs: Outputs, label: str) -> None:
            with told():
                self._metric.update(outputs, label)

        def compute(self) -> float:
            with told():
                return float(self._metric.compute())

    with told():
        made = load_metric(spec)
    return Told


def _needs_ranges(options: Options, plan: PrecisionPlan | None) -> bool:
    pinned = {pin.precision for pin in plan.pins} if plan else set()
    return Precision.INT8 in {*options.precisions, *pinned}


def _precisions(texts: str | Iterable[str]) -> tuple[Precision, ...]:
    parts = texts.split(",") if isinstance(texts, str) else list(texts)
    found = tuple(dict.fromkeys(Precision.parse(text) for text in parts))
    if not found or Precision.FP32 in found:
        raise OptionError("precisions are the low ones to sweep: fp16, bf16, int8 (fp32 is always measured)")
    return found


def _around(text: str) -> Precision:
    precision = Precision.parse(text)
    if precision is Precision.INT8:
        raise OptionError("around is the precision of the float layers: fp32, fp16 or bf16")
    return precision


def _default_folder(model: Model, plan: PrecisionPlan | None) -> Path:
    """`reports/<model>`; measuring a plan must not overwrite the sweep that found it."""
    return Path("reports") / (model.name if plan is None else f"{model.name}-plan")


def _context(model: Model, dataset: Dataset, options: Options, backend: Backend) -> dict[str, Any]:
    """What finished evaluations depend on: with another context none of them is taken over."""
    return {
        "model": model.sha256,
        "data": dataset.sha256,
        "samples": [] if dataset.is_random else list(dataset.names),
        "shapes": {name: list(shape) for name, shape in dataset.random_shapes.items()},
        "metric": options.metric and [options.metric, _source(options.metric)],
        "backend": backend.name,
        "versions": versions(),
    }


def _source(metric: str) -> str:
    """The hash of the file that holds the user's metric: its figures are void once it was edited."""
    module = metric.rpartition(":")[0]
    path = module if module.endswith(".py") else getattr(importlib.import_module(module), "__file__", None)
    return hashlib.sha256(Path(path).read_bytes()).hexdigest() if path else ""


def _facts(job: _Job, results: Sequence[PrecisionResult], seconds: float) -> dict[str, Any]:
    """The content of `run.json`."""
    dataset, model = job.dataset, job.model
    return {
        "precisionlab": importlib.metadata.version("precisionlab"),
        "versions": {**versions(), "python": sys.version.split()[0]},
        "command": [Path(sys.argv[0]).name.replace("__main__.py", "precisionlab"), *sys.argv[1:]],
        "created": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "backend": job.backend.name,
        "figures": job.backend.figures,
        "model": {"path": str(model.path), "sha256": model.sha256, "layers": len(model.layers)},
        "data": {
            "folder": None if dataset.is_random else dataset.origin,
            "name": dataset.manifest.name,
            "description": dataset.manifest.description,
            "samples": len(dataset),
            "skipped": [bad.name for bad in dataset.skipped],
            "look": None if dataset.look is None else dataset.look.to_dict(),
            "random": dataset.is_random,
            "sha256": dataset.sha256,
            "seed": dataset.seed,
        },
        "tolerance": {p.value: ", ".join(map(str, job.options.tolerance_of(p))) for p in job.options.precisions},
        "threads": job.backend.threads,
        "seconds": round(seconds, 3),
        "precisions": {r.precision.value: _precision_facts(model, r) for r in results},
    }


def _precision_facts(model: Model, result: PrecisionResult) -> dict[str, Any]:
    first = result.first_nonfinite
    layer = next((layer.name for layer in model.layers if first in layer.outputs), None)
    return {
        "met": result.met,
        "pins": len(result.mixed.plan.pins),
        "touched": len(result.ranked),
        "evaluations": result.evaluations,
        "first_nonfinite": first,
        "first_nonfinite_layer": layer,
        "table": None
        if result.table is None
        else f"{result.low.plan.calibration} over {_count(result.table.samples, 'sample')}",
    }


def _write(run: RunFolder, result: SweepResult, measured: bool) -> None:
    from precisionlab.report.html import render

    # The plans of an earlier search would contradict this one. A plan that the user had measured may be one
    # of them, and a file of another name is the user's own: those stay.
    if not measured:
        for name in ("plan.json", *(f"plan.{p}.json" for p in Precision)):
            (run.path / name).unlink(missing_ok=True)
    files = plan_files(result.plans)
    for found in result.precisions:
        content = {**found.mixed.plan.to_dict(), **_plan_evidence(found)}
        run.write(files[found.precision.value], json.dumps(content, indent=2, ensure_ascii=False) + "\n")
    run.write("variants.csv", result.variants.to_csv(index=False))
    run.write("layers.csv", result.layers.to_csv(index=False))
    run.write("run.json", json.dumps(result.run, indent=2, ensure_ascii=False) + "\n")
    run.write("report.html", render(result.run, result.variants, result.layers, result.plans))


def _plan_evidence(result: PrecisionResult) -> dict[str, Any]:
    """What speaks for the plan: whether it holds its tolerance, and the figures without and with pins."""
    bounds = result.mixed.tolerance
    return {
        "tolerance": [str(b) for b in bounds],
        "met": result.met,
        "figures": result.mixed.figures,
        "samples": result.mixed.comparison.samples,
        "without_pins": {b.metric: _json_number(result.low.comparison.worst(b.metric)) for b in bounds},
        "with_pins": {b.metric: _json_number(result.mixed.comparison.worst(b.metric)) for b in bounds},
    }


def _json_number(value: float) -> float | str:
    """JSON has no NaN and no infinity: they stand as the words "nan", "inf" and "-inf"."""
    return value if abs(value) < float("inf") else str(value)
