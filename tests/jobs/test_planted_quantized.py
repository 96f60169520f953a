"""Faults proper to FP8 and INT4 are told from what is right as it is, by the figures that float64 has of them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import pytest
from models import Array, Flows, load, plan_for, proto

from precisionlab import sweep
from precisionlab.calibration.blocks import Blocks
from precisionlab.calibration.table import CalibrationTable, Range, block_table
from precisionlab.model import Model
from precisionlab.precision import Precision
from precisionlab.rewrite.observe import Flow
from precisionlab.search.outcome import PrecisionResult

FP8, INT8, INT4, FP16 = Precision.FP8, Precision.INT8, Precision.INT4, Precision.FP16
PRODUCT = "(float[64,{k}] x) => (float[64,32] y) {{ [m] y = MatMul(x, w) }}"
CONVOLUTION = "(float[1,16,12,12] x) => (float[1,8,12,12] y) { [m] y = Conv<pads = [1,1,1,1]>(x, w) }"


def decibels(true: Array, given: Array) -> float:
    noise = np.square(np.asarray(given, np.float64) - true).sum()
    return float(10 * np.log10(np.square(np.asarray(true, np.float64)).sum() / noise))


def e4m3(x: Array, amax: Array | float) -> Array:
    """To FP8 and back in float64, by ml_dtypes' own rounding."""
    scale = np.asarray(amax, np.float64) / 448
    held = np.clip(np.asarray(x, np.float64) / scale, -448, 448)
    return held.astype(np.float32).astype(ml_dtypes.float8_e4m3fn).astype(np.float64) * scale


def eight_bits(x: Array, amax: Array | float) -> Array:
    """To INT8 and back in float64."""
    scale = np.asarray(amax, np.float64) / 127
    return np.clip(np.rint(np.asarray(x, np.float64) / scale), -128, 127) * scale


ROUNDED: dict[Precision, Callable[[Array, Array | float], Array]] = {FP8: e4m3, INT8: eight_bits}


def product(folder: Path, weight: Array) -> Model:
    return load(proto(PRODUCT.format(k=len(weight)), {"w": weight.astype(np.float32)}), folder)


def emulated(model: Model, x: Array, precision: Precision, amax: float | None = None) -> Array:
    """What the model gives in the precision, with the range of all that it takes."""
    if precision is INT4:
        plan, table = plan_for(model, INT4, around=FP16), block_table(Blocks(128, "max"))
    else:
        plan = plan_for(model, precision)
        table = CalibrationTable({"x": Range(amax or float(np.abs(x).max()))}, 1, precision)
    return Flows(model, plan, table)(x=x.astype(np.float32))[Flow.VARIANT, "y"]


def figures(folder: Path, x: Array, weight: Array, precision: Precision, amax: float | None = None) -> float:
    """The emulation's SQNR of the product, in dB, which is that of float64."""
    x, weight = x.astype(np.float32), weight.astype(np.float32)
    rounded, true = ROUNDED[precision], x.astype(np.float64) @ weight
    held = rounded(x, amax or float(np.abs(x).max())) @ rounded(weight, np.abs(weight).max(axis=0))
    expected = decibels(true, held)
    found = decibels(true, emulated(product(folder, weight), x, precision, amax))
    assert found == pytest.approx(expected, abs=0.05)
    return found


@pytest.mark.parametrize("has_tail", [True, False])
def test_a_heavy_tail_is_lost_by_int8_and_kept_by_fp8_and_without_one_int8_is_the_better(
    has_tail: bool, tmp_path: Path
) -> None:
    """Of one channel 300 times as large, whose weights are as much smaller."""
    rng = np.random.default_rng(1)
    x, weight = rng.standard_normal((64, 96)), rng.standard_normal((96, 32))
    if has_tail:
        x[:, 5] *= 300
        weight[5] /= 300
    fp8, int8 = (figures(tmp_path, x, weight, precision) for precision in (FP8, INT8))
    assert fp8 > 25
    assert (int8 < 5) if has_tail else (int8 > fp8 + 5)


@pytest.mark.parametrize("precision", [FP8, INT8])
def test_channels_of_very_different_scale_are_as_exact_as_each_alone(precision: Precision, tmp_path: Path) -> None:
    rng = np.random.default_rng(2)
    sizes = np.geomspace(1e-6, 1e3, 8)
    weight = (rng.standard_normal((8, 16, 3, 3)) * sizes[:, None, None, None]).astype(np.float32)
    x = rng.standard_normal((1, 16, 12, 12)).astype(np.float32)
    model = load(proto(CONVOLUTION, {"w": weight}), tmp_path)
    plain = Flows(model, plan_for(model, Precision.FP32))(x=x)[Flow.REFERENCE, "y"][0]
    each = [decibels(*pair) for pair in zip(plain, emulated(model, x, precision)[0], strict=True)]
    assert min(each) > 25
    assert max(each) - min(each) < 6


@pytest.mark.parametrize("precision", [FP8, INT8])
def test_beyond_a_clipped_range_values_are_held_at_its_ends_and_none_is_nan(
    precision: Precision, tmp_path: Path
) -> None:
    rng = np.random.default_rng(3)
    x, weight = rng.standard_normal((64, 96)), rng.standard_normal((96, 32))
    x[:, 7] = 50  # beyond 448 steps of a range of 5, ten times over
    clipped, whole = (figures(tmp_path, x, weight, precision, amax) for amax in (5.0, 50.0))
    assert clipped < 2
    assert whole > 15
    at_ends = np.concatenate([x[:, :7], np.full((64, 1), 5.0), x[:, 8:]], axis=1)
    model = product(tmp_path, weight)
    assert np.array_equal(emulated(model, x, precision, 5.0), emulated(model, at_ends, precision, 5.0))


def test_small_values_beside_a_large_one_vanish_in_fp8_below_half_its_least_and_not_above(tmp_path: Path) -> None:
    """Values of 1, and one of 448 · 2¹⁰ or of 448 · 2⁹: half of the least subnormal is 2⁻¹⁰ steps, and a tie is 0."""
    weight = np.zeros((64, 32))
    weight[1:33] = np.eye(32)  # what gives the large value out is not looked at
    x = np.ones((64, 64))
    for large, given in ((448 * 2.0**10, 0.0), (448 * 2.0**9, 1.0)):
        x[:, 0] = large
        assert (emulated(product(tmp_path, weight), x, FP8) == given).all()
        assert (e4m3(x, large)[:, 1:] == given).all()
    assert (emulated(product(tmp_path, weight), x, INT8) == 0).all()  # which is 0 from 254 times on


@pytest.mark.parametrize(("outliers", "least", "most"), [(True, -1.0, 6.0), (False, 15.0, 22.0)])
def test_one_outlier_in_each_block_costs_int4_all_its_other_weights(
    outliers: bool, least: float, most: float, tmp_path: Path
) -> None:
    """Where what they are multiplied with is 0, so that they tell nothing of themselves."""
    rng = np.random.default_rng(4)
    x, weight = rng.standard_normal((64, 256)), rng.standard_normal((256, 32)).clip(-3, 3)
    x[:, ::128] = 0
    weight[::128] = 30 if outliers else 3
    scale = np.abs(weight.reshape(2, 128, 32)).max(axis=1, keepdims=True) / 7
    levels = np.clip(np.rint(weight.reshape(2, 128, 32) / scale), -8, 7)
    true, expected = x @ weight, x @ (levels * scale).reshape(256, 32)
    found = decibels(true, emulated(product(tmp_path, weight), x, INT4))
    assert found == pytest.approx(decibels(true, expected), abs=0.5)  # scales of 8 digits, and half around
    assert least < found < most


@pytest.mark.parametrize(("rows", "block"), [(72, None), (32, 16), (80, 16), (96, 32), (256, 128)])
def test_an_axis_that_no_block_divides_stays_in_the_float_around(rows: int, block: int | None, tmp_path: Path) -> None:
    rng = np.random.default_rng(5)
    model = product(tmp_path, rng.standard_normal((rows, 32)))
    x = rng.standard_normal((64, rows))
    given, half = (emulated(model, x, INT4), Flows(model, plan_for(model, FP16))(x=x.astype("f4"))[Flow.VARIANT, "y"])
    assert model.layers[0].takes(INT4) == (block is not None)
    assert np.array_equal(given, half) == (block is None)


NET = """(float[N,64] x, float[N,64] z) => (float[N,16] y) {
    [first] a = MatMul(x, u) [bend] b = Relu(a) [far] c = Add(b, z) [second] d = MatMul(c, v) [turn] e = Tanh(d)
    [third] y = MatMul(e, w) }"""
SAMPLES = 12


def written(folder: Path, fault: str) -> tuple[Path, Path]:
    """Three products, of which the second has a fault; without a name it has none.

    "tail": in the first row one value, of another place in each sample, is 10⁶ times as large, for which Tanh is ±1.
    "outlier": in every block of the weight one is 100 times as large as the others, for what is always 0.
    """
    rng = np.random.default_rng(6)
    u, v, w = (rng.standard_normal(shape) / np.sqrt(shape[0]) for shape in ((64, 64), (64, 64), (64, 16)))
    if fault == "outlier":
        u[:, ::32] = 0
        v[::32] = 100 * np.abs(v).max()
    weights = {"u": u, "v": v, "w": w}
    folder.mkdir(exist_ok=True)
    onnx.save(proto(NET, {name: value.astype(np.float32) for name, value in weights.items()}), folder / "net.onnx")
    (folder / "data").mkdir(exist_ok=True)
    for i in range(SAMPLES):
        z = np.zeros((8, 64), np.float32)
        z[0, rng.integers(64)] = 1e6 if fault == "tail" else 0
        np.savez(folder / "data" / f"{i:02}.npz", x=rng.standard_normal((8, 64)).astype(np.float32), z=z)
    return folder / "net.onnx", folder / "data"


def found(folder: Path, precision: str, fault: str) -> PrecisionResult:
    model, data = written(folder, fault)
    around = "fp32" if precision == "fp8" else "fp16"
    (result,) = sweep(
        model, data, precisions=precision, around=around, tolerance="sqnr>=14", holdout=0, threads=1,
        out=folder / "run", backend="onnxruntime",
    ).precisions  # fmt: skip
    return result


@pytest.mark.thorough
@pytest.mark.parametrize(("precision", "fault"), [("fp8", "tail"), ("int4", "outlier")])
def test_the_layer_with_the_fault_is_pinned_alone_and_of_its_twin_none(
    precision: str, fault: str, tmp_path: Path
) -> None:
    broken, twin = found(tmp_path / "broken", precision, fault), found(tmp_path / "twin", precision, "")
    assert broken.low.comparison.worst("sqnr") < 14
    assert [pin.layer for pin in broken.plan.pins] == ["second"]
    assert broken.met
    assert broken.certificate is not None
    assert broken.certificate.proven
    assert twin.plan.pins == ()
    assert twin.met
