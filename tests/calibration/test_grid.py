"""The values of quantized formats, and rounding to them: against ml_dtypes, and nearest-even in float64 by hand."""

from __future__ import annotations

import math

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from models import examples
from numpy.typing import NDArray

from precisionlab.calibration.grid import quantized_array, rounded_to_grid
from precisionlab.calibration.histogram import histogram_of
from precisionlab.calibration.kernel import squared_errors
from precisionlab.calibration.methods import check_method_of, default_method, methods_of
from precisionlab.calibration.table import CalibrationTable, Range, weight_scales
from precisionlab.calibration.thresholds import mse
from precisionlab.errors import OptionError
from precisionlab.precision import Precision

FP8, INT8 = Precision.FP8.number_format, Precision.INT8.number_format
FORMATS = {"fp8": FP8, "int8": INT8}

Array = NDArray[np.float32]


def codes() -> Array:
    """All finite values of E4M3, in rising order."""
    every = np.arange(256, dtype=np.uint8).view(ml_dtypes.float8_e4m3fn).astype(np.float32)
    return np.unique(every[np.isfinite(every)])


def hard_numbers() -> Array:
    """All of float16, random bits, and every tie between two values of E4M3 with its neighbours."""
    half = np.arange(1 << 16, dtype=np.uint16).view(np.float16).astype(np.float32)
    bits = np.random.default_rng(1).integers(0, 2**32, 200_000, dtype=np.uint32).view(np.float32)
    ties = ((codes()[1:].astype(np.float64) + codes()[:-1]) / 2).astype(np.float32)
    beside = [np.nextafter(ties, np.float32(end)) for end in (-np.inf, np.inf)]
    return np.concatenate([half, bits, ties, *beside, codes(), np.float32([np.inf, -np.inf, np.nan, -0.0])])


def test_what_is_known_of_fp8_is_what_its_bits_say() -> None:
    known = codes()
    positive = known[known > 0]
    assert (FP8.largest, FP8.least) == (positive.max(), positive.min())
    assert FP8.epsilon == known[known > 1].min() - 1
    assert FP8.normal == np.frombuffer(b"\x08", ml_dtypes.float8_e4m3fn).astype(np.float32)[0]
    assert FP8.least == FP8.normal * FP8.epsilon
    assert (FP8.itemsize, FP8.numpy) == (1, np.dtype(ml_dtypes.float8_e4m3fn))
    assert (INT8.lowest, FP8.lowest) == (-128, -448)
    assert INT8.least == INT8.normal * INT8.epsilon == 1


def test_rounding_to_fp8_is_that_of_ml_dtypes_for_all_of_half_and_every_tie() -> None:
    x = hard_numbers()
    with np.errstate(invalid="ignore"):
        expected = np.clip(x, -448, 448).astype(ml_dtypes.float8_e4m3fn).astype(np.float32)
    assert np.array_equal(rounded_to_grid(x, FP8), expected, equal_nan=True)


def by_hand(x: float, known: list[float]) -> float:
    """The nearest of the known values, of two as near the one with an even place; float64."""
    if math.isnan(x):
        return x
    best = min(abs(x - value) for value in known)
    near = [place for place, value in enumerate(known) if abs(x - value) == best]
    return known[next((place for place in near if place % 2 == 0), near[0])]


@settings(max_examples=examples(200))
@given(x=st.floats(width=32, min_value=-500, max_value=500) | st.sampled_from(hard_numbers()[-900:].tolist()))
def test_rounding_is_to_nearest_even_by_hand(x: float) -> None:
    positive = [float(value) for value in codes() if value >= 0]  # an even place has an even bit pattern
    expected = math.copysign(by_hand(min(abs(x), 448.0), positive), x)
    assert rounded_to_grid(np.float32([x]), FP8)[0] == expected or math.isnan(x)
    integers = [float(value) for value in range(-128, 128)]
    held = min(max(x, -128.0), 127.0)
    assert rounded_to_grid(np.float32([x]), INT8)[0] == by_hand(held, integers) or math.isnan(x)


@pytest.mark.parametrize("name", FORMATS)
def test_a_quantized_array_is_of_the_formats_values_and_again_itself(name: str) -> None:
    number_format = FORMATS[name]
    weight = np.random.default_rng(2).standard_normal((6, 5, 3)).astype(np.float32)
    for axis in (None, 0, 1, 2):
        scales = weight_scales(weight, axis, number_format)
        found = quantized_array(weight, scales, axis, number_format)
        assert found.dtype == np.float32
        assert np.array_equal(quantized_array(found, scales, axis, number_format), found)
        noise = 10 * np.log10((weight**2).sum() / ((weight - found) ** 2).sum())
        assert 28 < noise < 50


def test_noise_of_normal_numbers_in_fp8_is_28_to_33_db_whatever_their_range() -> None:
    x = np.random.default_rng(3).standard_normal(100_000).astype(np.float32)
    for scale in (0.001, 0.0123, 1.7):
        found = quantized_array(x * np.float32(scale), np.float32(4.5 * scale / 448), None, FP8)
        noise = 10 * np.log10((x.astype(np.float64) ** 2).sum() / ((x - found / scale) ** 2).sum())
        assert 28 < noise < 33


def test_a_scale_is_the_range_over_the_largest_value() -> None:
    table = CalibrationTable({"x": Range(4.0)}, 1, Precision.FP8, (CalibrationTable({"x": Range(3.0)}, 1),))
    assert table.scale("x", Precision.FP8) == 4 / 448
    assert table.scale("x", Precision.INT8) == 3 / 127
    assert table.scales == {"x": 4 / 448}
    with pytest.raises(KeyError, match="bf16"):
        table.of(Precision.BF16)
    alone = CalibrationTable({"x": Range(4.0)}, 1)
    assert len({table.digest, alone.digest, CalibrationTable({"x": Range(4.0)}, 1, Precision.FP8).digest}) == 3


def test_methods_that_count_levels_are_of_uniform_formats_alone() -> None:
    assert set(methods_of(Precision.INT8)) - set(methods_of(Precision.FP8)) == {"entropy", "capped"}
    assert default_method(Precision.FP8) == "max"
    assert default_method(Precision.INT8) == "entropy"
    with pytest.raises(OptionError, match=r"calibration entropy: .* use max, percentile, mse or auto with fp8"):
        check_method_of("entropy", [Precision.INT8, Precision.FP8])
    check_method_of("auto", [Precision.INT8, Precision.FP8])
    check_method_of("entropy", [Precision.INT8, Precision.BF16])


@pytest.mark.parametrize("name", FORMATS)
def test_squared_errors_are_those_of_the_formats_own_values(name: str) -> None:
    number_format = FORMATS[name]
    counts = np.random.default_rng(4).integers(0, 5, 600).astype(np.float64)
    centres = (np.arange(600) + 0.5) / 64
    for kept in (130.0, 277.0, 600.0):
        step = kept / 64 / number_format.largest
        values = rounded_to_grid((centres / step).astype(np.float32), number_format).astype(np.float64) * step
        found = squared_errors(
            counts, 1 / 64, np.array([kept]), number_format.largest, number_format.normal, number_format.epsilon
        )
        assert found[0] == pytest.approx((counts * (centres - values) ** 2).sum(), rel=1e-3)


def test_by_its_own_values_fp8_clips_less_than_int8_where_tails_are_long() -> None:
    x = np.random.default_rng(5).standard_t(3, 50_000).astype(np.float32)
    histogram = histogram_of(x)
    assert mse(histogram, FP8) > 1.2 * mse(histogram, INT8)
