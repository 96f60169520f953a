"""A graph whose arithmetic in half is float32's, each result rounded: the same on every processor.

ONNX Runtime's CPU provider has kernels in half for some operators on aarch64 and for hardly any on x86-64, where it
computes them in float32 and leaves results between two of them unrounded: 60000 + 60000 − 60000 is Inf on the one and
60000 on the other.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import onnx_ir as ir

from precisionlab.model.flow import KEEPS_VALUES
from precisionlab.model.inference import inferred
from precisionlab.model.lift import OWN, lift


@dataclass(frozen=True)
class Widened:
    """The graph, and the half type that each of its outputs had before: None for others.

    Behind these outputs stand more, float32 (): one for each value that was in half, 0 where it is finite throughout,
    else NaN.
    """

    graph: ir.Model
    types: tuple[ir.DataType | None, ...]


def widened(model: ir.Model) -> Widened:
    """A copy that computes in float32 and rounds what the model has in half; the model itself, where nothing is.

    Of one graph, without subgraphs. (A sum, difference, product, quotient or root of halves that is rounded to float32
    first is rounded to the same half: 24 bits are at least 2 · 11 + 2. Figueroa, "When is double rounding innocuous?",
    1995.)
    """
    as_it_is = Widened(model, (None,) * len(model.graph.outputs))
    if not has_half(model):
        return as_it_is
    typed = inferred(model)
    kinds = {v.name: v.dtype for node in typed.graph for v in node.outputs if v.dtype in OWN}
    if not any(v.name in kinds for node in model.graph if node.op_type not in KEEPS_VALUES for v in node.outputs):
        return as_it_is
    copy = model.clone()
    lift(copy, typed)
    for node in list(copy.graph):
        for value in node.outputs:
            kind = kinds.get(value.name)
            if kind is not None:
                _round(copy.graph, value, kind)
    return Widened(copy, tuple(kinds.get(v.name) for v in model.graph.outputs))


def round_halves(model: ir.Model, known: Sequence[Mapping[str, ir.DataType | None]]) -> None:
    """Lift a model to float32 in place, and round all that it has in half, in subgraphs too; names stay.

    `known` has the types of the values of each of its graphs, in the order of `model.graphs()`: None for what is no
    tensor. What comes in from outside in half must be fed as values of that type.
    """
    lift(model, model)
    for graph, types in zip(list(model.graphs()), known, strict=True):
        for node in list(graph):
            for value in node.outputs:
                kind = types.get(str(value.name))
                if kind in OWN and node.op_type not in KEEPS_VALUES:
                    assert kind is not None
                    _pair(graph, value, kind)


def has_half(model: ir.Model) -> bool:
    """Whether the main graph may hold anything in half; where it says no, it does not."""
    given = (*model.graph.inputs, *model.graph.initializers.values())
    return any(value.dtype in OWN for value in given) or any(kind in OWN for kind in _named_types(model.graph))


def _named_types(graph: ir.Graph) -> Iterator[int]:
    """What the nodes' attributes may name of types: numbers, of which some mean something else."""
    for node in graph:
        for attribute in node.attributes.values():
            if attribute.type == ir.AttributeType.INT:
                yield attribute.as_int()
            elif attribute.type == ir.AttributeType.TENSOR:
                yield int(attribute.as_tensor().dtype)


def _round(graph: ir.Graph, value: ir.Value, kind: ir.DataType) -> None:
    """Round the value, and put another output behind: whether it is finite."""
    name = str(value.name)
    back = _pair(graph, value, kind)
    nothing = ir.node("Sub", [back, back])
    told = ir.node("ReduceSum", [nothing.outputs[0]], {"keepdims": 0})
    for node, ending in ((nothing, ":nothing"), (told, ":finite")):
        node.outputs[0].name = f"{name}{ending}"
    producer = back.producer()
    assert producer is not None
    graph.insert_after(producer, [nothing, told])
    graph.outputs.append(told.outputs[0])


def _pair(graph: ir.Graph, value: ir.Value, kind: ir.DataType) -> ir.Value:
    """Put a pair of Casts behind the value, which give what takes its name and its place; returns that."""
    name = str(value.name)
    takers = list(value.uses())
    low = ir.node("Cast", [value], {"to": int(kind)})
    back = ir.node("Cast", [low.outputs[0]], {"to": int(ir.DataType.FLOAT)})
    for use in takers:
        use.node.replace_input_with(use.idx, back.outputs[0])
    for index, output in enumerate(graph.outputs):
        if output is value:
            graph.outputs[index] = back.outputs[0]
    value.name = f"{name}:exact"
    for node, ending in ((low, ":half"), (back, "")):
        node.outputs[0].name = f"{name}{ending}"
    back.outputs[0].type, back.outputs[0].shape = ir.TensorType(ir.DataType.FLOAT), value.shape
    producer = value.producer()
    assert producer is not None
    graph.insert_after(producer, [low, back])
    return back.outputs[0]
