"""Models are loaded, named and grouped into layers as TensorRT does, and whatever is wrong is one sentence."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from models import DIGITS, Array, bits, compared, examples, load, parts_of, proto, sample
from onnx import TensorProto, helper

from precisionlab.backends.onnxruntime import OnnxRuntimeBackend
from precisionlab.data import Dataset
from precisionlab.errors import ModelError
from precisionlab.model import Layer, Model, load_model
from precisionlab.model.graph import Obstacle
from precisionlab.model.owned import own_weights
from precisionlab.precision import Precision

rng = np.random.default_rng(0)


def weight(*shape: int) -> Array:
    return rng.standard_normal(shape, np.float32)


def groups(model: Model) -> list[str]:
    return [layer.kind for layer in model.layers]


def fails(path: Path, *words: str) -> str:
    """That loading is a ModelError: one sentence with these words."""
    with pytest.raises(ModelError) as caught:
        load_model(path)
    text = str(caught.value)
    assert "\n" not in text
    for word in (path.name, *words):
        assert word in text, text
    return text


# Names


def test_unnamed_nodes_are_called_after_their_first_output(tmp_path: Path) -> None:
    model = load(proto("(float[2] x) => (float[2] y) { h = Sin(x) y = Cos(h) }"), tmp_path)
    assert [layer.name for layer in model.layers] == ["node_of_h", "node_of_y"]


def test_a_node_whose_first_output_is_left_out_is_called_after_its_second(tmp_path: Path) -> None:
    graph = proto("(float[2,1,3] x) => (float[1,1,4] h) { , h = LSTM<hidden_size = 4>(x, w, r) }", {
        "w": weight(1, 16, 3), "r": weight(1, 16, 4)})  # fmt: skip
    model = load(graph, tmp_path)
    assert [layer.name for layer in model.layers] == ["node_of_h"]
    assert list(compared(model, [sample(x=weight(2, 1, 3))]).inherited) == ["h"]


def test_names_that_occur_twice_are_made_unique(tmp_path: Path) -> None:
    graph = proto("(float[2] x) => (float[2] y) { a = Sin(x) b = Sin(a) c = Sin(b) d = Sin(c) y = Sin(d) }")
    for node, name in zip(graph.graph.node, ["n", "n", "n_1", "", "node_of_d"], strict=True):
        node.name = name
    names = [layer.name for layer in load(graph, tmp_path).layers]
    assert len(set(names)) == 5
    assert (names[0], names[3]) == ("n", "node_of_d")


# Fusions


CONV = {"w": weight(4, 3, 1, 1), **{k: np.abs(weight(4)) for k in "sbmv"}, "w2": weight(4, 4, 1, 1)}
FUSED = [
    ("Conv+BatchNormalization+Relu", "c = Conv(x, w) n = BatchNormalization(c, s, b, m, v) y = Relu(n)"),
    ("Conv+Mul+Add+Clip", "c = Conv(x, w) d = Mul(c, k) e = Add(t, d) y = Clip(e, lo, hi)"),
    ("Conv+PRelu", "c = Conv(x, w) y = PRelu(c, k)"),
    ("Conv+Sub+Div", "c = Conv(x, w) d = Sub(t, c) y = Div(d, k)"),
    ("Conv,Sigmoid,Mul", "c = Conv(x, w) d = Sigmoid(c) y = Mul(d, c)"),  # c has two consumers
    ("Conv+Relu,Relu", "c = Conv(x, w) d = Relu(c) y = Relu(d)"),  # one activation
    ("Conv,Div", "c = Conv(x, w) y = Div(k, c)"),  # one over the output is no scale
    ("Conv,Mul", "c = Conv(x, w) y = Mul(c, wide)"),  # a factor for each column, not for each channel
    ("Conv,Mul", "c = Conv(x, w) y = Mul(c, full)"),
    ("Conv,Softmax", "c = Conv(x, w) y = Softmax(c)"),
    ("Relu,Conv+Add", "r = Relu(z) c = Conv(x, w) y = Add(r, c)"),
    ("Conv+Add+Relu", "c = Conv(x, w) d = Add(c, z) y = Relu(d)"),
    ("Conv+Add,Add", "c = Conv(x, w) d = Add(c, z) y = Add(d, z)"),  # one residual
    ("Conv+Add,Mul", "c = Conv(x, w) d = Add(c, z) y = Mul(d, k)"),  # no scale behind the sum
    ("Conv,Add", "c = Conv(x, w) y = Add(c, one)"),  # broadcast, as an attention mask is
    ("Conv,Add", "c = Conv(x, w) y = Add(c, c)"),
    ("Conv,Conv+Add", "c = Conv(x, w) d = Conv(z, w2) y = Add(c, d)"),
]


@pytest.mark.parametrize(("expected", "nodes"), FUSED, ids=[f"{n}:{k}" for n, (k, _) in enumerate(FUSED)])
def test_what_one_kernel_runs_is_one_layer(tmp_path: Path, expected: str, nodes: str) -> None:
    body = f"(float[1,3,2,5] x, float[1,4,2,5] z, float[1,1,1,5] one) => (float[1,4,2,5] y) {{ {nodes} }}"
    weights = {
        **CONV, "k": weight(4, 1, 1), "t": weight(1, 4, 1, 1), "lo": np.float32(0), "hi": np.float32(6),
        "wide": weight(5), "full": weight(4, 2, 5),
    }  # fmt: skip
    model = load(proto(body, weights), tmp_path)
    found = groups(model)
    if expected == "Conv,Conv+Add":  # either Conv may take the sum
        assert sorted(found) == ["Conv", "Conv+Add"]
    else:
        assert found == expected.split(",")
    assert_topological(model)
    errors = compared(model, [sample(x=weight(1, 3, 2, 5), z=weight(1, 4, 2, 5), one=weight(1, 1, 1, 5))])
    assert list(errors.inherited) == [name for layer in model.layers for name in layer.outputs]


def test_nothing_fuses_across_a_graph_output(tmp_path: Path) -> None:
    body = "(float[1,3,2,2] x) => (float[1,4,2,2] c, float[1,4,2,2] y) { c = Conv(x, w) y = Relu(c) }"
    assert groups(load(proto(body, CONV), tmp_path)) == ["Conv", "Relu"]


def test_a_matmul_takes_its_bias_and_leaves_an_attention_mask_of_another_shape(tmp_path: Path) -> None:
    body = """(float[2,5,4] q, float[2,4,5] k, float[1,1,5] mask, float[2,5,4] r) => (float[2,5,4] y) {
        s = MatMul(q, k) m = Add(s, mask) p = Softmax(m) v = MatMul(p, q)
        o = MatMul(v, w) b1 = Add(o, b) y = Add(b1, r) }"""
    model = load(proto(body, {"w": weight(4, 4), "b": weight(4)}), tmp_path)
    assert groups(model) == ["MatMul", "Add", "Softmax", "MatMul", "MatMul+Add+Add"]
    assert model.layers[-1].inputs == ("v", "r")
    assert model.layers[-1].weights == ("w", "b")


def test_a_residual_of_unknown_shape_is_not_fused(tmp_path: Path) -> None:
    body = "(float[1,3,A,B] x, float[1,4,C,D] z) => (float[1,4,E,F] y) { c = Conv(x, w) y = Add(c, z) }"
    assert groups(load(proto(body, CONV), tmp_path)) == ["Conv", "Add"]


def test_a_node_used_inside_a_subgraph_is_not_fused(tmp_path: Path) -> None:
    body = """(float[1,3,2,2] x, bool flag) => (float[1,4,2,2] y, float[1,4,2,2] z) {
        c = Conv(x, w)
        y = Relu(c)
        z = If (flag) <then_branch = a () => (float[1,4,2,2] p) { p = Neg(c) },
                       else_branch = b () => (float[1,4,2,2] q) { q = Exp(c) }> }"""
    assert groups(load(proto(body, CONV), tmp_path)) == ["Conv", "Relu", "If"]


# Order


def assert_topological(model: Model) -> None:
    known = {info.name for info in model.inputs}
    for layer in model.layers:
        assert model.taken_by(layer) <= known, layer.name
        known |= set(layer.outputs)
    nodes = [name for layer in model.layers for name in layer.nodes]
    assert sorted(nodes) == sorted(model.node)


@st.composite
def random_graphs(draw: st.DrawFn) -> onnx.ModelProto:
    """Residual networks at random: MatMul, scales, sums and activations over values of one shape."""
    values, nodes = ["x"], []
    for index in range(draw(st.integers(1, 14))):
        kind = draw(st.sampled_from(["MatMul", "MatMul", "bias", "scale", "Add", "Mul", "Relu", "Tanh", "Transpose"]))
        recent = st.sampled_from(values[-4:])
        first, output = draw(recent), f"v{index}"
        operands = {
            "MatMul": [first, "w"], "bias": [first, "b"], "scale": ["s", first],
            "Add": [first, draw(recent)], "Mul": [first, draw(recent)],
        }.get(kind, [first])  # fmt: skip
        nodes.append(helper.make_node({"bias": "Add", "scale": "Mul"}.get(kind, kind), operands, [output]))
        values.append(output)
    used = {name for node in nodes for name in node.input}
    ends = [v for v in values if v not in used] + draw(st.lists(st.sampled_from(values[1:]), max_size=1))
    info = [helper.make_tensor_value_info(v, TensorProto.FLOAT, [4, 4]) for v in dict.fromkeys(ends)]
    start = helper.make_tensor_value_info("x", TensorProto.FLOAT, [4, 4])
    local = np.random.default_rng(draw(st.integers(0, 99)))
    weights = {"w": (4, 4), "b": (4,), "s": ()}
    constants = [
        onnx.numpy_helper.from_array(local.standard_normal(shape).astype(np.float32), n) for n, shape in weights.items()
    ]
    graph = helper.make_graph(nodes, "g", [start], info, [c for c in constants if c.name in used])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


@given(random_graphs())
@settings(max_examples=examples(150))
def test_layers_stand_in_topological_order_and_hold_every_node_once(
    tmp_path_factory: pytest.TempPathFactory, graph: onnx.ModelProto
) -> None:
    assert_topological(load(graph, tmp_path_factory.getbasetemp()))


@pytest.mark.slow
@given(random_graphs(), st.sampled_from([Precision.FP16, Precision.BF16, Precision.INT8]))
@settings(max_examples=examples(40))
def test_a_random_graph_pinned_throughout_is_its_reference_and_segments_change_nothing(
    tmp_path_factory: pytest.TempPathFactory, graph: onnx.ModelProto, precision: Precision
) -> None:
    model = load(graph, tmp_path_factory.getbasetemp())
    data = [sample(x=weight(4, 4)), sample(x=weight(4, 4))]
    pinned = compared(model, data, precision, [layer.name for layer in model.layers])
    assert all(e.err2 == 0 and e.nonfinite == 0 for e in pinned.inherited.values())
    whole = compared(model, data, precision)
    assert repr(compared(model, data, precision, budget=1)).split("seconds")[0] == repr(whole).split("seconds")[0]


# Flow of shapes


SHAPES = """(float[N,4,6] x) => (float[N,24] y) {
    dims = Shape(x) n = Gather<axis = 0>(dims, zero) n1 = Unsqueeze(n, axes) to = Concat<axis = 0>(n1, rest)
    h = Exp(x) y = Reshape(h, to) }"""
SHAPE_WEIGHTS = {"zero": np.int64(0), "axes": np.int64([0]), "rest": np.int64([-1])}


def fixed(model: Model) -> dict[str, str | None]:
    return {layer.kind: layer.fixed for layer in model.layers}


def test_integer_shape_flow_is_left_alone(tmp_path: Path) -> None:
    model = load(proto(SHAPES, SHAPE_WEIGHTS), tmp_path)
    reasons = fixed(model)
    assert {kind for kind, why in reasons.items() if why is None} == {"Exp", "Reshape"}
    assert {why for why in reasons.values() if why} == {"shape flow"}
    found = compared(model, [sample(x=weight(3, 4, 6))])
    assert list(found.inherited) == ["h", "y"]
    assert found.outputs["y"].errors.sqnr > 60  # type: ignore[union-attr]


def test_resize_scales_computed_in_the_graph_are_not_rounded(tmp_path: Path) -> None:
    # 2.0003 is 2.0 in half: 9999 columns become 20000 and not 19998.
    body = """(float[1,1,1,9999] x, float[1] factor) => (float[1,1,1,M] y) {
        f = Mul(factor, two) scales = Concat<axis = 0>(ones, f) y = Resize<mode = "nearest">(x, , scales) }"""
    weights = {"two": np.float32([2.0003]), "ones": np.float32([1, 1, 1])}
    model = load(proto(body, weights), tmp_path)
    assert fixed(model) == {"Mul": "shape flow", "Concat": "shape flow", "Resize": None}
    found = compared(model, [sample(x=weight(1, 1, 1, 9999), factor=[1])])
    assert found.outputs["y"].errors.elements == 20000  # type: ignore[union-attr]
    assert found.worst("sqnr") > 60


def test_a_float_that_is_both_shape_and_data_is_data(tmp_path: Path) -> None:
    body = """(float[1] x, float[1,1,1,4] z) => (float[1] y, float[1,1,1,M] r)
        { h = Exp(x) y = Neg(h) s = Concat<axis = 0>(o, h) r = Resize(z, , s) }"""
    reasons = fixed(load(proto(body, {"o": np.float32([1, 1, 1])}), tmp_path))
    assert reasons == {"Exp": None, "Neg": None, "Concat": "shape flow", "Resize": None}


# What has no precision


def test_an_if_that_captures_outer_values_runs_also_in_a_segment_of_its_own(tmp_path: Path) -> None:
    body = """(float[8] x, bool flag) => (float[8] y) {
        a = Mul(x, k)
        b = Exp(x)
        c = If (flag) <then_branch = t () => (float[8] p) { s = Add(a, b) p = Mul(s, k) },
                       else_branch = e () => (float[8] q) { q = Sub(a, k2) }>
        y = Mul(c, k) }"""
    model = load(proto(body, {"k": weight(8), "k2": weight(8)}), tmp_path)
    branch = model.layer["node_of_c"]
    assert branch.fixed is None
    assert model.taken_by(branch) == {"flag", "a", "b"}
    x = weight(8)
    data = [sample(x=x, flag=np.array(True)), sample(x=x, flag=np.array(False))]
    assert parts_of(model, 1) == 4
    whole = compared(model, data)
    assert repr(compared(model, data, budget=1, threads=2)).split("seconds")[0] == repr(whole).split("seconds")[0]
    # Its branches lose something by themselves, and inherit what a and b have lost.
    assert 50 < whole.introduced["c"].sqnr < 90
    assert 50 < whole.inherited["c"].sqnr < 90
    pinned = compared(model, data, pinned=["node_of_a", "node_of_b", "node_of_c", "node_of_y"])
    assert pinned.inherited["c"].err2 == 0


def test_constants_inside_branches_are_kept(tmp_path: Path) -> None:
    body = """(float[2] x, bool flag) => (float[2] y) {
        c = If (flag) <then_branch = t () => (float[2] p) { k = Constant<value = float[2] {3.0, 4.0}>() p = Mul(x, k) },
                       else_branch = e () => (float[2] q) { q = Identity(x) }>
        y = Exp(c) }"""
    model = load(proto(body), tmp_path)
    found = compared(model, [sample(x=[1, 1], flag=np.array(True))])
    assert found.inherited["c"].ref2 == 25


def test_a_loop_runs_in_segments_of_its_own_too(tmp_path: Path) -> None:
    body = """(float[4] x, int64 trips, bool go) => (float[4] y) {
        h = Exp(x)
        l = Loop (trips, go, h) <body = b (int64 i, bool c, float[4] v) => (bool o, float[4] w)
                                   { o = Identity(c) w = Mul(v, h) }>
        y = Neg(l) }"""
    model = load(proto(body), tmp_path)
    assert model.layer["node_of_l"].fixed is None
    data = [sample(x=[0, 0.5, 1, 1.5], trips=np.array(2), go=np.array(True))]
    for budget in (1, 1 << 20):
        found = compared(model, data, budget=budget)
        # e^(3x) of values rounded in half: each of three factors and two products is off by up to 2^-11.
        assert 0 < found.inherited["l"].rel_l2 < 5.1 * 2**-11


def test_a_function_that_cannot_be_inlined_stays_in_float32_and_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("precisionlab.model.load.inline_functions", lambda model: 0)
    text = """<ir_version: 8, opset_import: ["" : 17, "mine" : 1]>
        g (float[4] x) => (float[4] y) { h = Exp(x) f = mine.Double(h) y = Neg(f) }
        <domain: "mine", opset_import: ["" : 17]> Double (a) => (b) { b = Add(a, a) }"""
    model = load(onnx.parser.parse_model(text), tmp_path)
    assert model.layer["node_of_f"].fixed == "call of the model-local function Double; left in float32"
    assert model.layer["node_of_f"].obstacle is Obstacle.FUNCTION
    for budget in (1, 1 << 20):
        found = compared(model, [sample(x=[0, 1, 2, 3])], budget=budget)
        assert found.outputs["y"].errors.rel_l2 < 2**-11 * 1.01  # type: ignore[union-attr]


def test_an_onnxruntime_operator_can_be_given_a_precision(tmp_path: Path) -> None:
    graph = proto("(float[4] x) => (float[4] y) { y = com.microsoft.FastGelu(x) }", domains=', "com.microsoft" : 1')
    model = load(graph, tmp_path)
    assert model.layers[0].fixed is None
    assert compared(model, [sample(x=[0.1, 1, 2, 3])]).introduced["y"].err2 > 0


def test_a_model_in_double_has_layers_that_no_int8_is_for(tmp_path: Path) -> None:
    body = "(double[4,2] x) => (double[4,2] y) { h = MatMul(x, w) y = Relu(h) }"
    model = load(proto(body, {"w": weight(2, 2).astype(np.float64)}), tmp_path)
    assert all(layer.fixed is None and layer.is_double and not layer.quantizable for layer in model.layers)
    found = compared(model, [sample(x=weight(4, 2).astype(np.float64))])
    assert list(found.inherited) == ["h", "y"] or list(found.inherited) == ["y"]
    assert found.outputs["y"].errors is not None
    assert found.outputs["y"].top1.share == 1


def test_a_double_among_floats_is_looked_at_too(tmp_path: Path) -> None:
    body = "(float[4] x) => (double[4] y, float[4] z) { h = Exp(x) d = Cast<to = 11>(h) y = Sqrt(d) z = Neg(h) }"
    model = load(proto(body), tmp_path)
    assert [kind for kind, why in fixed(model).items() if why is None] == ["Exp", "Sqrt", "Neg"]
    found = compared(model, [sample(x=[1, 2, 3, 4])], budget=1)
    assert list(found.inherited) == ["h", "d", "y", "z"]


# Multiply-adds


@pytest.mark.parametrize(
    ("body", "weights", "expected"),
    [
        ("(float[2,6,8,8] x) => (float[2,A,B,C] y) { y = Conv<group = 3, strides = [2, 2]>(x, w) }",
         {"w": (9, 2, 3, 3)}, 2 * 9 * 3 * 3 * (2 * 3 * 3)),
        ("(float[2,6,5,5] x) => (float[2,A,B,C] y) { y = ConvTranspose<strides = [2, 2]>(x, w) }", {"w": (6, 4, 3, 3)},
         2 * 6 * 5 * 5 * (4 * 3 * 3)),
        ("(float[3,5] x) => (float[3,7] y) { y = Gemm(x, w) }", {"w": (5, 7)}, 3 * 7 * 5),
        ("(float[5,3] x) => (float[3,7] y) { y = Gemm<transA = 1, transB = 1>(x, w) }", {"w": (7, 5)}, 3 * 7 * 5),
        ("(float[2,3,4,5] x) => (float[2,3,4,6] y) { y = MatMul(x, w) }", {"w": (5, 6)}, 2 * 3 * 4 * 6 * 5),
        ("(float[2,4,5] x, float[2,5,6] z) => (float[2,4,6] y) { y = MatMul(x, z) }", {}, 2 * 4 * 6 * 5),
        ("(float[5] x) => (float[6] y) { y = MatMul(x, w) }", {"w": (5, 6)}, 6 * 5),
        ("(float[4,5] x) => (float[4] y) { y = MatMul(x, w) }", {"w": (5,)}, 4 * 5),
        ("(float[4,5] x) => (float[4,5] y) { y = Relu(x) }", {}, 0),
        ("(float[N,5] x) => (float[N,7] y) { y = MatMul(x, w) }", {"w": (5, 7)}, None),
    ],
)  # fmt: skip
def test_multiply_adds_follow_the_formula(
    tmp_path: Path, body: str, weights: dict[str, tuple[int, ...]], expected: int | None
) -> None:
    model = load(proto(body, {k: weight(*shape) for k, shape in weights.items()}), tmp_path)
    assert model.layers[0].multiply_adds == expected
    assert model.layers[0].weight_bytes == sum(4 * int(np.prod(shape)) for shape in weights.values())


def test_multiply_adds_of_a_dynamic_model_are_known_at_the_shapes_of_the_data(tmp_path: Path) -> None:
    body = (
        "(float[N,3,H,W] x) => (float[N,4,H,W] y) { c = Conv(x, w) n = BatchNormalization(c, s, b, m, v) y = Relu(n) }"
    )
    model = load(proto(body, CONV), tmp_path)
    assert model.layers[0].multiply_adds is None
    backend = OnnxRuntimeBackend(model, sample(x=weight(2, 3, 5, 7)))
    assert backend.model.layers[0].multiply_adds == 2 * 4 * 5 * 7 * 3
    assert backend.model.tensors["y"].shape == (2, 4, 5, 7)
    assert model.layers[0].multiply_adds is None


def test_the_bundled_model_has_the_known_layers(bundled: tuple[Model, Dataset]) -> None:
    model, _ = bundled
    assert model.name == "digits"
    assert [k for k in groups(model) if "+" in k] == [
        "Conv+BatchNormalization+Relu", "Conv+BatchNormalization+HardSwish", "Conv+BatchNormalization+Relu",
        "Conv+BatchNormalization+Clip", "Conv+BatchNormalization+Add+Relu", "Conv+BatchNormalization+Clip",
        "Conv+BatchNormalization+Relu",
    ]  # fmt: skip
    assert_topological(model)
    assert load_model(DIGITS / "digits.onnx").sha256 == model.sha256


# External data


def external(folder: Path, **entries: object) -> Path:
    """A model whose weight, eight numbers, lies in another file, with these entries in its record."""
    graph = proto(
        "(float[2] x) => (float[4] y) { y = MatMul(x, w) }", {"w": np.arange(8, dtype=np.float32).reshape(2, 4)}
    )
    (tensor,) = graph.graph.initializer
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in {"location": "weights.bin", "offset": 4, "length": 32, **entries}.items():
        if value is not None:
            tensor.external_data.add(key=key, value=str(value))
    (folder / "weights.bin").write_bytes(np.arange(-1, 8, dtype=np.float32).tobytes())
    path = folder / "external.onnx"
    path.write_bytes(graph.SerializeToString())
    return path


def test_external_data_is_read_hashed_and_run(tmp_path: Path) -> None:
    path = external(tmp_path)
    model = load_model(path)
    found = compared(model, [sample(x=[1, 2])])
    assert found.outputs["y"].errors.ref2 == sum((j + 2 * (4 + j)) ** 2 for j in range(4))  # type: ignore[union-attr]
    (tmp_path / "weights.bin").write_bytes(np.arange(9, dtype=np.float32).tobytes())
    assert load_model(path).sha256 != model.sha256


def test_external_data_is_mapped_before_threads_look_at_it(tmp_path: Path) -> None:
    weights = [value.const_value for value in load_model(external(tmp_path)).onnx.graph.initializers.values()]
    mapped = [weight for weight in weights if isinstance(weight, ir.ExternalTensor)]
    assert mapped
    assert all(weight.raw is not None for weight in mapped)


@pytest.mark.parametrize("location", ["../weights.bin", "/etc/passwd", "sub/../../weights.bin", "", "link.bin"])
def test_external_data_that_leaves_the_folder_is_refused(tmp_path: Path, location: str) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "sub").mkdir()
    (folder / "link.bin").symlink_to("/etc/passwd")
    (tmp_path / "weights.bin").write_bytes(bytes(64))
    fails(external(folder, location=location), "'w'", "outside the model's folder")


@pytest.mark.parametrize(
    ("entries", "word"),
    [
        ({"location": "none.bin"}, "missing"),
        ({"length": 36}, "36 bytes"),
        ({"offset": 8}, "shorter"),
        ({"offset": 400}, "shorter"),
        ({"offset": 8, "length": None}, "shorter"),
        ({"length": 16}, "32 bytes"),
        ({"offset": -4}, "shorter"),
        ({"offset": "x"}, "not a number"),
        ({"length": "1e9"}, "not a number"),
    ],
)
def test_external_data_that_is_not_all_there_is_told(tmp_path: Path, entries: dict[str, object], word: str) -> None:
    fails(external(tmp_path, **entries), "'w'", "weights.bin" if "location" not in entries else "none.bin", word)


@pytest.mark.parametrize("kind", [np.float32, np.float64, np.float16, np.bool_])
@pytest.mark.parametrize("size", [4, 4096])
def test_external_weights_of_any_type_and_size_run(tmp_path: Path, kind: type, size: int) -> None:
    graph = proto("(float[N] x) => (float[N] y) { f = Cast<to = 1>(w) y = Mul(x, f) }", {"w": np.ones(size, kind)})
    onnx.save_model(graph, tmp_path / "m.onnx", save_as_external_data=True, size_threshold=0, location="w.bin")
    assert (tmp_path / "w.bin").is_file()
    found = compared(load_model(tmp_path / "m.onnx"), [sample(x=[2] * size)], budget=1)
    assert found.inherited["y"].ref2 == 4 * size


def test_external_data_without_offset_and_length_is_the_whole_file(tmp_path: Path) -> None:
    path = external(tmp_path, offset=None, length=None)
    (tmp_path / "weights.bin").write_bytes(np.ones(8, np.float32).tobytes())
    assert compared(load_model(path), [sample(x=[1, 2])]).inherited["y"].ref2 == 4 * 9


def test_external_data_inside_a_branch_is_read(tmp_path: Path) -> None:
    body = """(float[2] x, bool flag) => (float[2] y) {
        c = If (flag) <then_branch = t () => (float[2] p) { p = Mul(x, w) },
                       else_branch = e () => (float[2] q) { q = Identity(x) }>
        y = Exp(c) }"""
    graph = proto(body)
    then = graph.graph.node[0].attribute[0].g
    then.initializer.add(name="w", data_type=TensorProto.FLOAT, dims=[2], data_location=TensorProto.EXTERNAL)
    then.initializer[0].external_data.add(key="location", value="w.bin")
    (tmp_path / "w.bin").write_bytes(np.float32([3, 4]).tobytes())
    model = load(graph, tmp_path)
    assert compared(model, [sample(x=[1, 1], flag=np.array(True))]).inherited["c"].ref2 == 25


# Files that are no models


def test_a_file_that_is_no_model_is_told(tmp_path: Path) -> None:
    fails(tmp_path / "absent.onnx", "no such file")
    fails(tmp_path, "folder")
    path = tmp_path / "broken.onnx"
    path.write_bytes(b"")
    fails(path, "empty")
    path.write_text("Not a model, but a page of text.\n" * 20)
    fails(path, "not an ONNX model")
    path.write_bytes((DIGITS / "0000.npz").read_bytes())
    fails(path, "not an ONNX model")


def test_a_model_cut_short_is_told(tmp_path: Path) -> None:
    whole, path = (DIGITS / "digits.onnx").read_bytes(), tmp_path / "cut.onnx"
    for share in (0.001, 0.1, 0.5, 0.999):
        path.write_bytes(whole[: int(len(whole) * share)])
        fails(path)


@given(st.data())
@settings(max_examples=examples(300))
def test_a_damaged_model_is_loaded_or_told_but_never_crashes(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    content = bytearray(proto(SHAPES, SHAPE_WEIGHTS).SerializeToString())
    for _ in range(data.draw(st.integers(1, 3))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path_factory.getbasetemp() / "damaged.onnx"
    path.write_bytes(bytes(content))
    try:
        assert load_model(path).layers
    except ModelError as error:
        text = str(error)
        assert (path.name in text, "\n" in text) == (True, False)


def test_a_model_without_outputs_or_nodes_is_told(tmp_path: Path) -> None:
    graph = proto("(float[2] x) => (float[2] y) { y = Relu(x) }")
    del graph.graph.output[:]
    onnx.save_model(graph, tmp_path / "a.onnx")
    fails(tmp_path / "a.onnx", "outputs")
    (tmp_path / "b.onnx").write_bytes(proto("(float[2] x) => (float[2] x) { }").SerializeToString())
    fails(tmp_path / "b.onnx", "nodes")
    (tmp_path / "c.onnx").write_bytes(proto("(float[2] x) => (float[2] x) { y = Relu(x) }").SerializeToString())
    fails(tmp_path / "c.onnx", "no node leads to an output")


def test_an_invalid_model_says_what_is_wrong(tmp_path: Path) -> None:
    (tmp_path / "a.onnx").write_bytes(proto("(float[2] x) => (float[2] y) { y = Relu(nowhere) }").SerializeToString())
    fails(tmp_path / "a.onnx", "not a valid ONNX model")
    (tmp_path / "b.onnx").write_bytes(proto("(float[2] x) => (float[2] y) { y = Rellu(x) }").SerializeToString())
    fails(tmp_path / "b.onnx", "Rellu")


# Odd but valid


def test_initialisers_listed_among_the_inputs_are_no_inputs(tmp_path: Path) -> None:
    body = "(float[2,3] x, float[3,4] w, float[4] b) => (float[2,4] y) { h = MatMul(x, w) y = Add(h, b) }"
    model = load(proto(body, {"w": weight(3, 4), "b": weight(4)}, opset=9, ir_version=3), tmp_path)
    assert [info.name for info in model.inputs] == ["x"]
    onnx.checker.check_model(ir.to_proto(model.onnx))  # as exports write it: in IR 3 an initialiser has to be an input
    assert groups(model) == ["MatMul+Add"]
    for precision in (Precision.FP16, Precision.INT8):
        assert compared(model, [sample(x=weight(2, 3))], precision).worst("sqnr") > 25


def test_an_output_may_be_an_input_or_a_constant(tmp_path: Path) -> None:
    body = """(float[2,2] x, float[2,2] z) => (float[2,2] y, float[2,2] x, float[2,2] k, float[2,2] c)
        { y = Mul(x, k) c = Constant<value = float[2,2] {1.0, 2.0, 3.0, 4.0}>() }"""
    model = load(proto(body, {"k": weight(2, 2)}), tmp_path)
    found = compared(model, [sample(x=weight(2, 2), z=weight(2, 2))])
    assert list(found.outputs) == ["y", "x", "k", "c"]
    assert found.outputs["x"].errors.err2 == 0  # type: ignore[union-attr]
    assert found.outputs["k"].errors.err2 == 0  # type: ignore[union-attr]
    assert found.outputs["y"].errors.err2 > 0  # type: ignore[union-attr]


def test_every_output_is_judged_in_its_order(tmp_path: Path) -> None:
    body = "(float[4] x) => (float[4] b, float[4] a, int64[1] i) { a = Exp(x) b = Log(a) i = ArgMax(b) }"
    model = load(proto(body), tmp_path)
    found = compared(model, [sample(x=[1, 2, 3, 4])], budget=1)
    assert list(found.outputs) == ["b", "a", "i"]
    assert found.worst("sqnr") == min(found.inherited["a"].sqnr, found.inherited["b"].sqnr)
    assert found.outputs["i"].top1.share == 1


def test_tensors_without_elements_and_scalars_run(tmp_path: Path) -> None:
    body = "(float[N,3] x, float s) => (float[N,3] y, float t) { h = Mul(x, s) y = Exp(h) t = Sqrt(s) }"
    model = load(proto(body), tmp_path)
    for budget in (1, 1 << 20):
        empty = compared(model, [sample(x=np.empty((0, 3), np.float32), s=2)], budget=budget)
        assert empty.inherited["y"].elements == 0
        assert empty.inherited["t"].elements == 1
    assert compared(model, [sample(x=[[1, 2, 3]], s=2)]).worst("sqnr") > 50


@pytest.mark.parametrize("opset", [7, 9, 11])
def test_old_opsets_run_in_fp16_and_int8(tmp_path: Path, opset: int) -> None:
    clip = "Clip<min = 0.0, max = 5.3>(n)" if opset < 11 else "Clip(n, lo, hi)"
    body = f"""(float[1,3,4,4] x) => (float[1,2] y) {{ c = Conv(x, w) n = BatchNormalization(c, s, b, m, v) r = {clip}
        p = GlobalAveragePool(r) f = Flatten(p) y = Gemm<transB = 1>(f, g, bias) }}"""
    bounds = {"lo": np.float32(0), "hi": np.float32(5.3)} if opset == 11 else {}
    model = load(
        proto(body, {**CONV, "g": weight(2, 4), "bias": weight(2), **bounds}, opset=opset, ir_version=4), tmp_path
    )
    for precision, around in itertools.product((Precision.FP16, Precision.INT8), (Precision.FP32, Precision.FP16)):
        assert compared(model, [sample(x=weight(1, 3, 4, 4))], precision, around=around).worst("sqnr") > 20


@pytest.mark.newest
def test_the_onnx_domain_may_be_written_out(tmp_path: Path) -> None:
    positive = np.abs(weight(2, 2))  # so that Relu leaves something to be compared, whatever ran before
    graph = proto("(float[2,2] x) => (float[2,2] y) { h = MatMul(x, w) y = Relu(h) }", {"w": positive})
    graph.opset_import[0].domain = "ai.onnx"
    model = load(graph, tmp_path)
    assert groups(model) == ["MatMul+Relu"]
    assert compared(model, [sample(x=positive)]).inherited["y"].err2 > 0


def test_bf16_before_opset_13_says_what_to_do(tmp_path: Path) -> None:
    model = load(proto("(float[2] x) => (float[2] y) { y = Exp(x) }", opset=12), tmp_path)
    with pytest.raises(ModelError, match="opset 13"):
        compared(model, [sample(x=[1, 2])], Precision.BF16)


def test_a_sequence_stays_in_one_segment_and_runs(tmp_path: Path) -> None:
    body = """(float[4,2] x) => (float[4,2] y) {
        h = Exp(x) s = SplitToSequence<axis = 0>(h, two) c = ConcatFromSequence<axis = 0>(s) y = Neg(c) }"""
    model = load(proto(body, {"two": np.int64(2)}), tmp_path)
    found = compared(model, [sample(x=weight(4, 2))], budget=1)
    assert list(found.inherited) == ["h", "c", "y"]


def test_dead_nodes_and_unused_weights_go(tmp_path: Path) -> None:
    model = load(proto("(float[2] x) => (float[2] y) { dead = Exp(x) y = Relu(x) }", {"unused": weight(3)}), tmp_path)
    assert groups(model) == ["Relu"]


def test_loading_and_comparing_leave_the_model_as_it_is(tmp_path: Path, bundled: tuple[Model, Dataset]) -> None:
    model, dataset = bundled
    before = onnx_bytes(model)
    compared(model, list(dataset)[:1], Precision.INT8, budget=1)
    assert onnx_bytes(model) == before


def onnx_bytes(model: Model) -> bytes:
    import onnx_ir

    return onnx_ir.to_proto(model.onnx).SerializeToString(deterministic=True)


def test_a_weight_is_the_same_bits_after_loading(tmp_path: Path) -> None:
    value = np.uint32([0x7FC00001, 0xFF800000, 1, 0x80000000, 0x3F800001]).view(np.float32)
    model = load(proto("(float[5] x) => (float[5] y) { y = Mul(x, w) }", {"w": value}), tmp_path)
    loaded = model.onnx.graph.initializers["w"].const_value
    assert loaded is not None
    assert np.array_equal(bits(loaded.numpy()), bits(value))


def test_looking_at_a_weight_of_the_file_makes_no_copy_of_it(tmp_path: Path) -> None:
    """A session is given the weight where it stands: with a copy for each, memory would hold it many times over."""
    model = load(proto("(float[400] x) => (float[400] y) { y = Mul(x, w) }", {"w": weight(400)}), tmp_path)
    loaded = model.onnx.graph.initializers["w"].const_value
    assert loaded is not None
    assert np.shares_memory(loaded.numpy(), loaded.numpy())


@pytest.mark.parametrize("kind", [TensorProto.BFLOAT16, TensorProto.INT4, TensorProto.STRING, TensorProto.FLOAT])
def test_a_tensor_of_the_file_is_written_as_it_was_read(kind: int) -> None:
    """Whatever its type, in an attribute too, with its name and what is said of it."""
    values = [b"a", b"b", b"c"] if kind == TensorProto.STRING else [1, 2, 3]
    tensor = helper.make_tensor("k", kind, [3], values)
    tensor.doc_string = "what it is"
    info = helper.make_tensor_value_info
    node = helper.make_node("Constant", [], ["y"], value=tensor)
    outputs = [info("y", kind, [3]), info("k", kind, [3])]
    model = helper.make_model(helper.make_graph([node], "g", [], outputs, initializer=[tensor]))
    read = ir.from_proto(model)
    own_weights(read)
    written = ir.to_proto(read).graph
    for one in (written.initializer[0], written.node[0].attribute[0].t):
        assert (one.name, one.doc_string, one.data_type, list(one.dims)) == ("k", "what it is", kind, [3])
        assert np.array_equal(ir.from_proto(one).numpy(), ir.from_proto(tensor).numpy())


def test_every_layer_is_found_by_name(bundled: tuple[Model, Dataset]) -> None:
    model, _ = bundled
    layer: Layer = model.layer["/stem/conv"]
    assert layer.nodes == ("/stem/conv", "/stem/bn", "/stem/relu")
    assert layer.quantizable
    assert model.node["/stem/bn"].op_type == "BatchNormalization"


def test_dimensions_that_an_exporter_did_not_know_are_not_known(tmp_path: Path) -> None:
    """−1 and "?" stand for any size; two "?" are not the same one."""
    model = proto("(float[N,3,H,W] x) => (float[N,3,H,W] y) { y = Relu(x) }")
    dims = model.graph.input[0].type.tensor_type.shape.dim
    dims[0].dim_value = -1
    dims[2].dim_param = dims[3].dim_param = "?"
    assert load(model, tmp_path).inputs[0].shape == (None, 3, None, None)
