"""Channels of activations moved into weights: the same bits in float32, and fewer errors in int8."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from models import Array, compared, examples, load, proto, sample

from precisionlab.backends.onnxruntime import OnnxRuntimeBackend
from precisionlab.backends.session import AS_WRITTEN, Session
from precisionlab.errors import PlanError
from precisionlab.model import Model
from precisionlab.model.inference import infer_tensors
from precisionlab.model.layers import one_node_a_layer
from precisionlab.precision import Precision
from precisionlab.rewrite.observe import shapes_beside
from precisionlab.rewrite.repairs import (
    MIGRATE,
    Sight,
    found_repairs,
    is_repairable,
    repaired_graph,
    repaired_model,
)
from precisionlab.rewrite.repairs.channel_values import ChannelWatch
from precisionlab.rewrite.repairs.migrate_channels import Group, groups_of
from precisionlab.rewrite.repairs.scale_text import read_scales, scale_texts

_RNG = np.random.default_rng(0)


@pytest.fixture(autouse=True)
def same_numbers() -> None:
    """Whatever tests ran before, each draws the same."""
    _RNG.bit_generator.state = np.random.default_rng(0).bit_generator.state


def random(*shape: int, scale: float = 1.0) -> Array:
    return (_RNG.standard_normal(shape) * scale).astype(np.float32)


def uneven(*shape: int, axis: int = -1) -> Array:
    """Random numbers of which two channels are 60 times as large as the others."""
    numbers = np.moveaxis(random(*shape), axis, -1)
    numbers[..., [1, numbers.shape[-1] - 3]] *= 60
    return np.ascontiguousarray(np.moveaxis(numbers, -1, axis))


Case = tuple[str, Mapping[str, Array], set[str]]
ROWS, IMAGE = "(float[4, 16] x) => (float[4, 8] y)", "(float[1, 8, 6, 6] x) => (float[1, 8, 6, 6] y)"
W, W2 = random(16, 16, scale=0.3), random(16, 8, scale=0.3)
POINT = random(8, 8, 1, 1, scale=0.3)
BN = {"g": uneven(8), "b": random(8), "mu": random(8), "va": np.abs(random(8)) + 1}
NORM = """m = ReduceMean <axes = [-1]> (x)  d = Sub(x, m)  s = Mul(d, d)  v = ReduceMean <axes = [-1]> (s)
    e = Add(v, eps)  r = Sqrt(e)  n = Div(d, r)  a = Mul(n, g)  h = Add(a, b)"""

# The graph, its constants, and the nodes whose constants take the scales.
FOLDS: dict[str, Case] = {
    "a LayerNorm's scale and shift": (
        ROWS + "{ h = LayerNormalization(x, g, b)  y = MatMul(h, w2) }",
        {"g": uneven(16), "b": uneven(16), "w2": W2},
        {"node_of_h", "node_of_y"},
    ),
    "a LayerNorm without a shift": (
        ROWS + "{ h = LayerNormalization(x, g)  y = MatMul(h, w2) }",
        {"g": uneven(16), "w2": W2},
        {"node_of_h", "node_of_y"},
    ),
    "a LayerNorm of many nodes": (
        ROWS + "{" + NORM + " y = MatMul(h, w2) }",
        {"g": uneven(16), "b": random(16), "w2": W2, "eps": np.float32(1e-5)},
        {"node_of_a", "node_of_h", "node_of_y"},
    ),
    "a GELU's half": (
        ROWS
        + """{ u = MatMul(x, w)  d = Div(u, root)  f = Erf(d)  o = Add(f, one)  p = Mul(u, o)  h = Mul(p, half)
            y = MatMul(h, w2) }""",
        {"w": uneven(16, 16), "w2": W2, "half": np.float32(0.5), "one": np.float32(1), "root": np.float32(1.414)},
        {"node_of_h", "node_of_y"},
    ),
    "a hard swish's sixth": (
        ROWS + "{ u = MatMul(x, w)  t = Add(u, three)  c = Clip(t, no, six)  p = Mul(c, u)  h = Div(p, six) "
        "y = MatMul(h, w2) }",
        {"w": uneven(16, 16), "w2": W2, "three": np.float32(3), "six": np.float32(6), "no": np.float32(0)},
        {"node_of_h", "node_of_y"},
    ),
    "a swish's own factor": (
        "(float[1, 8, 6, 6] x) => (float[1, 8, 6, 6] y) { c = Conv(x, w)  n = BatchNormalization(c, g, b, mu, va) "
        "t = Mul(n, one)  s = Sigmoid(t)  h = Mul(n, s)  y = Conv(h, w2) }",
        {"w": POINT, "w2": POINT, "one": np.ones(1, np.float32), **BN},
        {"node_of_n", "node_of_t", "node_of_y"},
    ),
    "weights and bias in front of a Relu": (
        ROWS + "{ u = MatMul(x, w)  v = Add(u, b)  h = Relu(v)  y = MatMul(h, w2) }",
        {"w": uneven(16, 16), "b": uneven(16), "w2": W2},
        {"node_of_u", "node_of_v", "node_of_y"},
    ),
    "weights in front of a PRelu": (
        IMAGE + "{ c = Conv(x, w, b)  h = PRelu(c, slope)  y = Conv(h, w2) }",
        {"w": uneven(8, 8, 1, 1, axis=0), "b": random(8), "slope": np.full((8, 1, 1), 0.2, np.float32), "w2": POINT},
        {"node_of_c", "node_of_y"},
    ),
    "weights in front of a LeakyRelu and a pooling": (
        IMAGE + "{ c = Conv(x, w)  l = LeakyRelu(c)  h = MaxPool <kernel_shape = [3, 3], pads = [1, 1, 1, 1]> (l) "
        "y = Conv(h, w2) }",
        {"w": uneven(8, 8, 1, 1, axis=0), "w2": POINT},
        {"node_of_c", "node_of_y"},
    ),
    "a BatchNorm": (
        IMAGE + "{ c = Conv(x, w)  n = BatchNormalization(c, g, b, mu, va)  h = Relu(n)  y = Conv(h, w2) }",
        {"w": POINT, "w2": POINT, **BN},
        {"node_of_n", "node_of_y"},
    ),
    "a depthwise Conv behind": (
        IMAGE + "{ n = BatchNormalization(x, g, b, mu, va)  y = Conv <group = 8, pads = [1, 1, 1, 1]> (n, dw) }",
        {"dw": random(8, 1, 3, 3), **BN},
        {"node_of_n", "node_of_y"},
    ),
    "a depthwise Conv in front": (
        IMAGE + "{ c = Conv <group = 8, pads = [1, 1, 1, 1]> (x, dw, b)  h = Relu(c)  y = Conv(h, w2) }",
        {"dw": uneven(8, 1, 3, 3, axis=0), "b": random(8), "w2": POINT},
        {"node_of_c", "node_of_y"},
    ),
    "a Conv of groups": (
        IMAGE + "{ n = BatchNormalization(x, g, b, mu, va)  y = Conv <group = 2> (n, w) }",
        {"w": random(8, 4, 1, 1), **BN},
        {"node_of_n", "node_of_y"},
    ),
    "a transposed Conv on both sides": (
        "(float[1, 8, 6, 6] x) => (float[1, 8, 24, 24] y) { c = ConvTranspose <group = 2, strides = [2, 2]> (x, w, b) "
        "h = Relu(c)  y = ConvTranspose <strides = [2, 2]> (h, w2) }",
        {"w": uneven(8, 4, 2, 2, axis=1), "b": random(8), "w2": random(8, 8, 2, 2)},
        {"node_of_c", "node_of_y"},
    ),
    "factors and shifts by elements": (
        ROWS + "{ h = Mul(x, g)  v = Sub(h, b)  y = MatMul(v, w2) }",
        {"g": uneven(16), "b": random(16), "w2": W2},
        {"node_of_h", "node_of_v", "node_of_y"},
    ),
    "a number that becomes a vector": (
        ROWS + "{ t = Sigmoid(x)  h = Div(t, two)  y = MatMul(h, w2) }",
        {"two": np.float32(2), "w2": uneven(16, 8, axis=0)},
        {"node_of_h", "node_of_y"},
    ),
    "a Gemm with turned weights": (
        ROWS + "{ u = Gemm <transB = 1, alpha = 0.5, beta = 2.0> (x, w, b)  h = Relu(u) "
        "y = Gemm <transB = 1, alpha = 3.0> (h, w2) }",
        {"w": uneven(16, 16, axis=0), "b": uneven(16), "w2": np.ascontiguousarray(W2.T)},
        {"node_of_u", "node_of_y"},
    ),
    "a Gemm with a turned operand": (
        "(float[16, 4] x) => (float[4, 8] y) { h = Mul(x, g)  y = Gemm <transA = 1> (h, w2) }",
        {"g": uneven(16, 1, axis=0), "w2": W2},
        {"node_of_h", "node_of_y"},
    ),
    "constant weights on the left": (
        "(float[2, 16, 4] x) => (float[2, 8, 4] y) { u = MatMul(w, x)  h = Relu(u)  y = MatMul(w2, h) }",
        {"w": uneven(16, 16, axis=0), "w2": np.ascontiguousarray(W2.T)},
        {"node_of_u", "node_of_y"},
    ),
    "a Gemm with constant weights on the left": (
        "(float[16, 4] x) => (float[8, 4] y) { u = Gemm(w, x)  h = Relu(u)  y = Gemm <transA = 1> (w2, h) }",
        {"w": uneven(16, 16, axis=0), "w2": W2},
        {"node_of_u", "node_of_y"},
    ),
    "a product that two others take": (
        ROWS + "{ h = LayerNormalization(x, g, b)  p = MatMul(h, w2)  q = MatMul(h, w3)  y = Mul(p, q) }",
        {"g": uneven(16), "b": random(16), "w2": W2, "w3": random(16, 8)},
        {"node_of_h", "node_of_p", "node_of_q"},
    ),
    "what a constant is divided by": (
        "(float[4, 16] x) => (float[4, 8] y, float[4, 16] q) { s = Sigmoid(x)  h = Mul(s, g)  q = Div(k, h) "
        "y = MatMul(h, w2) }",
        {"g": np.abs(uneven(16)) + 1, "k": np.float32(3), "w2": W2},
        {"node_of_h", "node_of_q", "node_of_y"},
    ),
    "a mean over the image": (
        "(float[2, 8, 6, 6] x) => (float[2, 8] y) { c = Conv(x, w, b)  r = Relu(c) "
        "h = ReduceMean <axes = [2, 3], keepdims = 0> (r)  y = Gemm(h, w2) }",
        {"w": uneven(8, 8, 1, 1, axis=0), "b": random(8), "w2": random(8, 8)},
        {"node_of_c", "node_of_y"},
    ),
    "an image turned into rows": (
        "(float[N, 8, H, 6] x) => (float[N, M, 8] y) { c = Conv(x, w, b)  r = Relu(c)  f = Reshape(r, rows) "
        "h = Transpose <perm = [0, 2, 1]> (f)  y = MatMul(h, w2) }",
        {"w": uneven(8, 8, 1, 1, axis=0), "b": random(8), "w2": random(8, 8), "rows": np.array([0, 8, -1])},
        {"node_of_c", "node_of_y"},
    ),
    "a squeeze and excitation": (
        IMAGE + "{ n = BatchNormalization(x, g, b, mu, va)  a = GlobalAveragePool(n)  c = Conv(a, w)  s = Sigmoid(c) "
        "h = Mul(n, s)  y = Conv(h, w2) }",
        {"w": POINT, "w2": POINT, **BN},
        {"node_of_n", "node_of_c", "node_of_y"},
    ),
    "a residual stream of convolutions": (
        IMAGE + "{ c = Conv(x, w)  d = Conv(c, w2)  e = Add(c, d)  h = Relu(e)  y = Conv(h, w2) }",
        {"w": uneven(8, 8, 1, 1, axis=0), "w2": POINT},
        {"node_of_c", "node_of_d", "node_of_y"},
    ),
}

ATTENTION = """(float[1, 6, 16] x) => (float[1, 6, 8] y) {
    q0 = MatMul(x, wq)  q1 = Add(q0, bq)  q2 = Reshape(q1, heads)  q = Transpose <perm = [0, 2, 1, 3]> (q2)
    k0 = MatMul(x, wk)  k2 = Reshape(k0, heads)  k = Transpose <perm = [0, 2, 3, 1]> (k2)
    v0 = MatMul(x, wv)  v1 = Add(v0, bv)  v2 = Reshape(v1, heads)  v = Transpose <perm = [0, 2, 1, 3]> (v2)
    s = MatMul(q, k)  d = Div(s, eight)  p = Softmax(d)  a = MatMul(p, v)
    t = Transpose <perm = [0, 2, 1, 3]> (a)  o = Reshape(t, whole)  y = MatMul(o, w2) }"""
ATTENDING = {
    **{
        "wq": random(16, 16, scale=0.1),
        "wk": random(16, 16, scale=0.1),
        "wv": uneven(16, 16),
        "bq": random(16),
        "bv": random(16),
        "w2": W2,
    },
    **{"heads": np.array([0, -1, 4, 4]), "whole": np.array([0, -1, 16]), "eight": np.float32(8)},
}


def made(folder: Path, name: str) -> Model:
    body, weights, _ = FOLDS[name]
    return load(proto(body, weights), folder)


def shape_of(model: Model) -> tuple[int, ...]:
    return tuple(length if isinstance(length, int) else 3 for length in model.inputs[0].shape or ())


def outputs(graph: ir.Model, x: Array) -> list[Array]:
    session = Session(graph.clone(), 1, level=AS_WRITTEN)
    try:
        return list(session.run({"x": x}).values())
    finally:
        session.close()


def some_scales(group: Group, seed: int, most: int = 6) -> Array:
    return np.random.default_rng(seed).integers(-most, most + 1, group.region.channels).astype(np.int32)


def sight(model: Model, samples: list[Array]) -> Sight:
    backend = OnnxRuntimeBackend(model, sample(x=samples[0]), threads=1)

    def seen(profiles: Mapping[str, Array]) -> Mapping[str, object]:
        watch = ChannelWatch(profiles)
        backend.look([sample(x=x) for x in samples], watch.add)
        return watch.found()

    return Sight(model, {}, frozenset(), Precision.INT8.number_format, seen)  # type: ignore[arg-type]


def sqnr(model: Model, x: Array) -> float:
    return compared(model, [sample(x=x)], Precision.INT8).worst("sqnr")


@pytest.mark.parametrize("name", FOLDS)
def test_scales_fold_and_give_the_same_bits(tmp_path: Path, name: str) -> None:
    model = made(tmp_path, name)
    (group,) = [one for one in groups_of(model) if FOLDS[name][2] <= {str(node.name) for node in one.region.nodes}]

    assert {str(node.name) for node in group.region.nodes} == FOLDS[name][2]
    assert group.copies == ()
    for seed in range(3):
        repaired = repaired_graph(model.onnx, [group.repair(some_scales(group, seed))])
        x = random(*shape_of(model))
        assert len(list(repaired.graph)) == len(list(model.onnx.graph))
        assert [one.tobytes() for one in outputs(repaired, x)] == [one.tobytes() for one in outputs(model.onnx, x)]


@pytest.mark.parametrize("name", [name for name in FOLDS if name != "a squeeze and excitation"])
def test_outlier_channels_do_less_harm_in_int8(tmp_path: Path, name: str) -> None:
    model, x = made(tmp_path, name), random(*shape_of(made(tmp_path, name)))
    repairs = found_repairs(sight(model, [x]))
    assert repairs

    repaired = load(ir.to_proto(repaired_graph(model.onnx, repairs)), tmp_path, "repaired.onnx")

    assert sqnr(repaired, x) > sqnr(model, x)


def test_values_are_scaled_through_the_heads_of_attention_and_queries_against_keys(tmp_path: Path) -> None:
    model, x = load(proto(ATTENTION, ATTENDING), tmp_path), random(1, 6, 16)
    groups = {group.product: group for group in groups_of(model)}

    assert {str(node.name) for node in groups["node_of_y"].region.nodes} == {"node_of_v0", "node_of_v1", "node_of_y"}
    assert {str(node.name) for node in groups["node_of_s"].region.nodes} == {"node_of_q0", "node_of_q1", "node_of_k0"}
    repairs = [group.repair(some_scales(group, 1)) for group in groups.values()]
    assert np.array_equal(outputs(repaired_graph(model.onnx, repairs), x)[0], outputs(model.onnx, x)[0])
    best = found_repairs(sight(model, [x]))
    repaired = load(ir.to_proto(repaired_graph(model.onnx, best)), tmp_path, "repaired.onnx")
    assert sqnr(repaired, x) > sqnr(model, x) + 1


@settings(max_examples=examples(15))
@given(st.sampled_from(sorted(FOLDS)), st.integers(-30, 30), st.integers(0, 2**31))
def test_at_any_size_of_the_input_the_bits_are_the_same(
    tmp_path_factory: pytest.TempPathFactory, name: str, power: int, seed: int
) -> None:
    model = made(tmp_path_factory.mktemp("m"), name)
    repairs = [group.repair(some_scales(group, seed, most=10)) for group in groups_of(model)]
    x = np.ldexp(random(*shape_of(model)), power).astype(np.float32)

    assert np.array_equal(outputs(repaired_graph(model.onnx, repairs), x)[0], outputs(model.onnx, x)[0])


@pytest.mark.parametrize("name", [*FOLDS, "computed twice"])
def test_a_repaired_model_has_the_types_and_shapes_that_inference_and_a_run_find(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    body, weights = FOLDS[name][:2] if name in FOLDS else (TestComputedTwice.RESIDUAL, TestComputedTwice.WEIGHTS)
    first = load(proto(body, weights), tmp_path)
    x = sample(x=random(*shape_of(first)))
    model = OnnxRuntimeBackend(first, x, 1).model
    with monkeypatch.context() as once:
        once.setattr("precisionlab.model.load.inferred", None)  # nothing is inferred again
        repaired = repaired_model(model, tuple(group.repair(some_scales(group, 0)) for group in groups_of(model)))

    assert repaired.repairs
    assert repaired.declared == infer_tensors(repaired.onnx)
    beside, alone = OnnxRuntimeBackend(repaired, x, 1, shaped=model).model, OnnxRuntimeBackend(repaired, x, 1).model
    assert shapes_beside(repaired, model) is not None
    assert beside.tensors == alone.tensors
    assert beside.layers == alone.layers
    assert bool(repaired.copies) == (name not in FOLDS)


def test_shapes_inside_of_a_layer_were_not_looked_at(tmp_path: Path) -> None:
    body = "(float[N, 16] x) => (float[N, 8] y) { u = MatMul(x, w)  h = Relu(u)  y = MatMul(h, w2) }"
    first, x = load(proto(body, {"w": W, "w2": W2}), tmp_path), sample(x=random(3, 16))
    model = OnnxRuntimeBackend(first, x, 1).model
    alone = one_node_a_layer(model)

    assert [layer.op_types for layer in model.layers] == [("MatMul", "Relu"), ("MatMul",)]
    assert shapes_beside(model, model) == {"h": (3, 16), "y": (3, 8)}
    assert shapes_beside(alone, model) is None
    assert OnnxRuntimeBackend(alone, x, 1, shaped=model).model.tensors["u"].shape == (3, 16)


class TestComputedTwice:
    """What more than products take: a copy of it is scaled, where it is made of little."""

    RESIDUAL = (
        ROWS + "{ h = LayerNormalization(x, g, b)  u = MatMul(h, w)  r = Add(u, h)  n = LayerNormalization(r, g, b) "
    )
    RESIDUAL += "y = MatMul(n, w2) }"
    WEIGHTS: Mapping[str, Array] = {"g": uneven(16), "b": random(16), "w": W, "w2": W2}

    def test_a_normalisation_that_a_residual_sum_takes_too(self, tmp_path: Path) -> None:
        model = load(proto(self.RESIDUAL, self.WEIGHTS), tmp_path)
        x = np.random.default_rng(1).standard_normal((4, 16)).astype(np.float32)
        group = next(one for one in groups_of(model) if one.product == "node_of_u")
        repair = group.repair(some_scales(group, 0))

        repaired = repaired_graph(model.onnx, [repair])

        assert group.copies == ("node_of_h~channels",)
        assert repair.conditions == ("node_of_h: computed twice, as more than products take it",)
        assert {node.name for node in repaired.graph} - {node.name for node in model.onnx.graph} == set(group.copies)
        assert np.array_equal(outputs(repaired, x)[0], outputs(model.onnx, x)[0])
        best = repaired_graph(model.onnx, found_repairs(sight(model, [x])))
        assert sqnr(load(ir.to_proto(best), tmp_path, "repaired.onnx"), x) > sqnr(model, x) + 1

    def test_a_factor_and_a_shift_that_an_output_is_made_of(self, tmp_path: Path) -> None:
        body = "(float[4, 16] x) => (float[4, 8] y, float[4, 16] h) { a = Mul(x, g)  h = Add(a, b)  y = MatMul(h, w2) }"
        model, x = load(proto(body, {"g": uneven(16), "b": random(16), "w2": W2}), tmp_path), random(4, 16)
        (group,) = groups_of(model)

        assert set(group.copies) == {"node_of_a~channels", "node_of_h~channels"}
        same = zip(
            outputs(repaired_graph(model.onnx, [group.repair(some_scales(group, 0))]), x),
            outputs(model.onnx, x),
            strict=True,
        )
        assert all(np.array_equal(now, was) for now, was in same)

    def test_never_a_product(self, tmp_path: Path) -> None:
        body = (
            "{ h = MatMul(x, w)  n = LayerNormalization(h, g, b)  u = MatMul(h, w2)  v = MatMul(n, w2)  y = Add(u, v) }"
        )
        model = load(proto(ROWS + body, self.WEIGHTS), tmp_path)

        assert {group.product for group in groups_of(model)} == {"node_of_v"}


REFUSED: dict[str, tuple[str, str]] = {
    "a sum with what cannot be scaled": (
        ROWS + "{ u = MatMul(x, w)  h = Add(u, x)  y = MatMul(h, w2) }",
        ROWS + "{ u = MatMul(x, w)  h = Add(u, b)  y = MatMul(h, w2) }",
    ),
    "an output of the model": (
        "(float[4, 16] x) => (float[4, 8] y, float[4, 16] h) { u = MatMul(x, w)  h = Relu(u)  y = MatMul(h, w2) }",
        "(float[4, 16] x) => (float[4, 8] y, float[4, 16] o) { u = MatMul(x, w)  h = Relu(u)  y = MatMul(h, w2) "
        "o = Sigmoid(x) }",
    ),
    "an input of the model": (
        ROWS + "{ h = Relu(x)  y = MatMul(h, w2) }",
        ROWS + "{ h = Mul(x, b)  y = MatMul(h, w2) }",
    ),
    "weights that are no constant": (
        ROWS + "{ u = MatMul(x, w)  h = Relu(u)  t = Sigmoid(w2)  s = Mul(t, k)  r = ReduceMean(x)  z = Mul(s, r) "
        "y = MatMul(h, z) }",
        ROWS + "{ u = MatMul(x, w)  h = Relu(u)  r = ReduceMean(x)  z = MatMul(h, w2)  y = Mul(z, r) }",
    ),
    "an activation that no scale passes": (
        ROWS + "{ u = MatMul(x, w)  h = Tanh(u)  y = MatMul(h, w2) }",
        ROWS + "{ u = MatMul(x, w)  h = Relu(u)  y = MatMul(h, w2) }",
    ),
    "a Clip with an end": (
        ROWS + "{ u = MatMul(x, w)  h = Clip(u, no, six)  y = MatMul(h, w2) }",
        ROWS + "{ u = MatMul(x, w)  c = Clip(u, no, six)  h = Mul(c, six)  y = MatMul(h, w2) }",
    ),
    "a normalisation behind": (
        ROWS
        + "{ u = MatMul(x, w)  n = LayerNormalization(u, b)  m = ReduceMean(n)  z = MatMul(u, w2)  y = Add(z, m) }",
        ROWS + "{ u = MatMul(x, w)  z = MatMul(u, w2)  y = Add(z, k2) }",
    ),
    "a sum along the channels": (
        ROWS + "{ u = MatMul(x, w)  h = Relu(u)  m = ReduceMean <axes = [-1]> (h)  z = MatMul(h, w2)  y = Add(z, m) }",
        ROWS + "{ u = MatMul(x, w)  h = Relu(u)  z = MatMul(h, w2)  y = Add(z, k2) }",
    ),
    "rows of an image that may hold more than a channel": (
        "(float[N, 8, 4, H] x) => (float[K, L, 8] y) { c = Conv(x, pw)  f = Reshape(c, wide) "
        "h = Transpose <perm = [0, 2, 1]> (f)  y = MatMul(h, pw2) }",
        "(float[N, 8, 4, H] x) => (float[K, L, 8] y) { c = Conv(x, pw)  f = Reshape(c, rows) "
        "h = Transpose <perm = [0, 2, 1]> (f)  y = MatMul(h, pw2) }",
    ),
    "a square": (
        ROWS + "{ u = MatMul(x, w)  h = Mul(u, u)  y = MatMul(h, w2) }",
        ROWS + "{ u = MatMul(x, w)  s = Sigmoid(x)  h = Mul(u, s)  y = MatMul(h, w2) }",
    ),
    "what a branch inside takes": (
        "(float[4, 16] x, bool c) => (float[4, 8] y) { u = MatMul(x, w)  h = Relu(u)  z = MatMul(h, w2) "
        "i = If (c) <then_branch = t () => (float[4, 16] o) { o = Exp(h) }, "
        "else_branch = e () => (float[4, 16] p) { p = Tanh(h) }>  m = ReduceMean(i)  y = Add(z, m) }",
        "(float[4, 16] x, bool c) => (float[4, 8] y) { u = MatMul(x, w)  h = Relu(u)  z = MatMul(h, w2) "
        "i = If (c) <then_branch = t () => (float[4, 16] o) { o = Exp(x) }, "
        "else_branch = e () => (float[4, 16] p) { p = Tanh(x) }>  m = ReduceMean(i)  y = Add(z, m) }",
    ),
}
CONSTANTS: Mapping[str, Array] = {
    **{"w": W, "w2": W2, "b": random(16), "k": np.float32(2), "k2": random(8)},
    **{"no": np.float32(0), "six": np.float32(6), "pw": POINT, "pw2": random(8, 8)},
    **{"wide": np.array([-1, 8, 2]), "rows": np.array([0, 8, -1])},
}


@pytest.mark.parametrize("why", REFUSED)
def test_nothing_is_scaled_that_constants_do_not_take_up(tmp_path: Path, why: str) -> None:
    refused, taken = REFUSED[why]

    assert not groups_of(load(proto(refused, CONSTANTS), tmp_path))
    assert groups_of(load(proto(taken, CONSTANTS), tmp_path, "twin.onnx"))


class TestScales:
    def test_a_channel_that_holds_nothing_stays_where_it_is(self, tmp_path: Path) -> None:
        gamma = uneven(16)
        gamma[3] = 0
        weights = {"g": gamma, "b": np.zeros(16, np.float32), "w2": W2}
        model = load(proto(FOLDS["a LayerNorm's scale and shift"][0], weights), tmp_path)

        (repair,) = found_repairs(sight(model, [random(4, 16)]))

        scales = read_scales(repair.scales, 16)
        assert scales[3] == 0
        assert scales[1] < 0
        assert scales[13] < 0

    def test_no_constant_leaves_the_range_of_normal_numbers(self, tmp_path: Path) -> None:
        gamma = uneven(16)
        gamma[5] = 3e-38  # and its weights are as large, so that a rule would move it far
        weights = W2.copy()
        weights[5] *= 1e30
        weights[1, 0] = 1.5e-38
        held = {"g": gamma, "b": np.zeros(16, np.float32), "w2": weights}
        model, x = load(proto(FOLDS["a LayerNorm's scale and shift"][0], held), tmp_path), random(4, 16)

        for choice in MIGRATE.choices(sight(model, [x])).values():
            for one in choice:
                repaired = repaired_graph(model.onnx, [one.repair])
                assert np.array_equal(outputs(repaired, x)[0], outputs(model.onnx, x)[0])
                for value in repaired.graph.initializers.values():
                    assert value.const_value is not None
                    numbers = np.abs(value.const_value.numpy())
                    assert np.all((numbers == 0) | (numbers >= np.finfo(np.float32).tiny))

    def test_the_samples_that_are_shown_are_all_that_scales_hang_on(self, tmp_path: Path) -> None:
        model = made(tmp_path, "factors and shifts by elements")
        shown = [random(4, 16) for _ in range(3)]

        assert found_repairs(sight(model, shown)) == found_repairs(sight(model, shown))
        others = found_repairs(sight(model, [one * uneven(16) for one in shown]))
        assert others != found_repairs(sight(model, shown))

    def test_without_a_look_at_channels_nothing_is_found(self, tmp_path: Path) -> None:
        model = made(tmp_path, "a LayerNorm's scale and shift")
        blind = Sight(model, {}, frozenset(), Precision.INT8.number_format)

        assert is_repairable(model, Precision.INT8)
        assert found_repairs(blind) == ()

    @given(st.lists(st.integers(-12, 12), min_size=1, max_size=40))
    def test_as_texts_are_read_again(self, scales: list[int]) -> None:
        array = np.array(scales, np.int32)

        assert np.array_equal(read_scales(scale_texts(array), array.size), array)

    def test_of_hundreds_of_channels_take_a_line_for_each_power(self) -> None:
        assert scale_texts(np.repeat(np.array([0, -1, 2], np.int32), 256)) == (("256-511", -1), ("512-767", 2))


class TestApplying:
    def test_refuses_scales_that_are_none_of_its_channels(self, tmp_path: Path) -> None:
        model = made(tmp_path, "a LayerNorm's scale and shift")
        (group,) = groups_of(model)
        repair = group.repair(some_scales(group, 0))

        for scales, why in [
            ((("0-16", 1),), "of 16"),
            ((("0-3", 1), ("2", 2)), "two scales"),
            ((("x", 1),), "no exponent"),
            ((("0", 99),), "no exponent"),
        ]:
            with pytest.raises(PlanError, match=why):
                repaired_graph(model.onnx, [replace(repair, scales=scales)])

    @pytest.mark.parametrize(
        ("changed", "why"),
        [
            (lambda repair: replace(repair, nodes=("nowhere", *repair.nodes[1:])), "has no node 'nowhere'"),
            (lambda repair: replace(repair, nodes=repair.nodes[:1]), "not scaled by its nodes"),
            (lambda repair: replace(repair, nodes=(*repair.nodes, "node_of_x~channels")), "cannot be scaled"),
        ],
    )
    def test_refuses_a_graph_that_is_another(
        self, tmp_path: Path, changed: Callable[[object], object], why: str
    ) -> None:
        model = made(tmp_path, "a LayerNorm's scale and shift")
        (group,) = groups_of(model)

        with pytest.raises(PlanError, match=why):
            repaired_graph(model.onnx, [changed(group.repair(some_scales(group, 0)))])  # type: ignore[list-item]

    def test_leaves_the_model_as_it_was(self, tmp_path: Path) -> None:
        model = load(proto(TestComputedTwice.RESIDUAL, TestComputedTwice.WEIGHTS), tmp_path)
        before = ir.to_proto(model.onnx).SerializeToString()

        repaired_graph(model.onnx, [group.repair(some_scales(group, 0)) for group in groups_of(model)])

        assert ir.to_proto(model.onnx).SerializeToString() == before
