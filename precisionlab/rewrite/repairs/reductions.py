"""Nodes that reduce over the axes of a ReduceSum, in the way that the graph's opset has it."""

from __future__ import annotations

import onnx_ir as ir

_AXES_AS_INPUT = 18  # of ReduceMax and ReduceMean; ReduceSum and Squeeze have them so from 13 on
_SQUEEZED_BY_INPUT = 13


def reduction(
    graph: ir.Graph, kind: str, value: ir.Value | None, like: ir.Node, *, keepdims: bool | None = None
) -> ir.Node:
    """A node of this kind on a value, over the axes of the ReduceSum `like`; `keepdims` None: as that has it."""
    by_input = graph.opset_imports.get("", 1) >= (_SQUEEZED_BY_INPUT if kind == "ReduceSum" else _AXES_AS_INPUT)
    axes = axes_of(like)
    kept = like.attributes.get_int("keepdims", 1) if keepdims is None else int(keepdims)
    attributes = [ir.AttrInt64("keepdims", kept)]
    if by_input or not axes:
        return ir.Node("", kind, [value, *like.inputs[1:]], attributes, num_outputs=1)
    return ir.Node("", kind, [value], [*attributes, ir.AttrInt64s("axes", axes)], num_outputs=1)


def squeezed(graph: ir.Graph, value: ir.Value, like: ir.Node) -> ir.Node:
    """A Squeeze of the axes that the ReduceSum `like` reduces, which are constants."""
    if graph.opset_imports.get("", 1) >= _SQUEEZED_BY_INPUT:
        return ir.Node("", "Squeeze", [value, *like.inputs[1:]], num_outputs=1)
    return ir.Node("", "Squeeze", [value], [ir.AttrInt64s("axes", axes_of(like))], num_outputs=1)


def axes_of(node: ir.Node) -> list[int]:
    """The axes that a ReduceSum is over; empty for all of them, and where they are no constant."""
    if "axes" in node.attributes:
        return list(node.attributes.get_ints("axes") or ())
    axes = node.inputs[1] if len(node.inputs) > 1 else None
    if axes is None or axes.const_value is None:
        return []
    return [int(axis) for axis in axes.const_value.numpy().reshape(-1)]
