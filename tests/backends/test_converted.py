"""A typed model at another opset gives what the model gives: what ONNX's converter loses is put back, or told."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from models import Array, load, plan_for, proto

from precisionlab.backends.converted import SourceRun, difference
from precisionlab.backends.session import Session
from precisionlab.calibration.table import CalibrationTable, Range
from precisionlab.data import open_dataset, random_dataset
from precisionlab.errors import ModelError
from precisionlab.model import Model
from precisionlab.model.layers import quantized_operands
from precisionlab.precision import Precision
from precisionlab.rewrite.typed import typed_model
from precisionlab.rewrite.typed.opset import convert

RNG = np.random.default_rng(0)
IMAGE = RNG.standard_normal((1, 2, 6, 6)).astype(np.float32)
ROWS = RNG.standard_normal((2, 3, 4)).astype(np.float32)
SIZES = "float[1,2,6,6] x) => (float[1,2,h,w] y)"
IF = """r = ReduceSum<keepdims=0>(x) c = Less(r, big) y = If(c) <
    then_branch = a () => (float[2,3,4] p) { p = Hardmax<axis=1>(x) },
    else_branch = b () => (float[2,3,4] q) { q = Neg(x) }>"""


def floats(*values: float) -> Array:
    return np.array(values, np.float32)


@pytest.mark.parametrize("target", [13, 19, 22])
@pytest.mark.parametrize(
    ("opset", "body", "weights"),
    [
        (7, f'({SIZES} {{ y = Upsample<mode="linear", scales=[1.0,1.0,2.0,3.0]>(x) }}', {}),
        (9, f'({SIZES} {{ y = Upsample<mode="linear">(x, s) }}', {"s": floats(1, 1, 2, 2)}),
        (9, f'({SIZES} {{ y = Upsample<mode="nearest">(x, s) }}', {"s": floats(1, 1, 1.5, 2.5)}),
        (10, f'({SIZES} {{ y = Resize<mode="linear">(x, s) }}', {"s": floats(1, 1, 0.6, 1.7)}),
        (10, f'({SIZES} {{ y = Resize<mode="nearest">(x, s) }}', {"s": floats(1, 1, 2.4, 3)}),
        (10, f'({SIZES} {{ y = Resize<mode="nearest">(x, s) }}', {"s": floats(1, 1, 0.6, 0.4)}),
        (11, "(float[2,3,4] x) => (float[2,3,4] y) { y = Hardmax(x) }", {}),
        (11, "(float[2,3,4] x) => (float[2,3,4] y) { y = Hardmax<axis=0>(x) }", {}),
        (11, "(float[2,3,4] x) => (float[2,3,4] y) { y = Hardmax<axis=-1>(x) }", {}),
        (11, "(float[n,k,m] x) => (float[n,k,m] y) { h = Hardmax<axis=-2>(x) y = Neg(h) }", {}),
        (12, "(float[n,k,m] x) => (float[n,k,m] y) { y = Hardmax<axis=2>(x) }", {}),
        (11, f"(float[2,3,4] x) => (float[2,3,4] y) {{ {IF} }}", {"big": np.float32(1e9)}),
    ],
)
def test_a_converted_model_gives_what_the_model_gives(
    opset: int, body: str, weights: Mapping[str, Array], target: int, tmp_path: Path
) -> None:
    model = load(proto(body, weights, opset=opset), tmp_path)
    feeds = {"x": IMAGE if "1,2,6,6" in body else ROWS}
    converted = convert(model, target)
    onnx.checker.check_model(ir.to_proto(converted))
    wanted, given = (Session(graph.clone(), 1).run(feeds)["y"] for graph in (model.onnx, converted))
    assert np.array_equal(wanted, given)


def test_what_the_model_says_of_itself_is_kept(tmp_path: Path) -> None:
    made = proto("(float[1,2,6,6] x) => (float[1,2,12,12] y) { c = Conv(x, w) u = Upsample(c, s) y = Neg(u) }", opset=9)
    made.graph.initializer.append(onnx.numpy_helper.from_array(np.ones((2, 2, 1, 1), np.float32), "w"))
    made.graph.initializer.append(onnx.numpy_helper.from_array(floats(1, 1, 2, 2), "s"))
    made.graph.doc_string = "of the graph"
    made.graph.metadata_props.add(key="by", value="hand")
    for index, node in enumerate(made.graph.node):
        node.name, node.doc_string = f"n{index}", f"of {index}"
        node.metadata_props.add(key="at", value=str(index))
    made.graph.value_info.append(onnx.helper.make_tensor_value_info("u", onnx.TensorProto.FLOAT, [1, 2, 12, 12]))
    made.graph.value_info[0].metadata_props.add(key="of", value="u")
    found = ir.to_proto(convert(load(made, tmp_path), 13)).graph
    assert (found.name, found.doc_string, found.metadata_props[0].value) == ("g", "of the graph", "hand")
    said = {node.name: (node.op_type, node.doc_string, [p.value for p in node.metadata_props]) for node in found.node}
    assert said["n0"] == ("Conv", "of 0", ["0"])
    assert said["n1"] == ("Resize", "of 1", ["1"])
    assert said["n2"] == ("Neg", "of 2", ["2"])
    assert [p.value for v in found.value_info if v.name == "u" for p in v.metadata_props] == ["u"]


def int8(model: Model, folder: Path) -> tuple[str, ...]:
    """What is said of the typed model with all in INT8 that can be, compared on three random samples."""
    table = CalibrationTable({n: Range(3.0) for layer in model.layers for n in quantized_operands(model, layer)}, 1)
    samples = random_dataset(model, {info.name: tuple(map(int, info.shape or ())) for info in model.inputs}, 0)
    beside = SourceRun(model, samples, 1)
    return typed_model(model, plan_for(model, Precision.INT8), table, beside=beside).notes


DROPOUT = "(float[2,3] x) => (float[2,2] y, bool[2,3] k) { d, k = Dropout(x) y = MatMul(d, w) }"


def test_a_conversion_that_changes_an_output_is_refused_with_how_far_and_where(tmp_path: Path) -> None:
    model = load(proto(DROPOUT, {"w": np.ones((3, 2), np.float32)}, opset=10), tmp_path)
    with pytest.raises(
        ModelError,
        match=r"^\S+model\.onnx: opset 10 cannot be converted to 13, which the plan needs: in float32, output k of "
        r"sample .+ differs in 6 of 6 values; export the model anew at opset 13$",
    ):
        int8(model, tmp_path)


def test_the_same_without_what_is_lost_is_taken(tmp_path: Path) -> None:
    model = load(proto(DROPOUT.replace(", bool[2,3] k", ""), {"w": np.ones((3, 2), np.float32)}, opset=9), tmp_path)
    assert int8(model, tmp_path) == ("converted from opset 9 to 13",)


def test_the_first_node_that_differs_is_named(tmp_path: Path) -> None:
    weights = {"w": np.eye(4, dtype=np.float32)}
    body = "(float[2,3,4] x) => (float[2,3,4] y) {{ r = Relu(x) h = Hardmax<axis={}>(r) y = MatMul(h, w) }}"
    model = load(proto(body.format(1), weights, opset=11), tmp_path)
    other = load(proto(body.format(2), weights, opset=11), tmp_path, "other.onnx")
    beside = SourceRun(model, random_dataset(model, {"x": (2, 3, 4)}, 0), 1)
    told = beside.fault(convert(other, 13))
    assert told is not None
    assert "behind node node_of_h (Hardmax)" in told
    assert "agrees with the original's to " in told
    assert SourceRun(model, random_dataset(model, {"x": (2, 3, 4)}, 0), 1).fault(convert(model, 13)) is None


def test_an_opset_at_which_the_model_cannot_be_tried_is_not_taken(tmp_path: Path) -> None:
    """ONNX Runtime has no RoiAlign-22, and bfloat16 would be best served there."""
    body = "(float[1,2,6,6] x, float[1,4] r) => (float[1,2,1,1] y) { n = HardSwish(x) y = RoiAlign(n, r, i) }"
    model = load(proto(body, {"i": np.zeros(1, np.int64)}, opset=17), tmp_path)
    np.savez(tmp_path / "a.npz", x=IMAGE, r=floats(0, 0, 3, 4)[None])
    plan, samples = plan_for(model, Precision.BF16), open_dataset(tmp_path, model, None, 0)
    blind = typed_model(model, plan, None)
    seen = typed_model(model, plan, None, beside=SourceRun(model, samples, 1))
    assert blind.notes == ("converted from opset 17 to 22",)
    assert (seen.onnx.opset_imports[""], "cannot be run" in seen.notes[0]) == (17, True)


def test_an_old_file_with_its_weights_among_the_inputs_is_converted(tmp_path: Path) -> None:
    weights = {"w": RNG.standard_normal((2, 2, 1, 1)).astype(np.float32), "s": floats(1, 1, 2, 2)}
    made = proto(f'({SIZES} {{ c = Conv(x, w) y = Upsample<mode="linear">(c, s) }}', weights, opset=9, ir_version=3)
    for name, value in weights.items():
        made.graph.input.append(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, value.shape))
    assert int8(load(made, tmp_path), tmp_path) == ("converted from opset 9 to 13",)


@pytest.mark.parametrize(
    ("wanted", "given", "told"),
    [
        (floats(1, 2), floats(1, 2.0000002), None),
        (floats(1, 2), floats(1, 2.1), "agrees with the original's to 27.0 dB alone"),
        (floats(0, 0), floats(0, 1e-9), "is not 0"),
        (floats(0, 0), floats(0, 0), None),
        (floats(1, np.inf, np.nan), floats(1, np.inf, np.nan), None),
        (floats(1, np.inf), floats(np.inf, 1), "has NaN or Inf in other places"),
        (floats(1, 2), floats(1, 2)[None], "is float32[1, 2], not float32[2]"),
        (floats(1, 2), np.array([1, 2]), "is int64[2], not float32[2]"),
        (np.arange(2000), np.arange(2000) + (np.arange(2000) < 2), None),
        (np.arange(2000), np.arange(2000) + (np.arange(2000) < 3), "differs in 3 of 2000 values"),
        (np.array([True]), np.array([False]), "differs in 1 of 1 values"),
        ([floats(1)], [floats(1)], None),
        ([floats(1)], [floats(2)], "agrees with the original's to 0.0 dB alone"),
        ([floats(1)], [], "has 0 tensors, not 1"),
        (None, None, None),
        (None, floats(1), "is there in one of them alone"),
    ],
)
def test_how_far_an_output_is_off(wanted: object, given: object, told: str | None) -> None:
    assert difference(wanted, given) == told
