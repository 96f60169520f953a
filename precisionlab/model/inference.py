"""Types and shapes of a model's values, as far as ONNX's shape inference tells them."""

from __future__ import annotations

import logging
from collections.abc import Iterable

import onnx
import onnx_ir as ir
from onnx_ir.passes import common as passes

from precisionlab.model.flow import ONNX_DOMAINS
from precisionlab.model.graph import TensorInfo
from precisionlab.model.opset import opset_of

_LONGEST_SHAPE = 1 << 12  # elements


def infer_types(model: ir.Model) -> None:
    """Give the model's values types and shapes, as far as they can be inferred; what is known already stays.

    With operators that onnx does not know it stops there. The values of shapes are followed as well, but not where a
    vector is too long to be a shape: onnx takes memory for each of its elements then.
    """
    # onnx-ir's warning with a traceback where it has to stop would only frighten.
    logging.getLogger("onnx_ir").setLevel(logging.ERROR)
    passes.ShapeInferencePass(check_type=False, strict_mode=False, data_prop=False)(model)
    computed = (value.shape for value in values_of(model.graph) if not value.is_initializer())
    if can_follow_values(shape for shape in computed if shape is not None):
        passes.ShapeInferencePass(check_type=False, strict_mode=False, data_prop=True)(model)


def can_follow_values(shapes: Iterable[ir.Shape | tuple[int | str | None, ...]]) -> bool:
    """Whether inference may follow values: none of these is a vector so long that it costs memory."""
    vectors = (shape[0] for shape in shapes if len(shape) == 1)
    return not any(isinstance(size, int) and size > _LONGEST_SHAPE for size in vectors)


def inferred(model: ir.Model) -> ir.Model:
    """A clone whose values have types and shapes."""
    clone = model.clone()
    infer_types(clone)
    return clone


def infer_tensors(model: ir.Model) -> dict[str, TensorInfo]:
    """Type and shape of each value of the main graph."""
    return tensors_of(inferred(model))


def tensors_of(model: ir.Model, graph: ir.Graph | None = None) -> dict[str, TensorInfo]:
    """Type and shape of each value of the main graph, or of a `graph` inside it, as its values say."""
    graph = model.graph if graph is None else graph
    containers = _containers(graph, opset_of(model))
    return {str(v.name): tensor_info(v, v not in containers) for v in values_of(graph) if v.name}


def values_of(graph: ir.Graph) -> list[ir.Value]:
    """The inputs, constants and node outputs of a graph."""
    return [*graph.inputs, *graph.initializers.values(), *(v for node in graph for v in node.outputs)]


def _containers(graph: ir.Graph, opset: int) -> set[ir.Value]:
    """The sequences and optionals: onnx-ir's inference gives them the type of the tensors that they hold."""
    found = {v for v in graph.inputs if v.type is not None and not isinstance(v.type, ir.TensorType)}
    for node in graph:
        if node.domain not in ONNX_DOMAINS or not onnx.defs.has(node.op_type):
            continue
        outputs = onnx.defs.get_schema(node.op_type, opset).outputs
        inner = [a.as_graph().outputs for a in node.attributes.values() if a.type == ir.AttributeType.GRAPH]
        for index, value in enumerate(node.outputs):
            tensors = [kind.startswith("tensor(") for kind in outputs[min(index, len(outputs) - 1)].types]
            # Identity, If and Loop (whose body gives a condition first) may hand on either.
            at = index + (node.op_type == "Loop")
            handed = any(isinstance(o[at].type, (ir.SequenceType, ir.OptionalType)) for o in inner if at < len(o))
            handed = handed or (node.op_type == "Identity" and node.inputs[0] in found)
            if not any(tensors) or (handed and not all(tensors)):
                found.add(value)
    return found


def tensor_info(value: ir.Value, is_tensor: bool = True) -> TensorInfo:
    """A value's name, type and shape, as it says them itself."""
    dtype = value.dtype if is_tensor and isinstance(value.type, ir.TensorType) else None
    shape = None
    if value.shape is not None:
        shape = tuple(_dimension(dim if isinstance(dim, int) else dim.value) for dim in value.shape)
    return TensorInfo(str(value.name), dtype, shape)


def _dimension(dim: int | str | None) -> int | str | None:
    """A dimension; None for what exporters write where they do not know it: −1, and "?", which is no symbol."""
    return None if dim == "?" or (isinstance(dim, int) and dim < 0) else dim
