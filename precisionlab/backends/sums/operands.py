"""The products of a graph as functions of NumPy's arrays: what a node of `rewrite.sums` asks for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from precisionlab.backends.sums.convolution import Geometry, convolution
from precisionlab.backends.sums.kernel import Loop, add_up, check_processor
from precisionlab.backends.sums.products import matmul
from precisionlab.backends.sums.transposed import transposed_convolution
from precisionlab.plan.arithmetic import Sums
from precisionlab.rewrite.sums import CONV, CONV_TRANSPOSE, sums_of

Product = Callable[[NDArray[Any], NDArray[Any]], NDArray[Any]]
"""Of two float32 or float64 arrays that hold halves; what it gives is of the first one's type."""


def product_of(node: ir.Node, sums: Sums, loop: Loop = add_up) -> Product:
    """What adds up the products of a Conv, ConvTranspose or MatMul, without its bias; `loop` is what does so."""
    if node.op_type == CONV:
        work: Callable[..., Any] = partial(_convolved, node)
    elif node.op_type == CONV_TRANSPOSE:
        work = partial(_transposed, node)
    else:
        work = matmul
    return partial(_in_float32, partial(work, sums=sums, loop=loop))


def on_cpu(node: ir.Node) -> Product:
    """What computes a node of `rewrite.sums`. Raises OptionError on a processor that cannot round to half."""
    check_processor()
    return product_of(node, sums_of(node))


def _in_float32(work: Callable[..., Any], a: NDArray[Any], b: NDArray[Any]) -> NDArray[Any]:
    found = work(np.asarray(a, np.float32), np.asarray(b, np.float32))
    return np.asarray(found, a.dtype)


def _convolved(
    node: ir.Node, x: NDArray[np.float32], w: NDArray[np.float32], sums: Sums, loop: Loop
) -> NDArray[np.float32]:
    return convolution(x, w, geometry_of(node, x.shape, w.shape), sums, loop)


def _transposed(
    node: ir.Node, x: NDArray[np.float32], w: NDArray[np.float32], sums: Sums, loop: Loop
) -> NDArray[np.float32]:
    geometry, sizes = transposed_geometry_of(node, x.shape, w.shape)
    return transposed_convolution(x, w, geometry, sizes, sums, loop)


def geometry_of(node: ir.Node, x: Sequence[int], w: Sequence[int]) -> Geometry:
    """How a Conv's kernel moves over an input of this shape, with a weight of that."""
    axes = len(w) - 2
    strides, dilations = _numbers(node, "strides", [1] * axes), _numbers(node, "dilations", [1] * axes)
    reach = [(size - 1) * dilation + 1 for size, dilation in zip(w[2:], dilations, strict=True)]
    pads = _numbers(node, "pads", [0] * 2 * axes)
    if (where := _auto_pad(node)) is not None:
        lacking = [
            max(0, (-(-size // stride) - 1) * stride + r - size)
            for size, stride, r in zip(x[2:], strides, reach, strict=True)
        ]
        pads = _split(lacking, is_lower=where == "SAME_LOWER") if where.startswith("SAME") else [0] * 2 * axes
    return _geometry(node, strides, dilations, pads)


def transposed_geometry_of(node: ir.Node, x: Sequence[int], w: Sequence[int]) -> tuple[Geometry, list[int]]:
    """The same of a ConvTranspose, and the spatial sizes of what it gives."""
    axes = len(w) - 2
    strides, dilations = _numbers(node, "strides", [1] * axes), _numbers(node, "dilations", [1] * axes)
    more = _numbers(node, "output_padding", [0] * axes)
    pads = _numbers(node, "pads", [0] * 2 * axes)
    terms = zip(x[2:], strides, w[2:], dilations, more, strict=True)
    whole = [(size - 1) * stride + (k - 1) * dilation + 1 + added for size, stride, k, dilation, added in terms]
    where, sizes = _auto_pad(node), _numbers(node, "output_shape", [])
    if not sizes and where is not None:
        is_same = where.startswith("SAME")
        sizes = [n * s for n, s in zip(x[2:], strides, strict=True)] if is_same else whole
    if sizes:
        # The specification: half of what is too much at each end, the odd one in front but with SAME_UPPER.
        surplus = [w - n for w, n in zip(whole, sizes, strict=True)]
        pads = _split(surplus, is_lower=where != "SAME_UPPER")
    else:
        sizes = [n - pads[i] - pads[axes + i] for i, n in enumerate(whole)]
    return _geometry(node, strides, dilations, pads), sizes


def _geometry(node: ir.Node, strides: Sequence[int], dilations: Sequence[int], pads: Sequence[int]) -> Geometry:
    axes = len(strides)
    group = node.attributes["group"].as_int() if "group" in node.attributes else 1
    return Geometry(tuple(strides), tuple(dilations), tuple(pads[:axes]), tuple(pads[axes:]), group)


def _split(totals: Sequence[int], *, is_lower: bool) -> list[int]:
    """Pads in front, then behind, of so many in all; the odd one in front where `is_lower`."""
    first = [(total + 1) // 2 if is_lower else total // 2 for total in totals]
    return [*first, *(total - before for total, before in zip(totals, first, strict=True))]


def _auto_pad(node: ir.Node) -> str | None:
    said = node.attributes["auto_pad"].as_string() if "auto_pad" in node.attributes else "NOTSET"
    return None if said == "NOTSET" else said


def _numbers(node: ir.Node, name: str, default: list[int]) -> list[int]:
    return list(node.attributes[name].as_ints()) if name in node.attributes else default
