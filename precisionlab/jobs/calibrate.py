"""Calibration: data → histograms → ranges → a TensorRT calibration cache, with its fingerprint and report."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import onnx_ir as ir

from precisionlab.backends import emulation, shared_out
from precisionlab.backends.base import Backend
from precisionlab.calibration.cache import write_cache
from precisionlab.calibration.export import onnxruntime_tables
from precisionlab.calibration.find import table_of
from precisionlab.calibration.fingerprint import Fingerprint
from precisionlab.calibration.histogram import Histogram
from precisionlab.calibration.methods import AUTO, DEFAULT_METHOD, DEFAULT_PERCENTILE, METHODS, PERCENTILE
from precisionlab.calibration.release_here import cache_release
from precisionlab.calibration.state import STATE_FILE, CalibrationState, read_state
from precisionlab.calibration.table import CalibrationTable, network_scales
from precisionlab.compare.comparison import Comparison
from precisionlab.data import Dataset, Sample, inside, open_dataset, read_manifest
from precisionlab.errors import DataError, OptionError
from precisionlab.evaluate.ranges import ChosenRanges, best_table
from precisionlab.evaluate.samples import checked
from precisionlab.jobs.objects import DataSource, ModelSource, takes_objects
from precisionlab.jobs.result import CalibrationResult
from precisionlab.model import Model, load_model
from precisionlab.model.quantized import own_flags
from precisionlab.precision import Precision
from precisionlab.rewrite.plans import plan_for
from precisionlab.search.options import check_calibration
from precisionlab.system.disk import drafted, told, write_whole, write_whole_bytes
from precisionlab.system.executors import open_executor
from precisionlab.system.lock import held_file, held_folder
from precisionlab.system.notebook import observer_of
from precisionlab.system.observer import Observer
from precisionlab.system.parsing import check_at_least, check_workers, parse_memory
from precisionlab.system.versions import versions

CACHE_FILE, PAGE_FILE = "calibration.cache", "calibration.html"
_SAVE_EVERY, _CHUNK = 5.0, 16  # seconds of work that a kill may cost, samples that are counted at a time
_ELSEWHERE = "choose another place"


@takes_objects
def calibrate(
    model: ModelSource | None = None,
    data: DataSource = "calib_data",
    *,
    method: str = DEFAULT_METHOD,
    percentile: float = DEFAULT_PERCENTILE,
    tensorrt: str | None = None,
    cache: str | Path | None = None,
    out: str | Path | None = None,
    samples: int | None = None,
    seed: int = 0,
    threads: int | None = None,
    memory: str | int | None = None,
    device: str = "cpu",
    processes: int | None = None,
    dask: str | None = None,
    shard: tuple[int, int] | None = None,
    skip_bad: bool = False,
    observer: Observer | None = None,
) -> CalibrationResult:
    """Find the INT8 ranges of every float tensor of a model from a folder of samples.

    Without a model, the one that the folder's manifest names. `method` is one of `METHODS`, or `auto`. The cache is for
    the given TensorRT version, by default the installed one; it is written to `cache`, by default `calibration.cache`
    in `out` (`reports/<model>-calibration`), with a JSON fingerprint beside it. `shard` (2, 8) takes only every eighth
    sample from the second on, and writes histograms to be merged. `processes` or a Dask cluster (the address of its
    scheduler) share the work, `memory` (such as "4G") is what each process may take. A run that was killed goes on from
    its histograms. All of that ends with the same bits.

    Raises PrecisionLabError for input that cannot be used.
    """
    observer = observer_of(observer)
    tensorrt = cache_release(tensorrt)
    _check(method, percentile, shard)
    check_at_least(1, samples=samples)
    check_workers(threads, processes)
    check_at_least(0, seed=seed)
    loaded = _loaded(model, data, observer)
    folder = _folder(out, loaded)
    with open_executor(processes, dask) or nullcontext() as executor, _held(folder, cache, observer):
        dataset = checked(open_dataset(data, loaded, samples, seed), skip_bad, observer)
        local = emulation(loaded, dataset, threads, parse_memory(memory), device)
        ready = shared_out(local, dataset, executor)
        tensors = calibrated_tensors(ready.model)
        context = {
            "model": loaded.sha256,
            "data": dataset.sha256,
            "samples": dataset.names if samples is not None else "all",
            "shard": list(shard) if shard else None,
            "tensors": len(tensors),
            "cuts": local.cuts["1"],
            "versions": versions(),
        }
        chosen = _of_shard(dataset, shard)
        state = _collect(ready, dataset, chosen, tensors, context, folder / STATE_FILE, observer)
        source = {
            "folder": str(data),
            "sha256": dataset.sha256,
            "samples": len(state.samples),
            "skipped": len(dataset.skipped),
        }
        if shard is not None:
            return CalibrationResult(
                ready.model, CalibrationTable({}, len(chosen)), {}, state.histograms, source, folder, None
            )
        return _finish(ready, dataset, state.histograms, source, method, percentile, tensorrt, folder, cache, observer)


def merge(
    model: str | Path | None,
    shards: Sequence[str | Path],
    data: str | Path,
    *,
    method: str = DEFAULT_METHOD,
    percentile: float = DEFAULT_PERCENTILE,
    tensorrt: str | None = None,
    cache: str | Path | None = None,
    out: str | Path | None = None,
    threads: int | None = None,
    memory: str | int | None = None,
    device: str = "cpu",
    observer: Observer | None = None,
) -> CalibrationResult:
    """Merge the histograms of shards (their folders), and go on as `calibrate` does: to the same bits.

    `data` is what the shards were counted from; samples that they left out (`samples`, `skip_bad`) stay out.

    Raises DataError where they do not belong together or to the data, or where one is missing or comes twice.
    """
    observer = observer_of(observer)
    tensorrt = cache_release(tensorrt)
    _check(method, percentile, None)
    check_workers(threads)
    loaded = _loaded(model, data, observer)
    states = [(Path(shard), read_state(_state_file(Path(shard)))) for shard in shards]
    _check_shards(loaded, states)
    counted = frozenset(name for _, state in states for name in state.samples)
    dataset = checked(open_dataset(data, loaded, None, 0), True, observer).only(counted)
    first, *others = (state for _, state in states)
    if dataset.sha256 != first.context.get("data"):
        raise DataError(
            f"{data}: not the samples that the shards were counted from, or not all of them, as after a kill; give "
            "their folder, unchanged, or run the shards again to their ends"
        )
    ready = emulation(loaded, dataset, threads, parse_memory(memory), device)
    tensors = calibrated_tensors(ready.model)
    for path, state in states:
        if tuple(state.histograms) != tensors:
            raise DataError(f"{path}: has the histograms of other tensors than the model's; run this shard again")
    histograms = dict(first.histograms)
    for state in others:
        histograms = {name: h.merge(state.histograms[name]) for name, h in histograms.items()}
    source = {
        "folder": str(data),
        "sha256": dataset.sha256,
        "samples": len(counted),
        "skipped": len(dataset.skipped),
    }
    folder = _folder(out, loaded)
    with _held(folder, cache, observer):
        return _finish(ready, dataset, histograms, source, method, percentile, tensorrt, folder, cache, observer)


def calibrated_tensors(model: Model) -> tuple[str, ...]:
    """The float32 tensors of the main graph, constants left out, in topological order.

    Those inside fused layers too: TensorRT calibrates before it fuses, and a cache without one of them
    keeps its layer from INT8.
    """
    values = [*model.onnx.graph.inputs, *(v for node in model.onnx.graph for v in node.outputs)]
    names = dict.fromkeys(str(v.name) for v in values if v.name)
    return tuple(name for name in names if model.tensors[name].dtype == ir.DataType.FLOAT)


def _collect(
    backend: Backend,
    dataset: Dataset,
    chosen: Sequence[str],
    tensors: tuple[str, ...],
    context: Mapping[str, Any],
    path: Path,
    observer: Observer,
) -> CalibrationState:
    """Count what has not been counted yet, and save now and then."""
    earlier = _earlier(path, context, tensors)
    done = list(earlier.samples) if earlier else []
    left = [name for name in chosen if name not in set(done)]
    observer.stage("histograms", len(chosen))
    if earlier:
        observer.note(f"going on after {len(done)} of {len(chosen)} samples")
        observer.advance(len(done))
        if not left:
            return earlier
    collector = backend.collector(tensors)
    if earlier:
        collector.restore(earlier.histograms)
    saved = time.monotonic()
    for names, batch in _batches(dataset.only(frozenset(left)), backend):
        collector.add(batch, partial(_advance, observer, len(done)))
        done += names
        if time.monotonic() - saved > _SAVE_EVERY:
            _save(path, CalibrationState(context, tuple(done), collector.histograms()))
            saved = time.monotonic()
    state = CalibrationState(context, tuple(done), collector.histograms())
    _save(path, state)
    return state


def _batches(dataset: Dataset, backend: Backend) -> Iterator[tuple[list[str], Iterable[Sample]]]:
    """The samples in batches, with their names; where other processes do the work, they are not read here."""
    if backend.workers > 1:
        step = _CHUNK * backend.workers
        for start in range(0, len(dataset), step):
            names = list(dataset.names[start : start + step])
            yield names, dataset.only(frozenset(names))
        return
    samples = iter(dataset)
    while batch := list(islice(samples, _CHUNK)):
        yield [sample.name for sample in batch], batch


def _advance(observer: Observer, before: int, count: int) -> None:
    observer.advance(before + count)


def _finish(
    backend: Backend,
    dataset: Dataset,
    histograms: Mapping[str, Histogram],
    source: Mapping[str, Any],
    method: str,
    percentile: float,
    tensorrt: str,
    folder: Path,
    cache: str | Path | None,
    observer: Observer,
) -> CalibrationResult:
    from precisionlab.report.calibration import render_calibration
    from precisionlab.report.csvfile import to_csv

    values = {name: percentile if found.parameter is PERCENTILE else found.default for name, found in METHODS.items()}
    methods = {name: table_of(histograms, name, int(source["samples"]), value) for name, value in values.items()}
    chosen = _best(backend, dataset, methods, observer) if method == AUTO else ChosenRanges(methods[method])
    table, shown_by = chosen.table, (chosen.measured, Path.cwd())
    path = Path(cache) if cache else folder / CACHE_FILE
    content = write_cache(network_scales(table, backend.model.gone), tensorrt)
    fingerprint = Fingerprint.of(
        model_path=str(backend.model.path),
        model_sha256=backend.model.sha256,
        data=source,
        method=METHODS[method].called(values[method]) if method in METHODS else method,
        tensorrt=tensorrt,
        versions=versions(),
        cache=content,
        table=table,
    )
    facts = (known := fingerprint.facts()) | {"cache": {**known["cache"], "path": str(path)}}
    result = CalibrationResult(backend.model, table, methods, histograms, facts, folder, path)
    beside = path.name + ".json"
    # The cache takes its place last, as it may lie elsewhere; its fingerprint after it, as that has its digest.
    with (
        ExitStack() as together,
        told(path, _ELSEWHERE),
        drafted(path.parent, beside, of=path, together=together) as cache_drafts,
        told(folder, _ELSEWHERE),
        drafted(folder, PAGE_FILE, together=together) as drafts,
    ):
        write_whole(cache_drafts / path.name, content.decode("utf-8"))
        write_whole(cache_drafts / beside, fingerprint.to_json())
        write_whole(drafts / "ranges.csv", to_csv(result.ranges))
        write_whole(drafts / PAGE_FILE, render_calibration(result.facts, result.ranges, histograms, *shown_by))
        (drafts / "onnxruntime").mkdir()
        for name, tables in onnxruntime_tables(table).items():
            write_whole_bytes(drafts / "onnxruntime" / name, tables)
    return result


def _best(
    backend: Backend, dataset: Dataset, methods: Mapping[str, CalibrationTable], observer: Observer
) -> ChosenRanges:
    def compare(name: str, table: CalibrationTable, introduced: bool) -> Comparison:
        plan = plan_for(backend.model, Precision.INT8, table)
        observer.stage(f"int8, ranges by {name}", len(dataset))
        return backend.compare(plan, table, dataset, observer.advance, metric=None, introduced=introduced)

    found = best_table(backend.model, methods, compare)
    observer.note(found.figures)
    return found


def _check(method: str, percentile: float, shard: tuple[int, int] | None) -> None:
    check_calibration(method)
    PERCENTILE.check(percentile)
    if shard is not None and not 1 <= shard[0] <= shard[1]:
        raise OptionError(f"shard {shard[0]}/{shard[1]}: write I/N with I from 1 to N")


def _loaded(model: str | Path | None, data: str | Path, observer: Observer) -> Model:
    """The model, and what TensorRT would make of its cache where that is nothing."""
    loaded = load_model(_model_path(model, data))
    if own := own_flags(loaded):
        observer.note(
            f"{loaded.path.name} has Q/DQ nodes of its own ({next(iter(own.values()))!r}): TensorRT takes the scales "
            "from these, and ignores a calibration cache beside them"
        )
    return loaded


def _model_path(model: str | Path | None, data: str | Path) -> Path:
    if model is not None:
        return Path(model)
    named = read_manifest(Path(data)).model if Path(data).is_dir() else None
    if named is None:
        raise DataError(f"{data}: no dataset.toml there names a model; give the model on the command line")
    return inside(Path(data), named, f"{data}/dataset.toml")


def _folder(out: str | Path | None, model: Model) -> Path:
    return Path(out) if out else Path("reports") / f"{model.name}-calibration"


@contextmanager
def _held(folder: Path, cache: str | Path | None, observer: Observer) -> Iterator[None]:
    """Hold the run's folder, and the cache where the user wants it elsewhere."""
    with ExitStack() as opened:
        opened.enter_context(held_folder(folder, observer.note, _ELSEWHERE))
        if cache is not None:
            opened.enter_context(held_file(Path(cache), observer.note, _ELSEWHERE))
        yield


def _of_shard(dataset: Dataset, shard: tuple[int, int] | None) -> tuple[str, ...]:
    chosen = dataset.names if shard is None else dataset.names[shard[0] - 1 :: shard[1]]
    if not chosen and shard is not None:
        raise OptionError(f"shard {shard[0]}/{shard[1]} is empty: there are only {len(dataset.names)} samples")
    return chosen


def _earlier(path: Path, context: Mapping[str, Any], tensors: tuple[str, ...]) -> CalibrationState | None:
    """What an earlier run of the same work has saved; None where there is none, or it is another's."""
    if not path.is_file():
        return None
    if not os.access(path, os.R_OK):  # another user's work, which is not ours to replace
        raise OptionError(f"{path}: cannot be read (Permission denied); {_ELSEWHERE}")
    try:
        state = read_state(path)
    except DataError:
        return None  # it will be written anew
    same = json.dumps(state.context, sort_keys=True) == json.dumps(context, sort_keys=True)
    return state if same and tuple(state.histograms) == tensors else None


def _save(path: Path, state: CalibrationState) -> None:
    with told(path, _ELSEWHERE):
        write_whole_bytes(path, state.to_bytes())


def _state_file(shard: Path) -> Path:
    return shard / STATE_FILE if shard.is_dir() else shard


def _check_shards(model: Model, states: Sequence[tuple[Path, CalibrationState]]) -> None:
    """Raises DataError where the states are not the shards of one calibration of this model, each once."""
    if not states:
        raise OptionError("no shard to merge; give the folders of all of them")
    seen: dict[int, Path] = {}
    kind = None
    for path, state in states:
        shard = state.context.get("shard")
        if state.context.get("model") != model.sha256:
            raise DataError(f"{path}: histograms of another model")
        if not shard:
            raise DataError(f"{path}: not a shard; it has the histograms of all samples already")
        this = {key: value for key, value in state.context.items() if key != "shard"} | {"of": shard[1]}
        if kind is not None and this != kind:
            raise DataError(
                f"{path}: not of the same calibration as {states[0][0]} (other data, options, versions or processor)"
            )
        kind = this
        if shard[0] in seen:
            raise DataError(f"{path}: shard {shard[0]}/{shard[1]} comes twice, in {seen[shard[0]]} too")
        seen[shard[0]] = path
    total = kind["of"] if kind else 0
    missing = [str(i) for i in range(1, total + 1) if i not in seen]
    if missing:
        raise DataError(f"shard {missing[0]}/{total} is missing; give the folders of all {total}")
