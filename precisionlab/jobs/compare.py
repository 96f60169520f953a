"""Comparing a second model that the user brings with the first: layer by layer, on the same samples."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from precisionlab.backends.second import SecondRun
from precisionlab.backends.steadiness import steadiness
from precisionlab.compare.comparison import Comparison
from precisionlab.compare.judging import Judging
from precisionlab.compare.metrics import Scope
from precisionlab.compare.tolerance import Tolerance, default_tolerance, parse_tolerance
from precisionlab.errors import OptionError
from precisionlab.evaluate.journal import NoJournal
from precisionlab.evaluate.prepare import Prepared, Source, prepare
from precisionlab.evaluate.run_results import RunResults
from precisionlab.evaluate.samples import spaced_samples
from precisionlab.jobs.objects import DataSource, MetricSource, ModelSource, takes_objects
from precisionlab.jobs.result import CompareResult
from precisionlab.model import Model, load_model
from precisionlab.model.other import OtherModel, load_other
from precisionlab.model.selections import moving_layers
from precisionlab.model.twins import Twins, operator_of, twins_of
from precisionlab.precision import Precision
from precisionlab.results.compare import CompareRow, compare_json, compare_verdict
from precisionlab.search.grounds import Grounds
from precisionlab.search.undefined import undefined_outputs
from precisionlab.system.disk import drafted, told, write_whole
from precisionlab.system.lock import held_folder
from precisionlab.system.notebook import observer_of
from precisionlab.system.observer import Observer
from precisionlab.system.parsing import check_at_least, check_workers, parse_memory
from precisionlab.system.versions import versions
from precisionlab.system.wording import counted

_RESULT, _ROWS, _PAGE = "compare.json", "compare.csv", "compare.html"
_QUARTER = 4
"""The share of the memory that one sample's values may take: sessions, weights and copies are there too."""


@takes_objects
def compare(
    model: ModelSource,
    other: ModelSource,
    data: DataSource,
    *,
    tolerance: str | Iterable[str] = (),
    metric: MetricSource | None = None,
    match: Mapping[str, str] | None = None,
    samples: int | None = None,
    seed: int = 0,
    threads: int | None = None,
    memory: str | int | None = None,
    skip_bad: bool = False,
    out: str | Path | None = None,
    save_outputs: str | Path | None = None,
    page: bool = True,
    observer: Observer | None = None,
) -> CompareResult:
    """Hold a second model beside the first in float32, tensor by tensor, on the same samples.

    `other` is any ONNX file that ONNX Runtime can run: with Q/DQ nodes, in FP16, made by another tool. It runs as it is
    written; what it has in half is rounded after each node. Tensors are twins by their names, by `match` (ours →
    theirs), or where the same operator makes them of twins and the same constants. `tolerance` is what counts as right
    on the worst output, by default what its precision is held to: that of INT8 where it quantises, else that of FP16.
    Writes compare.json, compare.csv and compare.html (not without `page`) to `out`, by default
    `reports/<model>-vs-<other>`; `save_outputs` is a file for both models' outputs as Polygraphy's RunResults.

    Raises PrecisionLabError for input that cannot be used: ModelError where inputs or outputs do not fit.
    """
    started = time.perf_counter()
    observer = observer_of(observer)
    check_at_least(1, samples=samples)
    check_at_least(0, seed=seed)
    check_workers(threads)
    bounds = parse_tolerance([tolerance] if isinstance(tolerance, str) else tolerance)
    first, second = load_model(Path(model)), load_other(Path(other))
    twins = twins_of(first, second, match or {})
    bounds = bounds or default_tolerance(Precision.INT8 if second.is_quantized else Precision.FP16)
    _check_metric(bounds, metric)
    folder = Path(out) if out is not None else Path("reports") / f"{first.name}-vs-{second.name}"
    with held_folder(folder, observer.note):
        ready = prepare(
            first, Source(data, {}, samples, seed, 0.0, skip_bad), metric, threads, None, observer, parse_memory(memory)
        )
        judging = ready.with_groups(ready.judging(bounds), NoJournal(), observer)
        _check_judged(judging, twins, bounds, second)
        run = SecondRun(ready.local.model, second, twins, judging, ready.local.threads)
        kept = RunResults(
            (f"first {first.path.name}", f"second {second.path.name}"), [info.name for info in first.outputs]
        )
        comparison = _compared(run, ready, second, kept if save_outputs is not None else None, observer)
        _check_figures(bounds, comparison)
        few = spaced_samples(ready.dataset, comparison)
        observer.stage("how steady the first model is", len(few))
        grounds = Grounds(
            undefined_outputs(ready.local.model, [(comparison, ready.dataset.names)]),
            steadiness(ready.local, judging, few),
        )
        rows = tuple(_rows(ready.local.model, second, twins, comparison))
        result = CompareResult(
            model=first.path.name,
            other=second.path.name,
            rows=rows,
            alone=twins.alone(second),
            comparison=comparison,
            tolerance=bounds,
            verdict=compare_verdict(comparison, bounds, grounds, rows),
            notes=tuple(_notes(first, second, twins, judging)),
            facts={
                **_facts(first, second, ready, seed, metric, time.perf_counter() - started),
                "match": dict(match or {}),
            },
            folder=folder,
        )
        _write(result, page)
        if save_outputs is not None:
            kept.write(Path(save_outputs))
    return result


def _compared(
    run: SecondRun, ready: Prepared, second: OtherModel, kept: RunResults | None, observer: Observer
) -> Comparison:
    def stage(number: int, of: int) -> None:
        part = f", part {number} of {of}" if of > 1 else ""
        observer.stage(f"{second.path.name} beside the first{part}", len(ready.dataset))

    assert ready.local.memory is not None
    budget = ready.local.memory // _QUARTER
    show = (lambda first, second: None) if kept is None else kept.add
    return run.compare(ready.dataset, ready.metric, budget, stage, observer.advance, show)


def _check_metric(bounds: Tolerance, metric: str | None) -> None:
    asked = [bound for bound in bounds if bound.of_metric.scope is Scope.TASK]
    if asked and metric is None:
        raise OptionError(f"tolerance {asked[0]}: there is no task metric; name one with --metric")


def _check_figures(bounds: Tolerance, comparison: Comparison) -> None:
    """Raises OptionError for a figure that nothing in the model has."""
    for bound in bounds:
        if bound.of_metric.scope is Scope.OUTPUT and not comparison.figures(bound.metric, bound.output):
            about = "no output of the model" if bound.output is None else bound.output
            raise OptionError(f"tolerance {bound} cannot be judged: {about} has no {bound.of_metric.title}")


def _check_judged(judging: Judging, twins: Twins, bounds: Tolerance, other: OtherModel) -> None:
    """Raises OptionError for a bound that names a tensor whose twin is not known."""
    ends = {twin.ours for twin in twins.outputs} | twins.tensors.keys()
    for tensor in judging.tensors:
        names = {tensor.name, *(part.name for part in tensor.parts)}
        bound = next((bound for bound in bounds if bound.output in names), None)
        if bound is not None and tensor.name not in ends:
            raise OptionError(
                f"tolerance {bound}: {other.path} has no tensor that is known to be {tensor.name!r}; "
                f"name it with --match {tensor.name}=THEIRS"
            )


def _rows(model: Model, other: OtherModel, twins: Twins, comparison: Comparison) -> Iterable[CompareRow]:
    floats = {name for name, info in model.tensors.items() if info.dtype is not None and info.dtype.is_floating_point()}
    moving = moving_layers(model)
    for layer in model.layers:
        for tensor in (name for name in layer.outputs if name in floats):
            twin = twins.tensors.get(tensor)
            if twin is None or tensor not in comparison.inherited:
                why = "its name has another shape there" if tensor in twins.other_shape else "no twin is certain"
                yield CompareRow(layer.name, layer.kind, tensor, "", "", "", "", None, None, why)
                continue
            kind = other.types.get(twin.read)
            yield CompareRow(
                layer.name,
                layer.kind,
                tensor,
                twin.read,
                twin.by.value,
                operator_of(other.values[twin.theirs]),
                "" if kind is None else kind.name.lower(),
                None if layer.name in moving.so_far else comparison.inherited[tensor],
                None if layer.name in moving.own else comparison.introduced[tensor],
                "its rows are picked by value, and may stand elsewhere" if layer.name in moving.so_far else "",
            )


def _notes(model: Model, other: OtherModel, twins: Twins, judging: Judging) -> Iterable[str]:
    if model.sha256 == other.sha256:
        yield "both files hold the same bytes"
    yield from (f"{note[:1].upper()}{note[1:]}." for note in twins.notes)
    if model.halves or any(layer.own is not None for layer in model.layers):
        yield "The first model holds half, and is the reference in float32, with the same weights."
    if halves := len(other.halves):
        yield (
            f"{counted(halves, 'tensor')} of the second model {'is' if halves == 1 else 'are'} in half: computed in "
            "float32, and rounded after each node; what its kernels add up in is not in these figures."
        )
    yield from judging.notes


def _facts(
    model: Model, other: OtherModel, ready: Prepared, seed: int, metric: str | None, seconds: float
) -> dict[str, Any]:
    import onnxruntime

    data = ready.dataset
    origin = str(Path(data.origin).absolute()) if Path(data.origin).exists() else data.origin
    return {
        "model": {"path": str(model.path.absolute()), "sha256": model.sha256},
        "other": {"path": str(other.path.absolute()), "sha256": other.sha256},
        "data": {"origin": origin, "sha256": data.sha256, "samples": len(data), "seed": seed},
        "metric": metric,
        "figures": "computed in float32 by ONNX Runtime's CPU provider, node by node",
        "created": time.strftime("%Y-%m-%dT%H:%M:%S"),
        "seconds": round(seconds, 3),
        "versions": {**versions(), "onnxruntime": str(onnxruntime.__version__)},
    }


def _write(result: CompareResult, page: bool) -> None:
    from precisionlab.report.compare import compare_page
    from precisionlab.report.csvfile import to_csv

    assert result.folder is not None
    text = json.dumps(compare_json(result), indent=1, ensure_ascii=False, allow_nan=False)
    with told(result.folder, "choose another folder with --out"), drafted(result.folder, _RESULT) as drafts:
        write_whole(drafts / _RESULT, text + "\n")
        write_whole(drafts / _ROWS, to_csv(result.table))
        if page:
            write_whole(drafts / _PAGE, compare_page(result))
