"""What ONNX's operator schemas allow: which inputs and outputs of a node can be given a type together."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

import onnx
import onnx_ir as ir

from precisionlab.model.flow import ONNX_DOMAINS, is_control, is_shape_input
from precisionlab.model.graph import TensorInfo

FLOAT = ir.DataType.FLOAT
# Their output's type is that of an attribute, which the rewrite sets; or of the scale, where it takes that away.
_TYPED_BY_VALUE = frozenset({"ConstantOfShape", "DequantizeLinear"})


@dataclass(frozen=True)
class Places:
    """Which of a node's float32 inputs and outputs, by index, take and give another type."""

    inputs: tuple[int, ...]
    outputs: tuple[int, ...]


def is_float(value: ir.Value | None, tensors: Mapping[str, TensorInfo]) -> bool:
    """Whether the value is a float32 tensor in the model."""
    known = None if value is None or not value.name else tensors.get(value.name)
    return known is not None and known.dtype == FLOAT


def _type(dtype: ir.DataType) -> str:
    """What ONNX's schemas call a tensor of this type."""
    return f"tensor({dtype.name.lower()})"


def places(node: ir.Node, dtype: ir.DataType, opset: int, tensors: Mapping[str, TensorInfo]) -> Places:
    """The float32 inputs and outputs that the node's schema at this opset lets be `dtype` all at once.

    Shape inputs (the scales of a Resize) are never among them. An output is one where it has the type of an input
    that is one. Both empty where there is no such schema. Those of a node with bodies are all, as the bodies are typed.
    """
    if is_control(node):
        taken, given = (
            tuple(index for index, value in enumerate(values) if is_float(value, tensors))
            for values in (node.inputs, node.outputs)
        )
        return Places(taken, given)
    if node.domain not in ONNX_DOMAINS or not onnx.defs.has(node.op_type):
        return Places((), ())
    try:
        schema = onnx.defs.get_schema(node.op_type, opset)
    except onnx.defs.SchemaError:
        return Places((), ())
    if node.op_type == "Cast":  # it takes any type, and gives the one that an attribute names
        gives = is_float(node.outputs[0], tensors) and _type(dtype) in schema.outputs[0].types
        return Places((), (0,) if gives else ())
    inputs, bound = [], set()
    for index, value in enumerate(node.inputs):
        formal = _formal(schema.inputs, index)
        if formal is None or not is_float(value, tensors) or is_shape_input(node, index):
            continue
        if _type(dtype) in formal.types:
            inputs.append(index)
            bound.add(formal.type_str)
    outputs = []
    for index, value in enumerate(node.outputs):
        formal = _formal(schema.outputs, index)
        if formal is None or not is_float(value, tensors) or _type(dtype) not in formal.types:
            continue
        if formal.type_str in bound or node.op_type in _TYPED_BY_VALUE:
            outputs.append(index)
    return Places(tuple(inputs), tuple(outputs))


def _formal(
    parameters: Collection[onnx.defs.OpSchema.FormalParameter], index: int
) -> onnx.defs.OpSchema.FormalParameter | None:
    declared = list(parameters)
    if index < len(declared):
        return declared[index]
    return declared[-1] if declared else None  # the last is variadic
