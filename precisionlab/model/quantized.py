"""What a model is quantised to by nodes of its own, wherever in it they stand.

A network with such nodes is explicitly quantised: TensorRT takes the scales from them and from nowhere else, and a
weakly typed one wants the builder flag of their type, also where no layer of a plan is in int8 ("Int8 precision has
been set for a layer or layer output, but int8 is not configured in the builder").
"""

from __future__ import annotations

from collections.abc import Iterator

import onnx_ir as ir

from precisionlab.model.graph import Model
from precisionlab.model.portable import QUANTIZERS, quantized_type

_FLAGS = {
    **dict.fromkeys((ir.DataType.INT8, ir.DataType.UINT8, None), "INT8"),  # uint8 is read as int8, or refused
    ir.DataType.FLOAT8E4M3FN: "FP8",
    **dict.fromkeys((ir.DataType.INT4, ir.DataType.UINT4), "INT4"),
    ir.DataType.FLOAT4E2M1: "FP4",
}
"""Type of the quantised values → TensorRT's builder flag. A type that is not known is the parser's default, int8."""


def quantizing_nodes(model: Model) -> Iterator[ir.Node]:
    """All QuantizeLinear and DequantizeLinear nodes of the file: in bodies, functions and an end that was cut off too.

    Of any domain: TensorRT's parser goes by the operator's name alone.
    """
    functions = (node for function in model.onnx.functions.values() for node in function.all_nodes())
    tail = () if model.tail is None else model.tail.nodes
    return (node for node in (*model.onnx.graph.all_nodes(), *functions, *tail) if node.op_type in QUANTIZERS)


def own_flags(model: Model) -> dict[str, str]:
    """Builder flag (`INT8`, `FP8`, `INT4`, `FP4`) → the first of the model's own nodes that needs it."""
    found: dict[str, str] = {}
    for node in quantizing_nodes(model):
        dtype = quantized_type(node, model)
        if dtype in _FLAGS:
            found.setdefault(_FLAGS[dtype], str(node.name))
    return found
