"""Plans as strongly typed models, built by TensorRT-RTX: `python -m benchmarks.typed [MODELS] [--peers] [--json FILE]`.

For each model: FP16, BF16, INT8 and FP8 (among float32 and among FP16 layers), INT4 weights among FP16 where a layer
can have them, and the plans with pins that a short sweep finds. Each becomes a typed model, which is

* checked by ONNX's checker with full type inference,
* run by ONNX Runtime on the CPU, beside what the emulation says (INT8 and FP8 as they stand; FP16 and BF16 loosely, as
  that provider computes them in float32 wherever it likes, and lacks many BF16 kernels),
* built by the real TensorRT-RTX for SM89 and SM120, which needs no GPU. From the builder's own list of kernels: their
  number, the copies that do nothing but convert, and for each layer whether it is compiled in the type that the plan
  asks. A layer is, where its kernels take or give that type, or where they do not tell and the network, which a
  strongly typed TensorRT compiles as it is typed, has it in that type. One in INT4 is where the kernel that multiplies
  holds the weight in it: else it is dequantised ahead, and nothing is won.

With `--peers` also ModelOpt AutoCast and onnxconverter-common's float16 on the same models, in FP16 and with inputs and
outputs kept: the Casts from and to float types (the original's own among them), the bytes that they read and write for
one sample, the end error by the judge of `benchmarks.pins_judge` (every node that is fp16 or bf16 in the tool's model
is rounded in a float32 graph, by code that is none of ours), and whether TensorRT-RTX builds it.

The tables are printed in Markdown. With a file of JSON each model's rows are written to it as soon as they are there,
beside those of other models that it holds already.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import subprocess
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import click
import numpy as np
import onnx
from onnx import TensorProto, numpy_helper

from benchmarks.delivered import element_types
from benchmarks.pins import UnavailableError, environment
from benchmarks.pins_judge import Arrays, candidates, compare, end_error, named, rounded, session
from benchmarks.processes import in_process
from benchmarks.typed_models import MODELS, ROOT, files_of
from precisionlab.backends import emulation
from precisionlab.backends.converted import SourceRun
from precisionlab.backends.onnxruntime import OnnxRuntimeBackend
from precisionlab.backends.registry import RTX
from precisionlab.backends.tensorrt.api import RTX as MODULE
from precisionlab.backends.tensorrt.backend import EngineSettings
from precisionlab.backends.tensorrt.child import ChildEngines
from precisionlab.backends.tensorrt.jobs import BuildJob, Profile
from precisionlab.backends.tensorrt.pin_report import reformats_of
from precisionlab.backends.tensorrt.profiles import profiles_for
from precisionlab.backends.tensorrt.store import EngineStore
from precisionlab.backends.tensorrt.typed import TypedBackend
from precisionlab.calibration.table import CalibrationTable
from precisionlab.data import Dataset, open_dataset
from precisionlab.errors import PrecisionLabError
from precisionlab.jobs.sweep import sweep
from precisionlab.model import Model, load_model
from precisionlab.plan.assign import precision_of
from precisionlab.plan.plan import Pin, PrecisionPlan
from precisionlab.precision import Precision
from precisionlab.rewrite.plans import completed
from precisionlab.rewrite.typed import save_typed, typed_model
from precisionlab.search.outcome import PrecisionResult
from precisionlab.system.observer import Silent
from precisionlab.system.plainfiles import make_plain_folder

COMPUTES = ("SM89", "SM120")
VARIANTS = (
    *("fp16", "bf16", "int8", "int8 among fp16", "int8 mixed", "fp8", "fp8 among fp16", "fp8 mixed"),
    *("int4 among fp16", "int4 mixed", "fp16 mixed", "fp16 with fp32"),
)
PATIENCE = 900.0  # seconds for one model
PEER_PATIENCE = 180.0
_FLOATS = frozenset({TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16})
_BYTES: Mapping[int, int] = {
    TensorProto.FLOAT: 4,
    TensorProto.FLOAT16: 2,
    TensorProto.BFLOAT16: 2,
    TensorProto.DOUBLE: 8,
    TensorProto.INT64: 8,
    TensorProto.INT32: 4,
    TensorProto.BOOL: 1,
}
# They pick or move values, and give the same before and after quantising with one scale.
_MOVING = frozenset(
    {
        "Concat",
        "ConstantOfShape",
        "Expand",
        "Flatten",
        "Gather",
        "Identity",
        "MaxPool",
        "Pad",
        "Reshape",
        "Slice",
        "Split",
        "Squeeze",
        "Tile",
        "Transpose",
        "Unsqueeze",
    }
)
FLOAT16 = """
import sys, onnx
from onnxconverter_common import float16
onnx.save(float16.convert_float_to_float16(onnx.load(sys.argv[1]), keep_io_types=True), sys.argv[2])
"""

Row = dict[str, Any]
_QUANTIZED = frozenset(precision.value for precision in Precision if precision.is_quantized)
_WEIGHTS = frozenset(precision.value for precision in Precision if precision.is_weight_only)


@dataclass(frozen=True)
class Variant:
    """A plan to be typed, by the name that it has in the tables."""

    name: str
    plan: PrecisionPlan
    table: CalibrationTable | None


@dataclass(frozen=True)
class Scene:
    """One model with its samples, and TensorRT-RTX ready in a process of its own."""

    backend: OnnxRuntimeBackend
    dataset: Dataset
    original: onnx.ModelProto
    samples: tuple[Arrays, ...]
    engines: ChildEngines
    profiles: Mapping[str, Profile]
    folder: Path

    @property
    def model(self) -> Model:
        return self.backend.model

    @cached_property
    def beside(self) -> SourceRun:
        return SourceRun(self.model, self.dataset, self.backend.threads)


@click.command()
@click.argument("models", nargs=-1)
@click.option("--peers", is_flag=True, help="Also ModelOpt AutoCast and onnxconverter-common.")
@click.option("--samples", default=16, show_default=True, help="Samples of each model.")
@click.option("--budget", default="20s", show_default=True, help="The most time of a search for pins.")
@click.option("--precisions", default="fp16,int8,fp8,int4", show_default=True, help="What is swept and typed.")
@click.option("--json", "json_file", type=click.Path(path_type=Path), help="Keep the rows in this file.")
def main(
    models: tuple[str, ...], peers: bool, samples: int, budget: str, precisions: str, json_file: Path | None
) -> None:
    """Measure MODELS (all if none is named), and print the tables of all that is known."""
    known: dict[str, Row] = json.loads(json_file.read_text()) if json_file and json_file.exists() else {}
    for name in models or MODELS:
        started = time.perf_counter()
        known[name] = in_process(_measured, name, samples, budget, peers, precisions, seconds=PATIENCE)
        said = known[name].get("failed", f"{time.perf_counter() - started:.0f} s")
        click.echo(f"{name}: {said}", err=True)
        if json_file:
            json_file.write_text(json.dumps(known, indent=1) + "\n")
    found = {name: known[name] for name in MODELS if "failed" not in known.get(name, {"failed": ""})}
    click.echo("\n".join(tables(found)))


def _measured(name: str, samples: int, budget: str, peers: bool, precisions: str) -> Row:
    """All rows of one model: `variants`, and `tools`."""
    try:
        path, data = files_of(name)
        with tempfile.TemporaryDirectory() as folder:
            return _rows(path, data, samples, budget, peers, precisions, Path(folder))
    except Exception as error:  # whatever it is, the other models' rows are to be had
        return {"failed": f"{type(error).__name__}: {_line(error)}"}


def _rows(path: Path, data: Path, samples: int, budget: str, peers: bool, precisions: str, folder: Path) -> Row:
    model = load_model(path)
    dataset = open_dataset(data, model, samples, 0)
    backend = emulation(model, dataset, None)
    variants = _variants(backend.model, data, samples, budget, precisions, folder)
    log = folder / "tensorrt.log"
    store = EngineStore(make_plain_folder(folder, "engines"))
    with ChildEngines(MODULE, backend.model, dataset, store, log, Silent()) as engines:
        scene = Scene(
            backend=backend,
            dataset=dataset,
            original=named(onnx.load(path)),
            samples=tuple(sample.inputs for sample in dataset),
            engines=engines,
            profiles=profiles_for(backend.model, (), lambda name: dataset)[0],
            folder=folder,
        )
        found: Row = {"variants": [_variant(scene, variant) for variant in variants]}
        if peers:
            found["tools"] = list(_tools(scene, [v for v in variants if v.name.startswith("fp16")]))
        return found


def _variants(model: Model, data: Path, samples: int, budget: str, precisions: str, folder: Path) -> list[Variant]:
    """The plain precisions, and with pins what a sweep finds for those that need any; the mixed ones last.

    BF16 goes with FP16.
    """

    def searched(precisions: str, ladder: str | None = None) -> tuple[PrecisionResult, ...]:
        found = sweep(
            model.path,
            data,
            precisions=precisions,
            ladder=ladder,
            backend="onnxruntime",
            samples=samples,
            holdout=0,
            budget=budget,
            repair=False,  # pins are what is typed
            out=folder / f"{precisions} {ladder}",
        )
        return found.precisions

    found = searched(precisions)
    fp16 = next((one for one in found if one.precision is Precision.FP16), None)
    halves = (Precision.FP16, Precision.BF16) if fp16 is not None else ()
    variants = [Variant(half.value, PrecisionPlan(model.sha256, half), None) for half in halves]
    for one in found:
        if one is fp16:
            continue
        calibration, block = one.plan.calibration, one.plan.block
        bare = PrecisionPlan(model.sha256, one.precision, calibration=calibration, block=block)
        low = completed(model, bare, one.table)
        among = replace(low, around=Precision.FP16)
        if not one.precision.is_weight_only:  # whose scales are not fused among float32
            variants.append(Variant(f"{one.precision}", low, one.table))
        variants.append(Variant(f"{one.precision} among fp16", among, one.table))
        if one.plan.pins != low.pins:
            variants.append(Variant(f"{one.precision} mixed", one.plan, one.table))
    if fp16 is not None and fp16.plan.pins:
        variants.append(Variant("fp16 mixed", fp16.plan, None))
        variants.append(Variant("fp16 with fp32", searched("fp16", "fp32")[0].plan, None))
    return variants


def _variant(scene: Scene, variant: Variant) -> Row:
    """One variant: typed, checked, run and built."""
    plan, table = variant.plan, variant.table
    asked = Counter(str(precision_of(layer, plan)) for layer in scene.model.layers if layer.fixed is None)
    row: Row = {"variant": variant.name, "asked": dict(asked), "pins": len(plan.pins)}
    try:
        typed = typed_model(scene.model, plan, table, beside=scene.beside)
    except PrecisionLabError as error:
        return {**row, "failed": str(error)}
    path = scene.folder / f"{variant.name}.onnx"
    save_typed(typed, path)
    row |= {"casts": typed.casts, "notes": list(typed.notes), "checker": checked(path)}
    row |= {"emulated": _emulated(scene, variant), "onnxruntime": _ran(scene, path)}
    for compute in COMPUTES:
        row[compute] = _compiled(scene, variant, compute, typed.notes)
    return row


def _emulated(scene: Scene, variant: Variant) -> float | str:
    """The SQNR of the worst final output by the emulation, in dB; its own words where it cannot say."""
    plan, table = variant.plan, variant.table
    try:
        found = scene.backend.compare(plan, table, scene.dataset, lambda done: None, metric=None, introduced=False)
    except PrecisionLabError as error:
        return f"{type(error).__name__}: {_line(error)}"
    return _decibels(found.worst("sqnr"))


def checked(path: Path) -> str:
    """What ONNX's checker says with full type inference; empty where it says nothing."""
    try:
        onnx.checker.check_model(str(path), full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError, RuntimeError) as error:
        return _line(error)
    return ""


def _ran(scene: Scene, path: Path) -> float | str:
    """The SQNR of the worst final output in ONNX Runtime, in dB; its own words where it does not run."""
    names = [v.name for v in scene.original.graph.output if v.type.tensor_type.elem_type == TensorProto.FLOAT]
    reference = session(scene.original)
    try:
        running = session(onnx.load(path))
        pairs = [(reference.run(names, dict(s)), running.run(names, dict(s))) for s in scene.samples]
    except Exception as error:  # ONNX Runtime's are of many classes
        return f"{type(error).__name__}: {_line(error)}"
    return _decibels(compare(pairs).sqnr)


def _compiled(scene: Scene, variant: Variant, compute: str, notes: Sequence[str]) -> Row:
    """The engine for one compute capability: its kernels, and what each layer was compiled in."""
    settings = EngineSettings(scene.folder / "engines", scene.profiles, compute=compute)
    backend = TypedBackend(scene.backend, scene.engines, settings, RTX, scene.beside)
    started = time.perf_counter()
    try:
        inside = backend.inside(spelled_out(scene.model, variant.plan), variant.table)
    except PrecisionLabError as error:
        return {"failed": str(error)}
    layers = inside.built.layers
    typed = _network_types(scene, backend.job(spelled_out(scene.model, variant.plan), variant.table).model)
    exceptions = []
    for report in inside.pins:
        layer = scene.model.layer[report.layer]
        is_asked = report.verdict == "honoured" and report.asked.value in report.got
        if report.asked.is_weight_only:
            is_asked = report.verdict != "not found" and layer.name not in inside.unfused
        if is_asked:
            continue
        exceptions.append(
            {
                "layer": layer.name,
                "kind": layer.kind,
                "asked": report.asked.value,
                "got": list(report.got),
                "verdict": report.verdict,
                "network": sorted({dtype for node in layer.nodes for dtype in typed.get(node, ())}),
                "fused": len(report.fused_with),
                "note": _note_on(layer.name, notes),
            }
        )
    return {
        "kernels": len(layers) - reformats_of(layers),
        "reformats": reformats_of(layers),
        "layers": len(inside.pins),
        "as_asked": len(inside.pins) - len(exceptions),
        "exceptions": exceptions,
        "seconds": time.perf_counter() - started,
    }


def _network_types(scene: Scene, path: Path) -> dict[str, set[str]]:
    """Node → the float types of what it gives in TensorRT's network."""
    found: dict[str, set[str]] = {}
    for layer in scene.engines.describe(path):
        if layer.node is not None:
            given = {tensor.dtype for tensor in layer.outputs} & {"fp32", "fp16", "bf16"}
            found.setdefault(layer.node, set()).update(given)
    return found


def _note_on(layer: str, notes: Iterable[str]) -> str:
    """What the typed model says of a layer that is not in the type of the plan; empty where it says nothing."""
    start = f"layer {layer} is left in fp32: "
    return next((note.removeprefix(start) for note in notes if note.startswith(start)), "")


def spelled_out(model: Model, plan: PrecisionPlan) -> PrecisionPlan:
    """The same plan with a pin for every layer that has a precision, so that each is reported on."""
    layers = [layer for layer in model.layers if layer.fixed is None]
    return plan.with_pins(Pin(layer.name, layer.nodes, precision_of(layer, plan), "") for layer in layers)


def explained(found: Mapping[str, Any]) -> str:
    """Why a layer is not compiled in the type that was asked for; "not explained" where it is not known."""
    operators = set(found["kind"].split("+"))
    if found["asked"] in _WEIGHTS and found["verdict"] != "not found":
        return "its weight is dequantised by a kernel of its own, ahead of the product"
    if found["note"]:
        return "left in fp32 by the rewrite, with a note"
    if found["verdict"] == "not found":
        if operators <= _MOVING:
            return "no kernel of its own: a copy or a view, which the compiler has removed or taken into another kernel"
        return f"no kernel names it: merged into another layer's kernel; {_in_network(found)}"
    if found["got"] == ["fp32"] and found["asked"] in ("fp16", "bf16"):
        if found["fused"]:
            return f"its kernel, which runs other layers too, takes and gives fp32; {_in_network(found)}"
        if operators <= _MOVING:
            same = "it picks or moves values, in fp32, and is rounded before or behind to the same"
            return f"{same}; {_in_network(found)}"
        return f"a kernel of its own that takes and gives fp32; {_in_network(found)}"
    if found["asked"] in _QUANTIZED and found["asked"] not in found["got"]:
        return "computed in floats on quantised values: Q and DQ stand inside its kernel, or in those before it"
    taken = " and ".join(name for name in found["got"] if name in _QUANTIZED)
    if taken and operators <= _MOVING:
        return f"moved behind the QuantizeLinear that follows: it picks or moves values, and gives the same of {taken}"
    if taken and found["fused"] and found["network"] == [found["asked"]]:
        return f"its kernel, which runs other layers too, takes or gives their {taken}; {_in_network(found)}"
    return f"not explained: {found['verdict']}, {' and '.join(found['got'])} in its kernels; {_in_network(found)}"


def _in_network(found: Mapping[str, Any]) -> str:
    if found["network"] == [found["asked"]]:
        return "TensorRT's network has it as asked"
    return f"TensorRT's network has it in {' and '.join(found['network']) or 'no float type'}"


def _tools(scene: Scene, ours: Sequence[Variant]) -> Iterator[Row]:
    """Each tool's FP16 model."""
    path, data = scene.folder / "named.onnx", scene.folder / "samples"
    onnx.save(scene.original, path)
    data.mkdir()
    for index, sample in enumerate(scene.samples):
        np.savez(data / f"{index:04}.npz", **sample)
    shapes = _shapes(scene)
    casts, read_and_written, _ = borders(scene.original, scene.original, shapes)
    yield {"tool": "the original", "casts": casts, "bytes": read_and_written}
    for variant in ours:
        yield {"tool": f"precisionlab, {variant.name}", **_tool(scene, scene.folder / f"{variant.name}.onnx", shapes)}
    commands = {
        "ModelOpt AutoCast": ("modelopt", ["-m", "modelopt.onnx.autocast", "--onnx_path", str(path), "--output_path"]),
        "onnxconverter-common float16": ("onnxconverter", ["-c", FLOAT16, str(path)]),
    }
    for title, (room, command) in commands.items():
        made = scene.folder / f"{room}.onnx"
        options = ["-t", "fp16", "-d", str(data), "--keep_io_types"] if room == "modelopt" else []
        failed = run_in(room, [*command, str(made), *options])
        yield {"tool": title, **({"failed": failed} if failed else _tool(scene, made, shapes))}


def run_in(room: str, arguments: Sequence[str]) -> str:
    """Run Python in a peer's environment; why it failed, or nothing."""
    clean = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "VIRTUAL_ENV")}
    try:
        done = subprocess.run(
            [str(environment(room)), *arguments],
            cwd=ROOT,
            env=clean,
            capture_output=True,
            text=True,
            timeout=PEER_PATIENCE,
        )
    except UnavailableError as reason:
        return str(reason)
    except subprocess.TimeoutExpired:
        return f"not finished after {PEER_PATIENCE:.0f} s"
    return "" if done.returncode == 0 else (done.stderr.strip().splitlines() or [f"exit {done.returncode}"])[-1][:300]


def _tool(scene: Scene, path: Path, shapes: Mapping[str, int]) -> Row:
    """What a half-precision model is: its Casts, its error, and whether TensorRT-RTX takes it."""
    model = onnx.load(path)
    casts, read_and_written, unknown = borders(scene.original, model, shapes)
    low = low_nodes(model)
    there = candidates(scene.original, "fp16")
    kept = {name: low[name] for name in there if name in low}
    error = end_error(scene.original, rounded(scene.original, kept, {}), scene.samples)
    row: Row = {
        "casts": casts,
        "bytes": read_and_written,
        "casts_of_unknown_size": unknown,
        "low": len(kept),
        "nodes": len(there),
        "lost": len(set(there) - {node.name for node in model.graph.node}),
        "sqnr": _decibels(error.sqnr),
        "checker": checked(path),
    }
    for compute in COMPUTES:
        job = BuildJob(
            model=path,
            engine=scene.folder / "engines",
            content=hashlib.sha256(path.read_bytes()).hexdigest(),
            profiles=scene.profiles,
            compute=compute,
            label=path.stem,
        )
        try:
            layers = scene.engines.build(job).layers
        except PrecisionLabError as refused:
            row[compute] = {"failed": str(refused)}
        else:
            row[compute] = {"kernels": len(layers) - reformats_of(layers), "reformats": reformats_of(layers)}
    return row


def low_nodes(model: onnx.ModelProto) -> dict[str, str]:
    """The nodes that give fp16 or bf16, Casts apart."""
    types = element_types(model)
    halves: Mapping[int, str] = {TensorProto.FLOAT16: "fp16", TensorProto.BFLOAT16: "bf16"}
    given = ((node, types.get(name)) for node in model.graph.node if node.op_type != "Cast" for name in node.output)
    return {node.name: halves[kind] for node, kind in given if kind in halves}


def borders(original: onnx.ModelProto, model: onnx.ModelProto, elements: Mapping[str, int]) -> tuple[int, int, int]:
    """Casts to and from float types, the bytes that they read and write, and for how many the size is not known.

    Those of the original are among them: a tool may put another type into one in the place of a second behind it.
    `elements` is how many elements each tensor of the original has.
    """
    types = element_types(model)
    producers = {name: (node, i) for node in model.graph.node for i, name in enumerate(node.output)}
    known = {node.name: node for node in original.graph.node}
    constants = {tensor.name: int(np.prod(tensor.dims)) for tensor in model.graph.initializer}

    def size(name: str) -> int | None:
        if name in elements or name in constants:
            return elements.get(name, constants.get(name))
        node, index = producers.get(name, (None, 0))
        if node is None:
            return None
        if node.op_type == "Cast":
            return size(node.input[0])
        before = known.get(node.name)
        return elements.get(before.output[index]) if before is not None and index < len(before.output) else None

    count, total, unknown = 0, 0, 0
    for node in model.graph.node:
        if node.op_type != "Cast":
            continue
        taken, given = types.get(node.input[0]), types.get(node.output[0])
        if taken not in _FLOATS and given not in _FLOATS:
            continue  # indices and shapes
        count += 1
        found = size(node.input[0])
        if found is None or taken not in _BYTES or given not in _BYTES:
            unknown += 1
        else:
            total += found * (_BYTES[taken] + _BYTES[given])
    return count, total, unknown


def _shapes(scene: Scene) -> dict[str, int]:
    """How many elements each tensor of the original has at the first sample."""
    shown = onnx.ModelProto()
    shown.CopyFrom(scene.original)
    there = {value.name for value in shown.graph.output}
    names = [name for node in shown.graph.node for name in node.output if name and name not in there]
    shown.graph.output.extend(onnx.helper.make_empty_tensor_value_info(name) for name in names)
    sample = scene.samples[0]
    running = session(shown)
    every = [value.name for value in running.get_outputs()]
    values = running.run(every, dict(sample))
    found = {name: int(np.size(value)) for name, value in zip(every, values, strict=True)}
    constants = {t.name: int(np.size(numpy_helper.to_array(t))) for t in scene.original.graph.initializer}
    return {**constants, **{name: int(np.size(value)) for name, value in sample.items()}, **found}


def tables(found: Mapping[str, Row]) -> Iterator[str]:
    """The tables in Markdown."""
    yield from _engines_table(found)
    yield from _errors_table(found)
    yield from _exceptions_table(found)
    yield from _refusals(found)
    yield from _tools_table(found)


def _engines_table(found: Mapping[str, Row]) -> Iterator[str]:
    """For each model and variant: kernels and copies, and of how many layers the types are those of the plan."""
    yield from _by_variant(found, _engines_cell)


def _engines_cell(row: Row) -> str:
    cells = {compute: _engine_cell(row.get(compute, {"failed": ""})) for compute in COMPUTES}
    first = cells[COMPUTES[0]]
    others = [f"{compute}: {cell}" for compute, cell in cells.items() if cell != first]
    return first if not others else f"{first} ({', '.join(others)})"


def _engine_cell(engine: Row) -> str:
    if "failed" in engine:
        return "refused"
    copies = f" + {engine['reformats']}" if engine["reformats"] else ""
    return f"{engine['kernels']}{copies}, {engine['as_asked']}/{engine['layers']}"


def _errors_table(found: Mapping[str, Row]) -> Iterator[str]:
    """For each model and variant: ONNX Runtime's SQNR of the typed model / the emulation's of the plan."""
    yield from _by_variant(found, _errors_cell)


def _errors_cell(row: Row) -> str:
    if "failed" in row:
        return "not typed"
    return f"{_shown(row['onnxruntime'])} / {_shown(row['emulated'])}{' **checker**' if row['checker'] else ''}"


def _by_variant(found: Mapping[str, Row], cell: Callable[[Row], str]) -> Iterator[str]:
    yield f"| model | {' | '.join(VARIANTS)} |"
    yield "|---" * (1 + len(VARIANTS)) + "|"
    for name, rows in found.items():
        by = {row["variant"]: cell(row) for row in rows["variants"]}
        yield f"| {name} | {' | '.join(by.get(title, '–') for title in VARIANTS)} |"
    yield ""


def _exceptions_table(found: Mapping[str, Row]) -> Iterator[str]:
    """Why layers are not compiled as asked, for the first compute capability."""
    counts: Counter[tuple[str, str]] = Counter()
    where: dict[tuple[str, str], Counter[str]] = {}
    for name, row in _each(found):
        for exception in row.get(COMPUTES[0], {}).get("exceptions", ()):
            key = exception["asked"], explained(exception)
            counts[key] += 1
            where.setdefault(key, Counter())[f"{exception['kind']} ({name})"] += 1
    yield "| asked | layers | why not as asked | such as |"
    yield "|---|---|---|---|"
    for (asked, why), count in counts.most_common():
        such = ", ".join(text for text, _ in where[asked, why].most_common(3))
        yield f"| {asked} | {count} | {why} | {such} |"
    yield ""


def _refusals(found: Mapping[str, Row]) -> Iterator[str]:
    """What did not become an engine, or does not pass the checker, in the words of whoever refused it."""
    for name, row in _each(found):
        if "failed" in row:
            yield f"- {name}, {row['variant']}: not typed: {row['failed']}"
        if row.get("checker"):
            yield f"- {name}, {row['variant']}: ONNX's checker: {row['checker']}"
        yield from _told_once(f"{name}, {row['variant']}", row)
    yield ""


def _tools_table(found: Mapping[str, Row]) -> Iterator[str]:
    if not any("tools" in rows for rows in found.values()):
        return
    yield "| model | tool | low / nodes | Casts | kB converted | SQNR dB | kernels |"
    yield "|---|---|---|---|---|---|---|"
    for name, rows in found.items():
        for row in rows.get("tools", ()):
            line = _tool_line(row)
            if line:
                yield f"| {name} | {row['tool']} | {line} |"
    yield ""
    for name, rows in found.items():
        for row in rows.get("tools", ()):
            yield from _told_once(f"{name}, {row['tool']}", row)


def _tool_line(row: Row) -> str:
    """The cells of one tool; empty for an original that has no Cast to tell of."""
    if "failed" in row:
        return f"fails: {row['failed']} | | | |"
    least = "≥ " * bool(row.get("casts_of_unknown_size"))
    cast = f"{row['casts']} | {least}{row['bytes'] / 1e3:.1f}"
    if "low" not in row:
        return f"| {cast} | |" if row["casts"] else ""
    built = row[COMPUTES[0]]
    kernels = "refused" if "failed" in built else f"{built['kernels']}"
    if row["checker"]:  # then which nodes are low cannot be told either
        return f"its types disagree | {cast} | | {kernels}"
    return f"{row['low']} / {row['nodes']} | {cast} | {_shown(row['sqnr'])} | {kernels}"


def _told_once(start: str, row: Row) -> Iterator[str]:
    """Why there is no engine: once where all targets are refused for the same reason."""
    reasons: dict[str, list[str]] = {}
    for compute in COMPUTES:
        if "failed" in row.get(compute, {}):
            reasons.setdefault(_words(row[compute]["failed"]), []).append(compute)
    for why, computes in reasons.items():
        yield f"- {start}, {' and '.join(computes)}: {why}"


def _words(refusal: str) -> str:
    """A refusal without the file's name, which is one of this run, and without what CUDA says where no driver is."""
    return refusal.partition(": ")[2].partition(" [checkMacros")[0] or refusal


def _each(found: Mapping[str, Row]) -> Iterator[tuple[str, Row]]:
    return ((name, row) for name, rows in found.items() for row in rows["variants"])


def _decibels(value: float) -> float | str:
    """A number that JSON can hold; else its name."""
    return value if math.isfinite(value) else str(value)


def _shown(value: float | str) -> str:
    names = {"inf": "∞", "-inf": "NaN or Inf", "nan": "NaN or Inf"}
    return names.get(value, "fails") if isinstance(value, str) else f"{value:.1f}"


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())[:300]


if __name__ == "__main__":
    main()
