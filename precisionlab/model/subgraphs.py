"""The graphs that a node holds (If, Loop, Scan), and what these take from around it."""

from __future__ import annotations

from collections.abc import Iterator

import onnx_ir as ir


def subgraphs(node: ir.Node) -> Iterator[tuple[str, ir.Graph]]:
    """The graphs that the node holds, by the name of their attribute."""
    for name, attribute in node.attributes.items():
        if attribute.type == ir.AttributeType.GRAPH:
            yield name, attribute.as_graph()
        elif attribute.type == ir.AttributeType.GRAPHS:
            yield from ((name, graph) for graph in attribute.as_graphs())


def outer_values(node: ir.Node) -> set[ir.Value]:
    """The values of the graphs around the node's own subgraphs that these refer to."""
    waiting = [graph for _, graph in subgraphs(node)]
    if not waiting:
        return set()
    own: set[ir.Graph] = set()
    taken: set[ir.Value] = set()
    while waiting:
        graph = waiting.pop()
        own.add(graph)
        taken.update(graph.outputs)
        for inner in graph:
            taken.update(value for value in inner.inputs if value is not None)
            waiting += [held for _, held in subgraphs(inner)]
    return {value for value in taken if value.graph not in own}
