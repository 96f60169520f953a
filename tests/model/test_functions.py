"""Model-local functions: their bodies are layers like others, and what is handed on is called as the layers are."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
from models import Array, compared, load, sample
from onnx import helper, numpy_helper

from precisionlab import sweep
from precisionlab.errors import OptionError
from precisionlab.jobs.export import export_plan
from precisionlab.model import Model
from precisionlab.model.functions import inline_functions

FLOAT = onnx.TensorProto.FLOAT


def info(name: str, *shape: object) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, FLOAT, list(shape))


def reference(name: str) -> onnx.AttributeProto:
    """The attribute `name`, which is that of the call."""
    return onnx.AttributeProto(name=name, ref_attr_name=name, type=onnx.AttributeProto.FLOAT)


def nested() -> onnx.ModelProto:
    """A function in a function, called four times: with attributes and by default, with outputs left out, in branches.

    `Outer` passes its input on as its second output, and has opset 18 where the model has 17 (the same Mul and Add).
    """
    leaky = helper.make_node("LeakyRelu", ["a"], ["b"], name="act")
    leaky.attribute.append(reference("alpha"))
    inner = helper.make_function("own", "Inner", ["a"], ["b"], [leaky], [helper.make_opsetid("", 17)], ["alpha"])
    call = helper.make_node("Inner", ["h"], ["i"], domain="own")
    call.attribute.append(reference("alpha"))
    nodes = [
        call,
        helper.make_node("Mul", ["i", "i"], ["s"]),
        helper.make_node("Add", ["s", "h"], ["o"], name="add"),
        helper.make_node("Inner", ["o"], ["o2"], name="second", domain="own", alpha=0.3),
    ]
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid("own", 1)]
    outer = helper.make_function("own", "Outer", ["h", "unused"], ["o", "h", "o2"], nodes, opsets)
    outer.attribute_proto.append(helper.make_attribute("alpha", 0.25))
    idle = helper.make_function("own", "Idle", ["h"], ["o"], [helper.make_node("Relu", ["h"], ["o"])], opsets[:1])
    then = helper.make_graph(
        [helper.make_node("Outer", ["x"], ["t"], "called", domain="own")], "then", [], [info("t", "n", 4)]
    )
    other = helper.make_graph([helper.make_node("Outer", ["x"], ["e"], domain="own")], "other", [], [info("e", "n", 4)])
    graph = helper.make_graph(
        [
            helper.make_node("Outer", ["x", ""], ["p", "y0", "q"], "call", domain="own", alpha=0.5),
            helper.make_node("Outer", ["p"], ["p2", "", "q2"], "call", domain="own"),
            helper.make_node("If", ["c"], ["z"], "choice", then_branch=then, else_branch=other),
            helper.make_node("Add", ["p2", "z"], ["y1"]),
        ],
        "g",
        [info("x", "n", 4), helper.make_tensor_value_info("c", onnx.TensorProto.BOOL, [])],
        [info(name, "n", 4) for name in ("y0", "y1", "q", "q2")],
    )
    imports = [helper.make_opsetid("", 17), helper.make_opsetid("own", 1)]
    return helper.make_model(graph, opset_imports=imports, ir_version=9, functions=[inner, outer, idle])


def by_hand(x: Array) -> list[Array]:
    def leaky(a: Array, alpha: float) -> Array:
        return np.where(a < 0, np.float32(alpha) * a, a)

    def outer(h: Array, alpha: float = 0.25) -> tuple[Array, Array]:
        o = leaky(h, alpha) ** 2 + h
        return o, leaky(o, 0.3)

    p, q = outer(x, 0.5)
    p2, q2 = outer(p)
    return [x, p2 + outer(x)[0], q, q2]


def test_names_tell_the_call_and_values_are_those_of_the_definition() -> None:
    model = ir.from_proto(nested())
    assert inline_functions(model) == 12
    assert not model.functions
    content = ir.to_proto(model)
    onnx.checker.check_model(content, full_check=True)
    names = [node.name for node in content.graph.node if node.op_type != "Identity"]
    assert names == [
        *("call/node_of_i/act", "call/node_of_s", "call/add", "call/second/act"),
        *("call/node_of_i_1/act", "call/node_of_s_1", "call/add_1", "call/second_1/act"),
        *("choice", ""),
    ]
    branches = {a.name: [n.name for n in a.g.node] for n in content.graph.node for a in n.attribute if a.HasField("g")}
    assert branches["then_branch"][:2] == ["called/node_of_i/act", "called/node_of_s"]
    assert branches["else_branch"][:2] == ["node_of_e/node_of_i/act", "node_of_e/node_of_s"]
    x = np.linspace(-3, 3, 12, dtype=np.float32).reshape(3, 4)
    session = ort.InferenceSession(content.SerializeToString(), providers=["CPUExecutionProvider"])
    for taken in (True, False):
        for found, right in zip(session.run(None, {"x": x, "c": np.array(taken)}), by_hand(x), strict=True):
            np.testing.assert_allclose(found, right, rtol=1e-6)


def test_a_name_of_the_model_is_not_taken_away(tmp_path: Path) -> None:
    text = """<ir_version: 8, opset_import: ["" : 17, "own" : 1]>
        g (float[4] x) => (float[4] y) { ["f/node_of_s"] a = Exp(x) [f] b = own.F(a) y = Neg(b) }
        <domain: "own", opset_import: ["" : 17]> F (a) => (b) { s = Add(a, a) b = Tanh(s) }"""
    model = load(onnx.parser.parse_model(text), tmp_path)
    assert [layer.name for layer in model.layers] == ["f/node_of_s", "f/node_of_s_1", "f/node_of_b", "node_of_y"]
    again = load(onnx.parser.parse_model(text), tmp_path)
    assert again.layers == model.layers


def rms_norm(folder: Path) -> tuple[Model, list[Array]]:
    """As PyTorch's exporter writes a module: MatMul → RMSNorm as a function → MatMul, the squares beyond 65504."""
    r = np.random.default_rng(21)
    body = [
        helper.make_node("Mul", ["h", "h"], ["s"]),
        helper.make_node("ReduceMean", ["s"], ["m"], axes=[-1], keepdims=1),
        helper.make_node("Sqrt", ["m"], ["q"]),
        helper.make_node("Div", ["h", "q"], ["d"]),
        helper.make_node("Mul", ["d", "g"], ["o"]),
    ]
    opset = helper.make_opsetid("", 17)
    function = helper.make_function("pkg.nn", "RMSNorm", ["h", "g"], ["o"], body, [opset])
    weights = {
        "W": (r.standard_normal((64, 64)) * 0.3).astype(np.float32),
        "g": np.ones(64, np.float32),
        "W2": (r.standard_normal((64, 8)) * 0.3).astype(np.float32),
    }
    graph = helper.make_graph(
        [
            helper.make_node("MatMul", ["x", "W"], ["a"], "mm0"),
            helper.make_node("RMSNorm", ["a", "g"], ["n"], "norm", domain="pkg.nn"),
            helper.make_node("MatMul", ["n", "W2"], ["y"], "mm1"),
        ],
        "g",
        [info("x", "n", 64)],
        [info("y", "n", 8)],
        [numpy_helper.from_array(value, name) for name, value in weights.items()],
    )
    imports = [opset, helper.make_opsetid("pkg.nn", 1)]
    model = helper.make_model(graph, opset_imports=imports, ir_version=9, functions=[function])
    return load(model, folder), [(r.standard_normal((4, 64)) * 200).astype(np.float32) for _ in range(8)]


def test_an_overflow_inside_a_function_is_seen_where_it_is(tmp_path: Path) -> None:
    model, inputs = rms_norm(tmp_path)
    found = compared(model, [sample(x=x) for x in inputs])
    # Independent of the emulation: numpy squares what the first MatMul gives.
    initial = model.onnx.graph.initializers["W"].const_value
    assert initial is not None
    squares = (np.concatenate(inputs) @ initial.numpy()) ** 2
    assert squares.max() > 65504
    assert found.inherited["norm/s"].nonfinite == int((squares >= 65520).sum())
    errors = found.outputs["y"].errors
    assert errors is not None
    assert not errors.sqnr > 10


@pytest.fixture(scope="module")
def swept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("functions")
    model, inputs = rms_norm(folder)
    (folder / "data").mkdir()
    for i, x in enumerate(inputs):
        np.save(folder / "data" / f"{i}.npy", x)
    how = {"precisions": "fp16", "ladder": "fp32", "repair": False, "threads": 1}
    result = sweep(model.path, folder / "data", out=folder / "run", **how)
    assert not result.precisions[0].low.met
    assert result.precisions[0].met
    assert {pin.layer for pin in result.precisions[0].plan.pins} <= {f"norm/node_of_{v}" for v in "smqd"}
    return folder


@pytest.mark.parametrize("target", ["trtexec", "polygraphy", "json"])
def test_an_export_names_the_nodes_of_the_file_that_it_hands_on(target: str, swept: Path, tmp_path: Path) -> None:
    out = tmp_path / "export_of_it.py"
    exported = export_plan(swept / "run" / "plan.json", target, out=out)
    prepared = tmp_path / "model.prepared.onnx"
    assert set(exported.files) == {out, prepared}
    text = out.read_text()
    assert str(prepared) in text
    names = {node.name for node in onnx.load(prepared).graph.node}
    named = set(re.findall(r"norm/node_of_\w", text))
    assert named
    assert named <= names
    own = ort.InferenceSession(swept / "model.onnx", providers=["CPUExecutionProvider"])
    other = ort.InferenceSession(prepared, providers=["CPUExecutionProvider"])
    x = np.load(swept / "data" / "0.npy")
    np.testing.assert_array_equal(own.run(None, {"x": x})[0], other.run(None, {"x": x})[0])


def test_an_export_without_a_place_for_that_file_is_refused(swept: Path) -> None:
    with pytest.raises(OptionError, match="--out is needed: the model's functions were inlined"):
        export_plan(swept / "run" / "plan.json", "trtexec")


def test_the_annotated_model_has_the_layers_inside(swept: Path) -> None:
    model = onnx.load(swept / "run" / "annotated.onnx")
    told = {n.name: {e.key: e.value for e in n.metadata_props} for n in model.graph.node}
    assert told["norm/node_of_s"]["precisionlab.fp16.pinned"] == "True"
