"""Nodes that reduce over the axes of a ReduceSum, and what takes these away or back, as the graph's opset has it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from precisionlab.model.names import all_names, new_name

_AXES_AS_INPUT = 18  # of ReduceMax and ReduceMean; ReduceSum and Squeeze have them so from 13 on
_SQUEEZED_BY_INPUT = 13
_BY_13 = frozenset({"ReduceSum", "Squeeze", "Unsqueeze"})


def reduction(
    graph: ir.Graph, kind: str, value: ir.Value | None, like: ir.Node, *, keepdims: bool | None = None
) -> ir.Node:
    """A node of this kind on a value, over the axes of the ReduceSum `like`; `keepdims` None: as that has it."""
    kept = keeps_dims(like) if keepdims is None else keepdims
    return over_axes(graph, kind, value, axes_of(like), [ir.AttrInt64("keepdims", int(kept))])


def over_axes(
    graph: ir.Graph, kind: str, value: ir.Value | None, axes: Sequence[int], attributes: Sequence[ir.Attr] = ()
) -> ir.Node:
    """A node of this kind over these axes; where there are none, over all."""
    if not axes:
        return ir.Node("", kind, [value], attributes, num_outputs=1)
    if graph.opset_imports.get("", 1) >= (_SQUEEZED_BY_INPUT if kind in _BY_13 else _AXES_AS_INPUT):
        return ir.Node("", kind, [value, _constant(graph, axes)], attributes, num_outputs=1)
    return ir.Node("", kind, [value], [*attributes, ir.AttrInt64s("axes", list(axes))], num_outputs=1)


def _constant(graph: ir.Graph, axes: Sequence[int]) -> ir.Value:
    """An initialiser with the axes; one that was made for others is used again."""
    name = f"~axes {' '.join(map(str, axes))}"
    if (known := graph.initializers.get(name)) is not None:
        return known
    name = new_name(name, set(all_names(graph)))
    tensor = ir.tensor(np.array(axes, np.int64), name=name)
    value = ir.Value(name=name, type=ir.TensorType(ir.DataType.INT64), shape=ir.Shape([len(axes)]), const_value=tensor)
    graph.register_initializer(value)
    return value


def keeps_dims(node: ir.Node) -> bool:
    """Whether it leaves the axes that it reduces, of size one."""
    return bool(node.attributes.get_int("keepdims", 1))


def axes_of(node: ir.Node) -> list[int]:
    """The axes that a node is over; empty for all of them, and where they are no constant."""
    if "axes" in node.attributes:
        return list(node.attributes.get_ints("axes") or ())
    axes = node.inputs[1] if len(node.inputs) > 1 else None
    if axes is None or axes.const_value is None:
        return []
    return [int(axis) for axis in axes.const_value.numpy().reshape(-1)]


def has_known_axes(node: ir.Node) -> bool:
    """Whether its axes are written in the model, and it does reduce where there are none."""
    axes = node.inputs[1] if len(node.inputs) > 1 else None
    noop = node.attributes.get("noop_with_empty_axes")
    is_idle = not axes_of(node) and noop is not None and noop.as_int() != 0
    return (axes is None or axes.const_value is not None) and not is_idle
