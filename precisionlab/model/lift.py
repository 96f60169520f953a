"""Lifts what a model holds in float16 or bfloat16 to float32.

ONNX Runtime's CPU kernels compute half in float32, or natively, as the machine goes: neither a reference nor an
overflow can be had from them. So the graph becomes a float32 one that holds the same weights, and which of its nodes
the file has in half is noted: there a variant rounds, as the file's own types do.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
import onnx_ir as ir

from precisionlab.precision import Precision

OWN: Mapping[ir.DataType | None, Precision] = {
    precision.number_format.element: precision for precision in Precision.low() if not precision.is_quantized
}
"""The element types that are lifted, and the precision that a node which gives them has of its own."""

# Attributes that name an element type, of any operator that has them. (ONNX operator specification: Cast, EyeLike,
# SequenceEmpty, DequantizeLinear, QuantizeLinear, HannWindow, Attention, LayerNormalization.)
_TYPES = frozenset({"dtype", "output_datatype", "output_dtype", "precision", "softmax_precision", "stash_type", "to"})
_OWN = "precisionlab.own"


def lift(model: ir.Model, typed: ir.Model) -> bool:
    """Make the graph and its subgraphs float32 in place, where they are half; each such node is noted as `own_of` has.

    `typed` is a clone of the model whose types were inferred. Returns whether anything but a constant was half. Nodes,
    values and their names stay; a Cast to half becomes one to float32. Constants that lie in a file of their own are
    converted when they are read.
    """
    found = any(value.dtype in OWN for value in typed.graph.inputs)
    for graph, known in zip(model.graphs(), typed.graphs(), strict=True):
        for node, inferred in zip(graph, known, strict=True):
            own = next((OWN[v.dtype] for v in inferred.outputs if v.dtype in OWN), None)
            if own is not None:
                node.meta[_OWN] = own
                found = True
            _lift_attributes(node)
        for value in _values(graph):
            if value.dtype in OWN:
                value.dtype = ir.DataType.FLOAT
        for value in graph.initializers.values():
            tensor = value.const_value
            if tensor is not None and tensor.dtype in OWN:
                value.const_value = _widened(tensor)
                value.dtype = ir.DataType.FLOAT
    return found


def own_of(node: ir.Node) -> Precision | None:
    """The half precision that the file has the node's output in; None where it has it in float32, or in no float."""
    own = node.meta.get(_OWN)
    return own if isinstance(own, Precision) else None


def _values(graph: ir.Graph) -> Iterator[ir.Value]:
    yield from graph.inputs
    for node in graph:
        yield from node.outputs
    yield from graph.outputs


def _lift_attributes(node: ir.Node) -> None:
    for name, attribute in list(node.attributes.items()):
        if attribute.type == ir.AttributeType.INT and name in _TYPES:
            if attribute.as_int() in (int(precision.number_format.element) for precision in OWN.values()):
                node.attributes[name] = ir.AttrInt64(name, int(ir.DataType.FLOAT))
        elif attribute.type == ir.AttributeType.TENSOR and attribute.as_tensor().dtype in OWN:
            node.attributes[name] = ir.AttrTensor(name, _widened(attribute.as_tensor()))


def _widened(tensor: ir.TensorProtocol) -> ir.TensorProtocol:
    """The same values in float32, which holds them all."""
    if isinstance(tensor, ir.ExternalTensor):
        shape = ir.Shape(tuple(tensor.shape.numpy()))
        return ir.LazyTensor(
            lambda: ir.tensor(tensor.numpy().astype(np.float32)), ir.DataType.FLOAT, shape, name=tensor.name
        )
    return ir.tensor(tensor.numpy().astype(np.float32), name=tensor.name)
