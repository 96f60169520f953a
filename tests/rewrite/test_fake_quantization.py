"""Fake quantization as nodes of a graph: the same bits as rounding in NumPy, at old opsets and new ones."""

from __future__ import annotations

from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from models import Array, Flows, load, plan_for, proto

from precisionlab.calibration.grid import quantized_array
from precisionlab.calibration.table import CalibrationTable, Range, weight_scales
from precisionlab.model import Model
from precisionlab.model.layers import quantized_operands
from precisionlab.precision import Precision
from precisionlab.rewrite.observe import Flow

FP8 = Precision.FP8.number_format


def table_of(model: Model, amax: float) -> CalibrationTable:
    ranges = {name: Range(amax) for layer in model.layers for name in quantized_operands(model, layer)}
    return CalibrationTable(ranges, 1, Precision.FP8)


def through(x: Array, amax: float, folder: Path, opset: int = 13) -> Array:
    """The fp8 gate of an activation, alone: the weight, 448, is the largest value, in steps of 1."""
    text = "(float[N,1] x) => (float[N,1] y) { y = MatMul(x, w) }"
    model = load(proto(text, {"w": np.float32([[448]])}, opset=opset), folder)
    flows = Flows(model, plan_for(model, Precision.FP8), table_of(model, amax))
    return flows(x=x[:, None])[Flow.VARIANT, "y"][:, 0] / np.float32(448)


def hard_numbers() -> Array:
    half = np.arange(1 << 16, dtype=np.uint16).view(np.float16).astype(np.float32)
    codes = np.arange(256, dtype=np.uint8).view(ml_dtypes.float8_e4m3fn).astype(np.float32)
    codes = np.unique(codes[np.isfinite(codes)])
    ties = (codes[1:] + codes[:-1]) / 2
    beside = [np.nextafter(ties, np.float32(end)) for end in (-np.inf, np.inf)]
    random = np.random.default_rng(1).integers(0, 2**32, 50_000, dtype=np.uint32).view(np.float32)
    return np.concatenate([half, ties, *beside, codes, random[np.abs(random) < 1e30]])


@pytest.mark.parametrize("opset", [9, 13, 19, 23])
def test_a_gate_gives_the_bits_of_ml_dtypes_for_all_of_half_and_every_tie(opset: int, tmp_path: Path) -> None:
    x = hard_numbers()
    x = x[np.isfinite(x)]
    expected = np.clip(x, -448, 448).astype(ml_dtypes.float8_e4m3fn).astype(np.float32)
    assert np.array_equal(through(x, 448.0, tmp_path, opset), expected)


def test_a_gate_saturates_and_leaves_nan_what_it_is(tmp_path: Path) -> None:
    found = through(np.float32([np.inf, -np.inf, 1e38, 465, np.nan]), 448.0, tmp_path)
    assert found[:4].tolist() == [448, -448, 448, 448]
    assert np.isnan(found[4])


@pytest.mark.parametrize("amax", [1e-6, 0.37, 3e4])
def test_a_scale_is_divided_by_and_multiplied_with_in_float32(amax: float, tmp_path: Path) -> None:
    x = (np.random.default_rng(2).standard_normal(2000) * amax).astype(np.float32)
    expected = quantized_array(x, np.asarray(amax / 448, np.float32), None, FP8)
    found = through(x, amax, tmp_path)
    assert np.allclose(found, expected, rtol=2e-7)  # times 448 and over it again


LAYERS = {
    "Conv": ("(float[1,4,6,6] x) => (float[1,5,6,6] y) { [m] y = Conv<pads = [1,1,1,1]>(x, w) }", (5, 4, 3, 3), 0),
    "ConvTranspose": ("(float[1,4,6,6] x) => (float[1,5,7,7] y) { [m] y = ConvTranspose(x, w) }", (4, 5, 2, 2), 1),
    "Gemm": ("(float[3,4] x) => (float[3,5] y) { [m] y = Gemm<transB = 1>(x, w) }", (5, 4), 0),
    "MatMul": ("(float[2,3,4] x) => (float[2,3,5] y) { [m] y = MatMul(x, w) }", (4, 5), 1),
}


@pytest.mark.parametrize("kind", LAYERS)
def test_operands_are_quantized_weights_by_channel_and_products_are_exact(kind: str, tmp_path: Path) -> None:
    text, shape, axis = LAYERS[kind]
    rng = np.random.default_rng(3)
    weight = (rng.standard_normal(shape) * np.geomspace(0.1, 9, shape[axis]).reshape(
        [-1 if i == axis else 1 for i in range(len(shape))]
    )).astype(np.float32)  # fmt: skip
    model = load(proto(text, {"w": weight}), tmp_path)
    dims = [dim for dim in model.inputs[0].shape or () if isinstance(dim, int)]
    x = rng.standard_normal(dims).astype(np.float32)
    found = Flows(model, plan_for(model, Precision.FP8), table_of(model, 3.0))(x=x)[Flow.VARIANT, "y"]
    low_x = quantized_array(x, np.asarray(3 / 448, np.float32), None, FP8)
    low_w = quantized_array(weight, weight_scales(weight, axis, FP8), axis, FP8)
    plain = load(proto(text, {"w": low_w}), tmp_path)
    expected = Flows(plain, plan_for(plain, Precision.FP32))(x=low_x)[Flow.REFERENCE, "y"]
    assert np.array_equal(found, expected)
    assert not np.array_equal(low_w, weight)


def test_both_activations_of_a_product_are_quantized_as_attention_has_them(tmp_path: Path) -> None:
    text = "(float[2,3,4] a, float[2,4,3] b) => (float[2,3,3] y) { [m] y = MatMul(a, b) }"
    model, rng = load(proto(text), tmp_path), np.random.default_rng(4)
    a, b = (rng.standard_normal(shape).astype(np.float32) for shape in ((2, 3, 4), (2, 4, 3)))
    found = Flows(model, plan_for(model, Precision.FP8), table_of(model, 2.5))(a=a, b=b)[Flow.VARIANT, "y"]
    step = np.asarray(2.5 / 448, np.float32)
    low = [quantized_array(value, step, None, FP8).astype(np.float64) for value in (a, b)]
    assert np.allclose(found, low[0] @ low[1], rtol=1e-6, atol=1e-6)


def test_what_the_product_gives_is_in_the_float_around(tmp_path: Path) -> None:
    text = "(float[3,4] x) => (float[3,5] y) { [m] y = MatMul(x, w) }"
    model = load(proto(text, {"w": np.full((4, 5), 1 / 3, np.float32)}), tmp_path)
    x = np.random.default_rng(5).standard_normal((3, 4)).astype(np.float32)
    for around, kind in ((Precision.FP16, np.float16), (Precision.BF16, ml_dtypes.bfloat16)):
        plan = plan_for(model, Precision.FP8, around=around)
        found = Flows(model, plan, table_of(model, 3.0))(x=x)[Flow.VARIANT, "y"]
        assert np.array_equal(found, found.astype(kind).astype(np.float32))
    exact = Flows(model, plan_for(model, Precision.FP8), table_of(model, 3.0))(x=x)[Flow.VARIANT, "y"]
    assert not np.array_equal(exact, exact.astype(np.float16).astype(np.float32))
