"""What a layer in half becomes with its sums in half: each operator against its products added up by themselves."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from models import ROUNDED, Array, Flows, bits, load, plan_for, proto

from precisionlab.backends.sums.operands import product_of
from precisionlab.backends.sums.products import matmul
from precisionlab.calibration.table import CalibrationTable, Range
from precisionlab.model import Model
from precisionlab.plan.arithmetic import TENSORRT, Arithmetic, Constants, Sums
from precisionlab.plan.plan import PrecisionPlan
from precisionlab.precision import Precision
from precisionlab.rewrite.half_sums import folded_scale
from precisionlab.rewrite.observe import Flow

FP32, FP16, BF16, INT8 = Precision.FP32, Precision.FP16, Precision.BF16, Precision.INT8
HALF, SINGLE = Arithmetic(sums=Sums.HALF), Arithmetic(sums=Sums.HALF_SINGLE)
LONG = 200
"""Products of a sum: enough for its roundings to differ from float32's."""


def half(array: Array) -> Array:
    """Rounded to half, in float32 (or the double that it was)."""
    with np.errstate(over="ignore"):
        return array.astype(np.float16).astype(np.float64 if array.dtype == np.float64 else np.float32)


def normal(*shape: int, seed: int = 0, scale: float = 1.0) -> Array:
    return (np.random.default_rng(seed).standard_normal(shape) * scale).astype(np.float32)


@dataclass(frozen=True)
class Case:
    """A model with a layer, and its input."""

    model: Model
    x: Mapping[str, Array]

    def variant(
        self, arithmetic: Arithmetic = HALF, plan: PrecisionPlan | None = None, table: CalibrationTable | None = None
    ) -> dict[str, Array]:
        """What the variant gives, by name."""
        flows = Flows(self.model, plan or plan_for(self.model, FP16), table, arithmetic)
        return {name: value for (flow, name), value in flows(**self.x).items() if flow is Flow.VARIANT}

    def reference(self, arithmetic: Arithmetic = HALF) -> dict[str, Array]:
        flows = Flows(self.model, plan_for(self.model, FP16), None, arithmetic)
        return {name: value for (flow, name), value in flows(**self.x).items() if flow is Flow.REFERENCE}


def case(body: str, weights: Mapping[str, Array], folder: Path, **x: Array) -> Case:
    return Case(load(proto(body, weights), folder), x)


def convolved(op_type: str, x: Array, w: Array, sums: Sums = Sums.HALF, **attributes: Any) -> Array:
    """The products alone, added up in half."""
    inputs = ir.Value(name="x"), ir.Value(name="w")
    node = ir.Node("", op_type, inputs, ir.convenience.convert_attributes(attributes))
    return product_of(node, sums)(half(x), half(w))


# Gemm and MatMul


@pytest.mark.parametrize("turned", [(0, 0), (1, 0), (0, 1), (1, 1)])
@pytest.mark.parametrize("factors", ["", "alpha = 0.3", "beta = -1.7", "alpha = 0.3, beta = -1.7"])
@pytest.mark.parametrize("arithmetic", [HALF, SINGLE], ids=lambda arithmetic: arithmetic.sums.value)
def test_a_gemm_adds_up_in_half_and_scales_and_shifts_in_float32(
    tmp_path: Path, turned: tuple[int, int], factors: str, arithmetic: Arithmetic
) -> None:
    a, b, c = normal(5, LONG), normal(LONG, 7, seed=1), normal(7, seed=2)
    given = [a.T.copy() if turned[0] else a, b.T.copy() if turned[1] else b]
    shape = ",".join(map(str, given[0].shape))
    attributes = ", ".join(filter(None, [f"transA = {turned[0]}, transB = {turned[1]}", factors]))
    body = f"(float[{shape}] x) => (float[5,7] y) {{ y = Gemm <{attributes}> (x, b, c) }}"
    found = case(body, {"b": given[1], "c": c}, tmp_path, x=given[0]).variant(arithmetic)["y"]
    alpha, beta = half(np.float32([0.3 if "alpha" in factors else 1, -1.7 if "beta" in factors else 1]))
    wanted = half(alpha * matmul(half(a), half(b), arithmetic.sums) + beta * half(c))
    assert np.array_equal(found, wanted)
    assert not np.array_equal(found, half(alpha * (half(a) @ half(b)) + beta * half(c))), "the same as float32's"


@pytest.mark.parametrize("c", [None, (), (1,), (5, 1), (5, 7), (1, 7)], ids=str)
def test_what_a_gemm_adds_is_spread_as_onnx_says(tmp_path: Path, c: tuple[int, ...] | None) -> None:
    a, b = normal(5, LONG), normal(LONG, 7, seed=1)
    addend = None if c is None else np.asarray(normal(*c, seed=2), np.float32)
    body = f"(float[5,{LONG}] x) => (float[5,7] y) {{ y = Gemm (x, b{'' if c is None else ', c'}) }}"
    weights = {"b": b} if addend is None else {"b": b, "c": addend}
    found = case(body, weights, tmp_path, x=a).variant()["y"]
    product = matmul(half(a), half(b), Sums.HALF)
    assert np.array_equal(found, product if addend is None else half(product + half(addend)))


def test_the_gemm_of_a_double_model_is_scaled_in_double(tmp_path: Path) -> None:
    a, b, c = (normal(*shape, seed=i).astype(np.float64) for i, shape in enumerate([(5, LONG), (LONG, 7), (7,)]))
    body = f"(double[5,{LONG}] x) => (double[5,7] y) {{ y = Gemm <alpha = 0.5, beta = 2.0> (x, b, c) }}"
    found = case(body, {"b": b, "c": c}, tmp_path, x=a).variant()["y"]
    product = matmul(half(a).astype(np.float32), half(b).astype(np.float32), Sums.HALF).astype(np.float64)
    assert found.dtype == np.float64
    assert np.array_equal(found, half(0.5 * product + 2 * half(c)))


def test_a_matmul_in_a_double_model_adds_up_in_half_too(tmp_path: Path) -> None:
    a, b = normal(5, LONG).astype(np.float64), normal(LONG, 7, seed=1).astype(np.float64)
    body = f"(double[5,{LONG}] x) => (double[5,7] y) {{ y = MatMul(x, b) }}"
    found = case(body, {"b": b}, tmp_path, x=a).variant()["y"]
    assert found.dtype == np.float64
    assert np.array_equal(found, matmul(half(a).astype(np.float32), half(b).astype(np.float32), Sums.HALF))


@pytest.mark.parametrize(
    ("left", "right"), [((2, 3, 5, LONG), (LONG, 7)), ((2, 1, 5, LONG), (3, LONG, 7)), ((LONG,), (2, LONG, 7))], ids=str
)
def test_a_product_of_two_activations_is_spread_as_onnx_says(
    tmp_path: Path, left: tuple[int, ...], right: tuple[int, ...]
) -> None:
    a, b = normal(*left), normal(*right, seed=1)
    shapes = [",".join(map(str, shape)) for shape in (left, right, np.matmul(a, b).shape)]
    body = (
        f"(float[{shapes[0]}] p, float[{shapes[1]}] q) => (float[{shapes[2]}] y) {{ a = Neg(p) b = Neg(q) "
        "y = MatMul(a, b) }"
    )
    found = case(body, {}, tmp_path, p=a, q=b).variant()["y"]
    assert np.array_equal(found, matmul(half(-a), half(-b), Sums.HALF))


# Convolutions


@pytest.mark.parametrize(
    ("op_type", "x", "w", "attributes"),
    [
        ("Conv", (2, 24, 9), (5, 24, 3), {"pads": [1, 1], "strides": [2]}),
        ("Conv", (1, 12, 7, 7), (6, 12, 3, 3), {"pads": [1, 1, 1, 1]}),
        ("Conv", (1, 12, 7, 7), (12, 1, 3, 3), {"group": 12}),
        ("Conv", (1, 8, 4, 5, 4), (3, 8, 2, 3, 2), {}),
        ("ConvTranspose", (1, 24, 9), (24, 5, 3), {"strides": [2]}),
        ("ConvTranspose", (1, 24, 5, 5), (24, 4, 3, 3), {"strides": [2, 2], "pads": [1, 1, 1, 1]}),
        ("ConvTranspose", (1, 24, 5, 5), (24, 2, 3, 3), {"group": 3}),
        ("ConvTranspose", (1, 8, 3, 4, 3), (8, 3, 2, 2, 2), {"strides": [1, 2, 1]}),
    ],
    ids=str,
)
@pytest.mark.parametrize("biased", [False, True])
def test_a_convolution_adds_up_in_half_and_its_bias_in_float32(
    tmp_path: Path, op_type: str, x: tuple[int, ...], w: tuple[int, ...], attributes: dict[str, Any], biased: bool
) -> None:
    image, weight = normal(*x), normal(*w, seed=1)
    product = convolved(op_type, image, weight, **attributes)
    weights = {"w": weight}
    if biased:
        weights["b"] = normal(product.shape[1], seed=2)
    inputs = [helper_value("x", x)]
    node = onnx.helper.make_node(op_type, ["x", *weights], ["y"], "layer", **attributes)
    constants = [onnx.numpy_helper.from_array(value, name) for name, value in weights.items()]
    graph = onnx.helper.make_graph([node], "g", inputs, [helper_value("y", product.shape)], constants)
    saved = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8)
    found = Case(load(saved, tmp_path), {"x": image}).variant()["y"]
    wanted = half(product + half(weights["b"]).reshape(-1, *[1] * (len(x) - 2))) if biased else product
    assert np.array_equal(found, wanted)


def helper_value(name: str, shape: tuple[int, ...]) -> onnx.ValueInfoProto:
    return onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape)


NORM = (
    '(float[1,24,5,5] x) => (float[1,6,5,5] y) { ["conv"] c = Conv <pads = [1,1,1,1]> (x, w, b) '
    '["norm"] n = BatchNormalization (c, gamma, beta, mean, variance) ["relu"] y = Relu(n) }'
)


def norm(gamma: Array, variance: Array | None = None) -> dict[str, Array]:
    """The weights of NORM."""
    return {
        "w": normal(6, 24, 3, 3, seed=1, scale=0.1),
        "b": normal(6, seed=2),
        "gamma": np.asarray(gamma, np.float32),
        "beta": normal(6, seed=3),
        "mean": normal(6, seed=4),
        "variance": np.full(6, 2.0, np.float32) if variance is None else np.asarray(variance, np.float32),
    }


def normalized(x: Array, weights: Mapping[str, Array], *, relu: bool = True) -> Array:
    """NORM with the scale in the weight: a sum of scaled products in half, and the rest in float64."""
    w = {name: value.astype(np.float64) for name, value in weights.items()}
    scale = (w["gamma"] / np.sqrt(w["variance"] + 1e-5)).astype(np.float32)
    folded = half((weights["w"] * scale.reshape(-1, 1, 1, 1)).astype(np.float32))
    summed = convolved("Conv", x, folded, pads=[1, 1, 1, 1]).astype(np.float64)
    shift = w["beta"] + (half(weights["b"]) - w["mean"]) * scale
    found = summed + shift.reshape(-1, 1, 1)
    return np.maximum(found, 0) if relu else found


@pytest.mark.parametrize(
    "gamma",
    [[1, 2, 0.5, 3, 1, 1], [-1, 2, -0.5, 3, -1e-3, 1], [1, 300, 1e-2, 1, 1, -40]],
    ids=["above 0", "below 0 too", "large and small"],
)
def test_the_scale_of_a_batch_normalization_is_in_the_weight_when_products_are_added_up(
    tmp_path: Path, gamma: list[float]
) -> None:
    x, weights = normal(1, 24, 5, 5), norm(np.float32(gamma))
    found = case(NORM, weights, tmp_path, x=x).variant()["y"]
    wanted = normalized(x, weights)
    assert np.all(np.abs(found - wanted) <= 2.0**-10 * np.abs(wanted) + 2e-5 * np.abs(wanted).max())


@pytest.mark.parametrize(
    ("gamma", "variance"),
    [([0] * 6, None), ([1e-39] * 6, None), ([1e-30] * 6, [1e12] * 6), ([1] * 6, [1e38] * 6)],
    ids=["zero", "too small to be divided by", "smaller yet", "a vast variance"],
)
@pytest.mark.parametrize("arithmetic", [HALF, replace(HALF, constants=Constants.ROUNDED)], ids=["clamped", "rounded"])
def test_a_scale_that_leaves_nothing_gives_the_shift_and_no_nan(
    tmp_path: Path, gamma: list[float], variance: list[float] | None, arithmetic: Arithmetic
) -> None:
    weights = norm(np.float32(gamma), None if variance is None else np.float32(variance))
    found = case(NORM, weights, tmp_path, x=normal(1, 24, 5, 5)).variant(arithmetic)["y"]
    wanted = np.broadcast_to(np.maximum(weights["beta"], 0).reshape(-1, 1, 1), found.shape)
    assert np.allclose(found, half(wanted), atol=2e-4)


def test_a_scale_that_makes_the_sum_pass_half_makes_it_infinite_although_the_conv_alone_fits(tmp_path: Path) -> None:
    """What fits without the scale and with it in the end may not fit on the way, as it is in the weight."""
    weights = norm(np.full(6, 1e4))
    x = np.full((1, 24, 5, 5), 5, np.float32)
    weights["w"] = np.float32([1, -1] * 12).reshape(1, 24, 1, 1) * np.repeat([[2.0], [-1], [-1]], 3, axis=1)
    weights["w"] = np.tile(np.broadcast_to(weights["w"], (1, 24, 3, 3)), (6, 1, 1, 1)).astype(np.float32)
    weights["w"][:, ::2] = np.abs(weights["w"][:, ::2])
    found = case(NORM, weights, tmp_path, x=x)
    assert np.isfinite(found.reference()["y"]).all()
    assert np.isinf(found.variant()["y"]).any()


def test_one_scale_is_folded_for_each_conv_of_its_own(tmp_path: Path) -> None:
    """Two convolutions of one weight, with a normalisation each: each has its own folded weight."""
    body = (
        "(float[1,6,5,5] x) => (float[1,6,5,5] y, float[1,6,5,5] z) { c = Conv <pads = [1,1,1,1]> (x, w) "
        "y = BatchNormalization (c, one, zero, zero, unit) d = Conv <pads = [1,1,1,1]> (x, w) "
        "z = BatchNormalization (d, many, zero, zero, unit) }"
    )
    weights = {
        "w": normal(6, 6, 3, 3, seed=1),
        "one": np.ones(6, np.float32),
        "many": np.float32([1, -1, 3, 0.7, 1e-2, 100]),
        "zero": np.zeros(6, np.float32),
        "unit": np.full(6, 1 - 1e-5, np.float32),
    }
    x = normal(1, 6, 5, 5)
    found = case(body, weights, tmp_path, x=x).variant()
    for name, scale in (("y", "one"), ("z", "many")):
        folded = (weights["w"] * weights[scale].reshape(-1, 1, 1, 1)).astype(np.float32)
        wanted = convolved("Conv", x, folded, pads=[1, 1, 1, 1])
        assert np.allclose(found[name], wanted, rtol=2e-3, atol=1e-3), name


def test_only_a_normalisation_right_behind_a_conv_with_a_constant_weight_is_folded(tmp_path: Path) -> None:
    weights = norm(np.float32([2, -2, 0, np.inf, 1e-38, 5]))
    nodes = [*ir.from_proto(proto(NORM, weights)).graph]
    scale = folded_scale(nodes)
    assert scale is not None
    assert scale.dtype == np.float32
    assert np.allclose(scale, np.float32([2, -2, 1, 1, 1, 5]) / np.sqrt([2, 2, 1, 1, 1, 2]), rtol=1e-4)
    assert folded_scale(nodes[:1]) is None
    assert folded_scale([nodes[0], nodes[2]]) is None
    transposed = proto(NORM.replace("Conv ", "ConvTranspose "), weights)
    assert folded_scale([*ir.from_proto(transposed).graph]) is None


def test_a_weight_that_two_layers_share_is_rounded_for_both(tmp_path: Path) -> None:
    a, w = normal(4, 64), normal(64, 64, seed=1)
    body = "(float[4,64] x) => (float[4,64] y, float[4,64] z) { y = MatMul(x, w) z = MatMul(y, w) }"
    found = case(body, {"w": w}, tmp_path, x=a).variant()
    assert np.array_equal(found["y"], matmul(half(a), half(w), Sums.HALF))
    assert np.array_equal(found["z"], matmul(found["y"], half(w), Sums.HALF))


def test_weights_beyond_half_are_clamped_or_infinite_as_the_arithmetic_says(tmp_path: Path) -> None:
    a, w = np.full((1, 2), 1e-3, np.float32), np.float32([[1e6], [1e-9]])
    one = case("(float[1,2] x) => (float[1,1] y) { y = MatMul(x, w) }", {"w": w}, tmp_path, x=a)
    assert one.variant()["y"] == matmul(half(a), np.float32([[65504], [2.0**-24]]), Sums.HALF)
    assert np.isinf(one.variant(replace(ROUNDED, sums=Sums.HALF))["y"])


# What stays in float32


def test_products_in_the_bodies_of_an_if_and_a_loop_and_recurrent_cells_are_added_up_in_float32(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    bodies = {
        "if": "(float[2,64] x) => (float[2,64] y) { s = ReduceSum <keepdims = 0> (x) z = Sub(s, s) c = Equal(z, z) "
        "y = If (c) <then_branch = one () => (float[2,64] t) { t = MatMul(x, w) }, "
        "else_branch = two () => (float[2,64] e) { e = Neg(x) }> }",
        "loop": "(float[2,64] x) => (float[2,64] y) { y = Loop (turns, , x) <body = b (int64 i, bool k, float[2,64] s) "
        "=> (bool k2, float[2,64] t) { k2 = Identity(k) m = MatMul(s, w) t = Tanh(m) }> }",
        "lstm": "(float[2,1,64] x) => (float[2,1,1,16] y) { y = LSTM <hidden_size = 16> (x, lw, lr) }",
    }
    weights = {
        "w": normal(64, 64, seed=1),
        "turns": np.array(2),
        "lw": normal(1, 64, 64, seed=1),
        "lr": normal(1, 64, 16, seed=2),
    }
    for kind, body in bodies.items():
        own = {name: value for name, value in weights.items() if f"{name})" in body or f"{name}," in body}
        shape = (2, 1, 64) if kind == "lstm" else (2, 64)
        one = case(body, own, tmp_path, x=rng.standard_normal(shape).astype(np.float32))
        assert np.array_equal(bits(one.variant()["y"]), bits(one.variant(TENSORRT)["y"])), kind
        assert not np.array_equal(one.variant()["y"], one.reference()["y"]), "it is in half for all that"


BRANCHES = (
    '(float[2,200] x) => (float[2,9] y, float[2,9] z) { ["mine"] y = MatMul(x, w) '
    '["other"] n = Gemm(x, w, b) ["last"] z = Softmax(n) }'
)


def branches(folder: Path) -> Case:
    weights = {"w": normal(200, 9, seed=1, scale=0.1), "b": normal(9, seed=2)}
    return case(BRANCHES, weights, folder, x=normal(2, 200))


def test_layers_pinned_to_float32_are_the_same_to_the_bit(tmp_path: Path) -> None:
    one = branches(tmp_path)
    plan = plan_for(one.model, FP16, pinned=("other", "last"))
    halves, plain = one.variant(HALF, plan), one.variant(TENSORRT, plan)
    assert not np.array_equal(halves["y"], plain["y"])
    for name in ("n", "z"):
        assert np.array_equal(bits(halves[name]), bits(plain[name]))
    for name, value in one.reference().items():
        assert np.array_equal(bits(value), bits(one.reference(TENSORRT)[name])), name


@pytest.mark.parametrize("precision", [BF16, INT8, FP32])
def test_what_is_not_in_half_is_the_same_to_the_bit(tmp_path: Path, precision: Precision) -> None:
    one = branches(tmp_path)
    table = (
        CalibrationTable({name: Range(4.0, "max") for name in ("x", "n", "y", "z")}, 1) if precision is INT8 else None
    )
    plan = plan_for(one.model, precision)
    halves, plain = one.variant(HALF, plan, table), one.variant(TENSORRT, plan, table)
    assert all(np.array_equal(bits(halves[name]), bits(plain[name])) for name in plain)


def test_a_product_of_integers_is_left_alone(tmp_path: Path) -> None:
    """A MatMul of int32 is no layer in half."""
    body = (
        "(float[2,3] x) => (float[2,2] y) { i = Cast <to = 6> (x) m = MatMul(i, w) f = Cast <to = 1> (m) y = Neg(f) }"
    )
    one = case(body, {"w": np.arange(6, dtype=np.int32).reshape(3, 2)}, tmp_path, x=np.full((2, 3), 2, np.float32))
    assert np.array_equal(one.variant()["y"], one.reference()["y"])


def test_a_model_that_is_in_half_itself_adds_up_in_half_and_gives_half(tmp_path: Path) -> None:
    a, w = normal(5, LONG).astype(np.float16), normal(LONG, 7, seed=1).astype(np.float16)
    body = f"(float16[5,{LONG}] x) => (float16[5,7] y) {{ y = MatMul(x, w) }}"
    found = case(body, {"w": w}, tmp_path, x=a).variant()["y"]
    assert np.array_equal(np.asarray(found, np.float32), matmul(a.astype(np.float32), w.astype(np.float32), Sums.HALF))


def test_a_conv_whose_weight_is_computed_has_its_bias_along_its_channels(tmp_path: Path) -> None:
    x, w, b = normal(1, 3, 5, 5), normal(4, 3, 3, 3, seed=1), normal(4, seed=2)
    body = (
        "(float[1,3,5,5] x, float[M] flat, int64[4] shape) => (float[1,4,3,3] y) { w = Reshape(flat, shape) "
        "y = Conv(x, w, b) }"
    )
    one = case(body, {"b": b}, tmp_path, x=x, flat=w.reshape(-1), shape=np.array(w.shape))
    assert np.array_equal(one.variant()["y"], half(convolved("Conv", x, w) + half(b).reshape(-1, 1, 1)))
