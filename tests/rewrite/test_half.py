"""Rounding large arrays to half, against NumPy's own."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from precisionlab.plan.arithmetic import Constants
from precisionlab.precision import Precision
from precisionlab.rewrite.constants import clamped_array, clamped_number, constant_array, rounded_array
from precisionlab.rewrite.half import clamped_to_half, rounded_to_half

FP16 = Precision.FP16


def by_numpy(array: NDArray[np.float32]) -> NDArray[np.float32]:
    with np.errstate(over="ignore"):
        return array.astype(np.float16).astype(np.float32)


def same(found: NDArray[np.float32], expected: NDArray[np.float32]) -> bool:
    """Bit for bit, but for what a NaN holds."""
    is_nan = np.isnan(expected)
    bits = found[~is_nan].view(np.int32) == expected[~is_nan].view(np.int32)
    return bool(np.isnan(found[is_nan]).all() and bits.all())


@given(st.integers(0, 0xFFFF))
def test_every_float32_is_rounded_as_numpy_rounds_it(high: int) -> None:
    array = (np.uint32(high << 16) | np.arange(0, 1 << 16, 7, dtype=np.uint32)).view(np.float32)
    assert same(rounded_to_half(array), by_numpy(array))
    assert same(clamped_to_half(array), by_numpy(clamped_array(array, FP16)))


@pytest.mark.parametrize("high", [0x3380, 0x3300, 0xB380, 0x3880, 0x477F, 0x4780, 0xC77F, 0x7F7F, 0x7F80, 0xFFC0, 0])
def test_where_digits_or_numbers_end_all_are_rounded_as_numpy_rounds_them(high: int) -> None:
    array = (np.uint32(high << 16) | np.arange(1 << 16, dtype=np.uint32)).view(np.float32)
    assert same(rounded_to_half(array), by_numpy(array))
    assert same(clamped_to_half(array), by_numpy(clamped_array(array, FP16)))


def test_large_arrays_of_any_layout_keep_their_shape_and_are_what_small_ones_are() -> None:
    array = (np.random.default_rng(0).standard_normal((300, 512)) * 1e-6).astype(np.float32).T
    assert not array.flags.c_contiguous
    small = np.stack([rounded_array(row, FP16) for row in array])
    assert same(rounded_array(array, FP16), small)
    clamped = np.stack([constant_array(row, FP16, Constants.CLAMPED) for row in array])
    assert same(constant_array(array, FP16, Constants.CLAMPED), clamped)
    assert not same(clamped, small)


@pytest.mark.parametrize(
    ("placed", "told"),
    [
        ({}, None),
        ({70_000: np.inf, 9: np.nan, 3: 65519.0}, None),
        ({70_000: -1e6, 90_000: 2e6, 5: 1e-9}, (2e6, 65504.0)),
        ({70_000: -3e6, 90_000: 3e6}, (-3e6, -65504.0)),
        ({70_000: 1e-9, 90_000: -1e-12, 40_000: 0.0}, (1e-9, 2.0**-24)),
    ],
)
def test_of_a_large_array_the_number_is_told_that_is_told_of_a_small_one(
    placed: dict[int, float], told: tuple[float, float] | None
) -> None:
    array = np.ones(100_000, np.float32)
    for place, number in placed.items():
        array[place] = number
    expected = None if told is None else (float(np.float32(told[0])), told[1])
    assert clamped_number(array, FP16) == expected
    assert clamped_number(np.array([1, *(array[place] for place in sorted(placed))], np.float32), FP16) == expected
