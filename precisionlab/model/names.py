"""Names for new nodes and tensors: none that a graph has already, and none that hides one inside a subgraph."""

from __future__ import annotations

from collections.abc import Iterable

import onnx_ir as ir

from precisionlab.model.subgraphs import subgraphs


def new_name(name: str, used: set[str], mark: str = "_") -> str:
    """The name, with `mark` and a number behind it where it is used already; it is used from then on."""
    unique, count = name, 0
    while unique in used:
        count += 1
        unique = f"{name}{mark}{count}"
    used.add(unique)
    return unique


def all_names(graph: ir.Graph) -> Iterable[str]:
    """The names of all nodes and tensors, those inside subgraphs included: a new one must not hide any."""
    yield from (str(name) for name in graph.initializers)
    yield from (str(value.name) for value in graph.inputs)
    for node in graph:
        yield str(node.name)
        yield from (str(value.name) for value in node.outputs)
        for _, inner in subgraphs(node):
            yield from all_names(inner)
