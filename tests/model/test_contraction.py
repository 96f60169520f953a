"""Of how many products and blocks one value is the sum: what the loops that add up go through."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given
from hypothesis import strategies as st

from precisionlab.backends.sums.convolution import packed
from precisionlab.backends.sums.operands import geometry_of, transposed_geometry_of
from precisionlab.backends.sums.transposed import axes_of, phases_of
from precisionlab.model.contraction import blocks_of, products_of
from precisionlab.model.graph import TensorInfo
from precisionlab.plan.arithmetic import Sums


def node_of(op_type: str, left: Any, right: Any, **attributes: Any) -> tuple[ir.Node, dict[str, TensorInfo]]:
    """A node, and the shapes of what it takes."""
    given = ir.convenience.convert_attributes(attributes)
    node = ir.Node("", op_type, [ir.Value(name="x"), ir.Value(name="w")], given)
    shapes = {"x": left, "w": right}
    return node, {name: TensorInfo(name, ir.DataType.FLOAT, shape) for name, shape in shapes.items()}


@pytest.mark.parametrize(
    ("op_type", "left", "right", "attributes", "products", "blocks"),
    [
        ("MatMul", (2, 5, 100), (100, 7), {}, 100, 7),
        ("MatMul", (5, 16), (16, 7), {}, 16, 1),
        ("MatMul", (17,), (17,), {}, 17, 2),
        ("MatMul", None, (33, 7), {}, 33, 3),
        ("MatMul", (5, "n"), (33, 7), {}, 33, 3),
        ("MatMul", (5, "n"), ("n", 7), {}, None, None),
        ("MatMul", None, None, {}, None, None),
        ("Gemm", (100, 5), (100, 7), {"transA": 1}, 100, 7),
        ("Gemm", None, (7, 100), {"transB": 1}, 100, 7),
        ("Conv", (1, 20, 9, 9), (8, 20, 3, 3), {}, 180, 12),
        ("Conv", (1, 16, 9, 9), (16, 1, 3, 3), {"group": 16}, 9, 9),
        ("Conv", (1, 16, 9, 9), (16, 4, 3, 3), {"group": 4}, 36, 9),
        ("Conv", (1, 40, 9, 9), (16, 20, 3, 3), {"group": 2}, 180, 12),
        ("Conv", (1, 3, 9, 9), (16, "c", 3, 3), {}, None, None),
        ("Conv", (1, 3, 9, 9), None, {"group": 3}, None, None),
        ("ConvTranspose", (1, 20, 9, 9), (20, 8, 4, 4), {"strides": [2, 2]}, 80, 5),
        ("ConvTranspose", (1, 20, 9, 9), (20, 8, 4, 4), {}, 320, 20),
        ("ConvTranspose", (1, 16, 9, 9), (16, 2, 3, 3), {"group": 8, "strides": [2, 2]}, 8, 4),
        ("ConvTranspose", (1, 20, 9), (20, 8, 5), {"strides": [4], "dilations": [2]}, 60, 4),
        ("Relu", (1, 3), (3,), {}, None, None),
    ],
)
def test_products_and_blocks_are_those_of_the_operator(
    op_type: str, left: Any, right: Any, attributes: dict[str, Any], products: int | None, blocks: int | None
) -> None:
    node, tensors = node_of(op_type, left, right, **attributes)
    assert products_of(node, tensors) == products
    assert blocks_of(node, tensors) == blocks


@given(
    op_type=st.sampled_from(["Conv", "ConvTranspose"]),
    group=st.integers(1, 4),
    channels=st.integers(1, 40),
    kernel=st.tuples(st.integers(1, 5), st.integers(1, 3)),
    strides=st.tuples(st.integers(1, 4), st.integers(1, 3)),
    dilations=st.tuples(st.integers(1, 3), st.integers(1, 2)),
)
def test_the_blocks_are_those_that_the_loops_go_through(
    op_type: str,
    group: int,
    channels: int,
    kernel: tuple[int, int],
    strides: tuple[int, int],
    dilations: tuple[int, int],
) -> None:
    """Of a ConvTranspose in the place where most taps meet."""
    x = (1, group * channels, 40, 40)
    w = (group * 2, channels, *kernel) if op_type == "Conv" else (group * channels, 2, *kernel)
    attributes = {"group": group, "strides": strides, "dilations": dilations}
    node, tensors = node_of(op_type, x, w, **attributes)
    if op_type == "Conv":
        assert geometry_of(node, x, w).strides == strides
        taps = math.prod(kernel)
    else:
        geometry, sizes = transposed_geometry_of(node, x, w)
        axes = [axes_of(phase, geometry, kernel, sizes) for phase in phases_of(strides)]
        taps = max(math.prod(len(axis.taps) for axis in phase) for phase in axes)
    weights, block = packed(np.zeros((group * 2, channels, taps), np.float32), group, Sums.HALF)
    assert blocks_of(node, tensors) == weights.shape[2] // block
    assert products_of(node, tensors) == channels * taps
