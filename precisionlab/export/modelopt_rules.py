"""Which layers ModelOpt's INT8 quantisation leaves alone, whatever it is told to quantise.

By the source of ModelOpt 0.47 (`modelopt/onnx/quantization/graph_utils.py`: `find_nodes_from_matmul_to_exclude`,
`find_nodes_from_convs_to_exclude`). Sizes that the model leaves open are 1 there, as it makes up its own inputs.
"""

from __future__ import annotations

from collections.abc import Iterable

import onnx_ir as ir

from precisionlab.model import Model

VERSION = "0.47"
_LEAST = 16  # of a product's K and N, and of a convolution's channels
_EIGHT = 8


def left_alone(model: Model, nodes: Iterable[str]) -> dict[str, str]:
    """Node → why it is left alone, of these."""
    found = {}
    for name in nodes:
        node = model.node[name]
        reason = {"Conv": _convolution, "Gemm": _product, "MatMul": _product}.get(node.op_type, _nothing)(model, node)
        if reason:
            found[name] = reason
    return found


def _nothing(model: Model, node: ir.Node) -> str:
    return ""


def _shape(model: Model, value: ir.Value | None) -> tuple[int, ...] | None:
    """The sizes as the model's file declares or implies them; 1 where it leaves one open, None without a rank."""
    if value is None:
        return None
    if value.const_value is not None:
        return tuple(value.const_value.shape.numpy())
    known = model.tensors.get(str(value.name))
    if known is None or known.shape is None:
        return None
    return tuple(size if isinstance(size, int) else 1 for size in known.shape)


def _product(model: Model, node: ir.Node) -> str:
    given = _shape(model, node.outputs[0])
    if given is None:
        return ""
    constants = [value for value in node.inputs if value is not None and value.const_value is not None]
    vector = 1 in given if constants and len(given) < 3 else not constants and (len(given) < 2 or 1 in given[-2:])
    if vector:
        return "a product with one row or column, as of a batch of 1"
    taken = _shape(model, node.inputs[1])
    depth = None
    if taken is not None and len(taken) >= 2:
        depth = taken[-1] if node.attributes.get_int("transB", 0) else taken[-2]
    if len(given) >= 2 and 0 < given[-1] < _LEAST:
        return f"a product with {given[-1]} columns, fewer than {_LEAST}"
    if depth is not None and 0 < depth < _LEAST:
        return f"sums of {depth} products, fewer than {_LEAST}"
    return ""


def _convolution(model: Model, node: ir.Node) -> str:
    weight = node.inputs[1]
    if weight is None or weight.const_value is None:
        return "its weight is no constant"
    given, taken = weight.const_value.shape.numpy()[:2]
    if given >= _LEAST and taken >= _LEAST:
        return ""
    said = node.attributes.get_ints("kernel_shape", (1, 1))  # so it reads a Conv that leaves it to its weight
    is_first = any(value is not None and value.is_graph_input() for value in node.inputs)
    if node.attributes.get_int("group", 1) > 1:
        fits = given % _EIGHT == 0 and all(size >= 3 for size in said)
    else:
        in_eights = given % _EIGHT == 0 or taken % _EIGHT == 0
        fits = in_eights and (is_first or max(given, taken) >= _LEAST) and len(set(said)) == 1
    return "" if fits else f"{taken} input and {given} output channels a group, fewer than {_LEAST}"
