"""A graph cut at its products gives what the whole one gives, and no node is lost or run twice."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from models import Array, examples, proto
from onnx import TensorProto, helper

from precisionlab.backends.session import Session
from precisionlab.backends.sums.operands import on_cpu, product_of
from precisionlab.backends.sums.session import HalfSumsSession, has_products
from precisionlab.model.flow import outer_values
from precisionlab.plan.arithmetic import Sums
from precisionlab.rewrite.sums import DOMAIN, SUMS, Step, constants_of, is_product, steps_of

X = np.float32([[1, -1], [0, 1]])
WEIGHTS = {"v": np.float32([[1, 1], [-1, 0]]), "w": np.float32([[0, 1], [1, -1]])}
PAIR = helper.make_tensor_type_proto(TensorProto.FLOAT, [2, 2])


def with_products(model: onnx.ModelProto) -> ir.Model:
    """The model with each of its own MatMuls and Convs, but those in bodies, as a product whose sums are in half."""
    found = ir.from_proto(model)
    for node in found.graph:
        if node.op_type in ("MatMul", "Conv"):
            node.domain = DOMAIN
            node.attributes[SUMS] = ir.AttrString(SUMS, Sums.HALF.value)
    return found


class Opened:
    """Opens sessions, and remembers the graphs."""

    def __init__(self) -> None:
        self.graphs: list[ir.Model] = []
        self.products: list[str] = []
        self.open = 0

    def session(self, graph: ir.Model) -> Session:
        self.graphs.append(graph)
        self.open += 1
        opened = self

        class Counted(Session):
            def close(self) -> None:
                opened.open -= 1
                super().close()

        return Counted(graph, 1)

    def product(self, node: ir.Node) -> Any:
        self.products.append(str(node.outputs[0].name))
        return on_cpu(node)


def in_steps(model: onnx.ModelProto, **feeds: Array) -> tuple[dict[str, Array], Opened]:
    """What the model gives with its products in half, and what was opened for it."""
    opened = Opened()
    session = HalfSumsSession(with_products(model), opened.session, opened.product)
    found = session.run(feeds)
    again = session.run(feeds)
    assert {name: np.array(value).tobytes() for name, value in again.items()} == {
        name: np.array(value).tobytes() for name, value in found.items()
    }
    values = {name: np.array(value) for name, value in found.items()}
    session.close()
    return values, opened


def as_whole(model: onnx.ModelProto, **feeds: Array) -> dict[str, Array]:
    """What the model itself gives."""
    return {name: np.array(value) for name, value in Session(ir.from_proto(model), 1).run(feeds).items()}


def assert_the_same(model: onnx.ModelProto, **feeds: Array) -> Opened:
    found, opened = in_steps(model, **feeds)
    wanted = as_whole(model, **feeds)
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        assert found[name].dtype == value.dtype, name
        assert np.array_equal(found[name], value), name
    names = [str(node.outputs[0].name) for graph in opened.graphs for node in graph.graph]
    assert all(names.count(name) <= 1 for nodes, _ in shape_of(model) for name in nodes), "run twice"
    assert len(opened.products) == len(set(opened.products))
    assert opened.open == 0
    return opened


def shape_of(model: onnx.ModelProto) -> list[tuple[list[str], list[str]]]:
    """The steps, by their nodes' outputs."""
    graph = with_products(model).graph
    steps = steps_of(graph, constants_of(graph))
    return [(_names(step.nodes), _names(step.products)) for step in steps]


def _names(nodes: Sequence[ir.Node]) -> list[str]:
    return [str(node.outputs[0].name) for node in nodes]


# Any graph


@st.composite
def graphs(draw: st.DrawFn) -> onnx.ModelProto:
    """A graph of (2, 2) values that stay below 2048: each operator at most doubles the largest there is."""
    values, constants, nodes = ["x"], ["v", "w"], []
    for number in range(draw(st.integers(1, 10))):
        name = f"n{number}"
        kind = draw(st.sampled_from(["product", "product", "both", "add", "neg", "if", "split", "constant"]))
        a, b = draw(st.sampled_from(values)), draw(st.sampled_from([*values, *constants]))
        c = draw(st.sampled_from(constants))
        if kind == "product":
            nodes.append(helper.make_node("MatMul", draw(st.permutations([a, c])), [name]))
        elif kind == "both":
            nodes.append(helper.make_node("Sign", [b], [f"{name}s"]))
            nodes.append(helper.make_node("MatMul", [a, f"{name}s"], [name]))
        elif kind == "add":
            nodes.append(helper.make_node("Add", [a, b], [name]))
        elif kind == "neg":
            nodes.append(helper.make_node("Neg", [a], [name]))
        elif kind == "if":
            nodes += chosen(name, a, b, draw(st.sampled_from(values)))
        elif kind == "split":
            nodes.append(helper.make_node("Split", [a], [f"{name}a", f"{name}b"], axis=0))
            nodes.append(helper.make_node("Concat", [f"{name}b", f"{name}a"], [name], axis=0))
        else:
            nodes.append(helper.make_node("Transpose", [c], [name]))
        (constants if kind == "constant" else values).append(name)
    outputs = draw(st.lists(st.sampled_from([*values, *constants]), min_size=1, max_size=4, unique=True))
    info = [helper.make_value_info(name, PAIR) for name in outputs]
    weights = [onnx.numpy_helper.from_array(value, name) for name, value in WEIGHTS.items()]
    graph = helper.make_graph(nodes, "g", [helper.make_value_info("x", PAIR)], info, weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def chosen(name: str, a: str, b: str, by: str) -> list[onnx.NodeProto]:
    """a + b where the sum over `by` is above 0, a − b else; in the one body there is a product of its own."""
    then = [helper.make_node("Add", [a, b], [f"{name}t"])]
    other = [
        helper.make_node("MatMul", [a, "w"], [f"{name}p"]),
        helper.make_node("Identity", [f"{name}p"], [f"{name}e"]),
    ]
    bodies = {
        f"{kind}_branch": helper.make_graph(nodes, kind, [], [helper.make_value_info(nodes[-1].output[0], PAIR)])
        for kind, nodes in (("then", then), ("else", other))
    }
    return [
        helper.make_node("ReduceSum", [by], [f"{name}r"], keepdims=0),
        helper.make_node("Cast", [f"{name}r"], [f"{name}c"], to=TensorProto.BOOL),
        helper.make_node("If", [f"{name}c"], [name], **bodies),
    ]


@settings(max_examples=examples(40))
@given(graphs(), st.integers(0, 80))
def test_any_graph_in_steps_gives_what_it_gives_as_a_whole(model: onnx.ModelProto, number: int) -> None:
    digits = np.array([number // 3**place % 3 - 1 for place in range(4)], np.float32)
    assert_the_same(model, x=digits.reshape(2, 2))


@settings(max_examples=examples(80))
@given(graphs())
def test_every_node_is_in_one_step_behind_all_that_it_needs_and_no_step_could_be_left_out(
    model: onnx.ModelProto,
) -> None:
    graph = with_products(model).graph
    constants = constants_of(graph)
    steps = steps_of(graph, constants)
    placed = [node for step in steps for node in (*step.nodes, *step.products)]
    assert len(set(placed)) == len(placed)
    assert set(placed) == {node for node in graph if not constants.issuperset(node.outputs)}
    known = {*graph.inputs, *constants}
    for step in steps:
        for node in step.nodes:
            assert known.issuperset(_taken(node))
            known.update(node.outputs)
        assert all(known.issuperset(_taken(node)) for node in step.products)
        known.update(value for node in step.products for value in node.outputs)
    assert all(is_product(node) == (node in step.products) for step in steps for node in (*step.nodes, *step.products))
    for before, after in pairwise(steps):
        assert not after.products or not _behind(graph, before).isdisjoint(_taken(after.products[0]))


def _taken(node: ir.Node) -> set[ir.Value]:
    return {value for value in (*node.inputs, *outer_values(node)) if value is not None}


def _behind(graph: ir.Graph, step: Step) -> set[ir.Value]:
    """What hangs on a product of the step."""
    found = {value for node in step.products for value in node.outputs}
    for node in graph:
        if not found.isdisjoint(_taken(node)):
            found.update(node.outputs)
    return found


# Single cases


def test_products_that_do_not_depend_on_each_other_share_a_step() -> None:
    model = proto(
        "(float[2,2] x) => (float[2,2] y) { a = MatMul(x, v) ra = Relu(a) n = Neg(x) b = MatMul(n, w) c = MatMul(x, w) "
        "s = Add(ra, b) y = Add(s, c) }",
        WEIGHTS,
    )
    assert shape_of(model) == [(["n"], ["a", "b", "c"]), (["ra", "s", "y"], [])]
    assert len(assert_the_same(model, x=X).graphs) == 2


def test_weights_that_are_computed_of_constants_have_a_session_of_their_own_and_others_none() -> None:
    text = "(float[2,2] x) => (float[2,2] y) {{ {made} a = MatMul(x, {weight}) y = Relu(a) }}"
    plain = proto(text.format(made="", weight="v"), WEIGHTS)
    computed = proto(text.format(made="t = Transpose(v)", weight="t"), WEIGHTS)
    counts = [len(assert_the_same(model, x=X).graphs) for model in (plain, computed)]
    assert counts == [1, 2]


def test_products_behind_products_are_steps_one_after_the_other() -> None:
    model = proto(
        "(float[2,2] x) => (float[2,2] y) { a = MatMul(x, v) b = MatMul(a, w) r = Relu(b) y = MatMul(r, v) }", WEIGHTS
    )
    assert shape_of(model) == [([], ["a"]), ([], ["b"]), (["r"], ["y"])]
    assert_the_same(model, x=X)


def test_a_diamond_with_a_product_on_one_side_is_put_together_again() -> None:
    model = proto(
        "(float[2,2] x) => (float[2,2] y, float[2,2] z) { a = Neg(x) b = MatMul(a, v) c = Relu(a) d = Add(b, c) "
        "y = MatMul(d, c) z = Add(y, a) }",
        WEIGHTS,
    )
    assert shape_of(model) == [(["a", "c"], ["b"]), (["d"], ["y"]), (["z"], [])]
    assert_the_same(model, x=X)


def test_a_branch_takes_values_from_before_and_behind_a_product() -> None:
    model = proto(
        "(float[2,2] x) => (float[2,2] y) { a = Neg(x) b = MatMul(a, v) s = ReduceSum <keepdims = 0> (x) "
        "c = Cast <to = 9> (s) y = If (c) <then_branch = one () => (float[2,2] t) { t = Add(a, b) }, "
        "else_branch = two () => (float[2,2] e) { p = MatMul(b, w) e = Sub(p, x) }> }",
        WEIGHTS,
    )
    for x in (X, np.zeros((2, 2), np.float32)):
        assert_the_same(model, x=x)
    assert [products for _, products in shape_of(model)] == [["b"], []], "those in bodies are no products"


def test_constants_that_several_steps_take_are_made_where_they_are_taken() -> None:
    model = proto(
        "(float[2,2] x) => (float[2,2] y) { t = Transpose(w) n = Neg(t) a = MatMul(x, n) b = Add(a, t) "
        "c = MatMul(b, n) y = Add(c, t) }",
        WEIGHTS,
    )
    opened = assert_the_same(model, x=X)
    copies = [node.op_type for graph in opened.graphs for node in graph.graph]
    assert copies.count("Neg") == 1, "products take it: it is computed once, before the first run"
    assert copies.count("Transpose") == 3


@pytest.mark.slow
def test_a_chain_of_thousands_of_constants_is_no_obstacle() -> None:
    chain = " ".join(f"w{i + 1} = Neg(w{i})" for i in range(3000))
    model = proto("(float[2,2] x) => (float[2,2] y) { " + chain + " y = MatMul(x, w3000) }", {"w0": WEIGHTS["w"]})
    assert_the_same(model, x=X)


@pytest.mark.parametrize(
    "body",
    [
        "(float[2,2] x) => (float[2,2] y, float[2,2] w) { y = MatMul(x, w) }",
        "(float[2,2] x) => (float[2,2] y, float[2,2] t) { t = Transpose(w) y = MatMul(x, t) }",
        "(float[2,2] x) => (float[2,2] y, float[2,2] x) { y = MatMul(x, w) }",
        "(float[2,2] x) => (float[2,2] y, float[2,2] a) { a = MatMul(x, w) r = Relu(a) y = MatMul(r, v) }",
        "(float[2,2] x) => (float[2,2] a) { a = MatMul(x, x) }",
        "(float[2,2] x) => (float[2,2] a) { a = MatMul(v, w) }",
        "(float[2,2] x) => (float[2,2] y) { d = MatMul(x, v) y = MatMul(x, w) }",
        "(float[2,2] x, float[2,2] z) => (float[2,2] y) { y = MatMul(x, w) }",
    ],
    ids=[
        "a constant", "a computed constant", "an input", "used later", "of itself", "of constants", "lost",
        "an input that nobody takes",
    ],
)  # fmt: skip
def test_whatever_the_final_outputs_are_they_are_given(body: str) -> None:
    more = {"z": X} if " z)" in body else {}
    model = proto(body, {name: value for name, value in WEIGHTS.items() if f"{name})" in body or f"{name}," in body})
    assert_the_same(model, x=X, **more)


def test_values_that_are_no_tensors_and_whole_numbers_pass_from_step_to_step() -> None:
    model = proto(
        "(float[2,2] x) => (float[2,2] y, int64[2,1] k) { q = SplitToSequence <axis = 1> (x) k = ArgMax <axis = 1> (x) "
        "a = MatMul(x, w) c = ConcatFromSequence <axis = 1> (q) s = Shape(a) r = Reshape(c, s) f = Cast <to = 1> (k) "
        "b = MatMul(r, a) y = Add(b, f) }",
        WEIGHTS,
    )
    assert_the_same(model, x=X)


def test_a_product_of_doubles_gives_doubles() -> None:
    model = proto(
        "(double[2,2] x) => (double[2,2] y) { a = MatMul(x, w) r = Relu(a) y = MatMul(r, a) }",
        {"w": WEIGHTS["w"].astype(np.float64)},
    )
    assert_the_same(model, x=X.astype(np.float64))


def test_only_a_graph_with_products_is_cut() -> None:
    model = proto("(float[2,2] x) => (float[2,2] y) { y = MatMul(x, w) }", WEIGHTS)
    assert has_products(with_products(model))
    assert not has_products(ir.from_proto(model))


def test_products_of_no_images_give_no_images() -> None:
    body = "(float[N,3,6,6] x) => (float[N,2,4,4] y) { y = Conv(x, k) }"
    model = proto(body, {"k": np.ones((2, 3, 3, 3), np.float32)})
    for count in (0, 2):
        assert_the_same(model, x=np.ones((count, 3, 6, 6), np.float32))
    node = ir.Node("", "ConvTranspose", [ir.Value(name="x"), ir.Value(name="w")])
    found = product_of(node, Sums.HALF)(np.ones((0, 3, 6, 6), np.float32), np.ones((3, 2, 3, 3), np.float32))
    assert found.shape == (0, 2, 8, 8)
