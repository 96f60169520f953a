"""Typed exports have the bodies of If, Loop and Scan in the plan's types: ONNX Runtime and TensorRT-RTX take them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
from models import Array, load, plan_for, proto
from rtx import drive, needs_rtx
from test_bodies import CASES, ROUNDS, Case, exact

from precisionlab.model import Model
from precisionlab.precision import Precision
from precisionlab.rewrite.typed import TypedModel, typed_model

FLOAT, HALF, BF16 = ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16


def _loaded(case: Case, folder: Path) -> Model:
    return load(proto(case.body, {name: v for name, v in case.weights.items() if name in case.body}), folder)


def _run(model: ir.Model, inputs: dict[str, Array]) -> Array:
    options = ort.SessionOptions()
    options.log_severity_level = 4
    session = ort.InferenceSession(ir.to_proto(model).SerializeToString(), options)
    return np.asarray(session.run(["y"], inputs)[0])


def _sqnr(reference: Array, output: Array) -> float:
    wide = reference.astype(np.float64)
    return float(10 * np.log10((wide**2).sum() / max(((output - wide) ** 2).sum(), 1e-30)))


def _inner(result: TypedModel) -> list[ir.Node]:
    return [node for node in result.onnx.graph.all_nodes() if node.graph is not result.onnx.graph]


@pytest.mark.parametrize("name", CASES)
def test_a_typed_body_runs_in_half_and_loses_no_more_than_half_does_by_hand(name: str, tmp_path: Path) -> None:
    case = CASES[name]
    model = _loaded(case, tmp_path)
    result = typed_model(model, plan_for(model, Precision.FP16), None)
    assert result.notes == ()
    inner = [v for node in _inner(result) for v in node.outputs if node.op_type not in ("Cast", "Identity", "Less")]
    assert {v.dtype for v in inner} == {HALF}
    inputs = {key: np.asarray(value, np.float64) for key, value in case.inputs.items()}
    by_hand = _sqnr(case.by_hand(exact, inputs), case.by_hand(ROUNDS["fp16"], inputs))
    found = _sqnr(_run(model.onnx, case.inputs), _run(result.onnx, case.inputs))
    # ONNX Runtime's CPU takes Casts out between nodes, and so may lose less; a loop's state it has to hold in half.
    assert found >= by_hand - 3
    if name == "growing state":
        assert found == pytest.approx(by_hand, abs=0.1)


@pytest.mark.parametrize("name", CASES)
def test_a_pinned_body_stays_as_it_was(name: str, tmp_path: Path) -> None:
    case = CASES[name]
    model = _loaded(case, tmp_path)
    pinned = [layer.name for layer in model.layers if layer.kind in ("If", "Loop", "Scan")]
    result = typed_model(model, plan_for(model, Precision.FP16, pinned), None)
    assert all(v.dtype in (FLOAT, ir.DataType.BOOL, None) for node in _inner(result) for v in node.outputs)
    assert _sqnr(_run(model.onnx, case.inputs), _run(result.onnx, case.inputs)) > 50
    plain = typed_model(model, plan_for(model, Precision.FP32), None)
    assert np.array_equal(_run(plain.onnx, case.inputs), _run(model.onnx, case.inputs))


def test_an_inner_node_without_the_type_stays_in_float32_and_a_note_says_so(tmp_path: Path) -> None:
    """ONNX has no Sin in bfloat16 before opset 22."""
    model = _loaded(CASES["scan outputs"], tmp_path)
    result = typed_model(model, plan_for(model, Precision.BF16), None)
    assert result.notes == (
        "layer node_of_s in body of node_of_l is left in fp32: ONNX does not define Sin in bf16 at opset 17",
    )
    types = {node.op_type: node.outputs[0].dtype for node in _inner(result)}
    assert (types["Tanh"], types["Sin"]) == (BF16, FLOAT)


def test_a_body_whose_shapes_hang_on_outer_floats_stays_in_float32(tmp_path: Path) -> None:
    body = """(float[1,1,4,4] x, float[4] scales, bool flag) => (float[?,?,?,?] y) {
        y = If (flag) <then_branch = t () => (float[?,?,?,?] p) { p = Resize(x, , scales) },
                       else_branch = o () => (float[1,1,4,4] q) { q = Neg(x) }> }"""
    model = load(proto(body), tmp_path)
    result = typed_model(model, plan_for(model, Precision.FP16), None)
    (note,) = result.notes
    assert note == "layer node_of_y is left in fp32: a node inside of it takes scales for a shape or a scale"
    inputs = {"x": np.ones((1, 1, 4, 4), np.float32), "scales": np.float32([1, 1, 1.3, 1.3]), "flag": np.array(True)}
    assert _run(result.onnx, inputs).shape == (1, 1, 5, 5)


@pytest.mark.slow
@needs_rtx
def test_tensorrt_rtx_builds_them(tmp_path: Path) -> None:
    files = []
    for precision in (Precision.FP16, Precision.BF16):
        for i, case in enumerate(CASES.values()):
            model = _loaded(case, tmp_path)
            file = tmp_path / f"{i}.{precision}.onnx"
            onnx.save_model(ir.to_proto(typed_model(model, plan_for(model, precision), None).onnx), file)
            files.append(file)
    answers = dict(zip(files, drive("typed", "build", *files), strict=True))
    assert {file.name: answer["errors"] for file, answer in answers.items()} == {file.name: [] for file in files}
