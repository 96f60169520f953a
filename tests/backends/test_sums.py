"""Sums in half: the same bits as adding up product by product in NumPy, and graphs cut at them give what they ask."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from models import examples
from onnx import TensorProto, helper

from precisionlab.backends.sums.operands import Product, product_of
from precisionlab.backends.sums.products import matmul
from precisionlab.plan.arithmetic import Sums

Array = np.ndarray[Any, Any]
HALF, SINGLE = Sums.HALF, Sums.HALF_SINGLE


def halves(*shape: int, seed: int = 0, scale: float = 1.0) -> Array:
    """Normal numbers that half holds, in float32."""
    return (np.random.default_rng(seed).standard_normal(shape) * scale).astype(np.float16).astype(np.float32)


def added(a: Array, b: Array, block: int) -> np.float32:
    """The sum of a · b as tensor cores keep it: float64 inside a block, half from block to block."""
    total = np.float16(0)
    for k in range(0, len(a), block):
        exact = np.dot(a[k : k + block].astype(np.float64), b[k : k + block].astype(np.float64))
        with np.errstate(over="ignore", invalid="ignore"):
            total = np.float16(np.float64(total) + exact)
    return np.float32(total)


def by_us(op_type: str, sums: Sums, **attributes: Any) -> Product:
    """What computes the operator with such sums."""
    x, w = ir.Value(name="x"), ir.Value(name="w")
    return product_of(ir.Node("", op_type, [x, w], ir.convenience.convert_attributes(attributes)), sums)


def by_onnx_runtime(op_type: str, x: Array, w: Array, **attributes: Any) -> Array:
    """The operator in float32."""
    operator = helper.make_node(op_type, ["x", "w"], ["y"], **attributes)
    graph = helper.make_graph(
        [operator],
        "g",
        [helper.make_tensor_value_info(n, TensorProto.FLOAT, v.shape) for n, v in (("x", x), ("w", w))],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    session = ort.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, {"x": x, "w": w})[0]


@pytest.mark.parametrize(("sums", "block"), [(HALF, 16), (SINGLE, 1)])
@pytest.mark.parametrize("products", [1, 15, 16, 17, 64, 200])
def test_a_product_is_rounded_to_half_after_every_block(products: int, sums: Sums, block: int) -> None:
    a, b = halves(5, products), halves(products, 40, seed=1)
    wanted = np.array([[added(row, column, block) for column in b.T] for row in a])
    found = matmul(a, b, sums)
    # A sum is rounded to float32 first here: where that is a tie of half's, it goes to the other neighbour.
    assert (found == wanted).mean() >= 0.98
    assert np.abs(found - wanted).max() <= np.abs(wanted).max() * 2.0**-9


def test_the_number_of_columns_does_not_change_a_bit() -> None:
    a, b = halves(33, 100), halves(100, 1200, seed=1)
    whole = matmul(a, b, HALF)
    for columns in (1, 3, 17, 511, 512, 513):
        assert np.array_equal(matmul(a, b[:, :columns], HALF), whole[:, :columns])


def test_a_sum_that_passes_the_end_of_half_on_the_way_is_infinite_for_good() -> None:
    a = np.ones((1, 48), np.float32)
    b = np.concatenate([np.full(16, 3000.0), np.full(16, 3000.0), np.full(16, -6000.0)])[:, np.newaxis].astype(
        np.float32
    )
    assert np.isposinf(matmul(a, b, HALF)).all()
    assert matmul(a, b[::-1] * 0.5, HALF).item() == 0.0


@pytest.mark.parametrize(
    ("left", "right"),
    [
        ((7,), (7,)),
        ((7,), (7, 5)),
        ((4, 7), (7,)),
        ((2, 3, 4, 7), (7, 5)),
        ((2, 3, 4, 7), (3, 7, 5)),
        ((4, 7), (2, 7, 5)),
        ((0, 4, 7), (7, 5)),
        ((4, 0), (0, 5)),
        ((3, 4, 0), (3, 0, 2)),
        ((2, 0, 7), (2, 7, 5)),
        ((0, 4, 7), (0, 7, 5)),
        ((2, 4, 7), (2, 7, 0)),
    ],
)
def test_matrix_products_have_numpys_shapes(left: tuple[int, ...], right: tuple[int, ...]) -> None:
    a, b = halves(*left), halves(*right, seed=1)
    found = matmul(a, b, HALF)
    assert found.shape == np.matmul(a, b).shape
    assert np.allclose(found, np.matmul(a, b), atol=0.02)


CONVOLUTIONS = [
    ((1, 3, 9, 11), (8, 3, 3, 3), {"pads": [1, 1, 1, 1]}),
    ((2, 8, 9, 11), (4, 8, 3, 3), {"strides": [2, 2], "pads": [0, 1, 2, 1]}),
    ((1, 16, 7, 7), (16, 1, 3, 3), {"group": 16, "pads": [1, 1, 1, 1]}),
    ((1, 16, 7, 7), (16, 1, 5, 5), {"group": 16, "strides": [2, 1], "dilations": [1, 2], "pads": [2, 4, 2, 4]}),
    ((1, 8, 7, 7), (12, 4, 3, 3), {"group": 2}),
    ((1, 40, 6, 6), (6, 20, 1, 1), {"group": 2}),
    ((1, 1, 400), (4, 1, 256), {"strides": [3]}),
    ((1, 4, 600), (3, 4, 5), {"dilations": [2], "pads": [4, 4]}),
    ((1, 2, 4, 5, 6), (3, 2, 2, 2, 2), {"strides": [1, 2, 1], "pads": [1, 0, 1, 0, 1, 1]}),
    ((1, 3, 10, 10), (4, 3, 3, 3), {"auto_pad": "SAME_UPPER", "strides": [2, 2]}),
    ((1, 3, 10, 10), (4, 3, 4, 4), {"auto_pad": "SAME_LOWER", "strides": [3, 1]}),
    ((1, 3, 10, 10), (4, 3, 3, 3), {"auto_pad": "VALID"}),
    ((1, 3, 4, 1300), (4, 3, 1, 3), {"strides": [1, 2]}),
]
TRANSPOSED = [
    ((1, 4, 5, 6), (4, 3, 2, 2), {"strides": [2, 2]}),
    ((2, 4, 5, 6), (4, 3, 3, 3), {"strides": [2, 1], "pads": [1, 1, 1, 1]}),
    ((1, 4, 5, 6), (4, 3, 4, 4), {"strides": [2, 2], "pads": [1, 1, 1, 1]}),
    ((1, 4, 5, 6), (4, 3, 3, 3), {"strides": [2, 2], "pads": [1, 1, 1, 1], "output_padding": [1, 1]}),
    ((1, 8, 5, 6), (8, 2, 3, 3), {"group": 4, "strides": [3, 2], "dilations": [2, 1]}),
    ((1, 20, 5), (20, 3, 5), {"strides": [4], "pads": [1, 2]}),
    ((1, 4, 5, 6), (4, 3, 3, 3), {"strides": [2, 2], "output_shape": [10, 12]}),
    ((1, 4, 5, 6), (4, 3, 3, 3), {"strides": [2, 2], "auto_pad": "SAME_UPPER"}),
    ((1, 4, 5, 6), (4, 3, 1, 1), {"strides": [2, 3]}),
    ((1, 2, 3, 4, 3), (2, 2, 2, 3, 2), {"strides": [2, 1, 2]}),
]


@pytest.mark.parametrize("sums", [HALF, SINGLE])
@pytest.mark.parametrize(
    ("op_type", "x", "w", "attributes"),
    [("Conv", *case) for case in CONVOLUTIONS] + [("ConvTranspose", *case) for case in TRANSPOSED],
)
def test_a_convolution_is_onnx_runtimes_but_for_the_rounding(
    op_type: str, x: Sequence[int], w: Sequence[int], attributes: dict[str, Any], sums: Sums
) -> None:
    image, weight = halves(*x), halves(*w, seed=1)
    wanted = by_onnx_runtime(op_type, image, weight, **attributes)
    found = by_us(op_type, sums, **attributes)(image, weight)
    assert found.shape == wanted.shape
    products = weight[0].size if op_type == "Conv" else weight.shape[0] * int(np.prod(w[2:]))
    assert np.abs(found - wanted).max() <= 2.0**-11 * np.abs(wanted).max() * (products + 1)
    exact = halves(*x, scale=4.0).round(), halves(*w, seed=1, scale=2.0).round()
    # Whole numbers below 2048 have no rounding in half: then every order of sums gives the same.
    assert np.abs(by_onnx_runtime(op_type, *(np.abs(v) for v in exact), **attributes)).max() < 2048
    assert np.array_equal(by_us(op_type, sums, **attributes)(*exact), by_onnx_runtime(op_type, *exact, **attributes))


@settings(max_examples=examples(40))
@given(
    channels=st.integers(1, 20),
    rows=st.integers(1, 5),
    kernel=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    stride=st.integers(1, 3),
    pad=st.integers(0, 2),
    seed=st.integers(0, 99),
)
def test_the_order_is_taps_outside_channels_inside_packed_densely(
    channels: int, rows: int, kernel: tuple[int, int], stride: int, pad: int, seed: int
) -> None:
    x, w = halves(1, channels, 6, 7, seed=seed), halves(rows, channels, *kernel, seed=seed + 1)
    found = by_us("Conv", HALF, strides=[stride] * 2, pads=[pad] * 4)(x, w)
    wide = np.pad(x[0], ((0, 0), (pad, pad), (pad, pad)))
    weights = w.transpose(0, 2, 3, 1).reshape(rows, -1)
    wanted = np.empty(found.shape, np.float32)
    for m, i, j in itertools.product(range(rows), range(found.shape[2]), range(found.shape[3])):
        patch = wide[:, i * stride : i * stride + kernel[0], j * stride : j * stride + kernel[1]]
        wanted[0, m, i, j] = added(weights[m], patch.transpose(1, 2, 0).reshape(-1), 16)
    assert (found == wanted).mean() > 0.98


def test_depthwise_sums_are_rounded_at_every_tap() -> None:
    x, w = halves(1, 6, 8, 8), halves(6, 1, 3, 3, seed=1)
    found = by_us("Conv", HALF, group=6)(x, w)
    for c, i, j in itertools.product(range(6), range(6), range(6)):
        assert found[0, c, i, j] == added(w[c].reshape(-1), x[0, c, i : i + 3, j : j + 3].reshape(-1), 1)
