"""A part of a graph as a model of its own: between tensors that become inputs and such that become outputs."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import onnx_ir as ir
from onnx_ir.passes import common as passes

from precisionlab.model import Layer, Model, TensorInfo

_BEFORE = ":before"


@dataclass(frozen=True)
class Region:
    """Layers of a model, in topological order, with the tensors that they take from others, and those that are wanted.

    `inputs` are in the order in which layers take them; constants are none.
    """

    layers: tuple[str, ...]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


@dataclass(frozen=True)
class Opening:
    """What becomes an input called `info.name`: whatever takes one of these values of the graph takes it instead."""

    values: tuple[str, ...]
    info: TensorInfo


def region_of(model: Model, names: Iterable[str], outputs: Sequence[str]) -> Region:
    """These layers of the model, which give the outputs."""
    wanted = set(names)
    layers = [layer for layer in model.layers if layer.name in wanted]
    made = {output for layer in layers for output in layer.outputs}
    taken = dict.fromkeys(
        name for layer in layers for name in (*layer.inputs, *sorted(model.taken[layer.name])) if name in model.values
    )
    return Region(tuple(layer.name for layer in layers), tuple(n for n in taken if n not in made), tuple(outputs))


def upstream(model: Model, outputs: Iterable[str], stop: Iterable[str] = ()) -> list[Layer]:
    """The layers that the outputs depend on, in topological order; what gives one of the `stop` tensors is left out."""
    wanted, ends = set(outputs), frozenset(stop)
    found = []
    for layer in reversed(model.layers):
        if not (wanted - ends).isdisjoint(layer.outputs):
            found.append(layer)
            wanted |= model.taken[layer.name]
    return found[::-1]


def part_of(model: ir.Model, openings: Sequence[Opening], outputs: Sequence[TensorInfo]) -> ir.Model:
    """A copy of the model with these inputs and outputs, and nothing that these do not need.

    Each output is called as its value is. Raises ValueError for a value that the main graph has not.
    """
    part = model.clone()
    there = {str(v.name): v for v in part.graph.inputs} | {str(v.name): v for n in part.graph for v in n.outputs}
    inputs = []
    for opening in openings:
        given = ir.Value(name=opening.info.name)
        inputs.append(given)
        for name in opening.values:
            value = _found(there, name)
            for use in list(value.uses()):
                use.node.replace_input_with(use.idx, given)
            if name == opening.info.name:
                value.name = f"{name}{_BEFORE}"
        _typed(given, opening.info)
    part.graph.inputs.clear()
    part.graph.inputs.extend(inputs)
    part.graph.outputs.clear()
    for info in outputs:
        value = _found(there, info.name)
        _typed(value, info)
        part.graph.outputs.append(value)
    passes.RemoveUnusedNodesPass()(part)
    called = {node.op_identifier() for node in part.graph.all_nodes()}
    if not called & part.functions.keys():
        part.functions.clear()
    part.graph.doc_string = None
    return part


def _found(there: dict[str, ir.Value], name: str) -> ir.Value:
    if name not in there:
        raise ValueError(f"the graph has no value {name!r}")
    return there[name]


def _typed(value: ir.Value, info: TensorInfo) -> None:
    if info.dtype is not None:
        value.type = ir.TensorType(info.dtype)
    value.shape = None if info.shape is None else ir.Shape(info.shape)
