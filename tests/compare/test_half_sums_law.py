"""The estimate of what sums in half cost is what adding normal numbers up finds."""

from __future__ import annotations

import numpy as np
import pytest

from precisionlab.backends.sums.products import matmul
from precisionlab.compare.half_sums import half_sums_sqnr
from precisionlab.model.contraction import BLOCK
from precisionlab.plan.arithmetic import Sums


def measured(products: int, sums: Sums) -> float:
    rng = np.random.default_rng(products)
    a, b = (
        rng.standard_normal(shape).astype(np.float16).astype(np.float32) for shape in ((96, products), (products, 96))
    )
    exact = a.astype(np.float64) @ b.astype(np.float64)
    return float(10 * np.log10((exact**2).sum() / ((matmul(a, b, sums) - exact) ** 2).sum()))


@pytest.mark.parametrize("blocks", [4, 6, 8, 12, 16, 24, 32, 48, 64])
def test_of_normal_data_it_is_within_1_db_of_the_emulation(blocks: int) -> None:
    assert half_sums_sqnr(blocks) == pytest.approx(measured(blocks * BLOCK, Sums.HALF), abs=1.0)


@pytest.mark.parametrize("products", [4, 16, 64])
def test_without_tensor_cores_a_product_is_a_block(products: int) -> None:
    assert half_sums_sqnr(products) == pytest.approx(measured(products, Sums.HALF_SINGLE), abs=1.5)


def test_one_block_is_one_rounding_and_each_more_costs() -> None:
    assert half_sums_sqnr(1) == pytest.approx(measured(BLOCK, Sums.HALF), abs=1.0)
    figures = [half_sums_sqnr(blocks) for blocks in range(1, 300)]
    assert figures == sorted(figures, reverse=True)
    assert half_sums_sqnr(4) == pytest.approx(69.7, abs=0.1)  # cuBLAS on an H200
    assert half_sums_sqnr(256) == pytest.approx(52.6, abs=0.1)
