"""One model: what ours and the peers make of it, each a file that the judge takes and TensorRT-RTX builds."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort

from benchmarks.delivered import UnreadableError, kept_high, widened
from benchmarks.pins import Case, case_of
from benchmarks.pins_judge import Arrays, candidates, end_error, rounded
from benchmarks.repairs.compiled import COMPUTES, Kernels, Row, build, region_of
from benchmarks.repairs.models import source_of
from benchmarks.typed import FLOAT16, checked, run_in
from precisionlab.backends import emulation
from precisionlab.backends.converted import SourceRun
from precisionlab.backends.tensorrt.api import RTX as MODULE
from precisionlab.backends.tensorrt.child import ChildEngines
from precisionlab.backends.tensorrt.jobs import Profile
from precisionlab.backends.tensorrt.profiles import profiles_for
from precisionlab.backends.tensorrt.store import EngineStore
from precisionlab.calibration.table import CalibrationTable
from precisionlab.data import Dataset, open_dataset
from precisionlab.jobs.sweep import sweep
from precisionlab.model import load_model
from precisionlab.model.repair import Repair
from precisionlab.model.save import save_model
from precisionlab.plan.plan import PrecisionPlan
from precisionlab.precision import Precision
from precisionlab.rewrite.repairs import repaired_model
from precisionlab.rewrite.typed import save_typed, typed_model
from precisionlab.search.outcome import PrecisionResult
from precisionlab.system.observer import Silent
from precisionlab.system.plainfiles import make_plain_folder

ORIGINAL, PINNED, REPAIRED = "as it is", "pinned", "repaired"
FIXED = "fixed"


@dataclass(frozen=True)
class Scene:
    """A case, its original, and TensorRT-RTX ready in a process of its own."""

    case: Case
    original: onnx.ModelProto
    dataset: Dataset
    engines: ChildEngines
    profiles: Mapping[str, Profile]
    folder: Path

    def typed(
        self, title: str, source: Path, plan: PrecisionPlan | None, table: CalibrationTable | None = None
    ) -> Path:
        """The typed model of a plan, or of FP16 without pins; `source` has the plan's repairs."""
        backend = emulation(load_model(source), self.dataset, None)
        model, path = backend.model, self.folder / f"{title}.typed.onnx"
        plan = replace(plan or PrecisionPlan("", Precision.FP16), model_sha256=model.sha256, repairs=())
        beside = SourceRun(model, self.dataset, backend.threads)
        save_typed(typed_model(model, plan, table, beside=beside), path)
        return path

    def swept(self, precision: str, out: str, *, repair: bool) -> PrecisionResult:
        """What a sweep finds with the samples that choose: with repairs and pins, or with pins alone."""
        found = sweep(
            self.case.model,
            self.case.data,
            precisions=precision,
            backend="onnxruntime",
            repair=repair,
            out=self.folder / out,
        )
        return found.precisions[0]

    def fixed(self, title: str, repairs: tuple[Repair, ...]) -> Path:
        """The model with these repairs, as a file."""
        model, path = repaired_model(load_model(self.case.model), repairs), self.folder / f"{title}.onnx"
        assert model.exported is not None
        save_model(model.exported, path, model.data_files)
        return path

    def built(self, path: Path, compute: str) -> Kernels:
        """The kernels of a typed model."""
        return build(self.engines, path, self.profiles, compute, (node.name for node in self.original.graph.node))

    def judged(self, path: Path, precision: str) -> Row:
        """The nodes that a file keeps high, and how far it is from the original's float32."""
        model = onnx.load(path)
        row: Row = {"nodes": len(candidates(self.original, precision))}
        if wrong := checked(path):
            return {**row, "failed": f"its types disagree: {wrong}"}
        try:
            spelled = widened(model)
        except UnreadableError as error:
            return {**row, "failed": str(error)}
        row |= {"high": list(kept_high(self.original, model, precision)), **self.errors(spelled)}
        names = {node.name for node in model.graph.node}
        return row | {"lost": sum(name not in names for name in candidates(self.original, precision))}

    def beside(self, path: Path) -> str:
        """How a repaired file lies beside the original in float32, both run node by node, on all samples."""
        pair = [_as_written(file) for file in (self.case.model, path)]
        bitwise, largest = True, 0.0
        for sample in (*self.chosen(), *self.case.held_out):
            for wanted, given in zip(*(session.run(None, dict(sample)) for session in pair), strict=True):
                bitwise = bitwise and wanted.tobytes() == given.tobytes()
                if wanted.dtype.kind == "f":
                    largest = max(largest, float(np.abs(given - wanted).max() / np.abs(wanted).max()))
        return "the same bits" if bitwise else f"to {largest:.1e} of the largest number"

    def chosen(self) -> list[Arrays]:
        """The samples that tools see."""
        return [dict(np.load(file)) for file in sorted(self.case.data.glob("*.npz"))]

    def errors(self, graph: onnx.ModelProto) -> Row:
        """The SQNR of the worst output in dB, on the samples that chose and on the judge's own."""
        pair = (end_error(self.original, graph, samples).sqnr for samples in (self.chosen(), self.case.held_out))
        return dict(zip(("chosen", "held_out"), (x if math.isfinite(x) else str(x) for x in pair), strict=True))


def _as_written(path: Path) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    return ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def measured(name: str, samples: int, peers: bool) -> Row:
    """All rows of one model: `variants` of ours, and `tools`."""
    try:
        with tempfile.TemporaryDirectory() as folder:
            return _rows(name, samples, peers, Path(folder))
    except Exception as error:  # whatever it is, the other models' rows are to be had
        return {"failed": f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"}


def _rows(name: str, samples: int, peers: bool, folder: Path) -> Row:
    source = folder / "source"
    source.mkdir()
    case = case_of(name, "fp16", *source_of(name, source), samples, folder)
    model = load_model(case.model)
    dataset = open_dataset(case.data, model, None, 0)
    store = EngineStore(make_plain_folder(folder, "engines"))
    with ChildEngines(MODULE, model, dataset, store, folder / "tensorrt.log", Silent()) as engines:
        profiles = profiles_for(model, (), lambda _: dataset)[0]
        scene = Scene(case, onnx.load(case.model), dataset, engines, profiles, folder)
        found: Row = {"samples": case.samples, "held_out": len(case.held_out), **_ours(scene)}
        if peers:
            found["tools"] = [*_naive(scene), *_half_peers(scene)]
            if name == "minilm_l3":
                found["int8"] = list(_int8(scene))
        return found


def _ours(scene: Scene) -> Row:
    """The original without pins, pinned, and repaired."""
    case = scene.case
    pinned = scene.swept("fp16", "pinned", repair=False).plan
    found = scene.swept("fp16", "repaired", repair=True).plan
    variants = [(ORIGINAL, scene.typed(ORIGINAL, case.model, None), 0)]
    if pinned.pins:
        variants.append((PINNED, scene.typed(PINNED, case.model, pinned), len(pinned.pins)))
    region, same = frozenset[str](), ""
    if found.repairs:
        fixed = scene.fixed(FIXED, found.repairs)
        variants.append((REPAIRED, scene.typed(REPAIRED, fixed, found), len(found.pins)))
        region, same = region_of(scene.original, onnx.load(fixed), found.repairs), scene.beside(fixed)
    before = {compute: scene.built(variants[0][1], compute) for compute in COMPUTES}
    rows = []
    for title, path, pins in variants:
        row: Row = {"variant": title, "pins": pins, **scene.judged(path, "fp16")}
        row |= {compute: scene.built(path, compute).row(before[compute], region) for compute in COMPUTES}
        rows.append(row)
    repairs = [{"repair": str(one), "exactness": one.exactness.value} for one in found.repairs]
    new = region.difference(node.name for node in scene.original.graph.node)
    return {"variants": rows, "repairs": repairs, "new_nodes": sorted(new), "float32": same}


def _naive(scene: Scene) -> Iterator[Row]:
    """Every node in half, its constants cast as they are."""
    nodes = candidates(scene.original, "fp16")
    graph = rounded(scene.original, dict.fromkeys(nodes, "fp16"), {})
    yield {"tool": "every node and constant cast", "high": [], "nodes": len(nodes), "lost": 0, **scene.errors(graph)}


def _half_peers(scene: Scene) -> Iterator[Row]:
    """Of the original, and of the repaired model where there is one."""
    autocast = ["-m", "modelopt.onnx.autocast", "-t", "fp16", "-d", str(scene.case.data), "--keep_io_types"]
    for source, of in ((scene.case.model, ""), (scene.folder / f"{FIXED}.onnx", ", of our repaired model")):
        if source.exists():
            made = scene.folder / f"autocast{of}.onnx"
            failed = run_in("modelopt", [*autocast, "--onnx_path", str(source), "--output_path", str(made)])
            yield {"tool": f"ModelOpt AutoCast{of}", **({"failed": failed} if failed else _tool(scene, made, "fp16"))}
            made = scene.folder / f"float16{of}.onnx"
            failed = run_in("onnxconverter", ["-c", FLOAT16, str(source), str(made)])
            title = f"onnxconverter-common float16{of}"
            yield {"tool": title, **({"failed": failed} if failed else _tool(scene, made, "fp16"))}


def _tool(scene: Scene, made: Path, precision: str) -> Row:
    row = scene.judged(made, precision)
    for compute in COMPUTES:
        kernels = scene.built(made, compute)
        row[compute] = {"failed": kernels.failed} if kernels.failed else {"kernels": len(kernels.layers)}
    return row


def _int8(scene: Scene) -> Iterator[Row]:
    """ModelOpt's INT8, our pins, and our repairs."""
    for high in ("fp32", "fp16"):
        made = scene.folder / f"modelopt.int8.{high}.onnx"
        command = [
            "-m",
            "benchmarks.peers_pins.modelopt_quantized",
            "int8",
            str(scene.case.model),
            str(scene.case.data),
        ]
        failed = run_in("modelopt", [*command, str(made), high])
        title = f"ModelOpt INT8 among {high.upper()}"
        yield {"tool": title, **({"failed": failed} if failed else _tool(scene, made, "int8"))}
    yield {"tool": "precisionlab, pinned", **_swept_int8(scene, "pinned", repair=False)}
    yield {"tool": "precisionlab, repaired", **_swept_int8(scene, "repaired", repair=True)}


def _swept_int8(scene: Scene, title: str, *, repair: bool) -> Row:
    found = scene.swept("int8", f"{title}.int8", repair=repair)
    repairs = found.plan.repairs
    if repair and not repairs:
        return {"failed": "no repair helps"}
    source = scene.fixed(f"{title}.int8", repairs) if repairs else scene.case.model
    typed = scene.typed(f"int8.{title}", source, found.plan, found.table)
    row = {"pins": len(found.plan.pins), "repairs": [str(one) for one in repairs], **_tool(scene, typed, "int8")}
    return row | ({"float32": scene.beside(source)} if repairs else {})
