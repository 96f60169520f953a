"""How true the emulation is: each layer's error as emulated beside that of real low-precision arithmetic."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from precisionlab.backends.base import Backend
from precisionlab.backends.converted import SourceRun
from precisionlab.backends.memory import default_memory
from precisionlab.backends.onnxruntime import OnnxRuntimeBackend
from precisionlab.backends.options import EngineOptions
from precisionlab.backends.real import (
    RealBackend,
    RealDevice,
    check_float8,
    check_real,
    is_float8,
    real_device,
    run_whole,
)
from precisionlab.backends.registry import EMULATION, RTX, TENSORRT
from precisionlab.backends.tensorrt.opening import open_engines
from precisionlab.calibration.find import table_of
from precisionlab.calibration.methods import default_method
from precisionlab.calibration.table import CalibrationTable
from precisionlab.compare.comparison import Comparison
from precisionlab.compare.errors import ErrorTable
from precisionlab.compare.fidelity import Agreements, agreements
from precisionlab.compare.gather import Gathering, SampleResult
from precisionlab.compare.judged import judged_errors
from precisionlab.compare.judging import judging_of
from precisionlab.data import Dataset, open_dataset
from precisionlab.errors import ModelError, OptionError, PrecisionLabError
from precisionlab.evaluate.ranges import block_methods, operands_of, typical_sqnr
from precisionlab.evaluate.samples import checked
from precisionlab.jobs.objects import DataSource, ModelSource, takes_objects
from precisionlab.jobs.result import FidelityResult
from precisionlab.model import Model, load_model
from precisionlab.model.load import with_graph
from precisionlab.model.opset import opset_of
from precisionlab.plan.arithmetic import Arithmetic, parse_arithmetic
from precisionlab.plan.assign import check_opset
from precisionlab.plan.plan import Pin, PrecisionPlan
from precisionlab.precision import Precision
from precisionlab.results.fidelity import PrecisionFidelity, Row, to_json
from precisionlab.rewrite.plans import plan_for
from precisionlab.rewrite.real import one_node_layers
from precisionlab.rewrite.real_float8 import OPSET
from precisionlab.rewrite.typed import save_typed, typed_model
from precisionlab.rewrite.typed.opset import convert
from precisionlab.search.options import parse_precisions
from precisionlab.system.disk import drafted, temporary_folder, told, write_whole
from precisionlab.system.lock import held_folder
from precisionlab.system.notebook import observer_of
from precisionlab.system.observer import Observer
from precisionlab.system.parsing import check_at_least, check_workers
from precisionlab.system.versions import versions

CUDA = "cuda"
AGAINST = (CUDA, TENSORRT, RTX)
PATTERNS, NODES = "patterns", "nodes"
_RESULT, _ROWS, _PAGE = "fidelity.json", "fidelity.csv", "fidelity.html"


@takes_objects
def fidelity(
    model: ModelSource,
    data: DataSource,
    *,
    precisions: str | Iterable[str] = ("fp16", "bf16", "int8"),
    against: str = CUDA,
    device: str = "cuda:0",
    layers: str | None = None,
    kernels: str | None = None,
    sums: str = "float32",
    samples: int | None = None,
    seed: int = 0,
    threads: int | None = None,
    skip_bad: bool = False,
    out: str | Path | None = None,
    engine: EngineOptions | None = None,
    page: bool = True,
    observer: Observer | None = None,
) -> FidelityResult:
    """Hold the emulation against real low precision, layer by layer, on the same samples and without pins.

    `against` "cuda" is ONNX Runtime: fp16 and bf16 by its CUDA provider on `device`, fp8 by its GemmFloat8 there, which
    has products with constants alone, int8 as integers on the CPU; "tensorrt" and "tensorrt-rtx" are engines, whose
    layers are not seen alone. `layers` are the "patterns" that a sweep has, by default against engines, or "nodes": as
    ONNX Runtime fuses nothing there, by default the emulation does not either. `kernels` says whose rounding inside of
    layers in half is emulated: "tensorrt", as a sweep has it, by default against engines, or "onnxruntime", by default
    against "cuda"; `sums` what TensorRT's keep their sums in: "float32", "half" or "half-single". With TensorRT's
    kernels the constants that ONNX Runtime is given are clamped like the emulation's, else both have them rounded.
    `engine` says how engines are built. Writes fidelity.json, fidelity.csv and fidelity.html (not without `page`) to
    `out`, by default `reports/<model>-fidelity`.

    Raises PrecisionLabError for input that cannot be used; OptionError where this machine has no real arithmetic in a
    precision.
    """
    observer = observer_of(observer)
    formats = parse_precisions(precisions)
    if against not in AGAINST:
        raise OptionError(f"unknown opponent {against!r}; hold the emulation against one of {', '.join(AGAINST)}")
    if layers is None:
        layers = NODES if against == CUDA else PATTERNS
    if layers not in (PATTERNS, NODES):
        raise OptionError(f"unknown layers {layers!r}: {PATTERNS}, or {NODES}")
    if kernels is None:
        kernels = EMULATION if against == CUDA else TENSORRT
    arithmetic = parse_arithmetic(kernels, sums)
    check_at_least(1, samples=samples)
    check_workers(threads)
    check_at_least(0, seed=seed)
    where = real_device(device)
    if against == CUDA:
        for precision in formats:
            check_real(precision, where)
        if any(map(is_float8, formats)):
            check_float8(where)
    loaded = load_model(Path(model))
    for precision in formats:
        check_opset(loaded.onnx, PrecisionPlan(loaded.sha256, precision))
    folder = Path(out) if out is not None else Path("reports") / f"{loaded.name}-fidelity"
    with held_folder(folder, observer.note):
        dataset = checked(open_dataset(data, loaded, samples, seed), skip_bad, observer)
        if against == CUDA and any(map(is_float8, formats)):
            loaded = _for_float8(loaded, dataset, threads, observer)
        model_at = loaded if layers == PATTERNS else one_node_layers(loaded)
        local = OnnxRuntimeBackend(model_at, next(iter(dataset)), threads, memory=default_memory())
        job = _Job(local, arithmetic, dataset, folder, observer)
        results = tuple(
            job.engines(p, against, engine or EngineOptions()) if against != CUDA else job.real(p, where)
            for p in formats
        )
        facts = {
            **_facts(local.model, dataset, against, where, seed),
            "layers": layers,
            **arithmetic.to_plain(),
        }
        result = FidelityResult(loaded.path.name, results, facts, folder)
        _write(result, page)
    return result


def _for_float8(model: Model, dataset: Dataset, threads: int | None, observer: Observer) -> Model:
    """The model at an opset whose QuantizeLinear gives E4M3. Raises ModelError where it cannot be converted."""
    if (opset := opset_of(model.onnx)) >= OPSET:
        return model
    converted = convert(model, OPSET)
    if (fault := SourceRun(model, dataset, threads or os.cpu_count() or 1).fault(converted)) is not None:
        raise ModelError(f"{model.path}: opset {opset} cannot be converted to {OPSET}, which fp8 needs: {fault}")
    observer.note(
        f"the model was converted from opset {opset} to {OPSET}: real fp8 needs that, with it all is compared"
    )
    return replace(with_graph(model, converted, ()), original=None)


class _Job:
    """The comparisons of one model."""

    def __init__(
        self, local: OnnxRuntimeBackend, arithmetic: Arithmetic, dataset: Dataset, folder: Path, observer: Observer
    ) -> None:
        self._local = local
        self._arithmetic = arithmetic
        self._model = local.model
        self._dataset = dataset
        self._folder = folder
        self._observer = observer

    def real(self, precision: Precision, device: RealDevice) -> PrecisionFidelity:
        """Against ONNX Runtime's own arithmetic in the precision."""
        where = device if precision.is_low_float or is_float8(precision) else RealDevice(None)
        backend = RealBackend(self._local, where)
        plan, table = self._plan(precision)
        unsupported = backend.unsupported(plan)
        pins = [Pin(name, self._model.layer[name].nodes, Precision.FP32, why) for name, why in unsupported.items()]
        plan = plan.with_pins((*plan.pins, *pins))
        emulated = self._compared(f"{precision}, emulated", self._local, plan, table, introduced=True)
        comparison = self._compared(f"{precision}, real on {where.name}", backend, plan, table, introduced=True)
        optimised, note = self._optimised(plan, table, where)
        return self._result(precision, emulated, comparison, unsupported, where.name, optimised, note)

    def engines(self, precision: Precision, against: str, options: EngineOptions) -> PrecisionFidelity:
        """Against engines of TensorRT: what a layer's output has inherited, and the final outputs."""
        plan, table = self._plan(precision)
        emulated = self._compared(f"{precision}, emulated", self._local, plan, table, introduced=False)
        with open_engines(
            against, self._local, self._dataset, self._dataset, options, self._folder, self._observer
        ) as engine:
            comparison = self._compared(f"{precision}, measured", engine, plan, table, introduced=False)
            device = ", ".join(f"{name} {value}" for name, value in engine.identity.items())
            notes = tuple(engine.notes)
        note = "an engine is optimised as it is: see the final SQNR"
        return self._result(precision, emulated, comparison, {}, device, None, note, notes)

    def _plan(self, precision: Precision) -> tuple[PrecisionPlan, CalibrationTable | None]:
        if not precision.is_quantized:
            return plan_for(self._model, precision), None
        if precision.is_weight_only:
            method, table = next(iter(block_methods(None, precision).items()))
            return plan_for(self._model, precision, table, around=precision.around, calibration=method), table
        self._observer.stage(f"{precision} ranges", len(self._dataset))
        collector = self._local.collector(operands_of(self._model))
        collector.add(self._dataset, self._observer.advance)
        method = default_method(precision)
        table = table_of(collector.histograms(), method, len(self._dataset), precision=precision)
        return plan_for(self._model, precision, table, calibration=method), table

    def _compared(
        self, title: str, backend: Backend, plan: PrecisionPlan, table: CalibrationTable | None, *, introduced: bool
    ) -> Comparison:
        self._observer.stage(title, len(self._dataset))
        return backend.compare(
            plan,
            table,
            self._dataset,
            self._observer.advance,
            metric=None,
            introduced=introduced,
            arithmetic=self._arithmetic,
        )

    def _optimised(
        self, plan: PrecisionPlan, table: CalibrationTable | None, device: RealDevice
    ) -> tuple[float | None, str]:
        """The final SQNR of the whole typed model with all of ONNX Runtime's optimisations; or why there is none."""
        try:
            beside = SourceRun(self._model, self._dataset, self._local.threads)
            typed = typed_model(self._model, plan, table, self._arithmetic.constants, beside)
        except PrecisionLabError as error:
            return None, str(error)
        with temporary_folder() as folder:
            path = folder / "typed.onnx"
            save_typed(typed, path)
            try:
                session = run_whole(str(path), device)
                gathering = Gathering(0, None)
                names = [info.name for info in self._model.outputs]
                reference, judging = self._local.reference(names), judging_of(self._model)
                self._observer.stage(f"{plan.default}, optimised on {device.name}", len(self._dataset))
                for done, sample in enumerate(self._dataset, 1):
                    true, low = reference(sample), session.run(sample.inputs)
                    errors = judged_errors(judging, true, low)
                    gathering.add(SampleResult(ErrorTable(0), errors, None, None))
                    self._observer.advance(done)
            except PrecisionLabError as error:
                return None, str(error)
        return gathering.comparison({}, {}, (), 0.0).worst("sqnr"), "; ".join(typed.notes)

    def _result(
        self,
        precision: Precision,
        emulated: Comparison,
        real: Comparison,
        unsupported: Mapping[str, str],
        device: str,
        optimised: float | None,
        note: str,
        notes: tuple[str, ...] = (),
    ) -> PrecisionFidelity:
        rows = []
        broken = (frozenset(emulated.nonfinite), frozenset(real.nonfinite))
        for layer in self._model.layers:
            for tensor in layer.outputs:
                own = (_sqnr(emulated.introduced, tensor), _sqnr(real.introduced, tensor))
                so_far = (_sqnr(emulated.inherited, tensor), _sqnr(real.inherited, tensor))
                if layer.fixed is None and None not in so_far:
                    nonfinite = (tensor in broken[0], tensor in broken[1])
                    rows.append(
                        Row(layer.name, layer.kind, tensor, own, so_far, nonfinite, unsupported.get(layer.name))
                    )
        introduced = agreements_of(rows, lambda row: row.introduced) if real.introduced else None
        return PrecisionFidelity(
            precision=precision,
            rows=tuple(rows),
            introduced=introduced,
            inherited=agreements_of(rows, lambda row: row.inherited),
            final=(emulated.worst("sqnr"), real.worst("sqnr")),
            typical=(typical_sqnr(emulated), typical_sqnr(real)),
            optimised=optimised,
            optimised_note=note,
            unsupported=unsupported,
            device=device,
            layers=sum(layer.fixed is None for layer in self._model.layers),
            seconds=(emulated.seconds, real.seconds),
            notes=notes,
        )


def _sqnr(errors: Mapping[str, Any], tensor: str) -> float | None:
    return errors[tensor].sqnr if tensor in errors else None


def agreements_of(rows: Iterable[Row], pick: Callable[[Row], tuple[float | None, float | None]]) -> Agreements:
    """How two figures of the rows agree, of those that have both and are real."""
    first, second = {}, {}
    for row in rows:
        emulated, real = pick(row)
        if emulated is not None and real is not None and row.unsupported is None:
            first[row.tensor], second[row.tensor] = emulated, real
    return agreements(first, second)


def _facts(model: Model, dataset: Dataset, against: str, device: RealDevice, seed: int) -> dict[str, Any]:
    return {
        "model": {"path": str(model.path), "sha256": model.sha256},
        "data": {"sha256": dataset.sha256, "samples": len(dataset), "seed": seed},
        "against": against,
        "device": device.name,
        "gpu": _gpu(device) if device.number is not None else None,
        "machine": platform.machine(),
        "created": time.strftime("%Y-%m-%dT%H:%M:%S"),
        "versions": _versions(),
    }


def _versions() -> dict[str, str]:
    import onnxruntime

    return {**versions(), "onnxruntime": str(onnxruntime.__version__), "python": platform.python_version()}


def _gpu(device: RealDevice) -> str | None:
    """What the driver calls the GPU; None where it does not say."""
    command = ["nvidia-smi", f"--id={device.number}", "--query-gpu=name,driver_version", "--format=csv,noheader"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, check=False, timeout=30)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return answer.stdout.strip() or None if answer.returncode == 0 else None


def _write(result: FidelityResult, page: bool) -> None:
    from precisionlab.report.csvfile import to_csv
    from precisionlab.report.fidelity import fidelity_page, fidelity_table

    with told(result.folder, "choose another folder with --out"), drafted(result.folder, _RESULT) as drafts:
        write_whole(drafts / _RESULT, json.dumps(to_json(result), indent=1, ensure_ascii=False) + "\n")
        write_whole(drafts / _ROWS, to_csv(fidelity_table(result)))
        if page:
            write_whole(drafts / _PAGE, fidelity_page(result))
