"""Weights that stand in the model's own file, each held once.

As onnx-ir has read them they stay in protobuf's memory, and each look at one is a copy of it: every session would have
copies of all weights, and make them anew.
"""

from __future__ import annotations

from collections.abc import Iterator

import onnx
import onnx_ir as ir
from onnx_ir.serde import TensorProtoTensor

_PLAIN = frozenset(
    {
        *(ir.DataType.FLOAT, ir.DataType.DOUBLE, ir.DataType.FLOAT16, ir.DataType.BOOL),
        *(ir.DataType.INT8, ir.DataType.INT16, ir.DataType.INT32, ir.DataType.INT64),
        *(ir.DataType.UINT8, ir.DataType.UINT16, ir.DataType.UINT32, ir.DataType.UINT64),
    }
)
"""Types that numpy has too; of the others, which are packed or strings, each has a protobuf of its own."""


def own_weights(model: ir.Model) -> None:
    """Have every tensor of the model stand by itself, so that what the file was parsed into can go.

    Initialisers and attributes of the main graph, of those inside and of functions; external data stays where it is.
    """
    for graph in model.graphs():
        for value in graph.initializers.values():
            if isinstance(value.const_value, TensorProtoTensor):
                value.const_value = _owned(value.const_value)
    for node in _nodes(model):
        for name, attribute in list(node.attributes.items()):
            if attribute.type == ir.AttributeType.TENSOR and isinstance(attribute.value, TensorProtoTensor):
                node.attributes[name] = ir.AttrTensor(name, _owned(attribute.value), attribute.doc_string)


def _nodes(model: ir.Model) -> Iterator[ir.Node]:
    yield from model.graph.all_nodes()
    for function in model.functions.values():
        yield from function.all_nodes()


def _owned(tensor: TensorProtoTensor) -> ir.TensorProtocol:
    if tensor.dtype in _PLAIN:
        return ir.Tensor(
            tensor.numpy(),
            tensor.dtype,
            shape=tensor.shape,
            name=tensor.name,
            doc_string=tensor.doc_string,
            metadata_props=dict(tensor.metadata_props),
        )
    copied = onnx.TensorProto()
    copied.CopyFrom(tensor.raw)
    return TensorProtoTensor(copied)
