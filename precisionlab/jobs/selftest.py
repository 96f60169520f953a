"""The self-test of the TensorRT backend: what its first user on a GPU runs, in one command.

Everything that cannot be tried without a GPU is tried here, on a model that is made on the spot: engines of each
precision, a fault that only pins fix, both ways to INT8 ranges, dynamic shapes, layers that are looked at, times; and
what the emulation takes for granted of FP16, BF16, INT8, FP8 and INT4.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnx.parser

from precisionlab import __version__
from precisionlab.backends import emulation
from precisionlab.backends.engine import EngineBackend
from precisionlab.backends.onnxruntime import OnnxRuntimeBackend
from precisionlab.backends.options import EngineOptions
from precisionlab.backends.registry import TENSORRT
from precisionlab.backends.tensorrt import opening
from precisionlab.calibration.find import table_of
from precisionlab.calibration.table import CalibrationTable
from precisionlab.compare.comparison import Comparison
from precisionlab.data import Dataset, Sample, open_dataset
from precisionlab.errors import PrecisionLabError
from precisionlab.jobs.doctor import python_facts
from precisionlab.jobs.selftest_family import Family
from precisionlab.jobs.selftest_rules import FAMILIES
from precisionlab.model import Model, load_model
from precisionlab.plan.plan import Pin, PrecisionPlan
from precisionlab.precision import Precision
from precisionlab.rewrite.observe import is_observed
from precisionlab.search.devices import computes_on
from precisionlab.system.disk import TEMPORARY_ADVICE, temporary_folder, told, write_whole
from precisionlab.system.lock import held_folder
from precisionlab.system.notebook import observer_of
from precisionlab.system.observer import Observer

SAMPLES = 8
FAULT = ("up", "peak", "down")
"""The layers whose values leave FP16's range, and come back.

Between the two convolutions stands a MaxPool, which TensorRT does not fuse through: a factor and its inverse it folds.
"""

_MODEL = """
<ir_version: 8, opset_import: ["" : 17]>
selftest (float[N,3,16,16] image) => (float[N,10] scores) {
    [conv] c = Conv <pads = [1,1,1,1]> (image, kernel, shift)
    [relu] r = Relu (c)
    [up] u = Conv (r, large)
    [peak] m = MaxPool <kernel_shape = [2,2], strides = [2,2]> (u)
    [down] d = Conv (m, small)
    [pool] p = GlobalAveragePool (d)
    [flat] f = Flatten (p)
    [norm] n = LayerNormalization (f, gain, bias)
    [fc] scores = Gemm (n, weight, offset)
}
"""


@dataclass(frozen=True)
class Step:
    """One thing that was tried: whether it went as it has to, and what was seen.

    Of an assumption of the emulation, whether it holds on this machine: no fault of the backend where it does not.
    """

    name: str
    passed: bool
    seen: str
    is_assumption: bool = False


RESULT_FILE = "selftest.json"


def selftest(folder: Path, observer: Observer | None = None) -> Iterator[Step]:
    """Try the TensorRT backend, step by step; engines and logs go to `folder`.

    At the end all of it is written to `selftest.json` there, for a user to attach to an issue: the steps, what the
    emulation assumes and was measured, and for each layer the error as it was emulated and as it was measured. Raises
    EngineError where TensorRT or the GPU cannot be used at all.
    """
    layers: list[tuple[str, float, float]] = []
    steps: list[Step] = []
    observer = observer_of(observer)
    with held_folder(folder, observer.note):
        for step in _steps(folder, observer, layers):
            steps.append(step)
            yield step
        content = {
            "precisionlab": __version__,
            "python": python_facts(),
            "steps": [
                {"name": step.name, "passed": step.passed, "seen": step.seen}
                for step in steps
                if not step.is_assumption
            ],
            "assumptions": [
                {"name": step.name, "as_assumed": step.passed, "measured": step.seen}
                for step in steps
                if step.is_assumption
            ],
            "layers": [{"tensor": name, "emulated_sqnr_db": e, "measured_sqnr_db": m} for name, e, m in layers],
        }
        with told(folder, "choose another folder with --out"):
            write_whole(folder / RESULT_FILE, json.dumps(content, indent=1, ensure_ascii=False) + "\n")


def _steps(folder: Path, observer: Observer, layers: list[tuple[str, float, float]]) -> Iterator[Step]:
    with temporary_folder() as made:
        with told(made, TEMPORARY_ADVICE):
            model, dataset = _made(made)
        reference = emulation(model, dataset, None)
        collector = reference.collector(tuple(name for name in model.tensors if is_observed(model, name)))
        collector.add(dataset, _unheard)
        table = table_of(collector.histograms(), "max", len(dataset))
        with opening.open_engines(TENSORRT, reference, dataset, dataset, EngineOptions(), folder, observer) as backend:
            can_be_typed, device = backend.can_be_typed, backend.device
            yield Step("TensorRT and GPU", True, ", ".join(f"{k} {v}" for k, v in backend.identity.items()))
            steps = _Steps(backend, reference, dataset, table)
            yield from steps.all()
            layers.extend(steps.layers)
        options = EngineOptions(calibrate=True)
        with opening.open_engines(TENSORRT, reference, dataset, dataset, options, folder, observer) as backend:
            yield from _Steps(backend, reference, dataset, table).calibrated()
        options = EngineOptions(shapes=("image:1x3x16x16,2x3x16x16,4x3x16x16",))
        with opening.open_engines(TENSORRT, reference, dataset, dataset, options, folder, observer) as backend:
            yield from _Steps(backend, reference, dataset, table).batches()
        for family in FAMILIES:
            if not family.is_typed or (can_be_typed and _has(device, family.precision)):
                yield from _assumptions(family, made, folder, observer)


def _assumptions(family: Family, made: Path, folder: Path, observer: Observer) -> Iterator[Step]:
    """What the emulation takes for granted; that it is otherwise here is no fault of the machine, and told.

    Nothing of a precision that this TensorRT does not have by its flags.
    """
    with told(made, TEMPORARY_ADVICE):
        model, dataset = family.made(made)
    reference = emulation(model, dataset, None)
    options = EngineOptions(typed=family.is_typed)
    try:
        with opening.open_engines(TENSORRT, reference, dataset, dataset, options, folder, observer) as backend:
            if family.precision is None or family.is_typed or family.precision in backend.precisions:
                yield from (Step(*found, is_assumption=True) for found in family.measured(backend))
    except PrecisionLabError as error:
        yield Step(f"what the emulation assumes of {family.title}", False, str(error))


def _has(device: str, precision: Precision | None) -> bool:
    """Whether the GPU, as the backend names it, has it; where its capability is not told, the engine says."""
    found = re.search(r"compute capability (\d+)\.(\d+)", device)
    return precision is None or found is None or computes_on(precision, (int(found[1]), int(found[2])))


class _Steps:
    def __init__(
        self, backend: EngineBackend, emulation: OnnxRuntimeBackend, dataset: Dataset, table: CalibrationTable
    ) -> None:
        self.layers: list[tuple[str, float, float]] = []
        """Layer output, its SQNR emulated and measured, in dB; filled on the way."""
        self._backend = backend
        self._emulation = emulation
        self._model = backend.model
        self._dataset = dataset
        self._table = table

    def all(self) -> Iterator[Step]:
        """The steps that need no calibration by TensorRT."""
        yield self._step("FP32, TF32 off", lambda: self._figure(Precision.FP32, 80))
        yield self._step("FP16 held to", self._breaks)
        yield self._step("pins fix it", lambda: self._figure(Precision.FP16, 40, FAULT))
        yield self._step("pins are obeyed", self._obeyed)
        if Precision.BF16 in self._backend.precisions:
            yield self._step("BF16", lambda: self._figure(Precision.BF16, 25))
        yield self._step("INT8, our calibration cache", lambda: self._figure(Precision.INT8, 15))
        yield self._step("every layer is looked at", self._looked_at)
        yield self._step("the emulation is true", self._fidelity)
        yield self._step("times", self._times)

    def calibrated(self) -> Iterator[Step]:
        """INT8 with TensorRT's own calibration, fed by the samples."""
        yield self._step("INT8, calibrated by TensorRT", lambda: self._figure(Precision.INT8, 10))

    def batches(self) -> Iterator[Step]:
        """One engine for several batch sizes."""
        images = [sample.inputs["image"] for sample in self._dataset]
        samples = [Sample(str(n), {"image": np.concatenate(images[:n])}) for n in (1, 3, 4)]

        def run() -> tuple[bool, str]:
            found = self._backend.judge(self._plan(Precision.FP32), None, samples, _unheard, metric=None, known=None)
            sqnr = found.worst("sqnr")
            return sqnr >= 80, f"{sqnr:.1f} dB at batches of 1, 3 and 4"

        yield self._step("dynamic shapes", run)

    def _step(self, name: str, work: Callable[[], tuple[bool, str]]) -> Step:
        try:
            return Step(name, *work())
        except PrecisionLabError as error:
            return Step(name, False, str(error))

    def _plan(self, precision: Precision, pinned: tuple[str, ...] = ()) -> PrecisionPlan:
        pins = tuple(Pin(name, self._model.layer[name].nodes, Precision.FP32, "self-test") for name in pinned)
        return PrecisionPlan(self._model.sha256, precision, pins)

    def _ranges(self, precision: Precision) -> CalibrationTable | None:
        return self._table if precision is Precision.INT8 else None

    def _outputs(self, precision: Precision, pinned: tuple[str, ...] = ()) -> Comparison:
        plan = self._plan(precision, pinned)
        return self._backend.judge(plan, self._ranges(precision), self._dataset, _unheard, metric=None, known=None)

    def _figure(self, precision: Precision, least: float, pinned: tuple[str, ...] = ()) -> tuple[bool, str]:
        sqnr = self._outputs(precision, pinned).worst("sqnr")
        return sqnr >= least, f"{sqnr:.1f} dB against ONNX Runtime, at least {least:g} are wanted"

    def _breaks(self) -> tuple[bool, str]:
        """With every layer held to FP16, so that none may be faster in FP32; that nothing breaks is no fault."""
        layers = self._model.layers
        pins = tuple(Pin(layer.name, layer.nodes, Precision.FP16, "self-test") for layer in layers)
        plan = PrecisionPlan(self._model.sha256, Precision.FP32, pins)
        found = self._backend.judge(plan, None, self._dataset, _unheard, metric=None, known=None)
        sqnr = found.worst("sqnr")
        if math.isnan(sqnr) or sqnr < 20:
            return True, f"{sqnr:.1f} dB: values of 10⁶ do not fit, so that pins have work to do"
        return True, f"not broken, {sqnr:.1f} dB: values of 10⁶ are not stored in FP16 here, so that pins prove little"

    def _obeyed(self) -> tuple[bool, str]:
        inside = self._backend.inside(self._plan(Precision.FP16, FAULT), None)
        told = "; ".join(f"{pin.layer}: {pin.verdict} ({' '.join(pin.got) or 'types not told'})" for pin in inside.pins)
        return all(pin.verdict in ("honoured", "unknown") for pin in inside.pins), told

    def _looked_at(self) -> tuple[bool, str]:
        plan = self._plan(Precision.FP16, FAULT)
        found = self._backend.compare(plan, None, self._dataset, _unheard, metric=None, introduced=False).inherited
        worst = min((errors.sqnr for errors in found.values()), default=math.nan)
        notes = f"; {' '.join(self._backend.notes)}" if self._backend.notes else "; looking changed nothing"
        return bool(found) and worst > 30, f"{len(found)} layers, the worst {worst:.1f} dB{notes}"

    def _fidelity(self) -> tuple[bool, str]:
        """Each layer's error as emulated beside as measured, in dB: what a user may send us."""
        plan = self._plan(Precision.FP16, FAULT)
        found = [
            backend.compare(plan, None, self._dataset, _unheard, metric=None, introduced=False).inherited
            for backend in (self._emulation, self._backend)
        ]
        emulated, measured = found
        names = [n for n in measured if n in emulated and math.isfinite(emulated[n].sqnr + measured[n].sqnr)]
        if len(names) < 3:
            return False, f"only {len(names)} layers have a figure in both"
        self.layers = [(name, emulated[name].sqnr, measured[name].sqnr) for name in names]
        # Spearman's: the correlation of the ranks. Layers with equal figures rank by place in both.
        ours, theirs = (np.argsort(np.argsort([f[n].sqnr for n in names], kind="stable")) for f in (emulated, measured))
        correlation = float(np.corrcoef(ours, theirs)[0, 1])
        differences = [abs(a - b) for _, a, b in self.layers]
        return correlation > 0.8, (
            f"rank correlation {correlation:.3f} over {len(names)} layers, the median difference "
            f"{float(np.median(differences)):.1f} dB"
        )

    def _times(self) -> tuple[bool, str]:
        times = self._backend.times(self._plan(Precision.FP32), None, next(iter(self._dataset)))
        latency, layers = times.latency, times.layers
        total = sum(layers.values())
        return latency.median > 0 and total > 0, (
            f"{latency.median:.4f} ms a run ({latency.low:.4f} to {latency.high:.4f}), "
            f"{len(layers)} layers told apart, together {total:.4f} ms"
        )


def _unheard(done: int) -> None:
    """Progress that nobody wants to hear of."""


def _made(folder: Path) -> tuple[Model, Dataset]:
    """A small model with a fault, dynamic in its batch, and samples of two batch sizes."""
    drawn = np.random.default_rng(0)

    def normal(*shape: int) -> np.ndarray:
        return drawn.standard_normal(shape).astype(np.float32)

    mixed = np.linalg.qr(normal(16, 16))[0].reshape(16, 16, 1, 1).astype(np.float32)
    weights = {
        "kernel": 0.3 * normal(16, 3, 3, 3),
        "shift": 0.1 * normal(16),
        "large": 1e6 * mixed,
        "small": 1e-6 * mixed.swapaxes(0, 1),
        "gain": np.ones(16, np.float32),
        "bias": np.zeros(16, np.float32),
        "weight": 0.3 * normal(16, 10),
        "offset": 0.1 * normal(10),
    }
    proto = onnx.parser.parse_model(_MODEL)
    proto.graph.initializer.extend(onnx.numpy_helper.from_array(np.asarray(v), k) for k, v in weights.items())
    onnx.save_model(proto, folder / "selftest.onnx")
    data = folder / "data"
    data.mkdir()
    for index in range(SAMPLES):
        np.save(data / f"{index}.npy", normal(1, 3, 16, 16))
    model = load_model(folder / "selftest.onnx")
    return model, open_dataset(data, model, None, 0).checked(skip_bad=False, progress=_unheard)
