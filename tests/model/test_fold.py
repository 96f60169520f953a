"""What depends on constants alone is computed at load: a weight is one, whatever stands between it and its layer."""

from __future__ import annotations

from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
from models import Array, compared, load, proto, sample
from onnx import TensorProto, helper, numpy_helper

from precisionlab import sweep
from precisionlab.backends.memory import share_of
from precisionlab.calibration.cache import read_cache_file
from precisionlab.errors import ModelError
from precisionlab.jobs.export import export_plan
from precisionlab.model import Model, load_model
from precisionlab.plan.plan import PrecisionPlan
from precisionlab.precision import Precision
from precisionlab.rewrite.typed.model import typed_model
from precisionlab.rewrite.typed.save import save_typed

R = np.random.default_rng(24)
W = (R.standard_normal((32, 16)) * np.logspace(-2, 1, 16)).astype(np.float32)


def weight_of(model: Model, name: str) -> Array:
    value = next(v for node in model.onnx.graph for v in node.inputs if v is not None and v.name == name)
    assert value.is_initializer()
    assert value.const_value is not None
    return value.const_value.numpy()


def layers(model: Model) -> list[str]:
    return [layer.kind for layer in model.layers]


HALF = W.astype(np.float16)
FORMS = {  # how exporters write a weight; what it holds, and the right value by NumPy
    "Transpose": ("w = Transpose<perm = [1, 0]>(W)", {"W": W.T.copy()}, W),
    "Identity": ("i = Identity(W) w = Identity(i)", {"W": W}, W),
    "Cast from float16": ("w = Cast<to = 1>(W)", {"W": HALF}, HALF.astype(np.float32)),
    "Cast from double": ("w = Cast<to = 1>(W)", {"W": W.astype(np.float64)}, W),
    "Cast through bfloat16": (
        "b = Cast<to = 16>(W) w = Cast<to = 1>(b)",
        {"W": W},
        W.astype(ml_dtypes.bfloat16).astype(np.float32),
    ),
    "a scale": ("w = Mul(W, g)", {"W": W, "g": np.float32(3)}, W * np.float32(3)),
    "Reshape": ("w = Reshape(W, s)", {"W": W.reshape(2, 256), "s": np.array([32, -1])}, W),
    "its own shape": (
        "t = Transpose(W) s = Shape(t) r = Gather(s, i) w = Reshape(V, r)",
        {"W": W, "V": W.reshape(-1), "i": np.array([1, 0])},
        W,
    ),
    "int8 and a scale": (
        "f = Cast<to = 1>(W) w = Mul(f, g)",
        {"W": np.round(W * 10).clip(-127, 127).astype(np.int8), "g": np.float32(0.1)},
        np.round(W * 10).clip(-127, 127).astype(np.float32) * np.float32(0.1),
    ),
    "weight normalisation": (
        "q = Mul(W, W) s = ReduceSum<keepdims = 1>(q, a) n = Sqrt(s) d = Div(W, n) w = Mul(d, g)",
        {"W": W * 1e4, "a": np.array([0]), "g": np.ones((1, 16), np.float32)},
        None,
    ),
}


@pytest.mark.parametrize("form", FORMS)
def test_a_weight_behind_constant_arithmetic_is_a_weight(form: str, tmp_path: Path) -> None:
    nodes, weights, right = FORMS[form]
    if right is None:
        wide = weights["W"].astype(np.float64)
        right = (wide / np.sqrt((wide**2).sum(0))).astype(np.float32)
    model = load(proto(f"(float[n,32] x) => (float[n,16] y) {{ {nodes} y = MatMul(x, w) }}", weights), tmp_path)
    assert layers(model) == ["MatMul"]
    (name,) = model.layers[0].weights
    np.testing.assert_allclose(weight_of(model, name), right, rtol=3e-6)
    assert weight_of(model, name).dtype == np.float32
    assert len(model.onnx.graph.initializers) == 1


def test_int8_of_a_folded_weight_has_a_scale_for_each_channel(tmp_path: Path) -> None:
    """The same figures as of the model that holds the weight itself."""
    plain = load(proto("(float[n,32] x) => (float[n,16] y) { y = MatMul(x, w) }", {"w": W}), tmp_path, "plain.onnx")
    nodes = "w = Transpose(t) y = MatMul(x, w)"
    turned = load(
        proto(f"(float[n,32] x) => (float[n,16] y) {{ {nodes} }}", {"t": W.T.copy()}), tmp_path, "turned.onnx"
    )
    data = [sample(x=R.standard_normal((4, 32)).tolist()) for _ in range(4)]
    ours, theirs = (compared(m, data, Precision.INT8).outputs["y"].errors for m in (plain, turned))
    assert ours == theirs


def test_what_a_model_says_of_its_own_scales_stays(tmp_path: Path) -> None:
    weights = {"q": (W > 0).astype(np.int8), "s": np.float32(0.1), "z": np.int8(0), "v": W, "p": np.array([16, 32])}
    nodes = """t = Transpose(v) a = QuantizeLinear(t, s, z) b = DequantizeLinear(a, s, z) c = Transpose(b)
        d = DequantizeLinear(q, s, z) e = Add(c, d) y = MatMul(x, e)"""
    model = load(proto(f"(float[n,32] x) => (float[n,16] y) {{ {nodes} }}", weights), tmp_path)
    kinds = ["QuantizeLinear", "DequantizeLinear", "Transpose", "DequantizeLinear", "Add", "MatMul"]
    assert layers(model) == kinds


def test_random_numbers_are_refused_though_they_depend_on_constants_alone(tmp_path: Path) -> None:
    model = proto("(float[32] x) => (float[32] y) { r = RandomNormalLike(w) y = Add(x, r) }", {"w": W[:, 0]})
    with pytest.raises(ModelError, match="draws random numbers"):
        load(model, tmp_path)


def test_what_would_blow_up_the_model_stays_and_a_small_mask_does_not(tmp_path: Path) -> None:
    text = """(float[1] x) => (float[a,b] y) {{ c = ConstantOfShape(s) m = Expand(c, t) k = Trilu(m) y = Add(x, k) }}"""
    small = {"s": np.array([1, 1]), "t": np.array([64, 64])}
    large = {"s": np.array([1, 1]), "t": np.array([1 << 11, 1 << 11])}
    assert layers(load(proto(text.format(), small), tmp_path, "small.onnx")) == ["Add"]
    model = load(proto(text.format(), large), tmp_path, "large.onnx")
    assert layers(model) == ["Expand", "Trilu", "Add"]
    assert sum(v.const_value.nbytes for v in model.onnx.graph.initializers.values() if v.const_value is not None) < 100


def test_many_small_masks_do_not_add_up_to_a_large_model(tmp_path: Path) -> None:
    count = 20  # of 4 MB each
    nodes = " ".join(f"m{i} = ConstantOfShape(s) a{i} = Add({f'a{i - 1}' if i else 'x'}, m{i})" for i in range(count))
    model = load(
        proto(f"(float[1] x) => (float[a,b] y) {{ {nodes} y = Neg(a{count - 1}) }}", {"s": np.array([1024, 1024])}),
        tmp_path,
    )
    assert layers(model).count("ConstantOfShape") == count - 16


def test_an_output_that_is_constant_is_left_to_be_one(tmp_path: Path) -> None:
    text = "(float[2] x) => (float[2] y, float[2] z) { y = Exp(x) a = Neg(w) z = Exp(a) }"
    model = load(proto(text, {"w": W[0, :2]}), tmp_path)
    assert layers(model) == ["Exp", "Exp"]
    found = compared(model, [sample(x=[1, 2])])
    assert set(found.outputs) == {"y", "z"}


THIRD, FINE, BIG = np.float16(1 / 3), np.float16(2e-4), np.float16(60000)
IN_HALF = {  # chains of constants in half, and what they come to where each result is rounded
    "a sum whose addend is below a step": ("a = Add(t, f) c = Sub(a, t)", (THIRD + FINE) - THIRD),
    "a product of roots": ("a = Sqrt(t) b = Sqrt(f) c = Mul(a, b)", np.sqrt(THIRD) * np.sqrt(FINE)),
    "a quotient": ("a = Div(f, t) c = Div(a, k)", FINE / THIRD / BIG),
    "float32 between": ("g = Cast<to = 1>(t) d = Mul(g, g) a = Cast<to = 10>(d) c = Add(a, f)", THIRD * THIRD + FINE),
}


@pytest.mark.parametrize("name", IN_HALF)
def test_constants_in_half_are_rounded_at_each_step_on_every_processor(name: str, tmp_path: Path) -> None:
    nodes, right = IN_HALF[name]
    text = f"(float[4] x) => (float[4] y) {{ {nodes} w = Cast<to = 1>(c) y = Mul(x, w) }}"
    model = load(proto(text, {"t": THIRD, "f": FINE, "k": BIG}), tmp_path)
    assert layers(model) == ["Mul"]
    assert weight_of(model, "w") == np.float32(right)


def test_weights_that_are_computed_in_half_stay_half_and_are_those_of_numpy(tmp_path: Path) -> None:
    """Large ones, which are fed, and of a model that is in half throughout."""
    half, step = (R.standard_normal((256, 512)) * 3).astype(np.float16), np.float16(0.123)
    text = "(float16[2,256] x) => (float16[2,512] y) { s = Mul(W, g) w = Sub(s, W) y = MatMul(x, w) }"
    model = load(proto(text, {"W": half, "g": step}), tmp_path)
    assert layers(model) == ["MatMul"]
    np.testing.assert_array_equal(weight_of(model, "w"), (half * step - half).astype(np.float32))


@pytest.mark.parametrize("nodes", ["a = Add(b, b) c = Sub(a, b)", "a = Add(b, b) c = Div(o, a)"])
def test_an_overflow_in_half_on_the_way_to_a_constant_is_left_to_be_seen(nodes: str, tmp_path: Path) -> None:
    """What comes of it is finite: 60000 + 60000 − 60000 where kernels compute in float32, and 1 / Inf where in half."""
    text = f"(float[4] x) => (float[4] y) {{ {nodes} w = Cast<to = 1>(c) y = Mul(x, w) }}"
    model, fits = (load(proto(text, {"b": np.float16(b), "o": np.float16(1)}), tmp_path) for b in (BIG, 1))
    assert layers(model)[0] == "Add"
    assert layers(fits) == ["Mul"]


def test_constants_inside_a_branch_are_folded_too(tmp_path: Path) -> None:
    text = """(float[4,32] x, bool c) => (float[4,16] y) { y = If(c) <
        then_branch = t () => (float[4,16] u) { a = Transpose(w) u = MatMul(x, a) },
        else_branch = f () => (float[4,16] v) { b = Transpose(w) d = MatMul(x, b) v = Neg(d) }> }"""
    model = load(proto(text, {"w": W.T.copy()}), tmp_path)
    inner = [node.op_type for graph in model.onnx.graphs() if graph is not model.onnx.graph for node in graph]
    assert sorted(inner) == ["MatMul", "MatMul", "Neg"]
    x = R.standard_normal((4, 32)).astype(np.float32)
    content = ir.to_proto(model.onnx).SerializeToString()
    for chosen, sign in ((True, 1), (False, -1)):
        session = ort.InferenceSession(content, providers=["CPUExecutionProvider"])
        np.testing.assert_allclose(session.run(None, {"x": x, "c": np.array(chosen)})[0], sign * (x @ W), rtol=1e-4)


def external(folder: Path) -> Path:
    """Two weights of 4 MB behind a Transpose, in a file of their own."""
    big = R.standard_normal((1024, 1024)).astype(np.float32)
    nodes = "w = Transpose(A) a = MatMul(x, w) v = Transpose(B) y = MatMul(a, v)"
    model = proto(f"(float[1,1024] x) => (float[1,1024] y) {{ {nodes} }}", {"A": big, "B": big[::-1].copy()})
    folder.mkdir(parents=True, exist_ok=True)
    onnx.save_model(model, folder / "m.onnx", save_as_external_data=True, location="m.data", size_threshold=0)
    return folder / "m.onnx"


def test_weights_in_a_file_of_their_own_do_not_fill_memory(tmp_path: Path) -> None:
    path = external(tmp_path)
    model = load_model(path)
    assert layers(model) == ["MatMul", "MatMul"]
    assert all(isinstance(v.const_value, ir.LazyTensor) for v in model.onnx.graph.initializers.values())
    assert model.folded == 0
    share_of(450 * 1024**2, model)  # as little as for the same weights where nothing is between
    x = R.standard_normal((1, 1024)).astype(np.float32)
    (right,) = ort.InferenceSession(path, providers=["CPUExecutionProvider"]).run(None, {"x": x})
    content = ir.to_proto(model.onnx).SerializeToString()
    (found,) = ort.InferenceSession(content, providers=["CPUExecutionProvider"]).run(None, {"x": x})
    np.testing.assert_array_equal(right, found)


def test_a_file_that_folded_weights_are_read_from_is_not_overwritten(tmp_path: Path) -> None:
    """They are computed from it when they are written: in its place stood what they are to be computed from."""
    path = external(tmp_path)
    (tmp_path / "m.data").rename(tmp_path / "out.onnx.data")
    proto_ = onnx.load_model(path, load_external_data=False)
    for tensor in proto_.graph.initializer:
        tensor.external_data[0].value = "out.onnx.data"
    path.write_bytes(proto_.SerializeToString())
    model = load_model(path)
    before = (tmp_path / "out.onnx.data").read_bytes()
    typed = typed_model(model, PrecisionPlan(model.sha256, Precision.FP16), None)
    for name in ("out.onnx", "out.onnx.data"):
        with pytest.raises(ModelError, match="choose another name or folder"):
            save_typed(typed, tmp_path / name, 100)
    assert (tmp_path / "out.onnx.data").read_bytes() == before
    save_typed(typed, tmp_path / "other.onnx", 100)
    x = R.standard_normal((1, 1024)).astype(np.float32)
    right, found = (
        ort.InferenceSession(tmp_path / name, providers=["CPUExecutionProvider"]).run(None, {"x": x})[0]
        for name in (path.name, "other.onnx")
    )
    assert np.abs(right - found).max() < 1e-2 * np.abs(right).max()


@pytest.fixture(scope="module")
def swept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("fold")
    nodes = "[turn] w = Transpose(t) [first] a = MatMul(x, w) [act] r = Relu(a) [idle] i = Identity(r) y = MatMul(i, v)"
    weights = {"t": W.T.copy(), "v": R.standard_normal((16, 4)).astype(np.float32)}
    onnx.save_model(proto(f"(float[n,32] x) => (float[n,4] y) {{ {nodes} }}", weights), folder / "model.onnx")
    (folder / "data").mkdir()
    for i in range(8):
        np.save(folder / "data" / f"{i}.npy", R.standard_normal((4, 32)).astype(np.float32))
    sweep(folder / "model.onnx", folder / "data", precisions="int8", out=folder / "run", threads=1)
    return folder


@pytest.mark.slow
def test_exports_fit_the_original_file(swept: Path, tmp_path: Path) -> None:
    command = export_plan(swept / "run" / "plan.json", "trtexec", out=tmp_path / "e.sh")
    assert "model.onnx" in (tmp_path / "e.sh").read_text()
    assert {file.name for file in command.files} == {"e.sh", "calibration.cache"}
    cache = read_cache_file(tmp_path / "calibration.cache")
    assert cache.scales["i"] == cache.scales["r"]  # the network has the Identity's tensor too


@pytest.mark.parametrize("target", ["typed-onnx", "onnxruntime"])
def test_models_that_are_exported_hold_the_folded_weight_in_int8(target: str, swept: Path, tmp_path: Path) -> None:
    export_plan(swept / "run" / "plan.json", target, out=tmp_path / "e.onnx")
    model = onnx.load(tmp_path / "e.onnx")
    assert {n.op_type for n in model.graph.node} <= {"QuantizeLinear", "DequantizeLinear", "MatMul", "Relu"}
    stored = [numpy_helper.to_array(i) for i in model.graph.initializer if i.data_type == TensorProto.INT8]
    right = np.clip(np.rint(W / (np.abs(W).max(0) / np.float32(127))), -128, 127)
    assert any(s.shape == W.shape and np.abs(s - right).max() <= 1 for s in stored)
    x = np.load(swept / "data" / "0.npy")
    options = ort.SessionOptions()
    options.add_session_config_entry("session.disable_quant_qdq", "1")
    (low,) = ort.InferenceSession(tmp_path / "e.onnx", options, providers=["CPUExecutionProvider"]).run(None, {"x": x})
    (true,) = ort.InferenceSession(swept / "model.onnx", providers=["CPUExecutionProvider"]).run(None, {"x": x})
    assert 10 * np.log10((true**2).sum() / ((low - true) ** 2).sum()) > 25


# Nodes that do nothing


def test_casts_that_do_nothing_are_no_layers_and_part_no_fusion(tmp_path: Path) -> None:
    bn = ["s", "b", "m", "v"]
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["a"], "conv"),
        helper.make_node("Cast", ["a"], ["c"], "cast", to=TensorProto.FLOAT),
        helper.make_node("BatchNormalization", ["c", *bn], ["n"], "bn"),
        helper.make_node("CastLike", ["n", "x"], ["l"], "like"),
        helper.make_node("Dropout", ["l"], ["d"], "drop"),
        helper.make_node("Identity", ["d"], ["i"], "same"),
        helper.make_node("Relu", ["i"], ["r"], "relu"),
        helper.make_node("Cast", ["r"], ["h"], "half", to=TensorProto.FLOAT16),
        helper.make_node("Cast", ["h"], ["f"], "back", to=TensorProto.FLOAT),
        helper.make_node("Identity", ["f"], ["y"], "out"),
    ]
    info = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes,
        "g",
        [info("x", TensorProto.FLOAT, [1, 3, 4, 4])],
        [info("y", TensorProto.FLOAT, [1, 2, 4, 4])],
        [numpy_helper.from_array(np.ones((2, 3, 1, 1), np.float32), "w")]
        + [numpy_helper.from_array(np.ones(2, np.float32), name) for name in bn],
    )
    model = load(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), tmp_path)
    kinds = {layer.name: layer.kind for layer in model.layers}
    assert kinds["conv"] == "Conv+BatchNormalization+Relu"
    assert set(kinds) == {"conv", "half", "back", "out"}  # those to half and back round, and an output keeps its name
    assert dict(model.gone) == {"c": "a", "l": "n", "d": "n", "i": "n"}


def test_a_loop_keeps_the_identity_that_gives_its_condition(tmp_path: Path) -> None:
    text = """(float[2] x, bool c) => (float[2] y) {
        y = Loop(n, c, x) <body = b (int64 i, bool k, float[2] p) => (bool k2, float[2] q) {
            k2 = Identity(k) m = Identity(p) q = Tanh(m) }> }"""
    model = load(proto(text, {"n": np.int64(3)}), tmp_path)
    inner = [node.op_type for graph in model.onnx.graphs() if graph is not model.onnx.graph for node in graph]
    assert inner == ["Identity", "Tanh"]
    x = np.array([0.5, -1], np.float32)
    session = ort.InferenceSession(ir.to_proto(model.onnx).SerializeToString(), providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {"x": x, "c": np.array(True)})
    np.testing.assert_allclose(found, np.tanh(np.tanh(np.tanh(x))), rtol=1e-6)
