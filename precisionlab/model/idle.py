"""Takes out the nodes that do nothing: they are no layers, cost nothing, and parted what a compiler fuses."""

from __future__ import annotations

import onnx_ir as ir

from precisionlab.model.flow import ONNX_DOMAINS
from precisionlab.model.graph import IdleNode

_ALWAYS = frozenset({"Identity", "Dropout"})  # a Dropout that drops is refused
_CASTS = frozenset({"Cast", "CastLike"})


def drop_idle(model: ir.Model, typed: ir.Model) -> tuple[IdleNode, ...]:
    """Remove nodes that give what they take; returns those of the main graph.

    Casts to the type that a value has already, Identity, and Dropout whose mask nobody asks for; not those that give an
    output of their graph, whose name must stay. `typed` is a clone of the model with inferred types; it is changed
    alike.
    """
    gone = []
    for graph, known in zip(model.graphs(), typed.graphs(), strict=True):
        for node, inferred in list(zip(graph, known, strict=True)):
            if not _is_idle(inferred):
                continue
            source = _bypass(node)
            _bypass(inferred)
            if graph is model.graph:
                gone.append(IdleNode(str(node.name), node.op_type, str(node.outputs[0].name), source))
    return tuple(gone)


def _is_idle(node: ir.Node) -> bool:
    source = node.inputs[0] if node.inputs else None
    if node.domain not in ONNX_DOMAINS or source is None or node.outputs[0].is_graph_output():
        return False
    if any(value.uses() or value.is_graph_output() for value in node.outputs[1:]):
        return False
    if node.op_type in _CASTS:
        return source.dtype is not None and source.dtype == node.outputs[0].dtype
    return node.op_type in _ALWAYS


def _bypass(node: ir.Node) -> str:
    """Have what takes the node's output take its input, in the same graph or within; returns the input's name."""
    source, graph = node.inputs[0], node.graph
    assert source is not None
    assert graph is not None
    node.outputs[0].replace_all_uses_with(source)
    graph.remove(node, safe=True)
    return str(source.name)
