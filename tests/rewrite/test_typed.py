"""The typed model says in types what the emulation rounds, and TensorRT takes it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from models import Array, examples, load, packaged, plan_for, proto
from rtx import drive, needs_rtx

from precisionlab.calibration.table import CalibrationTable, Range
from precisionlab.data import Dataset
from precisionlab.errors import ModelError, PlanError
from precisionlab.model import Model
from precisionlab.model.layers import quantized_operands
from precisionlab.model.load import load_model
from precisionlab.model.opset import opset_of
from precisionlab.plan.assign import precision_of
from precisionlab.plan.plan import Pin, PrecisionPlan
from precisionlab.precision import Precision
from precisionlab.rewrite.toggle import whole
from precisionlab.rewrite.typed import TypedModel, assignment, save_typed, typed_model
from precisionlab.rewrite.typed.constants import quantised, scale_in

FLOAT, HALF, BRAIN = ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16
DTYPES = {Precision.FP32: FLOAT, Precision.FP16: HALF, Precision.BF16: BRAIN}
RANGED = tuple(p for p in Precision if p is not Precision.INT4)  # whose scales are of weights alone: `test_int4`
QUANTIZED = tuple(p for p in RANGED if p.is_quantized)
PREPARED = sorted((Path(__file__).parents[2] / "examples" / "prepared").glob("*/*.onnx"))


def typed(
    model: Model,
    precision: Precision = Precision.FP16,
    pinned: Iterable[str] = (),
    around: Precision = Precision.FP32,
    table: CalibrationTable | None = None,
) -> TypedModel:
    """The model with every layer in the precision, but for those pinned to float32."""
    return typed_model(model, plan_for(model, precision, pinned, around), table)


def table_for(model: Model, amax: float = 3.0) -> CalibrationTable:
    """The same range for everything that quantized layers take, in each such precision."""
    ranges = {n: Range(amax) for layer in model.layers for n in quantized_operands(model, layer)}
    return CalibrationTable(ranges, 1, others=(CalibrationTable(ranges, 1, Precision.FP8),))


def nodes(result: TypedModel, op_type: str = "") -> dict[str, ir.Node]:
    """The nodes of the main graph, of one kind or all, by name."""
    return {str(n.name): n for n in result.onnx.graph if not op_type or n.op_type == op_type}


def dtype(value: ir.Value | None) -> ir.DataType:
    """The value's type; those that are not marked are as they were."""
    return (None if value is None else value.dtype) or FLOAT


def content(value: ir.Value | None) -> Array:
    """A constant's content."""
    assert value is not None
    assert value.const_value is not None
    return value.const_value.numpy()


def run(model: ir.Model, feeds: Mapping[str, Any]) -> dict[str, Array]:
    """What ONNX Runtime's CPU makes of it, with Q/DQ as they stand."""
    options = ort.SessionOptions()
    options.add_session_config_entry("session.disable_quant_qdq", "1")
    options.log_severity_level = 3
    data = ir.to_proto(model).SerializeToString()
    left = ["ReluQuantRewrite", "ClipQuantRewrite"]  # see findings/onnxruntime_clip_before_float8.sh
    session = ort.InferenceSession(data, options, providers=["CPUExecutionProvider"], disabled_optimizers=left)
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(None, dict(feeds)), strict=True))


def emulated(model: Model, plan: PrecisionPlan, table: CalibrationTable | None, feeds: Mapping[str, Any]) -> Any:
    """The final outputs of the emulation."""
    graph, names = whole(model, plan, table)
    found = run(graph, feeds)
    return {name: found[inner] for name, inner in names.items()}


def sqnr(reference: Array, found: Array) -> float:
    """In decibels."""
    noise = float(((reference.astype(np.float64) - found) ** 2).sum())
    return 10 * float(np.log10(float((reference.astype(np.float64) ** 2).sum()) / max(noise, 1e-30)))


# Casts


def test_a_plan_of_float32_gives_the_original(bundled: tuple[Model, Dataset]) -> None:
    model, _ = bundled
    result = typed(model, Precision.FP32)
    assert ir.to_proto(result.onnx) == ir.to_proto(model.onnx)
    assert (result.casts, result.notes) == (0, ())


def test_the_original_is_not_touched(bundled: tuple[Model, Dataset]) -> None:
    model, _ = bundled
    before = ir.to_proto(model.onnx).SerializeToString(deterministic=True)
    for precision in RANGED:
        typed(model, precision, around=Precision.FP16, table=table_for(model))
    assert ir.to_proto(model.onnx).SerializeToString(deterministic=True) == before


def test_a_tensor_is_cast_once_for_all_that_want_it_in_a_type(tmp_path: Path) -> None:
    model = load(
        proto("(float[2] x) => (float[2] y) { a = Exp(x) b = Tanh(x) c = Sin(x) d = Add(a, b) y = Add(d, c) }"),
        tmp_path,
    )
    result = typed(model, pinned=["node_of_c"])
    casts = nodes(result, "Cast")
    # x to half for a and b; d's half sum is added in half to the pinned c; y back to float32.
    assert [str(n.inputs[0].name) for n in casts.values()] == ["x", "c", "y_fp16"]
    assert result.casts == 3
    assert nodes(result)["node_of_a"].inputs[0] is nodes(result)["node_of_b"].inputs[0]
    assert nodes(result)["node_of_c"].inputs[0] is result.onnx.graph.inputs[0]


def test_nothing_is_cast_where_producer_and_consumer_agree(tmp_path: Path) -> None:
    model = load(proto("(float[2] x) => (float[2] y) { a = Exp(x) b = Tanh(a) c = Sin(b) y = Cos(c) }"), tmp_path)
    result = typed(model)
    assert result.casts == 2
    assert [dtype(nodes(result)[f"node_of_{n}"].outputs[0]) for n in "abc"] == [HALF] * 3


def test_half_to_another_half_is_one_cast(tmp_path: Path) -> None:
    model = load(proto("(float[2] x) => (float[2] y) { a = Exp(x) y = Tanh(a) }", opset=22, ir_version=10), tmp_path)
    pin = Pin("node_of_y", ("node_of_y",), Precision.BF16, "test")
    result = typed_model(model, plan_for(model, Precision.FP16).with_pins([pin]), None)
    (cast,) = [n for n in nodes(result, "Cast").values() if str(n.inputs[0].name) == "a"]
    assert dtype(cast.outputs[0]) == BRAIN


def test_a_half_part_of_the_model_joins_a_half_layer_without_casts_between(tmp_path: Path) -> None:
    model = load(
        proto("(float16[2] x) => (float[2] y) { h = Exp(x) f = Cast<to=1>(h) y = Tanh(f) }"),
        tmp_path,
    )
    result = typed(model)
    assert [str(n.inputs[0].name) for n in nodes(result).values() if n.op_type == "Tanh"] == ["h"]
    assert result.casts == 1


def test_an_output_that_is_used_inside_too_keeps_its_name_and_type(tmp_path: Path) -> None:
    model = load(
        proto("(float[2] x) => (float[2] a, float[2] y) { a = Exp(x) b = Tanh(a) c = Sin(a) y = Add(b, c) }"), tmp_path
    )
    result = typed(model, pinned=["node_of_c"])
    assert [(v.name, v.dtype) for v in result.onnx.graph.outputs] == [("a", FLOAT), ("y", FLOAT)]
    assert dtype(nodes(result)["node_of_b"].inputs[0]) == HALF
    assert nodes(result)["node_of_c"].inputs[0] is result.onnx.graph.outputs[0]  # one cast for both
    assert set(nodes(result)) >= set(model.node)


def test_a_tensor_that_is_an_output_twice_is_cast_once(tmp_path: Path) -> None:
    body = proto("(float[2] x) => (float[2] y) { y = Exp(x) }")
    body.graph.output.append(body.graph.output[0])
    model = load(body, tmp_path)
    result = typed(model)
    assert [v.name for v in result.onnx.graph.outputs] == ["y", "y"]
    assert result.casts == 2


def test_new_names_hide_none_that_are_there(tmp_path: Path) -> None:
    model = load(
        proto("(float[2] x) => (float[2] y) { x_fp16 = Exp(x) y_fp16 = Tanh(x_fp16) y = Sin(y_fp16) }"), tmp_path
    )
    result = typed(model)
    names = [v.name for n in result.onnx.graph for v in n.outputs]
    assert len(names) == len(set(names)) == 5


# Constants


def test_a_constant_is_converted_once_for_each_type_and_never_by_a_cast(tmp_path: Path) -> None:
    w = np.array([1.0001, 70000], np.float32)
    model = load(
        proto("(float[2] x) => (float[2] y) { a = Mul(x, w) b = Mul(a, w) y = Mul(b, w) }", {"w": w}), tmp_path
    )
    result = typed(model, pinned=["node_of_b"])
    first, second, third = (nodes(result)[f"node_of_{n}"].inputs[1] for n in ("a", "b", "y"))
    assert first is third
    assert np.array_equal(content(first), np.float16([1.0001, 65504]))
    assert np.array_equal(content(second), w)
    assert not [n for n in nodes(result, "Cast").values() if n.inputs[0].is_initializer()]


def test_the_only_copy_of_a_constant_keeps_its_name(tmp_path: Path) -> None:
    model = load(proto("(float[2] x) => (float[2] y) { y = Mul(x, w) }", {"w": np.ones(2, np.float32)}), tmp_path)
    assert [(name, v.dtype) for name, v in typed(model).onnx.graph.initializers.items()] == [("w", HALF)]


def test_a_filled_tensor_is_filled_in_the_type(tmp_path: Path) -> None:
    model = load(
        proto(
            "(float[N] x) => (float[N] y) { s = Shape(x) f = ConstantOfShape<value=float[1]{1.5}>(s) y = Add(x, f) }"
        ),
        tmp_path,
    )
    result = typed(model)
    assert result.casts == 2
    assert run(result.onnx, {"x": np.ones(3, np.float32)})["y"].tolist() == [2.5] * 3


def test_a_variance_beyond_half_does_no_harm(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    params = {n: rng.uniform(0.5, 2, 4).astype(np.float32) for n in ("g", "b", "m")} | {
        "v": np.full(4, 1e9, np.float32)
    }
    weights = {"w": rng.standard_normal((4, 3, 1, 1)).astype(np.float32) * 1e4, **params}
    text = "(float[1,3,5,5] x) => (float[1,4,5,5] y) { c = Conv(x, w) y = BatchNormalization(c, g, b, m, v) }"
    model = load(proto(text, weights), tmp_path)
    result = typed(model)
    feeds = {"x": rng.standard_normal((1, 3, 5, 5)).astype(np.float32)}
    assert np.isfinite(np.concatenate([content(v) for v in list(nodes(result)["node_of_y"].inputs)[1:]])).all()
    assert sqnr(run(model.onnx, feeds)["y"], run(result.onnx, feeds)["y"]) > 50


@pytest.mark.parametrize(("op", "value", "word"), [("Div", 1e-9, "underflows"), ("Mul", 1e6, "beyond")])
def test_a_fused_constant_that_half_does_not_hold_leaves_the_layer_in_float32(
    tmp_path: Path, op: str, value: float, word: str
) -> None:
    weights = {"w": np.ones((3, 3), np.float32), "k": np.float32(value)}
    model = load(proto(f"(float[1,3] x) => (float[1,3] y) {{ a = MatMul(x, w) y = {op}(a, k) }}", weights), tmp_path)
    assert model.layers[0].nodes == ("node_of_a", "node_of_y")
    result = typed(model)
    (note,) = result.notes
    assert word in note
    assert "node_of_a" in note
    assert result.casts == 0


# What is not float flow


def test_shapes_scales_and_integers_stay_as_they_are(tmp_path: Path) -> None:
    text = """(float[1,2,N,M] x) => (float[1,2,P,Q] y, int64[4] s, int64[1,1,P,Q] i) {
        a = Exp(x) y = Resize<mode="nearest">(a, , scales) s = Shape(y) i = ArgMax<axis=1>(y) }"""
    model = load(proto(text, {"scales": np.array([1, 1, 2, 2], np.float32)}), tmp_path)
    result = typed(model)
    assert dtype(nodes(result)["node_of_y"].inputs[2]) == FLOAT
    assert dtype(nodes(result)["node_of_s"].inputs[0]) == HALF
    assert dtype(nodes(result)["node_of_i"].inputs[0]) == HALF
    assert result.casts == 2


@pytest.mark.parametrize(("threshold", "kept"), [(0.5, HALF), (0.1, FLOAT)])
def test_a_comparison_takes_half_only_where_its_constant_is_exact(
    tmp_path: Path, threshold: float, kept: ir.DataType
) -> None:
    text = "(float[2] x) => (bool[2] y) { a = Exp(x) y = Greater(a, t) }"
    model = load(proto(text, {"t": np.float32(threshold)}), tmp_path)
    assert {dtype(v) for v in nodes(typed(model))["node_of_y"].inputs} == {kept}


def test_pinned_subgraphs_take_and_give_float32(tmp_path: Path) -> None:
    text = """(float[2] x, bool c) => (float[2] y) { a = Exp(x)
        b = If(c)<then_branch = t () => (float[2] p) { p = Add(a, w) },
                  else_branch = e () => (float[2] q) { q = If(c)<then_branch = t2 () => (float[2] r) { r = Neg(a) },
                                                                 else_branch = e2 () => (float[2] s) { s = Abs(a) }> }>
        d = Mul(b, w) y = Tanh(d) }"""
    model = load(proto(text, {"w": np.array([1.0001, 2], np.float32)}), tmp_path)
    result = typed(model, pinned=["node_of_b"])
    branches = [a.as_graph() for a in nodes(result)["node_of_b"].attributes.values()]
    assert all(
        dtype(v) == FLOAT for g in branches for n in g.all_nodes() for v in n.inputs if v is not None and v.name != "c"
    )
    assert dtype(nodes(result)["node_of_d"].inputs[0]) == dtype(nodes(result)["node_of_d"].inputs[1]) == HALF
    feeds = {"x": np.array([0.25, -1], np.float32)}
    for chosen in (True, False):
        fed = {**feeds, "c": np.array(chosen)}
        assert sqnr(run(model.onnx, fed)["y"], run(result.onnx, fed)["y"]) > 50


def test_calls_of_functions_that_cannot_be_inlined_take_float32(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("precisionlab.model.load.inline_functions", lambda model: 0)
    body = proto("(float[2] x) => (float[2] y) { a = Exp(x) b = own.twice(a) y = Tanh(b) }", domains=', "own": 1')
    body.functions.append(
        onnx.parser.parse_function('<domain: "own", opset_import: ["": 17]> twice (u) => (v) { v = Add(u, u) }')
    )
    model = load(body, tmp_path)
    result = typed(model)
    assert dtype(nodes(result)["node_of_b"].inputs[0]) == FLOAT
    assert result.casts == 4
    with pytest.raises(ModelError, match="local functions"):
        typed(load(_older(body), tmp_path), Precision.BF16)


def _older(body: onnx.ModelProto) -> onnx.ModelProto:
    copy = onnx.ModelProto()
    copy.CopyFrom(body)
    for imports in (copy.opset_import, copy.functions[0].opset_import):
        next(i for i in imports if not i.domain).version = 11
    return copy


def test_sequences_hold_float32(tmp_path: Path) -> None:
    text = """(float[4] x) => (float[4] y) {
        a = Exp(x) s = SplitToSequence<axis=0>(a) c = ConcatFromSequence<axis=0>(s) y = Tanh(c) }"""
    model = load(proto(text), tmp_path)
    result = typed(model)
    assert dtype(nodes(result)["node_of_s"].inputs[0]) == FLOAT
    feeds = {"x": np.linspace(-1, 1, 4, dtype=np.float32)}
    assert sqnr(run(model.onnx, feeds)["y"], run(result.onnx, feeds)["y"]) > 50


def test_operators_of_other_domains_take_float32_and_so_does_what_follows_untyped(tmp_path: Path) -> None:
    text = "(float[4] x) => (float[4] y) { a = Exp(x) b = com.microsoft.Gelu(a) y = Tanh(b) }"
    model = load(proto(text, domains=', "com.microsoft": 1'), tmp_path)
    result = typed(model)
    assert dtype(nodes(result)["node_of_b"].inputs[0]) == FLOAT
    assert result.casts == 2
    assert result.notes == ("layer node_of_y is left in fp32: the type of b is not known",)


def test_what_onnx_does_not_define_in_half_stays_float32_and_is_noted(tmp_path: Path) -> None:
    model = load(proto("(float[2] x) => (float[2] y) { a = Exp(x) b = Celu(a) y = Tanh(b) }"), tmp_path)
    result = typed(model)
    (note,) = result.notes
    assert "Celu" in note
    assert "node_of_b" in note
    assert dtype(nodes(result)["node_of_b"].inputs[0]) == FLOAT
    assert dtype(nodes(result)["node_of_y"].inputs[0]) == HALF


# int8

QUANTISED = {
    "Conv": ("(float[1,4,5,5] x) => (float[1,6,5,5] y) { y = Conv(x, w, b) }", (6, 4, 1, 1), 0),
    "ConvTranspose": ("(float[1,4,5,5] x) => (float[1,6,5,5] y) { y = ConvTranspose(x, w, b) }", (4, 6, 1, 1), 1),
    "Gemm": ("(float[3,4] x) => (float[3,6] y) { y = Gemm(x, w, b) }", (4, 6), 1),
    "Gemm transB": ("(float[3,4] x) => (float[3,6] y) { y = Gemm<transB=1>(x, w, b) }", (6, 4), 0),
    "MatMul": ("(float[3,4] x) => (float[3,6] y) { a = MatMul(x, w) y = Add(a, b) }", (4, 6), 1),
}


def quantised_model(kind: str, folder: Path, opset: int = 17) -> tuple[Model, dict[str, Array]]:
    """A model of one int8 layer with weights of very different channels, and an input."""
    rng = np.random.default_rng(len(kind))
    text, shape, axis = QUANTISED[kind]
    factors = np.geomspace(1e-3, 1e2, 6).reshape([-1 if i == axis else 1 for i in range(len(shape))])
    weights = {"w": (rng.standard_normal(shape) * factors).astype(np.float32), "b": rng.standard_normal(6, np.float32)}
    model = load(proto(text, weights, opset=opset), folder)
    (info,) = model.inputs
    return model, {"x": rng.standard_normal([int(d or 0) for d in info.shape or ()]).astype(np.float32)}


@pytest.mark.parametrize("opset", [11, 13, 17])
@pytest.mark.parametrize("kind", QUANTISED)
def test_quantized_operands_are_quantised_as_tensorrt_wants_them(tmp_path: Path, kind: str, opset: int) -> None:
    model, feeds = quantised_model(kind, tmp_path, opset)
    table = table_for(model)
    result = typed(model, Precision.INT8, table=table)
    anchor = nodes(result)[model.layers[0].name]
    activation, weight = (v.producer() for v in anchor.inputs[:2] if v is not None)
    assert activation is not None
    assert weight is not None
    assert activation.op_type == weight.op_type == "DequantizeLinear"
    quantise = activation.inputs[0].producer()
    assert quantise.op_type == "QuantizeLinear"
    assert quantise.inputs[1] is activation.inputs[1]
    assert "axis" not in activation.attributes
    assert weight.attributes["axis"].as_int() == QUANTISED[kind][2]
    assert all(
        content(n.inputs[2]).dtype == np.int8 and not content(n.inputs[2]).any() for n in (quantise, activation, weight)
    )
    assert content(weight.inputs[0]).dtype == np.int8
    assert content(weight.inputs[1]).shape == (6,)
    assert len(nodes(result, "DequantizeLinear")) == 2  # none for the bias
    assert any("opset" in note for note in result.notes) == (opset < 13)
    expected = emulated(model, plan_for(model, Precision.INT8), table, feeds)
    assert np.array_equal(run(result.onnx, feeds)["y"], expected["y"])


@pytest.mark.parametrize("kind", QUANTISED)
def test_around_half_the_scales_are_half_and_the_same_on_both_sides(tmp_path: Path, kind: str) -> None:
    model, feeds = quantised_model(kind, tmp_path)
    result = typed(model, Precision.INT8, around=Precision.FP16, table=table_for(model))
    anchor = nodes(result)[model.layers[0].name]
    activation, weight = (v.producer() for v in anchor.inputs[:2] if v is not None)
    assert dtype(activation.inputs[1]) == dtype(weight.inputs[1]) == HALF
    quantise = activation.inputs[0].producer()
    assert quantise.inputs[0] is result.onnx.graph.inputs[0]  # the float32 input is not cast to be quantised
    assert content(quantise.inputs[1]).dtype == np.float32
    assert float(content(quantise.inputs[1])) == float(content(activation.inputs[1]))
    assert opset_of(result.onnx) == 19
    assert result.casts == 1
    plan = plan_for(model, Precision.INT8, around=Precision.FP16)
    assert sqnr(emulated(model, plan, table_for(model), feeds)["y"], run(result.onnx, feeds)["y"]) > 40


def test_activation_and_residual_stay_with_their_convolution(tmp_path: Path) -> None:
    text = "(float[1,3,4,4] x) => (float[1,3,4,4] y) { t = Tanh(x) a = Conv(t, w) b = Add(a, t) y = Relu(b) }"
    model = load(proto(text, {"w": np.ones((3, 3, 1, 1), np.float32)}), tmp_path)
    result = typed(model, Precision.INT8, around=Precision.FP16, table=table_for(model))
    graph = nodes(result)
    assert graph["node_of_b"].inputs[0] is graph["node_of_a"].outputs[0]
    assert graph["node_of_y"].inputs[0] is graph["node_of_b"].outputs[0]
    assert graph["node_of_b"].inputs[1] is graph["node_of_t"].outputs[0]
    assert {dtype(v) for n in "aby" for v in graph[f"node_of_{n}"].inputs} == {HALF}
    assert {dtype(v) for v in graph["t_int8"].inputs[:2]} == {HALF}


def test_layers_that_take_the_same_tensor_share_its_quantised_form(tmp_path: Path) -> None:
    weights = {"w": np.ones((3, 3), np.float32), "v": np.eye(3, dtype=np.float32)}
    model = load(
        proto(
            "(float[1,3] x) => (float[1,3] y) { a = MatMul(x, w) b = MatMul(x, v) c = Tanh(b) y = Mul(a, c) }", weights
        ),
        tmp_path,
    )
    result = typed(model, Precision.INT8, table=table_for(model))
    assert len(nodes(result, "QuantizeLinear")) == 1
    assert len(nodes(result, "DequantizeLinear")) == 3


def test_operands_that_half_does_not_hold_keep_their_layer_in_float32(tmp_path: Path) -> None:
    model, _ = quantised_model("MatMul", tmp_path)
    result = typed(model, Precision.INT8, around=Precision.FP16, table=table_for(model, amax=1e5))
    assert "reaches 1e+05" in result.notes[-1]
    assert dtype(nodes(result)["node_of_a"].inputs[0]) == FLOAT
    assert len(nodes(result, "QuantizeLinear")) == 1


@given(
    scale=hnp.arrays(np.float32, 5, elements=st.floats(2.0**-126, 500, width=32)),
    kind=st.sampled_from([(HALF, np.float16), (BRAIN, ml_dtypes.bfloat16)]),
)
def test_no_scale_underflows_or_shrinks_in_half(scale: Array, kind: tuple[ir.DataType, Any]) -> None:
    low = scale_in(scale, kind[0])
    assert low.dtype == kind[1]
    found = low.astype(np.float32)
    below = (low.view(np.uint16) - 1).astype(np.uint16).view(kind[1]).astype(np.float32)
    assert (found >= scale).all()
    assert (found > 0).all()
    assert (below < scale).all()


@given(weight=hnp.arrays(np.float32, (3, 4), elements=st.floats(-1e4, 1e4, width=32)))
def test_weights_are_quantised_to_the_nearest_level(weight: Array) -> None:
    scales = scale_in(np.maximum(np.abs(weight).max(axis=1) / np.float32(127), np.float32(1e-30)), HALF).astype(
        np.float32
    )
    found = quantised(weight, scales, 0, Precision.INT8) * scales[:, None].astype(np.float64)
    assert (np.abs(found - weight) <= scales[:, None] * 0.5001).all()


# Opsets


def test_an_old_model_is_converted_and_keeps_its_names(tmp_path: Path) -> None:
    text = """(float[1,3,4,4] x) => (float[1,3,1,4,4] y, float[1,3,8,8] u) {
        c = Conv(x, w) s = Softmax<axis=1>(c) q = Unsqueeze<axes=[2]>(s) y = Identity(q)
        r = Relu(c) u0 = Upsample<mode="nearest">(r, sc) u = Tanh(u0) }"""
    weights = {"w": np.random.default_rng(0).standard_normal((3, 3, 1, 1)).astype(np.float32)}
    weights["sc"] = np.array([1, 1, 2, 2], np.float32)
    model = load(proto(text, weights, opset=9, ir_version=4), tmp_path)
    feeds = {"x": np.random.default_rng(1).standard_normal((1, 3, 4, 4)).astype(np.float32)}
    for around in (Precision.FP32, Precision.FP16):
        result = typed(model, Precision.INT8, around=around, table=table_for(model))
        assert result.notes[0].startswith("converted from opset 9 to ")
        assert set(nodes(result)) >= set(model.node)
        upsampled = nodes(result)["node_of_u0"]
        assert (upsampled.op_type, upsampled.outputs[0].name) == ("Resize", "u0")
        assert dtype(upsampled.inputs[0]) == dtype(nodes(result)["node_of_s"].inputs[0]) == DTYPES[around]
        expected = emulated(model, plan_for(model, Precision.INT8, around=around), table_for(model), feeds)
        found = run(result.onnx, feeds)
        assert all(sqnr(expected[name], found[name]) > 45 for name in ("y", "u"))


def test_bfloat16_goes_to_the_opset_that_has_it(tmp_path: Path) -> None:
    text = "(float[1,3,4,4] x) => (float[1,3,4,4] y) { c = Conv(x, w) y = HardSwish(c) }"
    model = load(proto(text, {"w": np.ones((3, 3, 1, 1), np.float32)}), tmp_path)
    result = typed(model, Precision.BF16)
    assert (result.notes, result.casts) == (("converted from opset 17 to 22",), 2)
    graph = nodes(result)
    assert dtype(graph["node_of_c"].inputs[1]) == BRAIN
    # TensorRT has no HardSwish in bfloat16: it is written as what it is made of.
    assert [graph[n].op_type for n in ("node_of_y_gate", "node_of_y")] == ["HardSigmoid", "Mul"]


def test_the_parts_of_hardswish_are_hardswish(tmp_path: Path) -> None:
    model = load(proto("(float[64] x) => (float[64] y) { y = HardSwish(x) }"), tmp_path)
    graph = typed(model, Precision.BF16).onnx
    for node in graph.graph:  # in float32, as ONNX Runtime's CPU has no bfloat16
        if node.op_type == "Cast":
            node.attributes["to"] = ir.AttrInt64("to", int(FLOAT))
    for value in (v for n in graph.graph for v in n.outputs):
        value.type = ir.TensorType(FLOAT)
    feeds = {"x": np.linspace(-5, 5, 64, dtype=np.float32)}
    assert np.allclose(run(graph, feeds)["y"], run(model.onnx, feeds)["y"], atol=1e-6)


# Plans that cannot be carried out


def test_plans_that_cannot_be_carried_out_say_why(tmp_path: Path) -> None:
    model, _ = quantised_model("MatMul", tmp_path)
    with pytest.raises(PlanError, match="calibration table"):
        typed(model, Precision.INT8)
    with pytest.raises(PlanError, match="no range was found for x"):
        typed(model, Precision.INT8, table=CalibrationTable({}, 1))
    with pytest.raises(PlanError, match="another model"):
        typed_model(model, PrecisionPlan("0" * 64, Precision.FP16), None)
    pin = Pin("nothing", ("nothing",), Precision.FP32, "test")
    with pytest.raises(PlanError, match="'nothing'"):
        typed_model(model, PrecisionPlan(model.sha256, Precision.FP16, (pin,)), None)


# Files


def external(folder: Path) -> Model:
    """A model whose weight is in a file of its own."""
    weight = np.random.default_rng(0).standard_normal((64, 64)).astype(np.float32)
    body = proto("(float[1,64] x) => (float[1,64] y) { a = MatMul(x, w) y = Tanh(a) }", {"w": weight})
    onnx.save_model(body, folder / "m.onnx", save_as_external_data=True, location="m.onnx.data", size_threshold=64)
    return load_model(folder / "m.onnx")


@pytest.mark.parametrize("limit", [10**9, 100])
@pytest.mark.parametrize("pinned", [(), ("node_of_a",)])
def test_a_model_with_external_data_is_saved_whole(tmp_path: Path, limit: int, pinned: tuple[str, ...]) -> None:
    (tmp_path / "from").mkdir()
    model = external(tmp_path / "from")
    result = typed(model, pinned=pinned)
    save_typed(result, tmp_path / "typed.onnx", limit)
    expected = ["from", "typed.onnx"] + (["typed.onnx.data"] if limit == 100 else [])
    assert sorted(p.name for p in tmp_path.iterdir()) == expected
    onnx.checker.check_model(tmp_path / "typed.onnx", full_check=True)
    session = ort.InferenceSession(tmp_path / "typed.onnx", providers=["CPUExecutionProvider"])
    feeds = {"x": np.linspace(-1, 1, 64, dtype=np.float32)[None]}
    assert sqnr(ort.InferenceSession(model.path).run(None, feeds)[0], session.run(None, feeds)[0]) > 40


def test_constants_are_not_read_to_be_typed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = external(tmp_path)

    def refuse(self: ir.ExternalTensor) -> Array:
        raise AssertionError("read")

    monkeypatch.setattr(ir.ExternalTensor, "numpy", refuse)
    monkeypatch.setattr(ir.ExternalTensor, "tobytes", refuse)
    assert typed(model).casts == 2


def test_a_file_that_constants_are_read_from_is_not_overwritten(tmp_path: Path) -> None:
    model = external(tmp_path)
    before = (tmp_path / "m.onnx.data").read_bytes()
    with pytest.raises(ModelError, match="another name"):
        save_typed(typed(model), tmp_path / "m.onnx", 100)
    assert (tmp_path / "m.onnx.data").read_bytes() == before


def test_a_folder_that_cannot_be_written_is_one_sentence(tmp_path: Path, bundled: tuple[Model, Dataset]) -> None:
    with pytest.raises(ModelError, match="cannot be written"):
        save_typed(typed(bundled[0]), tmp_path / "none" / "typed.onnx")


# The emulation and the typed model say the same


def gates(graph: ir.Model, model: Model) -> set[tuple[str, int, str]]:
    """(node, input, precision) wherever the emulation gives a node of the model a rounded activation."""
    found = set()
    rounding = {int(HALF): "fp16", int(BRAIN): "bf16"}
    for node in graph.graph:
        for index, value in enumerate(node.inputs if str(node.name) in model.node else ()):
            back = value.producer() if value is not None else None
            low = back.inputs[0].producer() if back is not None and back.inputs[0] is not None else None
            if back is None or low is None or low.inputs[0].is_initializer():
                continue
            if (back.op_type, low.op_type) == ("Cast", "Cast"):
                found.add((str(node.name), index, rounding[low.attributes["to"].as_int()]))
            if (back.op_type, low.op_type) == ("DequantizeLinear", "QuantizeLinear"):
                found.add((str(node.name), index, "int8"))
            if (back.op_type, low.op_type) == ("Mul", "Where"):
                found.add((str(node.name), index, "fp8"))
    return found


def way(result: TypedModel, name: str, index: int) -> set[str]:
    """The types that a value goes through from the node that makes it to the node of that name."""
    value, found = nodes(result)[name].inputs[index], set[str]()
    while value is not None:
        found |= {str(p) for p, kind in DTYPES.items() if kind == dtype(value)}
        producer = value.producer()
        if producer is None or producer.op_type not in ("Cast", "QuantizeLinear", "DequantizeLinear"):
            break
        kind = dtype(producer.inputs[0]) if producer.op_type == "DequantizeLinear" else None
        found |= {str(p) for p in QUANTIZED if p.number_format.element == kind}
        value = producer.inputs[0]
    return found


@settings(max_examples=examples(25))
@given(data=st.data())
def test_any_plan_is_typed_as_it_is_emulated(bundled: tuple[Model, Dataset], data: st.DataObject) -> None:
    model, dataset = bundled
    table = table_for(model, 8.0)
    default, around = (
        data.draw(st.sampled_from([p for p in RANGED if not p.is_for_pins])),
        data.draw(st.sampled_from(list(DTYPES))),
    )
    choices = data.draw(
        st.lists(st.none() | st.sampled_from(RANGED), min_size=len(model.layers), max_size=len(model.layers))
    )
    pins = [Pin(layer.name, layer.nodes, c, "drawn") for layer, c in zip(model.layers, choices, strict=True) if c]
    plan = PrecisionPlan(model.sha256, default, tuple(pins), around)
    result = typed_model(model, plan, table)  # checks validity, types and interface itself
    graph, _ = whole(model, plan, table)
    for name, index, precision in gates(graph, model):
        layer = next(layer for layer in model.layers if name in layer.nodes)
        if layer.fixed is None:
            assert precision in way(result, name, index), (name, index)
    for layer in model.layers:
        precision = precision_of(layer, plan)
        wanted = DTYPES[around if precision.is_quantized else precision.stored_as]
        if layer.fixed is None:
            assert {dtype(nodes(result)[n].outputs[0]) for n in layer.nodes} <= {wanted, FLOAT}
            inner = nodes(result)[layer.nodes[0]].outputs[0]
            assert dtype(inner) == (FLOAT if precision.is_for_pins else wanted)
    assert not [n for n in result.notes if "left in fp32" in n]
    if Precision.BF16 not in {default, around, *choices}:
        feeds = next(iter(dataset)).inputs
        assert np.isfinite(run(result.onnx, feeds)["logits"]).all()


@pytest.mark.parametrize("name", ["magika", "orient"])
def test_real_models_in_int8_are_the_emulation_bit_for_bit(name: str) -> None:
    model, found = packaged(name)
    table, plan = table_for(model, 4.0), plan_for(model, Precision.INT8)
    expected = emulated(model, plan, table, found.inputs)
    outputs = run(typed_model(model, plan, table).onnx, found.inputs)
    assert all(np.array_equal(outputs[output], value) for output, value in expected.items())


def test_a_healthy_real_model_is_nearly_itself_in_half() -> None:
    model, found = packaged("orient")
    (output,) = (info.name for info in model.outputs)
    reference, half = run(model.onnx, found.inputs)[output], run(typed(model).onnx, found.inputs)[output]
    assert half.dtype == np.float32
    assert sqnr(reference, half) > 30


# TensorRT-RTX


def saved(model: Model, folder: Path) -> dict[Path, Model]:
    """The model under each kind of plan, as files."""
    table, few = table_for(model, 4.0), [layer.name for layer in model.layers if layer.fixed is None][::7]
    plans = {
        "fp32": plan_for(model, Precision.FP32),
        "fp16": plan_for(model, Precision.FP16),
        "pins": plan_for(model, Precision.FP16, few),
        "bf16": plan_for(model, Precision.BF16),
        "int8": plan_for(model, Precision.INT8, few),
        "int8+fp16": plan_for(model, Precision.INT8, few, Precision.FP16),
        "int8+bf16": plan_for(model, Precision.INT8, few, Precision.BF16),
        "fp8": plan_for(model, Precision.FP8, few),
        "fp8+fp16": plan_for(model, Precision.FP8, few, Precision.FP16),
    }
    files = {folder / f"{model.name}-{name}.onnx": plan for name, plan in plans.items()}
    for file, plan in files.items():
        save_typed(typed_model(model, plan, table), file)
    return dict.fromkeys(files, model)


def accepted(files: Mapping[Path, Model], answers: list[dict[str, Any]]) -> None:
    """TensorRT has taken each without an error, and with the interface of the original."""
    for (file, model), answer in zip(files.items(), answers, strict=True):
        assert answer["errors"] == [], file.name
        expected = [[[i.name, i.dtype.name] for i in infos if i.dtype] for infos in (model.inputs, model.outputs)]
        assert answer["interface"] == expected, file.name


@needs_rtx
@pytest.mark.parametrize(
    "name", ["digits", *(pytest.param(name, marks=pytest.mark.thorough) for name in ("magika", "minilm"))]
)
def test_rtx_builds_real_models_in_every_precision(name: str, tmp_path: Path, bundled: tuple[Model, Dataset]) -> None:
    files = saved(bundled[0] if name == "digits" else packaged(name)[0], tmp_path)
    answers = drive("typed", "build", *files)
    accepted(files, answers)
    layers = {file.stem.rpartition("-")[2]: answer["layers"] for file, answer in zip(files, answers, strict=True)}
    assert "Half" not in layers["fp32"]
    assert "Half" in layers["fp16"]
    assert "BFloat16" in layers["bf16"]
    assert "Int8" in layers["int8"]


@pytest.mark.thorough
@needs_rtx
@pytest.mark.skipif(not PREPARED, reason="the example models are not prepared")
def test_rtx_parses_the_example_models_in_every_precision(tmp_path: Path) -> None:
    small = [load_model(path) for path in PREPARED if path.stat().st_size < 2**24]
    files = {file: model for model in small for file in saved(model, tmp_path)}
    accepted(files, drive("typed", "parse", *files))


LACKING = {
    "ConvTranspose": "ConvTranspose(x, w)",
    "GlobalLpPool": "GlobalLpPool(x)",
    "LpNormalization": "LpNormalization(x)",
    "MeanVarianceNormalization": "MeanVarianceNormalization(x)",
    "Mish": "Mish(x)",
}


@needs_rtx
def test_rtx_refuses_what_we_say_it_lacks_and_takes_what_we_make_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weight = {"w": np.ones((2, 2, 1, 1), np.float32)}
    files: list[Path] = []
    for lacking in (True, False):
        if not lacking:
            monkeypatch.setattr(assignment, "_LACKING", {HALF: frozenset(), BRAIN: frozenset()})
        for op_type, call in LACKING.items():
            model = load(
                proto(
                    f"(float[1,2,4,4] x) => (float[1,2,a,b] y) {{ y = {call} }}",
                    weight if "w" in call else {},
                    opset=22,
                    ir_version=10,
                ),
                tmp_path,
            )
            files.append(tmp_path / f"{op_type}-{lacking}.onnx")
            save_typed(typed(model, Precision.BF16), files[-1])
    answers = drive("typed", "build", *files)
    refused = {file.stem for file, answer in zip(files, answers, strict=True) if answer["errors"]}
    assert refused == {f"{op_type}-False" for op_type in LACKING}


OPERANDS = {
    "both activations": ("(float[2,3,4] x, float[2,4,3] z) => (float[2,3,3] y) { y = MatMul(x, z) }", ()),
    "constant first": ("(float[4,5] x) => (float[3,5] y) { y = MatMul(w, x) }", (3, 4)),
    "vector": ("(float[3,4] x) => (float[3] y) { y = MatMul(x, w) }", (4,)),
    "batched": ("(float[2,3,4] x) => (float[2,3,5] y) { y = MatMul(x, w) }", (2, 4, 5)),
    "depthwise": ("(float[1,4,6,6] x) => (float[1,4,4,4] y) { y = Conv<group=4>(x, w) }", (4, 1, 3, 3)),
    "1d": ("(float[1,4,6] x) => (float[1,4,4] y) { y = Conv(x, w) }", (4, 4, 3)),
    "3d": ("(float[1,4,6,6,6] x) => (float[1,4,4,4,4] y) { y = Conv(x, w) }", (4, 4, 3, 3, 3)),
    "grouped transposed": (
        "(float[1,4,6,6] x) => (float[1,6,8,8] y) { y = ConvTranspose<group=2>(x, w) }",
        (4, 3, 3, 3),
    ),
    "scaled": ("(float[4,3] x) => (float[3,5] y) { y = Gemm<transA=1, alpha=0.5>(x, w) }", (4, 5)),
}


@needs_rtx
@pytest.mark.thorough
def test_rtx_builds_every_kind_of_int8_operand(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    files: dict[Path, Model] = {}
    for kind, (text, shape) in OPERANDS.items():
        model = load(proto(text, {"w": rng.standard_normal(shape, np.float32)} if shape else {}), tmp_path)
        for around in DTYPES:
            file = tmp_path / f"{kind} {around}.onnx"
            save_typed(typed(model, Precision.INT8, around=around, table=table_for(model)), file)
            files[file] = model
    accepted(files, drive("typed", "build", *files))
