"""A model with its large constants as inputs: what ONNX's own tools can take of a model of any size."""

from __future__ import annotations

from collections.abc import Mapping

import onnx_ir as ir

_LARGE = 1024  # bytes: shapes and axes, which inference looks into, are far smaller


def big_as_inputs(model: ir.Model) -> tuple[ir.Model, Mapping[str, ir.TensorProtocol]]:
    """A copy in which the large constants of the main graph are inputs, and those constants by name."""
    light = model.clone()
    big: dict[str, ir.TensorProtocol] = {}
    for name, value in list(light.graph.initializers.items()):
        tensor = value.const_value
        if tensor is None or (tensor.nbytes <= _LARGE and not isinstance(tensor, ir.ExternalTensor)):
            continue
        light.graph.initializers.pop(name)
        value.type, value.shape = ir.TensorType(tensor.dtype), ir.Shape(tuple(tensor.shape.numpy()))
        value.const_value = None
        light.graph.inputs.append(value)
        big[name] = tensor
    return light, big


def restore_big(model: ir.Model, big: Mapping[str, ir.TensorProtocol]) -> None:
    """Make inputs that stand for large constants constants again."""
    inputs = [value for value in model.graph.inputs if value.name not in big]
    constants = [value for value in model.graph.inputs if value.name in big]
    model.graph.inputs.clear()
    model.graph.inputs.extend(inputs)
    for value in constants:
        value.const_value = big[str(value.name)]
        model.graph.register_initializer(value)
