"""Casts of the typed model that take over from the model's own: half is made of integers and truth values at once."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
from models import load, plan_for, proto
from rtx import drive, needs_rtx

from precisionlab.precision import Precision
from precisionlab.rewrite.typed import save_typed, typed_model

HALF, BRAIN = ir.DataType.FLOAT16, ir.DataType.BFLOAT16
ONE_HOT = "(int32[4] x) => (float[4] y) { p = Constant<value_int=3>() q = Cast<to=6>(p) e = Equal(x, q) %s }"


@pytest.mark.parametrize("precision", [Precision.FP16, Precision.BF16])
def test_truth_values_become_half_by_one_cast(tmp_path: Path, precision: Precision) -> None:
    model = load(proto(ONE_HOT % "f = Cast<to=1>(e) y = Tanh(f)"), tmp_path)
    result = typed_model(model, plan_for(model, precision), None)
    given = [node.outputs[0].dtype for node in result.onnx.graph if node.op_type == "Cast" and node.name != "node_of_q"]
    half = HALF if precision is Precision.FP16 else BRAIN
    assert given == [half, ir.DataType.FLOAT]
    assert "f" not in {value.name for node in result.onnx.graph for value in node.outputs}


def test_the_models_own_cast_stays_where_its_float32_is_taken_as_well(tmp_path: Path) -> None:
    model = load(proto(ONE_HOT % "f = Cast<to=1>(e) g = Exp(f) h = Tanh(f) y = Add(g, h)"), tmp_path)
    result = typed_model(model, plan_for(model, Precision.FP16, ["node_of_g"]), None)
    by_name = {str(node.name): node for node in result.onnx.graph}
    assert by_name["node_of_g"].inputs[0] is by_name["node_of_f"].outputs[0]
    taken = by_name["node_of_h"].inputs[0]
    assert taken is not None
    assert taken.dtype == HALF
    assert taken.producer().inputs[0].name == "e"  # type: ignore[union-attr]


def test_large_integers_are_rounded_once_for_float16_and_not_at_once_for_bfloat16(tmp_path: Path) -> None:
    model = load(proto("(int64[N] x) => (float[N] y) { f = Cast<to=1>(x) y = Neg(f) }"), tmp_path)
    straight = typed_model(model, plan_for(model, Precision.FP16), None)
    assert "f" not in {value.name for node in straight.onnx.graph for value in node.outputs}
    by_way = typed_model(model, plan_for(model, Precision.BF16), None)
    assert "f" in {value.name for node in by_way.onnx.graph for value in node.outputs}


def test_what_comes_of_every_integer_is_the_same_as_by_way_of_float32(tmp_path: Path) -> None:
    model = load(proto("(int32[N] x) => (float[N] y) { f = Cast<to=1>(x) y = Identity(f) }"), tmp_path)
    result = typed_model(model, plan_for(model, Precision.FP16), None)
    near = np.arange(-70_000, 70_000, dtype=np.int32)
    large = np.array([2**24 - 1, 2**24 + 1, 2**31 - 1, -(2**31)], np.int32)
    x = np.concatenate([near, large])
    session = ort.InferenceSession(ir.to_proto(result.onnx).SerializeToString(), providers=["CPUExecutionProvider"])
    with np.errstate(over="ignore"):
        expected = x.astype(np.float32).astype(np.float16).astype(np.float32)
    np.testing.assert_array_equal(session.run(None, {"x": x})[0], expected)


@pytest.mark.slow
@needs_rtx
def test_tensorrt_takes_half_from_every_such_type(tmp_path: Path) -> None:
    kinds = {"bool": "bool", "int8": "int8", "uint8": "uint8", "int32": "int32", "int64": "int64"}
    files = []
    for kind in kinds.values():
        model = load(
            proto(f"({kind}[4] x) => (float[4] y) {{ f = Cast<to=1>(x) y = Tanh(f) }}"), tmp_path, f"{kind}.onnx"
        )
        file = tmp_path / f"{kind}.typed.onnx"
        save_typed(typed_model(model, plan_for(model, Precision.FP16), None), file)
        assert [node.op_type for node in onnx.load(file).graph.node] == ["Cast", "Tanh", "Cast"]
        files.append(file)
    assert {file.name: given["errors"] for file, given in zip(files, drive("typed", "build", *files), strict=True)} == {
        file.name: [] for file in files
    }
