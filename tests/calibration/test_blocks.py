"""Weights in blocks of int4: scales, levels and what comes back, against loops, ml_dtypes and ONNX's own operator."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from models import Array, examples
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from precisionlab.calibration.blocks import (
    block_levels,
    block_scales,
    dequantized_blocks,
    held_scales,
    output_scales,
)
from precisionlab.calibration.methods import MAX, MSE
from precisionlab.errors import ModelError
from precisionlab.model.blocks import SIZES, block_of
from precisionlab.precision import Precision

INT4 = Precision.INT4.number_format
W = np.random.default_rng(0).standard_normal((128, 6)).astype(np.float32)


def by_hand(weight: Array, size: int, method: str) -> Array:
    """The scales along the first axis, block by block, in loops."""
    found = np.empty((len(weight) // size, weight.shape[1]), np.float32)
    for block, column in np.ndindex(*found.shape):
        part = weight[block * size : (block + 1) * size, column]
        ends = np.abs(part).max() * (1 - np.arange(33 if method == MSE else 1) / 64)
        tried = [float(held_scales(np.float64(end) / 7)) for end in ends]
        errors = [np.square(np.clip(np.rint(part / np.float32(s)), -8, 7) * np.float32(s) - part).sum() for s in tried]
        found[block, column] = tried[int(np.argmin(errors))] if np.abs(part).max() else 1
    return found


def error(weight: Array, scales: Array) -> Array:
    """The squared error of each block along the first axis, in float64."""
    back = dequantized_blocks(weight, scales, 0, INT4)
    parts = np.square(back.astype(np.float64) - weight).reshape(len(scales), -1, weight.shape[1])
    return np.asarray(parts.sum(1))


weights = arrays(np.float32, (64, 3), elements=st.floats(-1e4, 1e4, width=32)) | st.integers(0, 2**32 - 1).map(
    lambda seed: (np.random.default_rng(seed).standard_t(3, (64, 3)).clip(-60, 60) * 10.0 ** (seed % 8 - 4)).astype("f")
)


@pytest.mark.parametrize("method", [MSE, MAX])
@pytest.mark.parametrize("size", SIZES)
def test_scales_are_those_of_a_loop_over_the_blocks(method: str, size: int) -> None:
    assert np.array_equal(block_scales(W, 0, size, INT4, method), by_hand(W, size, method))
    assert np.array_equal(block_scales(W.T.copy(), 1, size, INT4, method), by_hand(W, size, method).T)


@settings(max_examples=examples(60), deadline=None)
@given(weights)
def test_mse_is_never_worse_than_max(weight: Array) -> None:
    best, widest = (error(weight, block_scales(weight, 0, 16, INT4, method)) for method in (MSE, MAX))
    assert (best <= widest * (1 + 1e-6)).all()


@settings(max_examples=examples(60), deadline=None)
@given(weights)
def test_by_max_nothing_is_clipped_and_nothing_is_off_by_more_than_half_a_step(weight: Array) -> None:
    scales = block_scales(weight, 0, 32, INT4, MAX)
    spread = np.repeat(scales, 32, axis=0)
    off = np.abs(dequantized_blocks(weight, scales, 0, INT4).astype(np.float64) - weight)
    assert (off <= spread.astype(np.float64) / 2 * (1 + 1e-6)).all()
    assert np.abs(block_levels(weight, scales, 0, INT4)).max() <= 7


@settings(max_examples=examples(60), deadline=None)
@given(weights, st.sampled_from([MSE, MAX]))
def test_zero_stays_zero_and_half_and_bfloat16_hold_scales_and_half_what_comes_back(weight: Array, method: str) -> None:
    weight[::5] = 0
    scales = block_scales(weight, 0, 16, INT4, method)
    for kind in (np.float16, ml_dtypes.bfloat16):
        assert np.array_equal(scales.astype(kind).astype(np.float32), scales)
    back = dequantized_blocks(weight, scales, 0, INT4)
    assert (back[::5] == 0).all()
    assert not np.signbit(back[::5]).any()
    assert np.array_equal(back.astype(np.float16).astype(np.float32), back)


def test_levels_are_those_of_int4_and_come_back_as_onnx_has_it() -> None:
    scales = block_scales(W, 0, 32, INT4)
    levels = block_levels(W, scales, 0, INT4)
    assert np.array_equal(levels.astype(ml_dtypes.int4).astype(np.float32), levels)
    assert levels.min() == -8  # a clipped range uses the eighth level
    node = helper.make_node("DequantizeLinear", ["q", "s"], ["y"], axis=0, block_size=32)
    graph = helper.make_graph(
        [node], "g", [], [helper.make_tensor_value_info("y", TensorProto.FLOAT, W.shape)],
        [numpy_helper.from_array(levels.astype(ml_dtypes.int4), "q"), numpy_helper.from_array(scales, "s")],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    onnx.checker.check_model(model, full_check=True)
    (given,) = ReferenceEvaluator(model).run(None, {})
    assert np.array_equal(given, dequantized_blocks(W, scales, 0, INT4))


def test_a_weight_that_is_not_finite_has_no_scales() -> None:
    for value in (np.nan, np.inf, -np.inf):
        bad = W.copy()
        bad[3, 2] = value
        with pytest.raises(ModelError, match="holds NaN or Inf"):
            block_scales(bad, 0, 16, INT4)


def test_a_block_is_the_largest_that_divides_the_axis_into_two_or_more() -> None:
    assert [block_of(n) for n in (1024, 256, 128, 96, 64, 48, 32)] == [128, 128, 64, 32, 32, 16, 16]
    assert [block_of(n) for n in (16, 8, 24, 312, 200)] == [None] * 5
    assert [block_of(1024, most) for most in SIZES] == list(SIZES)


def test_what_is_known_of_int4_is_what_its_bits_say() -> None:
    every = np.arange(-8, 8).astype(ml_dtypes.int4).astype(np.float32)
    assert (INT4.lowest, INT4.largest, INT4.least) == (every.min(), every.max(), 1)
    assert ml_dtypes.int4 == INT4.numpy
    assert INT4.element.itemsize == INT4.itemsize


def test_scales_by_output_make_the_error_of_the_product_least() -> None:
    x = np.random.default_rng(4).standard_normal((200, 128)) * np.geomspace(0.1, 10, 128)
    blocks = x.reshape(200, 4, 32)
    moments = np.einsum("nbi,nbj->bij", blocks, blocks)
    found = output_scales(W, 0, moments, INT4)
    assert np.array_equal(output_scales(W.T.copy(), 1, moments, INT4), found.T)
    plain = np.broadcast_to(np.eye(32), (4, 32, 32))
    assert np.array_equal(output_scales(W, 0, plain, INT4), block_scales(W, 0, 32, INT4))

    def errors(scales: Array) -> Array:
        off = (dequantized_blocks(W, scales, 0, INT4).astype(np.float64) - W).reshape(4, 32, -1)
        return np.asarray(np.square(np.einsum("nbi,bij->nbj", blocks, off)).sum(0))

    assert (errors(found) <= errors(block_scales(W, 0, 32, INT4)) * (1 + 1e-6)).all()
    assert errors(found).sum() < 0.95 * errors(block_scales(W, 0, 32, INT4)).sum()
