"""The graphs inside If, Loop and Scan nodes: their layers, found as those of the main graph are."""

from __future__ import annotations

from collections import ChainMap
from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import replace

import onnx_ir as ir

from precisionlab.model.flow import FLOATS, KEEPS_VALUES, is_control, subgraphs
from precisionlab.model.graph import Body, InnerTensor, Layer, TensorInfo
from precisionlab.model.layers import layers_of, marked_islands


def bodies_of(
    model: ir.Model, tensors: Mapping[ir.Graph, dict[str, TensorInfo]], functions: frozenset[tuple[str, str]]
) -> dict[ir.Graph, Body]:
    """Every graph inside a node, at any depth; those inside others first. Nodes are named already.

    `tensors` has the values of each graph, `functions` the (domain, name) of the model's local functions.
    """
    found: dict[ir.Graph, Body] = {}

    def collect(graph: ir.Graph, known: Mapping[str, TensorInfo]) -> None:
        for node in graph:
            for name, inner in subgraphs(node):
                seen = ChainMap(tensors.get(inner, {}), dict(known))
                collect(inner, seen)
                layers = layers_of(inner, seen, functions, found)
                found[inner] = Body(model, inner, f"{name} of {node.name}", seen, layers, found)

    collect(model.graph, tensors[model.graph])
    return found


def with_inside(
    layers: Sequence[Layer], graph: ir.Graph, tensors: Mapping[str, TensorInfo], bodies: Mapping[ir.Graph, Body]
) -> tuple[tuple[Layer, ...], dict[str, InnerTensor]]:
    """The main graph's layers with what is looked at inside of them, and that by names that no tensor has.

    Islands are marked already.
    """
    nodes = {str(node.name): node for node in graph}
    found: dict[str, InnerTensor] = {}
    given = []
    for layer in layers:
        inside = []
        for name in layer.nodes if layer.fixed is None else ():
            for inner in _inside(nodes[name], bodies, ""):
                unique = _unique(f"{inner.value.name} in {inner.where}", tensors, found)
                found[unique] = inner
                inside.append(unique)
        has_own = any(_has_own(nodes[name], bodies) for name in layer.nodes)
        given.append(replace(layer, inside=tuple(inside), has_own_inside=has_own))
    return tuple(given), found


def with_islands(layers: tuple[Layer, ...], bodies: dict[ir.Graph, Body]) -> tuple[Layer, ...]:
    """The main graph's layers, and in place those of the bodies, with islands marked as `marked_islands` does."""
    every = (*layers, *(layer for body in bodies.values() for layer in body.layers))
    bodies.update({graph: replace(body, layers=marked_islands(body.layers, every)) for graph, body in bodies.items()})
    return marked_islands(layers, every)


def _has_own(node: ir.Node, bodies: Mapping[ir.Graph, Body]) -> bool:
    """Whether the model has any node of the node's bodies in half or in double."""
    return any(
        layer.own is not None or layer.is_double or any(_has_own(body.node[name], bodies) for name in layer.nodes)
        for body in (bodies[graph] for _, graph in subgraphs(node))
        for layer in body.layers
    )


def _unique(name: str, *taken: Container[str]) -> str:
    unique, count = name, 0
    while any(unique in names for names in taken):
        count += 1
        unique = f"{name}~{count}"
    return unique


def _inside(node: ir.Node, bodies: Mapping[ir.Graph, Body], around: str) -> Iterator[InnerTensor]:
    if not is_control(node):
        return
    for _, graph in subgraphs(node):
        body = bodies[graph]
        where = f"{body.where}{around}"
        for layer in body.layers:
            nodes = [body.node[name] for name in layer.nodes]
            for inner in nodes:
                yield from _inside(inner, bodies, f" in {where}")
            if set(layer.op_types) <= KEEPS_VALUES:
                continue  # what it moves about is looked at where that comes from
            constants = [v for inner in nodes for v in inner.inputs if v is not None and v.is_initializer()]
            for value in (v for inner in nodes for v in inner.outputs):
                if str(value.name) in layer.outputs and body.tensors[str(value.name)].dtype in FLOATS:
                    own = layer.own if layer.is_island or layer.fixed is not None else None
                    yield InnerTensor(value, layer.name, where, tuple(dict.fromkeys(constants)), own)
