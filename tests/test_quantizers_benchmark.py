"""What `benchmarks.quantizers` counts in a file that a tool has written."""

from __future__ import annotations

import numpy as np
from models import proto

from benchmarks.quantizers import _products

SCALE = {"s": np.float32(0.5), "zero": np.int8(0)}
WEIGHT = {"w": np.ones((4, 4), np.float32), "low": np.ones((4, 4), np.int8)}


def test_a_product_is_low_where_both_operands_are_dequantised_even_behind_a_transpose():
    both = proto(
        "(float[4, 4] x) => (float[4, 4] y, float[4, 4] z) { q = QuantizeLinear(x, s, zero) "
        "a = DequantizeLinear(q, s, zero) b = DequantizeLinear(low, s, zero) t = Transpose(b) "
        "y = MatMul(a, t) z = MatMul(a, w) }",
        {**SCALE, **WEIGHT},
    )
    assert _products(both, "int8") == (1, 2)


def test_of_int4_products_with_a_weight_alone_are_counted_and_their_activation_may_be_high():
    weights = proto(
        "(float[4, 4] x) => (float[4, 4] y, float[4, 4] z, float[4, 4] v) { b = DequantizeLinear(low, s, zero) "
        "y = MatMul(x, b) z = MatMul(x, w) v = MatMul(x, x) }",
        {**SCALE, **WEIGHT},
    )
    assert _products(weights, "int4") == (1, 2)
