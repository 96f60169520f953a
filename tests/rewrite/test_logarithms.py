"""Logarithms of sums of squares and of exponentials: within 1e-5 in float32, and nothing that leaves half."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from repaired import HALF, Array, every_value, found, halved, made, run

from precisionlab.model import Model
from precisionlab.model.repair import Exactness
from precisionlab.rewrite.repairs import repaired_model


def random(*shape: int, scale: float = 1.0, seed: int = 0) -> Array:
    return (np.random.default_rng(seed).standard_normal(shape) * scale).astype(np.float32)


NUMBERS: dict[str, Any] = {
    "axes": np.array([-1]),
    "first": np.array([1]),
    "small": np.float32(1e-10),
    "two": np.float32(2),
    "ten": np.float32(np.log(10)),
    "one": np.float32(1),
    "bank": np.abs(random(20, 33, scale=0.01)),
    "turned": np.abs(random(33, 20, scale=0.01)),
}
SPECTRUM = "(float[2,33,12] re, float[2,33,12] im) => (float[2,20,12] y) "
FRONTS = {
    "a filter bank in front of a floor that is added": (
        SPECTRUM,
        "a = Mul(re, re) b = Mul(im, im) p = Add(a, b) m = MatMul(bank, p) s = Add(m, small) y = Log(s)",
    ),
    "log10 of the larger of a filter bank and a floor": (
        SPECTRUM,
        "a = Pow(re, two) b = Pow(im, two) p = Add(a, b) m = MatMul(bank, p) s = Max(m, small) l = Log(s) "
        "y = Div(l, ten)",
    ),
    "a clipped filter bank behind a transpose": (
        SPECTRUM.replace("20,12] y", "12,20] y"),
        "a = Mul(re, re) b = Mul(im, im) p = Add(a, b) t = Transpose <perm=[0,2,1]> (p) m = MatMul(t, turned) "
        "s = Clip(m, small) y = Log(s)",
    ),
    "the parts in the last axis": (
        "(float[2,33,12,2] re) => (float[2,20,12] y) ",
        "a = Mul(re, re) p = ReduceSum <keepdims=0> (a, axes) m = MatMul(bank, p) s = Add(small, m) y = Log(s)",
    ),
    "a mean over the frames": (
        SPECTRUM.replace("20,12] y", "12] y"),
        "a = Mul(re, re) b = Mul(im, im) p = Add(a, b) m = ReduceSum <keepdims=0> (p, first) d = Mul(m, two) "
        "s = Add(small, d) y = Log(s)",
    ),
}


def model_of(folder: Path, body: str) -> Model:
    words = set(body.replace("(", " ").replace(")", " ").replace(",", " ").split())
    return made(folder, body, {name: value for name, value in NUMBERS.items() if name in words})


def check(model: Model, kind: str, inputs: dict[str, Array], *others: dict[str, Array]) -> None:
    """The repair of this kind is right in float32 on all inputs, and in half on the first, where the model is not."""
    (repair,) = found(model, inputs)
    repaired = repaired_model(model, (repair,))

    assert (repair.kind, repair.exactness) == (kind, Exactness.ROUNDING)
    for sample in (inputs, *others):
        was, now = run(model.onnx, sample)["y"], run(repaired.onnx, sample)["y"]
        assert was.shape == now.shape
        np.testing.assert_allclose(now, was, rtol=1e-5, atol=1e-5 * np.abs(was).max())
    true = run(model.onnx, inputs)["y"]
    before, after = (np.abs(run(halved(one), inputs)["y"] - true) for one in (model, repaired))
    assert not np.isfinite(before).all()
    assert after.max() < 0.02 * np.abs(true).max()
    assert max(float(np.abs(value).max()) for value in every_value(repaired, inputs).values()) < HALF.largest


@pytest.mark.parametrize("kind", FRONTS)
def test_a_front_end_takes_the_logarithm_of_quotients(tmp_path: Path, kind: str) -> None:
    model = model_of(tmp_path, " { ".join(FRONTS[kind]) + " }")
    names = [value.name for value in model.inputs]
    shapes = {value.name: tuple(int(size) for size in value.shape or ()) for value in model.inputs}

    def spectrum(scale: float) -> dict[str, Array]:
        return {name: random(*shapes[name], scale=scale, seed=seed) for seed, name in enumerate(names)}

    check(model, "log_hypot", spectrum(3000), spectrum(1e-3), spectrum(0), spectrum(1e5))


SUMS = {
    "logsumexp": "e = Exp(x) s = ReduceSum(e, axes) y = Log(s)",
    "logsumexp without the axis": "e = Exp(x) s = ReduceSum <keepdims=0> (e, axes) y = Log(s)",
    "softplus": "e = Exp(x) s = Add(e, one) y = Log(s)",
    "the logarithm of two exponentials": "n = Neg(x) e = Exp(x) f = Exp(n) s = Add(e, f) y = Log(s)",
    "softmax": "e = Exp(x) s = ReduceSum(e, axes) y = Div(e, s)",
}
SHAPES = {"logsumexp": "[4,1]", "logsumexp without the axis": "[4]"}


@pytest.mark.parametrize("opset", [17, 18])
@pytest.mark.parametrize("kind", SUMS)
def test_exponentials_are_of_what_lies_below_the_largest(tmp_path: Path, kind: str, opset: int) -> None:
    body = f"(float[4,16] x) => (float{SHAPES.get(kind, '[4,16]')} y) {{ {SUMS[kind]} }}"
    words = set(body.replace("(", " ").replace(")", " ").replace(",", " ").split())
    model = made(tmp_path, body, {name: value for name, value in NUMBERS.items() if name in words}, opset=opset)

    check(model, "shift_exponential", {"x": random(4, 16, scale=15)}, {"x": random(4, 16, scale=1e-3)})


@pytest.mark.parametrize("least", [-np.inf, -3e38, -1e5])
def test_a_row_of_which_nothing_is_left_is_what_it_was(tmp_path: Path, least: float) -> None:
    body = "(float[4,16] x) => (float[4,1] y) { e = Exp(x) s = ReduceSum(e, axes) y = Log(s) }"
    model, inputs = model_of(tmp_path, body), {"x": random(4, 16, scale=15)}
    (repair,) = found(model, inputs)
    rows = inputs["x"].copy()
    rows[1] = least

    was, now = (run(one.onnx, {"x": rows})["y"] for one in (model, repaired_model(model, (repair,))))

    np.testing.assert_allclose(now, was, rtol=1e-5)


def test_exponentials_that_are_taken_otherwise_stay(tmp_path: Path) -> None:
    body = "(float[4,16] x) => (float[4,16] y) { e = Exp(x) s = ReduceMax <axes=[-1]> (e) y = Div(e, s) }"
    model = model_of(tmp_path, body)

    assert found(model, {"x": random(4, 16, scale=15)}) == ()


def test_nothing_is_found_where_float32_itself_overflows(tmp_path: Path) -> None:
    body = "(float[4,16] x) => (float[4,16] y) { e = Exp(x) s = Add(e, one) y = Log(s) }"
    model = model_of(tmp_path, body)

    assert found(model, {"x": random(4, 16, scale=100)}) == ()
