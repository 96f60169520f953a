"""The smallest part of a model that shows a fault, with its inputs: what a bug report wants."""

from __future__ import annotations

import hashlib
import json
import math
import re
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from precisionlab.backends.second import showing
from precisionlab.backends.session import AS_WRITTEN, Session
from precisionlab.compare.comparison import Comparison
from precisionlab.compare.metrics import SQNR
from precisionlab.compare.tolerance import default_tolerance, parse_tolerance
from precisionlab.data.saved import feeds_of
from precisionlab.errors import OptionError
from precisionlab.evaluate.prepare import Prepared, Source, prepare
from precisionlab.evaluate.run_results import RunResults
from precisionlab.jobs.fault_ranges import fault_ranges, plan_of_run
from precisionlab.jobs.faults import CACHE, FIRST, INPUTS, SECOND, EmulatedFault, Fault, SecondFault, worst_of
from precisionlab.jobs.objects import DataSource, ModelSource, takes_objects
from precisionlab.jobs.plan_source import RUN_FILE, arithmetic_of, model_of, run_beside, source_of
from precisionlab.jobs.result import ExtractResult
from precisionlab.model import Model, TensorInfo, load_model
from precisionlab.model.other import load_other
from precisionlab.model.selections import moving_layers
from precisionlab.model.twins import twins_of
from precisionlab.precision import Precision
from precisionlab.rewrite.part import Region, region_of, upstream
from precisionlab.search.options import parse_precisions
from precisionlab.system.disk import drafted, make_folder, temporary_folder, told, write_whole
from precisionlab.system.lock import held_folder
from precisionlab.system.notebook import observer_of
from precisionlab.system.npyfile import write_npz
from precisionlab.system.observer import Observer
from precisionlab.system.parsing import check_at_least, check_workers, parse_memory
from precisionlab.system.versions import versions

EXPECTED, FOUND = "expected", "found"
_NUMBERED = re.compile(r"\d+\.npz")
_QUARTER = 4
Values = Mapping[str, NDArray[Any]]


@dataclass(frozen=True)
class _Wanted:
    """What is to be cut out: a layer, or what lies between tensors; both empty: the layer that introduces most."""

    layer: str | None
    start: tuple[str, ...]
    end: tuple[str, ...]


@takes_objects
def extract(
    source: ModelSource,
    data: DataSource | None = None,
    *,
    layer: str | None = None,
    start: Iterable[str] = (),
    end: Iterable[str] = (),
    other: ModelSource | None = None,
    match: Mapping[str, str] | None = None,
    precision: str | None = None,
    tolerance: str | None = None,
    keep: int = 1,
    samples: int | None = None,
    seed: int = 0,
    threads: int | None = None,
    memory: str | int | None = None,
    skip_bad: bool = False,
    out: str | Path | None = None,
    observer: Observer | None = None,
) -> ExtractResult:
    """Cut a fault out of a model: the part that shows it, its inputs, and what it should and does give.

    `source` is a model, or the folder of a sweep, which says model, data and precision. The fault is that of
    `precision`, emulated without pins (with the run's own INT8 ranges), or with `other` that of a second model (`match`
    as in `compare`). `layer` is the one to cut out, by default the one that introduces most; `start` and `end` are
    tensors instead: all between them, and with an `end` alone the fewest layers ahead of it that are below `tolerance`
    (a bound of sqnr) by themselves. A part begins further ahead where an input is not finite, or has no twin. `keep`
    samples are saved, the worst first. What was written is read back and measured. Writes to `out`, by default
    `reports/<model>-extract`.

    Raises PrecisionLabError for input that cannot be used.
    """
    observer = observer_of(observer)
    check_at_least(1, keep=keep, samples=samples)
    check_at_least(0, seed=seed)
    check_workers(threads)
    wanted = _Wanted(layer, tuple(start), tuple(end))
    if layer is not None and (wanted.start or wanted.end):
        raise OptionError("name a layer, or the tensors where a part begins and ends, not both")
    if wanted.start and not wanted.end:
        raise OptionError("name the tensors where the part ends, too: --to")
    run = _run_of(Path(source))
    at = Path(source) / RUN_FILE
    loaded = load_model(Path(model_of(run, at)) if run else Path(source))
    _check_names(loaded, wanted)
    from_run = source_of(run, data) if run else None
    if from_run is None and data is None:
        raise OptionError("give samples with --data: the inputs of a part are values that the model computes of them")
    where = from_run or Source(data, {}, samples, seed, 0.0, skip_bad)
    folder = Path(out) if out is not None else Path("reports") / f"{loaded.name}-extract"
    with held_folder(folder, observer.note):
        ready = prepare(loaded, replace(where, holdout=0.0), None, threads, None, observer, parse_memory(memory))
        fault = _fault(ready, run, at, other, match, precision, observer)
        bound = _bound(tolerance, fault)
        return _Cutting(ready, fault, folder, observer, keep, bound).result(wanted)


def _run_of(source: Path) -> Mapping[str, Any]:
    """What the folder of a sweep says; nothing of a model's file."""
    if not source.is_dir():
        return {}
    run = run_beside(source / RUN_FILE)
    if not run:
        raise OptionError(f"{source}: no {RUN_FILE} in it; give a model, or the folder of a sweep")
    return run


def _check_names(model: Model, wanted: _Wanted) -> None:
    if wanted.layer is not None and wanted.layer not in model.layer:
        raise OptionError(f"layer {wanted.layer!r}: {model.path} has no such layer; layers.csv lists them")
    known = {output for layer in model.layers for output in layer.outputs}
    for name in (*wanted.start, *wanted.end):
        if name not in known and name not in {info.name for info in model.inputs}:
            raise OptionError(f"tensor {name!r}: no layer of {model.path} gives it; layers.csv and Netron name them")


def _fault(
    ready: Prepared,
    run: Mapping[str, Any],
    at: Path,
    other: str | Path | None,
    match: Mapping[str, str] | None,
    precision: str | None,
    observer: Observer,
) -> Fault:
    if other is not None:
        if precision is not None:
            raise OptionError("name a second model or a precision, not both")
        second = load_other(Path(other))
        twins = twins_of(ready.local.model, second, match or {})
        assert ready.local.memory is not None
        return SecondFault(ready, second, twins, ready.local.memory // _QUARTER, observer)
    kind = _precision(precision, run)
    plan = plan_of_run(at.parent, run, kind)
    table = fault_ranges(ready, at.parent, run, plan, kind, observer) if kind.is_quantized else None
    around = Precision.FP32 if plan is None else plan.around
    return EmulatedFault(ready, kind, table, arithmetic_of(run, at), observer, around)


def _precision(asked: str | None, run: Mapping[str, Any]) -> Precision:
    """What the user asks for; else of a run the first precision that needed pins or failed, and of a model FP16."""
    if asked is not None:
        return parse_precisions(asked)[0]
    facts = run.get("precisions")
    found = facts if isinstance(facts, Mapping) else {}
    swept = [name for name in found if name in {p.value for p in Precision.low()}]
    harmed = [n for n in swept if isinstance(found[n], Mapping) and (found[n].get("pins") or not found[n].get("met"))]
    return Precision(next(iter(harmed or swept), Precision.FP16))


def _bound(tolerance: str | None, fault: Fault) -> float:
    """The SQNR below which an output is wrong."""
    if tolerance is not None:
        found = parse_tolerance([tolerance])
        if len(found) != 1 or found[0].metric != SQNR or found[0].output is not None:
            raise OptionError(f"tolerance {tolerance!r}: a part is held to one bound of sqnr, such as sqnr>=30")
        return found[0].value
    precision = fault.precision if isinstance(fault, EmulatedFault) else Precision.FP16
    if isinstance(fault, SecondFault) and fault.other.is_quantized:
        precision = Precision.INT8
    return default_tolerance(precision)[0].value


class _Cutting:
    """The cutting of one part."""

    def __init__(
        self, ready: Prepared, fault: Fault, folder: Path, observer: Observer, keep: int, bound: float
    ) -> None:
        self._ready, self._fault, self._folder, self._observer = ready, fault, folder, observer
        self._model = ready.local.model
        self._keep, self._bound = keep, bound

    def result(self, wanted: _Wanted) -> ExtractResult:
        """The part, written and measured."""
        every = self._fault.compare(self._ready.dataset)
        outputs, worst = self._outputs(wanted, every)
        names = self._samples(every, outputs, by_itself=not wanted.end, worst=worst)
        kept = self._ready.dataset.only(frozenset(names))
        whole = self._fault.compare(kept)
        if wanted.end:
            sums = whole.inherited
            region = (
                self._opened(region_of(self._model, self._between(wanted), outputs), names)
                if wanted.start
                else self._fewest(outputs, names)
            )
            what = f"{', '.join(wanted.start) or 'what leads'} to {', '.join(wanted.end)}"
        else:
            sums = whole.introduced
            region = self._opened(region_of(self._model, [worst], outputs), names)
            what = f"layer {worst}"
        figure = worst_of(sums, outputs)
        return self._written(region, names, what, figure, is_layer=not wanted.end)

    def _outputs(self, wanted: _Wanted, every: Comparison) -> tuple[tuple[str, ...], str]:
        """The outputs of the part, and the layer that it is of."""
        if wanted.end:
            return wanted.end, ""
        name = wanted.layer or self._worst(every)
        outputs = tuple(tensor for tensor in self._model.layer[name].outputs if tensor in every.introduced)
        if not outputs:
            reason = self._model.layer[name].fixed or "it has no float output with a twin"
            raise OptionError(f"layer {name!r}: nothing is introduced by it: {reason}")
        return outputs, name

    def _worst(self, every: Comparison) -> str:
        """The layer that introduces most; of those without numbers the first."""
        moving = moving_layers(self._model).own  # rows stand elsewhere, and figures say nothing
        found = [
            (worst_of(every.introduced, [tensor]), layer.name)
            for layer in self._model.layers
            if layer.name not in moving
            for tensor in layer.outputs
            if tensor in every.introduced and every.introduced[tensor].elements
        ]
        if not found:
            raise OptionError("no layer is touched: there is nothing to cut out")
        return min(found, key=lambda each: -math.inf if math.isnan(each[0]) else each[0])[1]

    def _samples(self, every: Comparison, outputs: Sequence[str], by_itself: bool, worst: str) -> tuple[str, ...]:
        """The worst sample, and as many more as are to be kept, in their order."""
        spreads = every.spreads.introduced if by_itself else every.spreads.inherited
        first = next((spreads[name].worst for name in outputs if name in spreads), 0)
        names = self._ready.dataset.names
        more = [name for name in names if name != names[first]]
        return (names[first], *more[: self._keep - 1])

    def _between(self, wanted: _Wanted) -> list[str]:
        layers = upstream(self._model, wanted.end, wanted.start)
        if not layers:
            raise OptionError(f"nothing lies between {', '.join(wanted.start)} and {', '.join(wanted.end)}")
        return [layer.name for layer in layers]

    def _fewest(self, outputs: Sequence[str], names: Sequence[str]) -> Region:
        """The fewest layers ahead of the outputs that are below the bound: doubled until they are, and then halved."""
        ahead = [layer.name for layer in upstream(self._model, outputs)]

        def last(count: int) -> Region:
            return self._opened(region_of(self._model, ahead[-count:], outputs), names)

        def shows(count: int) -> bool:
            with temporary_folder() as folder:
                region = last(count)
                self._observer.stage(f"the last {count} of {len(ahead)} layers", len(names))
                self._save(region, names, folder)
                figure, _ = self._fault.measure(region, folder)
            return math.isnan(figure) or figure < self._bound

        count = 1
        while count < len(ahead) and not shows(count):
            count = min(2 * count, len(ahead))
        low = count // 2
        while count - low > 1:
            middle = (low + count) // 2
            low, count = (low, middle) if shows(middle) else (middle, count)
        return last(count)

    def _opened(self, region: Region, names: Sequence[str]) -> Region:
        """The part with what is ahead of inputs at which it cannot begin, until there is none."""
        while True:
            values = self._values(region.inputs, names)
            made = {output: layer.name for layer in self._model.layers for output in layer.outputs}
            shut = [n for n in region.inputs if n in made and not (self._fault.can_open(n) and _is_plain(values, n))]
            if not shut:
                return region
            region = region_of(self._model, [*region.layers, *(made[name] for name in shut)], region.outputs)

    def _values(self, tensors: Sequence[str], names: Sequence[str]) -> list[Values]:
        """What the reference has of these tensors, for each sample."""
        graph = showing(self._model.onnx, dict.fromkeys(tensors))
        session = Session(graph, self._ready.local.threads, level=AS_WRITTEN)
        try:
            kept = self._ready.dataset.only(frozenset(names))
            inputs = frozenset(session.inputs)
            return [
                dict(session.run({name: value for name, value in sample.inputs.items() if name in inputs}))
                for sample in kept
            ]
        finally:
            session.close()

    def _save(self, region: Region, names: Sequence[str], folder: Path) -> tuple[str, ...]:
        """Write the part's models and inputs; returns the files' names."""
        ends = (*region.inputs, *region.outputs)
        values = self._values(ends, names)
        infos = {name: _info(self._model, name, [each[name] for each in values]) for name in ends}
        files = list(self._fault.write(region, infos, folder))
        make_folder(folder / INPUTS)
        for index, each in enumerate(values):
            write_npz(folder / INPUTS / f"{index}.npz", {name: each[name] for name in region.inputs})
            files.append(f"{INPUTS}/{index}.npz")
        feeds = [feeds_of({name: each[name] for name in region.inputs}) for each in values]
        write_whole(folder / f"{INPUTS}.json", json.dumps(feeds) + "\n")
        return (*files, f"{INPUTS}.json")

    def _written(self, region: Region, names: Sequence[str], what: str, whole: float, is_layer: bool) -> ExtractResult:
        from precisionlab.report.extract import readme

        self._observer.stage("the part, as it was written", len(names))
        with (
            told(self._folder, "choose another folder with --out"),
            drafted(self._folder, "extract.json", _earlier(self._folder)) as drafts,
        ):
            files = list(self._save(region, names, drafts))
            figure, outputs = self._fault.measure(region, drafts)
            results = RunResults(("float32", self._fault.name), region.outputs)
            for index, pair in enumerate(outputs):
                results.add(*pair)
                for name, values in zip((EXPECTED, FOUND), pair, strict=True):
                    make_folder(drafts / name)
                    arrays = {output: values[output] for output in region.outputs if output in values}
                    write_npz(drafts / name / f"{index}.npz", arrays)
                    files.append(f"{name}/{index}.npz")
            write_whole(drafts / "outputs.json", results.text)
            found = ExtractResult(
                self._model.path.name, what, region.layers, region.outputs, tuple(names), whole, figure,
                self._bound, is_layer,
                self._facts(region, drafts, [*files, "outputs.json"]),
                (*files, "outputs.json", "README.md", "extract.json"), self._folder,
            )  # fmt: skip
            write_whole(drafts / "README.md", readme(found))
            write_whole(drafts / "extract.json", json.dumps(found.to_dict(), indent=1, allow_nan=False) + "\n")
        return found

    def _facts(self, region: Region, drafts: Path, files: Iterable[str]) -> dict[str, Any]:
        fault = self._fault
        second = fault if isinstance(fault, SecondFault) else None
        return {
            "model": {"path": str(self._model.path), "sha256": self._model.sha256},
            "other": {"path": str(second.other.path), "sha256": second.other.sha256} if second else None,
            "match": second.match(region) if second else {},
            "precision": fault.precision.value if isinstance(fault, EmulatedFault) else None,
            "around": fault.around.value if isinstance(fault, EmulatedFault) else None,
            "fault": fault.name,
            "inputs": list(region.inputs),
            "data": {"origin": self._ready.dataset.origin, "sha256": self._ready.dataset.sha256},
            "sha256": {name: hashlib.sha256((drafts / name).read_bytes()).hexdigest() for name in files},
            "created": time.strftime("%Y-%m-%dT%H:%M:%S"),
            "versions": versions(),
        }


def _earlier(folder: Path) -> list[str]:
    """What an earlier extract has left in the folder, which would be taken for this one's; links are left alone."""
    found = [name for name in (FIRST, SECOND, CACHE) if (folder / name).is_file()]
    for inner in (INPUTS, EXPECTED, FOUND):
        if (folder / inner).is_dir() and not (folder / inner).is_symlink():
            found += [f"{inner}/{file.name}" for file in (folder / inner).iterdir() if _NUMBERED.fullmatch(file.name)]
    return found


def _is_plain(values: Sequence[Values], name: str) -> bool:
    """Whether a tensor can be an input: an array throughout, without NaN and Inf."""
    arrays = [each[name] for each in values]
    return all(isinstance(a, np.ndarray) and (a.dtype.kind != "f" or bool(np.isfinite(a).all())) for a in arrays)


def _info(model: Model, name: str, arrays: Sequence[NDArray[Any]]) -> TensorInfo:
    """A tensor's type, and its shape where all samples have it so; other dimensions are open."""
    shapes = [array.shape for array in arrays]
    ranks = {len(shape) for shape in shapes}
    shape: tuple[int | str | None, ...] | None = None
    if len(ranks) == 1:
        columns = [{s[axis] for s in shapes} for axis in range(ranks.pop())]
        shape = tuple(sizes.pop() if len(sizes) == 1 else f"d{axis}" for axis, sizes in enumerate(columns))
    known = model.tensors[name].dtype
    return TensorInfo(name, known if known is not None else ir.DataType.from_numpy(arrays[0].dtype), shape)
