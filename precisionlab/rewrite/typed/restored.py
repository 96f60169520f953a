"""What ONNX's version converter loses of a model, put back into what it made.

Seen of onnx 1.23.2, in graphs inside nodes too: Upsample-7 and -9 and Resize-10 become a Resize with half-pixel
coordinates, where they had asymmetric ones; Hardmax-11 keeps its axis, where it was flattened there; the metadata and
doc strings of nodes, tensors and graphs go.
"""

from __future__ import annotations

import onnx_ir as ir

from precisionlab.model.flow import ONNX_DOMAINS
from precisionlab.model.names import all_names, new_name
from precisionlab.model.subgraphs import subgraphs

_ALONG_AXIS = 13  # Hardmax is taken along one axis; before, of all that stands behind it
_COORDINATES = 11  # Resize says its coordinates; before, they were asymmetric


def restore(old: ir.Model, new: ir.Model, before: int, after: int) -> None:
    """Put back into `new`, at opset `after`, what it was given of `old`, at opset `before`; nodes go by their names."""
    nodes = list(new.graph.all_nodes())
    if before < _COORDINATES <= after:
        for node in nodes:
            if _is(node, "Resize"):
                _asymmetric(node)
    if before < _ALONG_AXIS <= after:
        names = set(all_names(new.graph))
        for node in nodes:
            if _is(node, "Hardmax"):
                _flattened(node, names)
    _say_again(old.graph, new.graph)


def _is(node: ir.Node, op_type: str) -> bool:
    return node.op_type == op_type and node.domain in ONNX_DOMAINS


def _asymmetric(resize: ir.Node) -> None:
    """Coordinates as before opset 11, where ONNX Runtime rounds them down to the nearest, and up where it shrinks."""
    scales = resize.inputs[2] if len(resize.inputs) > 2 else None
    tensor = None if scales is None else scales.const_value
    shrinks = tensor is not None and tensor.size > 0 and bool((tensor.numpy() <= 1).all())
    resize.attributes["coordinate_transformation_mode"] = ir.AttrString("coordinate_transformation_mode", "asymmetric")
    resize.attributes["nearest_mode"] = ir.AttrString("nearest_mode", "ceil" if shrinks else "floor")


def _flattened(hardmax: ir.Node, names: set[str]) -> None:
    """The largest of all that stands behind the axis, by way of a matrix where that is more than the last axis."""
    taken, given = hardmax.inputs[0], hardmax.outputs[0]
    assert taken is not None
    axis = hardmax.attributes.get_int("axis", 1)
    hardmax.attributes["axis"] = ir.AttrInt64("axis", -1)
    if axis == -1 or (taken.shape is not None and axis == len(taken.shape) - 1):
        return
    flat = _node("Flatten", [taken], f"{hardmax.name}_flat", names, [ir.AttrInt64("axis", axis)])
    sizes = _node("Shape", [taken], f"{hardmax.name}_shape", names)
    shaped = _node("Reshape", [given, sizes.outputs[0]], f"{hardmax.name}_back", names)
    flat.outputs[0].type, flat.outputs[0].shape = taken.type, ir.Shape([None, None])
    sizes.outputs[0].type = ir.TensorType(ir.DataType.INT64)
    shaped.outputs[0].type, shaped.outputs[0].shape = given.type, taken.shape
    graph = hardmax.graph
    assert graph is not None
    graph.insert_before(hardmax, [flat, sizes])
    graph.insert_after(hardmax, shaped)
    hardmax.replace_input_with(0, flat.outputs[0])
    ir.convenience.replace_all_uses_with(given, shaped.outputs[0], replace_graph_outputs=True)
    shaped.replace_input_with(0, given)
    name = str(given.name)
    given.name, given.shape = new_name(f"{name}_flat", names), ir.Shape([None, None])
    shaped.outputs[0].name = name


def _node(
    op_type: str, inputs: list[ir.Value | None], name: str, names: set[str], attributes: list[ir.Attr] | None = None
) -> ir.Node:
    node = ir.Node("", op_type, inputs, attributes or [], num_outputs=1)
    node.name = node.outputs[0].name = new_name(name, names)
    return node


def _say_again(old: ir.Graph, new: ir.Graph) -> None:
    """Have the graph, its nodes and tensors say of themselves what they did, and those inside of its nodes."""
    new.name, new.doc_string = old.name, old.doc_string
    new.metadata_props.update(old.metadata_props)
    values = {str(value.name): value for value in _values(new)}
    for value in _values(old):
        if (same := values.get(str(value.name))) is not None:
            same.doc_string = value.doc_string
            same.metadata_props.update(value.metadata_props)
            same.meta.update(value.meta)  # where onnx-ir keeps quantisation annotations
    nodes = {str(node.name): node for node in new}
    for node in old:
        if node.name and (copy := nodes.get(str(node.name))) is not None:
            copy.doc_string = node.doc_string
            copy.metadata_props.update(node.metadata_props)
            inner = dict(subgraphs(copy))
            for attribute, graph in subgraphs(node):
                if attribute in inner:
                    _say_again(graph, inner[attribute])


def _values(graph: ir.Graph) -> list[ir.Value]:
    return [*graph.inputs, *graph.initializers.values(), *(value for node in graph for value in node.outputs)]
