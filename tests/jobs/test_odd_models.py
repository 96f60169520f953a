"""Odd but honest models: each is swept to right figures, or refused in one sentence that says what to do."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.inliner
import onnxruntime as ort
import pytest
from models import Array, compared, load, parts_of, proto, sample
from onnx import TensorProto, helper, numpy_helper

from benchmarks.node_models import Case, faults, plain_outputs, written
from precisionlab.errors import PrecisionLabError
from precisionlab.jobs.result import SweepResult
from precisionlab.jobs.sweep import sweep
from precisionlab.plan.arithmetic import Arithmetic, Sums

ort.set_default_logger_severity(4)
rng = np.random.default_rng(0)


def weight(*shape: int) -> Array:
    return rng.standard_normal(shape, np.float32)


X = {"x": weight(2, 3)}


@pytest.fixture(autouse=True)
def same_numbers() -> None:
    """Whatever tests ran before, each draws the same."""
    rng.bit_generator.state = np.random.default_rng(1).bit_generator.state


CNN = {
    "w": weight(4, 3, 3, 3), "b": weight(4), "s": weight(4), "h": weight(4), "m": weight(4), "v": np.abs(weight(4)),
    "g": weight(4, 5), "c": weight(5),
}  # fmt: skip
CNN_BODY = """(float[1,3,8,8] x) => (float[1,5] y) {
    a = Conv<pads = [1,1,1,1]>(x, w, b) n = BatchNormalization(a, s, h, m, v) r = Relu(n) p = GlobalAveragePool(r)
    f = Flatten(p) l = Gemm(f, g, c) y = Softmax<axis = 1>(l) }"""
IMAGE = {"x": weight(1, 3, 8, 8)}


def swept(
    model: onnx.ModelProto, inputs: Mapping[str, Any], folder: Path, precisions: str = "fp16", **more: Any
) -> SweepResult:
    """The model's sweep, whose figures agree with ONNX Runtime on the model as it is."""
    path, data = written(Case("odd", "odd", model, inputs), folder)
    result = sweep(path, data, precisions=precisions, out=folder / "out", threads=1, **more)
    plain = plain_outputs(path, inputs)
    assert plain is not None
    assert faults(result, inputs, plain) == []
    return result


def refused(model: onnx.ModelProto, inputs: Mapping[str, Any], folder: Path, *words: str) -> None:
    """That the sweep is refused in one sentence with these words."""
    path, data = written(Case("odd", "odd", model, inputs), folder)
    with pytest.raises(PrecisionLabError) as caught:
        sweep(path, data, precisions="fp16", out=folder / "out", threads=1)
    text = str(caught.value)
    assert "\n" not in text
    for word in words:
        assert word in text, text


def sqnr(result: SweepResult, precision: str = "fp16") -> float:
    (found,) = (p for p in result.precisions if p.precision == precision)
    return found.low.comparison.worst("sqnr")


def fixed(result: SweepResult) -> dict[str, str | None]:
    return {layer.name: layer.fixed for layer in result.model.layers}


# Opsets and IR versions


@pytest.fixture(scope="module")
def at_thirteen(tmp_path_factory: pytest.TempPathFactory) -> float:
    """The network's SQNR in fp16 at opset 13."""
    return sqnr(swept(proto(CNN_BODY, CNN, opset=13), IMAGE, tmp_path_factory.mktemp("thirteen")))


@pytest.mark.parametrize("opset", range(9, onnx.defs.onnx_opset_version() + 1))
def test_every_opset_that_onnx_runtime_has_gives_the_same_figures(
    opset: int, at_thirteen: float, tmp_path: Path
) -> None:
    model = proto(CNN_BODY, CNN, opset=opset)
    try:
        ort.InferenceSession(model.SerializeToString())
    except Exception:
        refused(model, IMAGE, tmp_path, "ONNX Runtime cannot load the model")
    else:
        assert sqnr(swept(model, IMAGE, tmp_path)) == pytest.approx(at_thirteen, abs=1e-9)


def test_weights_that_are_inputs_too_are_weights(tmp_path: Path) -> None:
    model = proto(CNN_BODY, CNN, opset=9, ir_version=3)
    for name, value in CNN.items():
        model.graph.input.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, value.shape))
    result = swept(model, IMAGE, tmp_path, "fp16,int8")
    assert [info.name for info in result.model.inputs] == ["x"]


# Shapes


def test_tensors_without_elements_have_no_figures(tmp_path: Path) -> None:
    model = proto("(float[2,3] x, float[0,3] e) => (float[a,3] y, float[0,3] z) { z = Exp(e) c = Concat<axis = 0>(x, z)"
                  " y = Sin(c) }")  # fmt: skip
    result = swept(model, {**X, "e": np.zeros((0, 3), np.float32)}, tmp_path, tolerance="sqnr[y]>=30")
    comparison = result.precisions[0].low.comparison
    assert comparison.inherited["z"].elements == 0
    assert math.isnan(comparison.inherited["z"].sqnr)
    assert comparison.worst("sqnr", "y") > 60


def test_scalars_in_and_out(tmp_path: Path) -> None:
    model = proto("(float x, float[2,3] t) => (float y) { r = ReduceMean<keepdims = 0>(t) m = Mul(r, x) y = Exp(m) }")
    assert sqnr(swept(model, {"x": np.float32(0.3), "t": X["x"]}, tmp_path)) > 50


def test_nothing_but_names_for_dimensions(tmp_path: Path) -> None:
    model = proto("(float[n,c,h,w] x) => (float[n,k,i,j] y) { a = Conv(x, w) r = Relu(a)"
                  " y = Resize<mode = \"linear\">(r, , s) }",
                  {"w": CNN["w"], "s": np.array([1, 1, 2, 2], np.float32)})  # fmt: skip
    assert sqnr(swept(model, IMAGE, tmp_path, "fp16,int8")) > 60


def test_sizes_of_a_resize_that_come_from_outside(tmp_path: Path) -> None:
    model = proto("(float[1,3,8,8] x, int64[4] s) => (float[1,3,a,b] y) { e = Exp(x)"
                  " y = Resize<mode = \"cubic\">(e, , , s) }", opset=19)  # fmt: skip
    assert sqnr(swept(model, {**IMAGE, "s": np.array([1, 3, 5, 5])}, tmp_path)) > 60


def test_sizes_of_a_resize_may_come_from_another_segment(tmp_path: Path) -> None:
    body = """(float[1,3,8,8] x) => (float[1,3,a,b] y) { e = Exp(x) d = Shape(e) h = Div(d, k) r = Relu(e)
        y = Resize<mode = "linear">(r, , , h) }"""
    model = load(proto(body, {"k": np.array([1, 1, 2, 2])}, opset=19), tmp_path)
    assert parts_of(model, 1) == 5
    found = [compared(model, [sample(**IMAGE)], budget=budget).inherited["y"] for budget in (1, 1 << 20)]
    assert found[0] == found[1]
    assert found[0].sqnr > 50


def test_some_of_the_sizes_of_a_resize_may_come_from_another_segment(tmp_path: Path) -> None:
    """Nor does it matter where a graph is cut: at products whose sums are kept in half, it is cut there too."""
    body = """(float[1,3,8,8] x) => (float[1,4,a,b] y) { e = Exp(x) d = Shape(e) t = Slice(d, two, four, zero)
        h = Mul(t, two) c = Conv(e, w) r = Relu(c) s = Shape(r) n = Slice(s, zero, two, zero)
        z = Concat<axis = 0>(n, h) y = Resize<mode = "linear">(r, , , z) }"""
    indices = {"zero": np.array([0]), "two": np.array([2]), "four": np.array([4])}
    model = load(proto(body, {"w": CNN["w"], **indices}, opset=19), tmp_path)
    found = [compared(model, [sample(**IMAGE)], budget=budget).inherited["y"] for budget in (1, 1 << 20)]
    assert found[0] == found[1]
    half = compared(model, [sample(**IMAGE)], arithmetic=Arithmetic(sums=Sums.HALF)).inherited["y"]
    assert half != found[0]
    assert half.sqnr > 50


# Weights and outputs


def test_a_model_without_weights(tmp_path: Path) -> None:
    model = proto("(float[2,3] x, float[3,4] z) => (float[2,4] y) { m = MatMul(x, z) y = Tanh(m) }")
    assert sqnr(swept(model, {**X, "z": weight(3, 4)}, tmp_path, "fp16,int8"), "int8") > 20


def test_layers_that_share_a_weight(tmp_path: Path) -> None:
    model = proto("(float[2,3] x) => (float[2,3] y) { a = MatMul(x, w) t = Tanh(a) b = MatMul(t, w) c = Gemm(w, b2)"
                  " d = MatMul(b, c) y = Sin(d) }", {"w": weight(3, 3), "b2": weight(3, 3)})  # fmt: skip
    assert sqnr(swept(model, X, tmp_path, "fp16,int8")) > 40


def test_an_output_that_is_an_input_has_no_error(tmp_path: Path) -> None:
    result = swept(proto("(float[2,3] x) => (float[2,3] x, float[2,3] y) { y = Exp(x) }"), X, tmp_path)
    outputs = result.precisions[0].low.comparison.outputs
    assert outputs["x"].errors is not None
    assert outputs["x"].errors.sqnr == math.inf
    assert math.isfinite(sqnr(result))


def test_an_output_that_is_a_constant_has_no_error(tmp_path: Path) -> None:
    model = proto("(float[2,3] x) => (float[2,3] y, float[3] w, float[2] k) {"
                  " y = Mul(x, w) k = Constant<value_floats = [0.1, 7e4]>() }", {"w": weight(3)})  # fmt: skip
    outputs = swept(model, X, tmp_path).precisions[0].low.comparison.outputs
    assert list(outputs) == ["y", "w", "k"]
    assert all(outputs[name].errors.err2 == 0 for name in "wk")  # type: ignore[union-attr]


def test_one_tensor_twice_as_an_output_is_told_of_once(tmp_path: Path) -> None:
    model = proto("(float[2,3] x) => (float[2,3] y) { y = Exp(x) }")
    model.graph.output.append(model.graph.output[0])
    result = swept(model, X, tmp_path)
    assert list(result.precisions[0].low.comparison.outputs) == ["y"]
    assert result.variants["output"].tolist().count("y") == len(result.variants)


def test_one_value_under_two_names_is_two_outputs(tmp_path: Path) -> None:
    model = proto("(float[2,3] x) => (float[2,3] y, float[2,3] z) { y = Exp(x) z = Identity(y) }")
    outputs = swept(model, X, tmp_path).precisions[0].low.comparison.outputs
    assert outputs["y"].errors == outputs["z"].errors


def test_dead_branches_are_no_layers(tmp_path: Path) -> None:
    model = proto("(float[2,3] x) => (float[2,3] y) { y = Exp(x) d = Sin(x) e = MatMul(d, w) }", {"w": weight(3, 3)})
    assert list(fixed(swept(model, X, tmp_path, "fp16,int8"))) == ["node_of_y"]


def test_a_class_index_alone_is_judged_by_top1_and_says_so(tmp_path: Path) -> None:
    model = proto("(float[2,3] x) => (int64[2] y) { e = Exp(x) y = ArgMax<axis = 1, keepdims = 0>(e) }")
    refused(model, X, tmp_path, "no float output", "top1>=")
    assert swept(model, X, tmp_path / "top1", tolerance="top1>=0.99").met


# Types


def test_a_model_in_double_is_swept_as_one_in_float32(tmp_path: Path) -> None:
    model = proto("(double[2,3] x) => (double[2,3] y) { e = Exp(x) y = Tanh(e) }")
    assert swept(model, {"x": X["x"].astype("double")}, tmp_path).met


def test_a_float8_input_is_refused_by_name(tmp_path: Path) -> None:
    model = proto("(float8e4m3fn[2,3] x) => (float[2,3] y) { c = Cast<to = 1>(x) y = Exp(c) }", opset=19)
    refused(model, X, tmp_path, "'x' is float8e4m3fn", "Cast")


def test_an_input_of_more_axes_than_arrays_have_is_refused_by_name(tmp_path: Path) -> None:
    def of(axes: int) -> onnx.ModelProto:
        return proto(f"(float[{'1,' * (axes - 1)}3] x) => (float[{'1,' * (axes - 1)}3] y) {{ y = Exp(x) }}")

    refused(of(65), {"x": X["x"]}, tmp_path, "'x' has 65 axes", "Reshape")
    assert swept(of(8), {"x": X["x"][:1].reshape([1] * 7 + [3])}, tmp_path / "8").met


def test_double_inside_has_a_precision_as_float32_has(tmp_path: Path) -> None:
    model = proto("(float[2,3] x) => (float[2,3] y) { a = Exp(x) d = Cast<to = 11>(a) e = Sqrt(d) f = Cast<to = 1>(e)"
                  " y = Sin(f) }")  # fmt: skip
    result = swept(model, X, tmp_path)
    assert fixed(result)["node_of_e"] is None
    assert sqnr(result) > 50


def test_integer_models_have_nothing_to_sweep(tmp_path: Path) -> None:
    model = proto("(int32[2,3] x) => (int32[2,3] y) { a = Add(x, x) y = Mul(a, x) }")
    refused(model, {"x": np.ones((2, 3), np.int32)}, tmp_path, "none of its 2 layers can be given a precision",
            "nothing to sweep")  # fmt: skip


def test_strings_go_through(tmp_path: Path) -> None:
    model = proto("(string[3] s, float[3] x) => (float[3] y, string[3] t) { t = Identity(s) q = Equal(s, w)"
                  " c = Cast<to = 1>(q) e = Exp(x) y = Mul(e, c) }", opset=19)  # fmt: skip
    model.graph.initializer.append(helper.make_tensor("w", TensorProto.STRING, [3], [b"a", b"b", b"c"]))
    inputs = {"s": np.array(["a", "é", "c"]), "x": weight(3)}
    assert sqnr(swept(model, inputs, tmp_path)) > 50


def test_strings_from_a_hook_are_taken_and_random_ones_refused(tmp_path: Path) -> None:
    model = proto("(string[3] s) => (float[3] y) { q = Equal(s, s) c = Cast<to = 1>(q) y = Exp(c) }", opset=19)
    onnx.save_model(model, tmp_path / "m.onnx")
    (tmp_path / "h.py").write_text(
        "import numpy as np\ndef rows():\n    yield {'s': np.array(['a', 'longer', ''], object)}\n"
    )
    data = f"{tmp_path / 'h.py'}:rows"
    assert sweep(tmp_path / "m.onnx", data, precisions="fp16", out=tmp_path / "out", threads=1).met
    with pytest.raises(PrecisionLabError, match="'s' takes strings"):
        sweep(tmp_path / "m.onnx", precisions="fp16", out=tmp_path / "out")


# Quantised already


QDQ = {
    "s": np.float32(0.02), "z": np.int8(3), "w": rng.integers(-127, 127, (4, 3, 3, 3)).astype(np.int8),
    "ws": np.float32(0.01), "wz": np.int8(0), "b": weight(4), "f": weight(4, 4, 1, 1),
}  # fmt: skip
QDQ_BODY = """(float[1,3,8,8] x) => (float[1,4,6,6] y) {
    q = QuantizeLinear(x, s, z) d = DequantizeLinear(q, s, z) k = DequantizeLinear(w, ws, wz)
    a = Conv(d, k, b) r = Relu(a) y = Conv(r, f) }"""


def test_what_is_quantised_already_stays_so_and_is_said(tmp_path: Path) -> None:
    result = swept(proto(QDQ_BODY, QDQ), IMAGE, tmp_path, "fp16,int8")
    said = fixed(result)
    assert "int8, as the model says" in str(said["node_of_a"])
    assert said["node_of_y"] is None
    assert sqnr(result) > 50
    assert "int8, as the model says" in (tmp_path / "out" / "report.html").read_text()
    table = result.precisions[1].table
    assert table is not None
    assert set(table.ranges) == {"r"}  # nothing is calibrated that has its scale


def test_integer_convolutions_stay_as_they_are(tmp_path: Path) -> None:
    model = proto(
        """(float[1,3,8,8] x) => (float[1,4,6,6] y) { q = QuantizeLinear(x, s, z)
        a = QLinearConv(q, s, z, w, ws, wz, s, z) d = DequantizeLinear(a, s, z) y = Tanh(d) }""",
        QDQ,
    )
    del model.graph.initializer[5:]
    result = swept(model, IMAGE, tmp_path, "fp16,int8")
    assert fixed(result)["node_of_a"] is not None
    assert sqnr(result) > 50


# Sequences, optionals, subgraphs, functions


def test_a_sequence_on_the_way_goes_through(tmp_path: Path) -> None:
    model = proto("(float[4,3] x) => (float[4,3] y) { e = Exp(x) s = SplitToSequence<axis = 0>(e, k)"
                  " c = ConcatFromSequence<axis = 0>(s) y = Sin(c) }", {"k": np.int64(2)})  # fmt: skip
    assert sqnr(swept(model, {"x": weight(4, 3)}, tmp_path)) > 50


def test_a_sequence_as_output_is_not_compared(tmp_path: Path) -> None:
    model = proto("(float[4,3] x) => (seq(float[2,3]) s, float[4,3] y) { e = Exp(x) s = SplitToSequence<axis = 0>(e, k)"
                  " y = Sin(e) }", {"k": np.int64(2)})  # fmt: skip
    assert swept(model, {"x": weight(4, 3)}, tmp_path).precisions[0].low.comparison.outputs["s"].errors is None


@pytest.mark.parametrize("kind", ["seq", "optional"])
def test_inputs_that_are_no_tensors_are_refused_by_name(kind: str, tmp_path: Path) -> None:
    operator = "SequenceAt(x, i)" if kind == "seq" else "OptionalGetElement(x)"
    model = proto(f"({kind}(float[2,3]) x) => (float[2,3] y) {{ a = {operator} y = Exp(a) }}", opset=18)
    model.graph.initializer.append(numpy_helper.from_array(np.int64(0), "i"))
    refused(model, X, tmp_path, "'x' is a", "samples hold tensors only")


SUBGRAPHS = {
    "If": """(float[2,3] x, bool c) => (float[2,3] y) { e = Exp(x)
        i = If(c) <then_branch = t () => (float[2,3] u) { u = MatMul(e, w) },
                   else_branch = f () => (float[2,3] v) { v = Neg(e) }> y = Tanh(i) }""",
    "Loop": """(float[2,3] x, bool c) => (float[2,3] y) { e = Exp(x)
        l = Loop(n, c, e) <body = b (int64 i, bool k, float[2,3] p) => (bool k2, float[2,3] q) {
            k2 = Identity(k) m = MatMul(p, w) q = Tanh(m) }> y = Sin(l) }""",
    "Scan": """(float[2,3] x, bool c) => (float[2,3] y) { e = Exp(x) z = ReduceMean<axes = [0], keepdims = 0>(e)
        g, o = Scan<num_scan_inputs = 1, body = b (float[3] p, float[3] q) => (float[3] r, float[3] t) {
            r = Add(p, q) t = Mul(r, q) }>(z, e) y = Sin(o) }""",
}


@pytest.mark.parametrize("kind", SUBGRAPHS)
def test_subgraphs_are_layers_as_those_around_them(kind: str, tmp_path: Path) -> None:
    model = proto(SUBGRAPHS[kind], {"w": weight(3, 3), "n": np.int64(3)})
    result = swept(model, {**X, "c": np.bool_(True)}, tmp_path)
    assert not any(fixed(result).values())
    assert 40 < sqnr(result) < 100


FUNCTION = """< ir_version: 8, opset_import: ["" : 17, "local" : 1] > g (float[2,3] x) => (float[2,3] y) {BODY}
    < domain: "local", opset_import: ["" : 17] > Twice (a) => (b) { s = Sin(a) b = Add(s, s) }"""


@pytest.mark.parametrize("body", [" e = Exp(x) t = local.Twice(e) y = Tanh(t) ", " y = local.Twice(x) "])
def test_the_layers_inside_a_function_are_layers_of_the_model(body: str, tmp_path: Path) -> None:
    model = onnx.parser.parse_model(FUNCTION.replace("BODY", body))
    result = swept(model, X, tmp_path)
    assert set(fixed(result).values()) == {None}
    by_hand = swept(onnx.inliner.inline_local_functions(model), X, tmp_path / "inlined")
    assert sqnr(result) == sqnr(by_hand)


# Training and chance


def test_training_operators_are_refused_by_name(tmp_path: Path) -> None:
    model = proto("(float[2,3] x) => (float[2,3] y) { y = ai.onnx.preview.training.Gradient"
                  "<xs = [\"x\"], y = \"e\">(x) e = Exp(x) }",
                  domains=', "ai.onnx.preview.training" : 1')  # fmt: skip
    model.graph.node.insert(0, model.graph.node.pop(1))
    refused(model, X, tmp_path, "ai.onnx.preview.training::Gradient")


@pytest.mark.parametrize(
    "operator", ["RandomNormalLike(x)", "RandomUniform<shape = [2,3]>()", "Bernoulli<seed = 1.0>(x)"]
)
def test_random_numbers_are_refused_as_no_figure_is_worth_anything(operator: str, tmp_path: Path) -> None:
    model = proto(f"(float[2,3] x) => (float[2,3] y) {{ r = {operator} a = Add(r, x) y = Exp(a) }}")
    refused(model, X, tmp_path, "draws random numbers", "'node_of_r'", "an input of the model")


def test_random_numbers_in_a_subgraph_are_refused_too(tmp_path: Path) -> None:
    body = SUBGRAPHS["If"].replace("Neg(e)", "RandomNormalLike(e)")
    model = proto(body, {"w": weight(3, 3)})
    refused(model, {**X, "c": np.bool_(True)}, tmp_path, "'node_of_v'", "draws random numbers")


def test_a_dropout_that_drops_is_refused_and_one_that_does_not_is_swept(tmp_path: Path) -> None:
    body = "(float[2,3] x) => (float[2,3] y) { e = Exp(x) d = Dropout(e, r, t) y = Sin(d) }"
    ratio = np.float32(0.5)
    refused(proto(body, {"r": ratio, "t": np.bool_(True)}), X, tmp_path, "'node_of_d' (Dropout)", "evaluation mode")
    assert sqnr(swept(proto(body, {"r": ratio, "t": np.bool_(False)}), X, tmp_path / "not")) > 50


def test_batch_statistics_are_refused_as_onnx_runtime_writes_over_what_it_is_given(tmp_path: Path) -> None:
    model = proto("(float[4,3] x) => (float[4,3] y) { e = Exp(x)"
                  " n, p, q = BatchNormalization<training_mode = 1>(e, s, b, m, v) y = Sin(n) }",
                  {"s": weight(3), "b": weight(3), "m": weight(3), "v": np.abs(weight(3))})  # fmt: skip
    refused(model, {"x": weight(4, 3)}, tmp_path, "'node_of_n' (BatchNormalization)", "evaluation mode")


# Operators of others


def test_operators_of_onnx_runtime_are_layers_where_their_types_are_declared(tmp_path: Path) -> None:
    model = proto("(float[2,3] x) => (float[2,4] y) { e = Exp(x) f = com.microsoft.FusedMatMul<transB = 1>(e, w)"
                  " y = com.microsoft.Gelu(f) }", {"w": weight(4, 3)}, domains=', "com.microsoft" : 1')  # fmt: skip
    result = swept(model, X, tmp_path / "unknown")
    assert "value_info" in str(fixed(result)["node_of_f"])
    model.graph.value_info.append(helper.make_tensor_value_info("f", TensorProto.FLOAT, [2, 4]))
    result = swept(model, X, tmp_path / "declared")
    assert set(fixed(result).values()) == {None}
    assert sqnr(result) > 50


def test_an_operator_that_nobody_knows_is_refused_by_name_where_layers_stand_behind_it(tmp_path: Path) -> None:
    body = "(float[2,3] x) => (float[2,4] y) { e = Exp(x) m = acme.Magic(e) y = MatMul(m, w) }"
    refused(proto(body, {"w": weight(3, 4)}, domains=', "acme" : 1'), X, tmp_path, "acme::Magic")


# Names


def test_names_of_any_kind(tmp_path: Path) -> None:
    long = "n" * 3000
    names = {"x": "eingäng/🚀 [0]:x", "e": long, "y": "出力"}
    model = proto("(float[2,3] x) => (float[2,3] y) { e = Exp(x) y = MatMul(e, w) }", {"w": weight(3, 3)})
    model.graph.ClearField("name")
    model.graph.name = "-"
    model.graph.input[0].name, model.graph.output[0].name = names["x"], names["y"]
    for node, name in zip(model.graph.node, ["", "<script>&'\" \\"], strict=True):
        node.name = name
        node.input[:] = [names.get(i, i) for i in node.input]
        node.output[:] = [names[o] for o in node.output]
    result = swept(model, {names["x"]: X["x"]}, tmp_path, "fp16,int8")
    assert list(fixed(result)) == [f"node_of_{long}", "<script>&'\" \\"]
    assert sqnr(result) > 50


def test_a_graph_without_a_name_is_what_onnx_says_it_is(tmp_path: Path) -> None:
    model = proto("(float[2,3] x) => (float[2,3] y) { y = Exp(x) }")
    model.graph.ClearField("name")
    refused(model, X, tmp_path, "not a valid ONNX model", "name")


# Where weights are


def test_sparse_weights_are_refused_by_name(tmp_path: Path) -> None:
    model = proto("(float[2,3] x) => (float[2,3] y) { y = MatMul(x, w) }")
    values = helper.make_tensor("w", TensorProto.FLOAT, [2], [1.0, 2.0])
    indices = helper.make_tensor("w_indices", TensorProto.INT64, [2], [0, 4])
    model.graph.sparse_initializer.append(helper.make_sparse_tensor(values, indices, [3, 3]))
    refused(model, X, tmp_path, "'w' is sparse", "dense")


def test_weights_in_a_file_beside_the_model(tmp_path: Path) -> None:
    model = proto(CNN_BODY, CNN)
    inside = swept(model, IMAGE, tmp_path / "inside", "fp16,int8")
    path, data = written(Case("odd", "odd", model, IMAGE), tmp_path / "beside")
    onnx.save_model(model, path, save_as_external_data=True, location="weights.bin", size_threshold=0)
    beside = sweep(path, data, precisions="fp16,int8", out=tmp_path / "out", threads=1)
    for precision in ("fp16", "int8"):
        assert sqnr(beside, precision) == sqnr(inside, precision)
