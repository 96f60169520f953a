"""A lifted model for others: float32 inside, its inputs and outputs in the types that its own file has."""

from __future__ import annotations

from collections.abc import Mapping

import onnx_ir as ir

from precisionlab.model.names import new_name


def give_edges(graph: ir.Graph, halves: Mapping[str, ir.DataType]) -> None:
    """Let these inputs and outputs of a float32 graph be half, in place; they keep their names."""
    names = {str(v.name) for node in graph for v in node.outputs} | {str(v.name) for v in graph.inputs}
    names |= {str(name) for name in graph.initializers}
    taken = {value: halves[str(value.name)] for value in graph.inputs if str(value.name) in halves}
    given = dict.fromkeys(v for v in graph.outputs if str(v.name) in halves and v not in taken)
    for value, dtype in taken.items():
        cast = _cast(value, ir.DataType.FLOAT, new_name(f"{value.name}_float32", names))
        ir.convenience.replace_all_uses_with(value, cast.outputs[0])
        cast.replace_input_with(0, value)
        value.type = ir.TensorType(dtype)  # not its `dtype`: values may share the type itself
        if len(graph):
            graph.insert_before(graph[0], cast)
        else:
            graph.append(cast)
    for value in given:
        name, dtype = str(value.name), halves[str(value.name)]
        value.name = new_name(f"{name}_float32", names)
        cast = _cast(value, dtype, name)
        graph.append(cast)
        for index, output in enumerate(graph.outputs):
            if output is value:
                graph.outputs[index] = cast.outputs[0]


def _cast(value: ir.Value, dtype: ir.DataType, name: str) -> ir.Node:
    node = ir.Node("", "Cast", [value], [ir.AttrInt64("to", int(dtype))], num_outputs=1, name=f"{name}_cast")
    node.outputs[0].name = name
    node.outputs[0].type, node.outputs[0].shape = ir.TensorType(dtype), value.shape
    return node
