"""Where a scale goes, and where it ends: what is repaired by powers of two, and that no bit of float32 changes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from repaired import HALF, Array, every_value, found, made, run

from precisionlab.model import Model
from precisionlab.model.repair import Exactness
from precisionlab.rewrite.repairs import repaired_model


def random(*shape: int, scale: float = 1.0, seed: int = 0) -> Array:
    return (np.random.default_rng(seed).standard_normal(shape) * scale).astype(np.float32)


X = "(float[8,64] x) => (float[8,16] y) "
LAST = "y = MatMul(n, last)"
NUMBERS: dict[str, Any] = {
    "axes": np.array([-1]),
    "eps": np.float32(1e-6),
    "tiny": np.float32(1e-12),
    "two": np.float32(2),
    "less_half": np.float32(-0.5),
    "sixteenth": np.float32(1 / 16),
    "far": random(64, 64, scale=9000),
    "gain": random(64, 64, scale=60, seed=1),
    "last": random(64, 16, scale=0.1, seed=2),
    "small": random(64, 16, scale=1e-5, seed=3),
    "bias": random(64, seed=4),
    "ones": np.ones(64, np.float32),
    "spread": np.abs(random(64, seed=5)) + 0.5,
    "wide": random(64, scale=2000, seed=6),
}
BROKEN = {
    "a variance as the difference of two means": (
        "h = MatMul(x, gain) mu = ReduceMean <axes=[-1]> (h) q = Mul(h, h) ms = ReduceMean <axes=[-1]> (q) "
        "mm = Mul(mu, mu) v = Sub(ms, mm) ve = Add(v, eps) s = Sqrt(ve) d = Sub(h, mu) n = Div(d, s)",
        "scale_sum_of_squares",
    ),
    "a complex number's size": (
        "re = MatMul(x, gain) k = Neg(re) im = Add(k, bias) a = Mul(re, re) b = Pow(im, two) p = Add(a, b) n = Sqrt(p)",
        "scale_sum_of_squares",
    ),
    "a cosine": (
        "g = MatMul(x, gain) h = Softplus(g) p = Mul(h, g) s = ReduceSum(p, axes) "
        "hh = Mul(h, h) sh = ReduceSum(hh, axes) "
        "nh = Sqrt(sh) xx = Mul(g, g) sx = ReduceSum(xx, axes) nx = Sqrt(sx) nn = Mul(nh, nx) m = Max(nn, tiny) "
        "c = Div(s, m) n = Mul(c, x)",
        "scale_product",
    ),
    "scores before they are scaled": (
        "h = MatMul(x, gain) z = Reshape(h, by) t = Transpose <perm=[1,0]> (z) s = MatMul(z, t) r = Transpose (s) "
        "c = Mul(r, sixteenth) w = Mul(c, eps) p = Softmax(w) n = MatMul(p, x)",
        "scale_pair",
    ),
    "a residual stream in front of a normalisation": (
        "a = MatMul(x, far) b = Relu(x) c = MatMul(b, far) d = Add(c, bias) e = Add(a, d) "
        "n = LayerNormalization <axis=-1> (e, ones, bias)",
        "scale_pair",
    ),
    "an L2 normalisation of what is far too large": (
        "h = MatMul(x, far) n = LpNormalization <axis=-1, p=2> (h)",
        "scale_pair",
    ),
}


def bits(model: Model, other: Model, inputs: dict[str, Array]) -> bool:
    was, now = run(model.onnx, inputs), run(other.onnx, inputs)
    return was.keys() == now.keys() and all(np.array_equal(was[name], now[name], equal_nan=True) for name in was)


def largest(model: Model, inputs: dict[str, Array]) -> float:
    return max(float(np.abs(value).max()) for value in every_value(model, inputs).values())


def model_of(folder: Path, body: str, **more: Any) -> Model:
    numbers = {**NUMBERS, "by": np.array([8, 64]), **more}
    words = set(body.replace("(", " ").replace(")", " ").replace(",", " ").split())
    return made(folder, body, {name: value for name, value in numbers.items() if name in words})


@pytest.mark.parametrize("kind", BROKEN)
def test_what_breaks_stays_within_half_and_gives_the_same_bits(tmp_path: Path, kind: str) -> None:
    body, name = BROKEN[kind]
    model, inputs = model_of(tmp_path, f"{X} {{ {body} {LAST} }}"), {"x": random(8, 64, seed=9)}

    repairs = found(model, inputs)
    repaired = repaired_model(model, repairs)

    assert name in {one.kind for one in repairs}
    assert {one.exactness for one in repairs} == {Exactness.BITWISE}
    assert bits(model, repaired, inputs)
    assert largest(model, inputs) > HALF.largest > largest(repaired, inputs)


@pytest.mark.parametrize("activation", ["Relu", "Abs", "Identity"])
def test_a_batch_normalisation_between_two_products_lets_the_scale_pass(tmp_path: Path, activation: str) -> None:
    body = (
        f"h = MatMul(x, gain) b = BatchNormalization(h, wide, bias, bias, spread) n = {activation}(b) "
        "y = MatMul(n, small)"
    )
    model, inputs = model_of(tmp_path, f"{X} {{ {body} }}"), {"x": random(8, 64, seed=9)}

    repaired = repaired_model(model, found(model, inputs))

    assert bits(model, repaired, inputs)
    assert largest(model, inputs) > HALF.largest > largest(repaired, inputs)
    assert len(list(repaired.onnx.graph)) == len(list(model.onnx.graph))


def test_squares_that_vanish_are_scaled_up(tmp_path: Path) -> None:
    body = "q = Mul(x, x) s = ReduceSum(q, axes) r = Sqrt(s) n = Div(x, r)"
    model, inputs = model_of(tmp_path, f"{X} {{ {body} {LAST} }}"), {"x": random(8, 64, scale=1e-4)}

    (repair,) = found(model, inputs)

    assert dict(repair.scales)["x"] > 0
    assert bits(model, repaired_model(model, (repair,)), inputs)


def test_an_output_that_is_scaled_is_restored_under_its_name(tmp_path: Path) -> None:
    body = "(float[8,64] x) => (float[8,1] y) { h = MatMul(x, gain) q = Mul(h, h) s = ReduceSum(q, axes) y = Sqrt(s) }"
    model, inputs = model_of(tmp_path, body), {"x": random(8, 64, seed=9)}

    (repair,) = found(model, inputs)
    repaired = repaired_model(model, (repair,))

    assert bits(model, repaired, inputs)
    assert [value.name for value in repaired.onnx.graph.outputs] == ["y"]


def test_a_power_that_is_no_product_promises_no_bits(tmp_path: Path) -> None:
    body = "h = MatMul(x, gain) q = Mul(h, h) m = ReduceMean <axes=[-1]> (q) e = Add(m, eps) r = Pow(e, less_half)"
    model = model_of(tmp_path, f"{X} {{ {body} n = Mul(h, r) {LAST} }}")

    (repair,) = found(model, {"x": random(8, 64, seed=9)})

    assert repair.exactness is Exactness.ROUNDING


def test_what_is_added_to_a_product_is_scaled_with_it_or_nothing_is(tmp_path: Path) -> None:
    body = (
        "h = MatMul(x, gain) q = Mul(h, h) s = Gemm <alpha=0.5, beta=2.0> (x, far, q) m = Mul(s, eps) n = Mul(m, eps)"
    )
    model, inputs = model_of(tmp_path, f"{X} {{ {body} {LAST} }}"), {"x": random(8, 64, seed=9)}

    for repair in found(model, inputs):
        assert bits(model, repaired_model(model, (repair,)), inputs)


def test_no_scale_goes_into_a_subgraph(tmp_path: Path) -> None:
    body = (
        "(float[8,64] x, bool c) => (float[8,64] y) { h = MatMul(x, gain) q = Mul(h, h) "
        "s = ReduceMean <axes=[-1]> (q) k = If(c) <"
        "then_branch = t () => (float[8,1] a) { a = Sqrt(s) }, else_branch = e () => (float[8,1] b) { b = Sqrt(s) }> "
        "z = Sqrt(s) r = Div(h, z) y = Div(r, k) }"
    )
    model = model_of(tmp_path, body)
    for c in (True, False):
        inputs = {"x": random(8, 64, scale=0.5, seed=9), "c": np.array(c)}
        for repair in found(model, inputs):
            assert bits(model, repaired_model(model, (repair,)), inputs)


def test_limits_that_are_attributes_are_not_scaled_past(tmp_path: Path) -> None:
    body = "h = MatMul(x, far) r = Clip <min=-1e5, max=1e5> (h) y = MatMul(r, small)"
    numbers = {"far": NUMBERS["far"], "small": NUMBERS["small"]}
    model = made(tmp_path, f"{X} {{ {body} }}", numbers, opset=9)

    assert found(model, {"x": random(8, 64)}) == ()


def test_limits_that_are_inputs_are_scaled_too(tmp_path: Path) -> None:
    body = "h = MatMul(x, far) r = Clip(h, low, high) y = MatMul(r, small)"
    model = model_of(tmp_path, f"{X} {{ {body} }}", low=np.float32(-1e5), high=np.float32(1e5))
    inputs = {"x": random(8, 64)}

    repaired = repaired_model(model, found(model, inputs))

    assert bits(model, repaired, inputs)
    assert largest(repaired, inputs) < HALF.largest


@pytest.mark.parametrize("scale", [1e30, 1e-38])
def test_nothing_is_scaled_where_float32_itself_over_or_underflows(tmp_path: Path, scale: float) -> None:
    body = "q = Mul(x, x) s = ReduceSum(q, axes) r = Sqrt(s) n = Div(x, r)"
    model = model_of(tmp_path, f"{X} {{ {body} {LAST} }}")

    assert found(model, {"x": random(8, 64, scale=scale)}) == ()


def test_of_repairs_of_one_place_the_one_that_mends_more_is_found_alone(tmp_path: Path) -> None:
    body = (
        "(float[8,64] a, float[8,64] b) => (float[8,1] y) { p = Mul(a, b) s = ReduceSum(p, axes) "
        "aa = Mul(a, a) sa = ReduceSum(aa, axes) na = Sqrt(sa) bb = Mul(b, b) sb = ReduceSum(bb, axes) nb = Sqrt(sb) "
        "n = Mul(na, nb) m = Max(n, tiny) y = Div(s, m) }"
    )
    model = model_of(tmp_path, body)
    inputs = {"a": random(8, 64, scale=300), "b": random(8, 64, scale=330, seed=1)}

    repairs = found(model, inputs)
    repaired = repaired_model(model, repairs)

    assert {(one.kind, one.nodes[0]) for one in repairs} == {
        ("scale_product", "node_of_p"),
        ("scale_sum_of_squares", "node_of_bb"),
    }
    assert bits(model, repaired, inputs)
    assert largest(repaired, inputs) < HALF.largest
