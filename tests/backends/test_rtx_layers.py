"""With TensorRT-RTX a sweep's layers are the fused kernels that it compiles: what it keeps apart is rounded between."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from click.testing import CliRunner
from fused import FUSED, C, model_of
from models import plan_for, proto
from rtx import drive, needs_rtx

from precisionlab.backends.tensorrt.buildlog import layers_of
from precisionlab.cli import cli
from precisionlab.jobs.result import SweepResult
from precisionlab.jobs.sweep import sweep
from precisionlab.precision import Precision
from precisionlab.rewrite.typed import save_typed, typed_model
from precisionlab.search.verdict import State

CHANNELS = 8


def conv_bn(folder: Path) -> Path:
    """A Conv whose result passes 65504, and a BatchNormalization as the output that brings it down; with samples."""
    rng = np.random.default_rng(0)
    weight = (rng.standard_normal((CHANNELS, CHANNELS, 3, 3)) * 1e4).astype(np.float32)
    before = (rng.standard_normal((CHANNELS, CHANNELS, 1, 1)) * 0.3).astype(np.float32)
    constants = {"w0": before, "w": weight} | {
        name: np.full(CHANNELS, value, np.float32) for name, value in zip("sbmv", (1e-5, 0, 0, 1), strict=True)
    }
    shape = ir.Shape((1, CHANNELS, 8, 8))
    x = ir.Value(name="x", type=ir.TensorType(ir.DataType.FLOAT), shape=shape)
    given = {name: ir.Value(name=name, const_value=ir.tensor(array, name=name)) for name, array in constants.items()}
    pads = [ir.AttrInt64s("pads", [1] * 4)]
    first = ir.Node("", "Conv", [x, given["w0"]], num_outputs=1, name="conv0")
    conv = ir.Node("", "Conv", [first.outputs[0], given["w"]], pads, num_outputs=1, name="conv")
    norm = ir.Node("", "BatchNormalization", [conv.outputs[0], *(given[k] for k in "sbmv")], num_outputs=1, name="bn")
    norm.outputs[0].type, norm.outputs[0].shape = ir.TensorType(ir.DataType.FLOAT), shape
    nodes = [first, conv, norm]
    for node in nodes:
        node.outputs[0].name = f"{node.name}_y"
    graph = ir.Graph([x], [norm.outputs[0]], nodes=nodes, initializers=given.values(), opset_imports={"": 17}, name="g")
    folder.mkdir(exist_ok=True)
    ir.save(ir.Model(graph, ir_version=8), folder / "m.onnx")
    (folder / "data").mkdir(exist_ok=True)
    for place in range(8):
        np.save(folder / "data" / f"{place}.npy", rng.standard_normal((1, CHANNELS, 8, 8)).astype(np.float32))
    return folder / "m.onnx"


def swept(folder: Path, out: str, **options: Any) -> SweepResult:
    model = conv_bn(folder)
    given = {"precisions": "fp16", "backend": "tensorrt-rtx", "target": "l4", "threads": 1, **options}
    return sweep(model, folder / "data", out=folder / out, **given)


def run_of(result: SweepResult) -> dict[str, Any]:
    return dict(json.loads((Path(str(result.folder)) / "run.json").read_text()))


@needs_rtx
def test_what_the_compiler_keeps_apart_is_no_layer_by_default_and_an_overflow_between_is_seen(tmp_path: Path) -> None:
    result = swept(tmp_path, "out", repair=False)
    assert [layer.nodes for layer in result.model.layers] == [("conv0",), ("conv",), ("bn",)]
    assert run_of(result)["layers"]["from"] == "a compiled engine"
    assert run_of(result)["layers"]["note"] == ""
    assert not result.precisions[0].low.met
    assert "conv" in result.plans["fp16"].pinned()


@needs_rtx
def test_patterns_are_to_be_had_by_asking(tmp_path: Path) -> None:
    result = swept(tmp_path, "out", layers="patterns")
    assert [layer.nodes for layer in result.model.layers] == [("conv0",), ("conv", "bn")]
    assert run_of(result)["layers"]["from"] == "patterns"


@needs_rtx
def test_where_nothing_is_compiled_layers_are_patterns_and_everything_says_so(tmp_path: Path) -> None:
    result = swept(tmp_path, "out", target="h100")
    note = run_of(result)["layers"]["note"]
    assert "our patterns" in note
    assert "does not compile for sm90" in note
    assert [layer.nodes for layer in result.model.layers] == [("conv0",), ("conv", "bn")]
    for page in ("report.html", "summary.md"):
        assert "does not compile for sm90" in (tmp_path / "out" / page).read_text()
    command = ["sweep", str(tmp_path / "m.onnx"), "--data", str(tmp_path / "data"), "--precisions", "fp16"]
    command += ["--backend", "tensorrt-rtx", "--target", "h100", "--out", str(tmp_path / "out")]
    assert "Layers are fused by our patterns" in CliRunner().invoke(cli, command).output


@needs_rtx
def test_with_several_processes_layers_are_patterns_and_the_run_says_why(tmp_path: Path) -> None:
    result = swept(tmp_path, "out", processes=1)
    assert "one process alone" in run_of(result)["layers"]["note"]
    assert len(result.model.layers) == 2


@needs_rtx
def test_a_plan_is_measured_on_the_layers_that_it_was_found_on(tmp_path: Path) -> None:
    found = swept(tmp_path, "out")
    again = swept(tmp_path, "again", plan=tmp_path / "out" / "plan.json")
    assert [layer.nodes for layer in again.model.layers] == [layer.nodes for layer in found.model.layers]
    assert run_of(again)["layers"]["groups"] == run_of(found)["layers"]["groups"]
    of_patterns = swept(tmp_path, "patterns", layers="patterns")
    measured = swept(tmp_path, "measured", plan=tmp_path / "patterns" / "plan.json")
    assert [layer.nodes for layer in measured.model.layers] == [layer.nodes for layer in of_patterns.model.layers]


@needs_rtx
def test_a_run_goes_on_with_its_compiled_layers(tmp_path: Path) -> None:
    first = swept(tmp_path, "out")
    journal = (tmp_path / "out" / "journal.jsonl").read_bytes()
    again = swept(tmp_path, "out")
    assert (tmp_path / "out" / "journal.jsonl").read_bytes() == journal
    assert again.plans["fp16"] == first.plans["fp16"]


@pytest.mark.parametrize("layers", [None, "patterns"])
def test_the_emulation_alone_compiles_nothing(tmp_path: Path, layers: str | None) -> None:
    result = swept(tmp_path, "out", backend="onnxruntime", layers=layers)
    assert len(result.model.layers) == 2
    assert result.precisions[0].verdict.state is not State.NOT_KNOWN


@needs_rtx
@pytest.mark.parametrize("target", ["SM75", "SM89", "SM120"])
def test_the_compiler_fuses_what_our_patterns_take_for_one_kernel_and_keeps_nothing_of_it_apart(
    tmp_path: Path, target: str
) -> None:
    models, files = {}, []
    for place, (name, (body, _)) in enumerate(FUSED.items()):
        folder = tmp_path / str(place)
        folder.mkdir()
        models[name] = model = model_of(body, folder, f"1,{C},16,16")
        save_typed(typed_model(model, plan_for(model, Precision.FP16), None), folder / "typed.onnx")
        files.append(folder / "typed.onnx")
    for (name, model), built in zip(models.items(), drive("typed", "build", *files, f"--target={target}"), strict=True):
        assert built["errors"] == [], name
        kernels = [set(kernel.nodes) for kernel in layers_of(built["layers"])]
        with_conv = [kernel for kernel in kernels if "c" in kernel]
        is_one = len(with_conv) == 1 and with_conv[0].issuperset(model.layers[0].nodes)
        assert is_one or not FUSED[name][1], f"{name}: {kernels}"
        assert not is_one or FUSED[name][1] or name in MORE_FUSED, f"{name}: {kernels}"


MORE_FUSED = ("before a depthwise Conv", "before a residual sum", "taken twice, by a Conv and a sum")
"""What may be one kernel, and by our patterns never is: another target, or what stands behind a sum, keep it apart."""


def int8_sums(folder: Path, rows: int, size: float) -> Path:
    """Two MatMuls whose integer sums pass 65504 in int8, with samples."""
    rng = np.random.default_rng(0)
    weights = {f"w{i}": (rng.standard_normal((512, 512)) * size / np.sqrt(512)).astype(np.float32) for i in (0, 1)}
    nodes = "[m0] a = MatMul(x, w0) [r] b = Relu(a) [m1] y = MatMul(b, w1)"
    onnx.save(proto(f"(float[{rows},512] x) => (float[{rows},512] y) {{ {nodes} }}", weights), folder / "m.onnx")
    (folder / "data").mkdir()
    for place in range(8):
        np.save(folder / "data" / f"{place}.npy", (rng.standard_normal((rows, 512)) * size).astype(np.float32))
    return folder / "m.onnx"


@needs_rtx
@pytest.mark.parametrize(("rows", "size", "target"), [(8, 1.0, "l4"), (1, 1.0, "t4"), (8, 1e-3, "l4")])
def test_an_int8_plan_in_half_is_compiled_with_no_sum_unscaled_and_says_what_others_would_have(
    tmp_path: Path, rows: int, size: float, target: str
) -> None:
    model = int8_sums(tmp_path, rows, size)
    options = ["--precisions", "int8", "--around", "fp16", "--backend", "tensorrt-rtx", "--target", target]
    command = ["sweep", str(model), "--data", str(tmp_path / "data"), "--out", str(tmp_path / "out"), *options]
    printed = CliRunner().invoke(cli, command)
    assert printed.exit_code == 0, printed.output
    told = " ".join(printed.output.split())
    assert "integer sums pass 65504" in told
    assert "int8 compiled for" in told
    run = json.loads((tmp_path / "out" / "run.json").read_text())
    layers = run["precisions"]["int8"]["unscaled"]["layers"]
    assert layers["m0"]["beyond"] > 0.005
    assert (layers["m0"]["lost"] > 0) is (size < 1)
    assert "integer sums pass 65504" in (tmp_path / "out" / "report.html").read_text()
    typed = (tmp_path / "out" / "engines" / "typed").glob("*.onnx")
    files = [path for path in typed if any(node.name == "m0_channels" for node in onnx.load(path).graph.node)]
    for built in drive("typed", "build", *files, f"--target={'SM75' if target == 't4' else 'SM89'}"):
        assert 0 < min(built["factors"]) < 0.1  # that of a layer that was pinned is 1
