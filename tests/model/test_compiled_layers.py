"""A compiler's kernels become layers that mean what layers mean, whatever an engine tells of itself."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from models import ROUNDED, Array, Flows, bits, compared, digits, examples, load, packaged, plan_for, proto
from rtx import drive, needs_rtx

from precisionlab.backends.tensorrt import buildlog
from precisionlab.calibration.table import CalibrationTable, Range
from precisionlab.data import Sample
from precisionlab.errors import EngineError
from precisionlab.model import Model
from precisionlab.model.compiled import Fusions, completed, in_every, with_compiled_layers
from precisionlab.model.layers import QUANTIZABLE_OPS
from precisionlab.plan.arithmetic import TENSORRT, Arithmetic
from precisionlab.precision import Precision
from precisionlab.rewrite.observe import Flow

W = np.eye(4, dtype=np.float32) / 3
ANY: dict[str, Array] = {"w": W, "v": W + 1, "c": np.arange(1, 5, dtype=np.float32)}


def kernel(names: str) -> tuple[str, ...]:
    """The nodes that give these tensors: they have no names in ONNX's text syntax."""
    return tuple(f"node_of_{name}" for name in names.split())


def regrouped(model: Model, *kernels: str) -> tuple[list[str], Fusions]:
    """What the layers of the result run, each as the tensors that its nodes give, and the differences."""
    found, fusions = with_compiled_layers(model, [kernel(names) for names in kernels])
    assert_valid(found, model)
    return [" ".join(name.removeprefix("node_of_") for name in layer.nodes) for layer in found.layers], fusions


def assert_valid(found: Model, original: Model) -> None:
    """Each node is in one layer, layers are in topological order, and each is what the emulation takes it for."""
    assert sorted(name for layer in found.layers for name in layer.nodes) == sorted(original.node)
    place = {name: i for i, name in enumerate(original.node)}
    fixed = {name: layer.fixed for layer in original.layers for name in layer.nodes}
    made = {info.name for info in found.inputs}
    for layer in found.layers:
        assert list(layer.nodes) == sorted(layer.nodes, key=place.__getitem__)
        assert layer.name == layer.nodes[0]
        assert found.taken_by(layer) <= made  # so that no path leaves a layer and comes back
        made.update(str(v.name) for name in layer.nodes for v in found.node[name].outputs)
        assert {fixed[name] for name in layer.nodes} == {layer.fixed}
        anchors = [i for i, kind in enumerate(layer.op_types) if kind in QUANTIZABLE_OPS and layer.fixed is None]
        assert anchors in ([], [0])
        assert layer.quantizable == (anchors == [0])
    assert len(found.layer) == len(found.layers)


# What is grouped


def test_the_nodes_of_a_kernel_make_a_layer_and_a_node_in_none_is_alone(tmp_path: Path) -> None:
    body = "(float[4,4] x) => (float[4,4] e) { a = Relu(x) b = Exp(a) d = Tanh(b) e = Neg(d) }"
    found, fusions = regrouped(load(proto(body), tmp_path), "a b", "e")
    assert found == ["a b", "d", "e"]
    assert (fusions.before, fusions.after, fusions.same) == (4, 3, 2)


def test_names_that_the_model_does_not_have_and_kernels_without_nodes_are_passed_over(tmp_path: Path) -> None:
    body = "(float[4,4] x) => (float[4,4] b) { a = Relu(x) b = Exp(a) }"
    model = load(proto(body), tmp_path)
    assert regrouped(model, "", "x_fp16 a b b", "b_fp32")[0] == ["a b"]
    assert with_compiled_layers(model, [frozenset(kernel("a b"))])[0].layers[0].kind == "Relu+Exp"


@pytest.mark.parametrize("kernels", [[], [()], [("other",), ()]])
def test_an_engine_that_does_not_tell_what_it_fused_is_an_error(kernels: list[tuple[str, ...]], tmp_path: Path) -> None:
    model = load(proto("(float[4,4] x) => (float[4,4] a) { a = Relu(x) }"), tmp_path)
    with pytest.raises(EngineError, match=r"none of the engine's \d kernels? names a node of .*model\.onnx"):
        with_compiled_layers(model, kernels)


def test_a_node_in_several_kernels_is_where_its_output_is_used(tmp_path: Path) -> None:
    # As TensorRT-RTX has it: a Conv also in the kernel that pads its input, a sum in two steps, a product twice.
    body = """(float[1,4,4,4] x) => (float[1,4,4,4] f, float[1,4,4,4] h) {
        a = Exp(x) b = Conv(a, k) d = Relu(b) e = ReduceSum(d, axis) f = Sqrt(e) g = Neg(x) h = Tanh(g)
    }"""
    weights = {"k": np.ones((4, 4, 1, 1), np.float32), "axis": np.array([2])}
    model = load(proto(body, weights), tmp_path)
    assert regrouped(model, "a b", "b d e", "e f", "g", "g", "h")[0] == ["a", "b d", "e f", "g", "h"]


def test_the_model_s_own_layers_as_kernels_change_nothing() -> None:
    for model in (digits()[0], packaged("orient")[0], packaged("magika")[0], packaged("minilm")[0]):
        found, fusions = with_compiled_layers(model, [layer.nodes for layer in model.layers])
        assert found.layers == model.layers
        assert (fusions.same, fusions.joined, fusions.parted) == (len(model.layers), 0, 0)


# What is taken apart


def test_several_products_are_split_and_each_keeps_what_stands_behind_it(tmp_path: Path) -> None:
    body = """(float[4,4] x) => (float[4,4] s, float[4,4] u) {
        q = MatMul(x, w) k = MatMul(x, v) a = Add(q, c) b = Add(k, c) s = Mul(a, b) t = Softmax(s) u = MatMul(t, w)
    }"""
    model = load(proto(body, ANY), tmp_path)
    # What stands behind several goes with the last, and attention is cut before its second product.
    assert regrouped(model, "q k a b s t u")[0] == ["q a", "k b s t", "u"]


def test_what_stands_in_front_of_a_product_is_a_layer_of_its_own(tmp_path: Path) -> None:
    body = """(float[4,4] x) => (float[4,4] f) {
        a = Exp(x) m = MatMul(a, w) b = Tanh(x) d = Add(m, b) e = Neg(b) f = Add(d, e)
    }"""
    found, _ = with_compiled_layers(load(proto(body, ANY), tmp_path), [kernel("a m b d e f")])
    assert [(layer.kind, layer.quantizable) for layer in found.layers] == [
        ("Exp+Tanh+Neg", False),
        ("MatMul+Add+Add", True),
    ]
    assert found.layers[1].inputs == ("a", "b", "e")
    assert found.layers[1].multiply_adds == 4 * 4 * 4


def test_what_cannot_be_given_a_precision_is_kept_apart(tmp_path: Path) -> None:
    body = """(float[4,4] x, bool yes) => (float[4,4] g) {
        a = Exp(x) i = Cast <to: int = 7> (a) j = Abs(i) k = Neg(j) b = Cast <to: int = 1> (k) d = Add(a, b)
        e = If (yes) <
            then_branch = one () => (float[4,4] t) { t = Identity(d) },
            else_branch = other () => (float[4,4] o) { o = Neg(d) }
        >
        p = If (yes) <
            then_branch = one () => (float[4,4] s) { s = Add(e, e) },
            else_branch = other () => (float[4,4] u) { u = Neg(e) }
        >
        f = Tanh(p) g = Add(f, a)
    }"""
    found, _ = regrouped(load(proto(body), tmp_path), "a i j k b d e p f g")
    # Casts have one reason, what computes in integers another; the branches of If refer to d, and to the other If.
    assert found == ["a", "i", "j k", "b", "d", "e", "p", "f g"]


def test_a_group_that_a_path_leaves_and_enters_again_is_cut_into_the_fewest_parts(tmp_path: Path) -> None:
    body = """(float[4,4] x) => (float[4,4] g, float[4,4] h) {
        a = Exp(x) b = Neg(a) d = Tanh(b) e = Neg(d) f = Add(a, e) g = Sqrt(f) h = Neg(x)
    }"""
    # a → b → d → e → f: left twice. h stands behind all of them, and belongs to the first part all the same.
    assert regrouped(load(proto(body), tmp_path), "a d f g h")[0] == ["a h", "b", "d", "e", "f g"]


def test_kernels_that_wait_for_each_other_are_cut(tmp_path: Path) -> None:
    body = """(float[4,4] x) => (float[4,4] d, float[4,4] f) {
        a = Exp(x) b = Tanh(x) d = Neg(b) e = Neg(a) f = Sqrt(e)
    }"""
    # Neither is left and entered again by itself, but a feeds e, and b feeds d.
    found, _ = regrouped(load(proto(body), tmp_path), "a d", "b e f")
    assert found == ["b", "a d", "e f"]


@st.composite
def graphs(draw: st.DrawFn, operators: str) -> tuple[str, list[tuple[str, ...]]]:
    """A random graph of 4 × 4 tensors, and random kernels over it: nodes in several, in none, anywhere."""
    values, lines = ["x"], []
    for i in range(draw(st.integers(1, 14))):
        one, other = draw(st.sampled_from(values)), draw(st.sampled_from(values))
        operator = draw(st.sampled_from(operators.split()))
        lines += {
            "MatMul": [f"t{i} = MatMul({one}, w)"],
            "Product": [f"t{i} = MatMul({one}, {other})"],
            "Add": [f"t{i} = Add({one}, {other})"],
            "Mul": [f"t{i} = Mul({one}, c)"],
            "Tanh": [f"t{i} = Tanh({one})"],
            "Count": [f"i{i} = Cast <to: int = 7> ({one})", f"j{i} = Abs(i{i})", f"t{i} = Cast <to: int = 1> (j{i})"],
        }[operator]
        values.append(f"t{i}")
    nodes = [line.split(" = ")[0] for line in lines]
    kernels = st.lists(st.sampled_from(nodes).map(lambda name: f"node_of_{name}"), max_size=8).map(tuple)
    outputs = ", ".join(f"float[4,4] {name}" for name in values[1:])
    body = f"(float[4,4] x) => ({outputs}) {{ {' '.join(lines)} }}"
    return body, [(f"node_of_{nodes[0]}",), *draw(st.lists(kernels, max_size=5))]


@given(graphs("MatMul Product Add Add Mul Tanh Tanh Count"))
@settings(max_examples=examples(150))
def test_any_kernels_over_any_graph_give_valid_layers(
    tmp_path_factory: pytest.TempPathFactory, drawn: tuple[str, list[tuple[str, ...]]]
) -> None:
    body, kernels = drawn
    model = load(proto(body, ANY), tmp_path_factory.getbasetemp(), "random.onnx")
    found, fusions = with_compiled_layers(model, kernels)
    assert_valid(found, model)
    for layer in found.layers:
        assert len(layer.nodes) == 1 or any(set(layer.nodes) <= set(names) for names in kernels)
    assert (fusions.before, fusions.after) == (len(model.layers), len(found.layers))
    again, unchanged = with_compiled_layers(found, [layer.nodes for layer in found.layers])
    assert again.layers == found.layers
    assert unchanged.joined == unchanged.parted == 0


@given(graphs("Add Add Mul Tanh"))
@settings(max_examples=examples(100))
def test_one_kernel_is_cut_only_where_a_path_leaves_and_enters_it_again(
    tmp_path_factory: pytest.TempPathFactory, drawn: tuple[str, list[tuple[str, ...]]]
) -> None:
    body, kernels = drawn
    model = load(proto(body, ANY), tmp_path_factory.getbasetemp(), "random.onnx")
    names = {name for names in kernels for name in names}
    found, _ = with_compiled_layers(model, [tuple(names)])
    assert_valid(found, model)
    returns: dict[str, int] = {}  # how often a path to the node has entered the kernel, at most
    for name, node in model.node.items():
        entered = 0
        for value in node.inputs:
            source = value.producer() if value is not None else None
            if source is not None:
                back = name in names and str(source.name) not in names and returns[str(source.name)] > 0
                entered = max(entered, returns[str(source.name)] + back)
        returns[name] = max(entered, name in names)
    assert sum(layer.nodes[0] in names for layer in found.layers) == max(returns[name] for name in names)


# How far the two differ


def test_the_differences_are_counted_over_neighbours_and_named(tmp_path: Path) -> None:
    body = """(float[4,4] x) => (float[4,4] f) {
        a = Exp(x) b = Tanh(a) m = MatMul(b, w) d = Add(m, c) e = Relu(d) f = Softmax(e)
    }"""
    found, fusions = regrouped(load(proto(body, ANY), tmp_path), "a b", "m d", "e f")
    assert found == ["a b", "m d", "e f"]
    assert fusions == Fusions(
        before=4,
        after=3,
        same=0,
        joined=2,
        parted=1,
        joined_examples=(("node_of_a", "node_of_b"), ("node_of_e", "node_of_f")),
        parted_examples=(("node_of_d", "node_of_e"),),
    )
    assert fusions.text == (
        "The compiler makes 3 layers where our patterns make 4, 0 of them the same; of neighbouring nodes it joins 2 "
        "pairs that ours keep apart (node_of_a → node_of_b, node_of_e → node_of_f), and keeps apart 1 that ours join "
        "(node_of_d → node_of_e)."
    )
    assert "(node_of_a → node_of_b, …)" in replace(fusions, joined_examples=fusions.joined_examples[:1]).text


def test_nodes_that_no_kernel_names_are_completed_by_our_patterns_alone(tmp_path: Path) -> None:
    body = """(float[4,4] x) => (float[4,4] h) {
        m = MatMul(x, w) d = Add(m, c) e = Relu(d) f = Tanh(e) n = MatMul(f, w) g = Add(n, c) h = Relu(g)
    }"""
    model = load(proto(body, ANY), tmp_path)
    # The first product lost what is behind it; of the second, an activation stands in a kernel of its own.
    kernels = completed(model, [kernel("m"), kernel("n"), kernel("h other")])
    assert kernels == (kernel("m d e"), kernel("n g"), kernel("h"))
    found, fusions = with_compiled_layers(model, kernels)
    assert [layer.kind for layer in found.layers] == ["MatMul+Add+Relu", "Tanh", "MatMul+Add", "Relu"]
    assert (fusions.same, fusions.parted) == (2, 1)


# What the layers mean for rounding


def in_half(x: Array) -> Array:
    with np.errstate(over="ignore"):
        return np.asarray(x, np.float32).astype(np.float16).astype(np.float32)


def variant(
    model: Model, kernels: Iterable[str], arithmetic: Arithmetic = TENSORRT, /, **inputs: object
) -> Mapping[str, Array]:
    """The values that leave the layers in half precision."""
    found, _ = with_compiled_layers(model, [kernel(names) for names in kernels])
    flows = Flows(found, plan_for(found, Precision.FP16), arithmetic=arithmetic)(**inputs)
    return {name: value for (flow, name), value in flows.items() if flow is Flow.VARIANT}


def test_without_a_product_the_nodes_of_a_layer_are_rounded_as_if_each_were_one(tmp_path: Path) -> None:
    body = """(float[4,4] x, int64[3] i) => (float[3,4] f, float[3,4] g) {
        a = Mul(x, third) b = Mul(a, a) d = Gather(table, i) e = Gather(b, i) f = Add(d, e) g = Mul(f, small)
    }"""
    rng = np.random.default_rng(0)
    third, table = np.full(4, 1 / 3, np.float32), rng.standard_normal((5, 4), np.float32)
    small = np.full(1, 1e-9, np.float32)  # underflows in half, as the ε of a LayerNorm does
    model = load(proto(body, {"third": third, "table": table, "small": small}), tmp_path)
    x, rows = rng.standard_normal((4, 4), np.float32) * 30, np.array([0, 2, 1])
    fused = variant(model, ["a b d e f g"], ROUNDED, x=x, i=rows)
    single = variant(model, ["a"], ROUNDED, x=x, i=rows)
    square = in_half(in_half(in_half(x) * in_half(third)) ** 2)
    assert np.array_equal(fused["f"], in_half(in_half(table)[rows] + square[rows]))
    assert np.array_equal(fused["g"], np.zeros((3, 4)))
    assert "b" in single
    assert "b" not in fused
    assert all(np.array_equal(bits(fused[name]), bits(single[name])) for name in ("f", "g"))
    clamped = variant(model, ["a b d e f g"], x=x, i=rows)
    assert np.array_equal(clamped["g"], in_half(fused["f"] * np.float32(2.0**-24)))
    beyond = variant(model, ["a b d e f g"], ROUNDED, x=np.full((4, 4), 1000, np.float32), i=rows)
    assert np.isinf(beyond["f"]).all()  # the square is beyond 65504: inside a kernel too that is half's range
    assert np.isnan(beyond["g"]).all()


def test_behind_a_product_nothing_is_rounded(tmp_path: Path) -> None:
    body = "(float[4,4] x) => (float[4,4] d) { m = MatMul(x, w) a = Mul(m, c) d = Sub(a, a) }"
    weights = {"w": np.eye(4, dtype=np.float32) * 300, "c": np.full(4, 1 / 3, np.float32)}
    model = load(proto(body, weights), tmp_path)
    x = np.full((4, 4), 300, np.float32)  # 90000 in the accumulator
    assert np.array_equal(variant(model, ["m a d"], x=x)["d"], np.zeros((4, 4)))
    assert np.isnan(variant(model, ["m", "a d"], x=x)["d"]).all()


def test_int8_is_the_product_alone_and_what_was_fused_in_front_of_it_is_not_quantised(tmp_path: Path) -> None:
    body = "(float[4,4] x) => (float[4,4] d) { a = Tanh(x) m = MatMul(a, w) d = Relu(m) }"
    model = load(proto(body, {"w": np.eye(4, dtype=np.float32) * 127}), tmp_path)
    found, _ = with_compiled_layers(model, [kernel("a m d")])
    x = np.linspace(0.1, 2, 16, dtype=np.float32).reshape(4, 4)
    flows = Flows(found, plan_for(found, Precision.INT8), CalibrationTable({"a": Range(1.0)}, 1))(x=x)
    assert np.array_equal(flows[Flow.VARIANT, "a"], flows[Flow.REFERENCE, "a"])
    assert np.allclose(flows[Flow.VARIANT, "d"], np.round(np.tanh(x) * 127), atol=1e-4)


# Real kernels


@functools.cache
def real(name: str) -> tuple[Model, list[Sample], list[tuple[str, ...]]]:
    """The bundled model or one that is installed: two samples, and the kernels that TensorRT-RTX makes of it."""
    if name == "digits":
        model, dataset = digits()
        samples = list(dataset)[:2]
    else:
        model, first = packaged(name)
        turned = {key: np.ascontiguousarray(array[..., ::-1]) for key, array in first.inputs.items()}
        samples = [first, Sample("turned", turned)]
    (answer,) = drive("layers", model.path)
    return model, samples, [layer.nodes for layer in buildlog.layers_of(answer["plain"])]


@needs_rtx
@pytest.mark.parametrize(
    "name",
    [
        pytest.param("digits", marks=pytest.mark.thorough),
        pytest.param("orient", marks=pytest.mark.thorough),
        "magika",
        pytest.param("minilm", marks=pytest.mark.thorough),
    ],
)
def test_a_real_engine_s_kernels_are_emulated(name: str) -> None:
    model, samples, kernels = real(name)
    found, fusions = with_compiled_layers(model, completed(model, kernels))
    assert_valid(found, model)
    assert fusions.joined > 0
    assert fusions.same > len(model.layers) / 5
    # minilm's mask, where a Cast makes −inf of it, is NaN in half: what is broken must be so in both.
    mask = any(node.endswith("auto_model/Mul_1") for node in model.node)
    for arithmetic in (TENSORRT, ROUNDED) if mask else (TENSORRT,):
        ours, theirs = (compared(m, samples, arithmetic=arithmetic) for m in (model, found))
        assert set(theirs.inherited) <= {o for layer in found.layers for o in layer.outputs}
        assert set(theirs.inherited) - set(ours.inherited) or set(ours.inherited) - set(theirs.inherited)
        for output, errors in ours.outputs.items():
            mine, other = errors.errors, theirs.outputs[output].errors
            if mine is None or other is None:
                assert mine is other is None
                continue
            assert mine.nonfinite == other.nonfinite
            assert mine.nonfinite or mine.sqnr == pytest.approx(other.sqnr, abs=3)
        finite = [e.errors.nonfinite == 0 for e in ours.outputs.values() if e.errors is not None]
        assert all(finite) == (arithmetic is TENSORRT)


def test_nodes_share_a_layer_where_the_kernels_of_every_profile_run_them_together(tmp_path: Path) -> None:
    body = "(float[4,4] x) => (float[4,4] d) { a = Relu(x) b = Exp(a) c = Tanh(b) d = Neg(c) }"
    model = load(proto(body), tmp_path)
    first, second = [kernel("a b"), kernel("c"), kernel("d")], [kernel("a"), kernel("b c d")]
    assert in_every(model, [first, second]) == tuple(map(kernel, "abcd"))
    assert in_every(model, [second, [kernel("a b c d")]]) == tuple(second)
    # One that a profile has in no kernel is alone; names that the model does not have are nobody's.
    assert in_every(model, [[kernel("a b c d")], [kernel("a b d cast")]]) == (kernel("a b d"), kernel("c"))
    assert in_every(model, [first]) == tuple(first)
    assert in_every(model, []) == ()
