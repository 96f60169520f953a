"""Carries a region out: constants at other powers of two, and a Mul where the scale begins or is taken back."""

from __future__ import annotations

from collections.abc import Container
from fractions import Fraction

import numpy as np
import onnx_ir as ir

from precisionlab.model.names import all_names, new_name
from precisionlab.rewrite.repairs.passing import is_constant
from precisionlab.rewrite.repairs.region import Region


def apply(graph: ir.Graph, region: Region, exponent: int) -> None:
    """Change the graph so, at this exponent, which is a multiple of the region's step.

    A value `x` that is scaled is called `x~scaled`, and one that is scaled back `x~restored`, with a number behind it
    where there is such a name.
    """
    names = set(all_names(graph))
    scaled: dict[ir.Value, ir.Value] = {}
    for node, index in sorted(region.seeds, key=lambda use: (str(use[0].name), use[1])):
        value = node.inputs[index]
        assert value is not None
        if is_constant(value):
            _scale_constant(graph, node, index, exponent)
            continue
        if value not in scaled:
            scaled[value] = _scaled(graph, value, exponent, new_name(f"{value.name}~scaled", names))
        node.replace_input_with(index, scaled[value])
    for (node, index), degree in region.constants.items():
        _scale_constant(graph, node, index, power(exponent, degree))
    for node, degree in region.epsilons.items():
        attribute = node.attributes.get("epsilon")
        epsilon = 1e-5 if attribute is None else attribute.as_float()
        number = float(np.ldexp(np.float32(epsilon), power(exponent, degree)))
        node.attributes["epsilon"] = ir.AttrFloat32("epsilon", number)
    for value in sorted(region.restored, key=lambda value: str(value.name)):
        back = power(exponent, -region.degrees[value])
        _restore(graph, value, back, region, new_name(f"{value.name}~restored", names))


def power(exponent: int, degree: Fraction) -> int:
    """degree · exponent, which is whole where the exponent is a multiple of the region's step."""
    found = degree * exponent
    assert found.denominator == 1
    return int(found)


def _scale_constant(graph: ir.Graph, node: ir.Node, index: int, exponent: int) -> None:
    value = node.inputs[index]
    assert value is not None
    assert value.const_value is not None
    numbers = np.ldexp(value.const_value.numpy(), exponent)
    node.replace_input_with(index, constant(graph, numbers, f"{value.name}~2^{exponent}"))


def _restore(graph: ir.Graph, value: ir.Value, exponent: int, region: Region, name: str) -> None:
    """What takes the value and lets no scale pass takes it as it was."""
    uses = [(use.node, use.idx) for use in value.uses() if (use.node, use.idx) not in region.carried]
    restored = _scaled(graph, value, exponent, name)
    for node, index in uses:
        node.replace_input_with(index, restored)
    if value.is_graph_output():
        graph.outputs[graph.outputs.index(value)] = restored
        restored.name, value.name = value.name, f"{name}~before"


def _scaled(graph: ir.Graph, value: ir.Value, exponent: int, name: str) -> ir.Value:
    factor = constant(graph, np.float32(np.ldexp(1.0, exponent)), f"~2^{exponent}")
    node = ir.Node("", "Mul", [value, factor], name=name)
    output = node.outputs[0]
    output.name, output.type, output.shape = name, value.type, value.shape
    after = value.producer()
    if after is None:
        graph.insert_before(graph[0], node)
    else:
        graph.insert_after(after, node)
    return output


def stand_in(graph: ir.Graph, old: ir.Value, new: ir.Value) -> None:
    """Whatever takes `old` takes `new`, and an output of the model keeps its name."""
    is_output, given = old.is_graph_output(), new
    if is_output and new.is_graph_output():  # it has another output's name
        node = ir.Node("", "Identity", [new], num_outputs=1)
        given = node.outputs[0]
        given.type = new.type
        made = new.producer()
        assert made is not None
        graph.insert_after(made, node)
        node.name = new_name(f"{old.name}~again", set(all_names(graph)))
    ir.convenience.replace_all_uses_with(old, given, replace_graph_outputs=True)
    if is_output:
        name = str(old.name)
        old.name = new_name(f"{name}~before", set(all_names(graph)))
        given.name, given.shape = name, old.shape


def constant(graph: ir.Graph, numbers: np.ndarray, name: str) -> ir.Value:
    """A float32 initialiser of the graph; one of this name and content is used again."""
    return constant_beside(graph, numbers, name, other_names(graph))


def other_names(graph: ir.Graph) -> set[str]:
    """The names that no initialiser of the graph may have: those of all else."""
    return set(all_names(graph)) - set(graph.initializers)


def constant_beside(graph: ir.Graph, numbers: np.ndarray, name: str, others: Container[str]) -> ir.Value:
    """As `constant`, where the `other_names` of the graph are known."""
    array = np.asarray(numbers, np.float32)
    while name in others or name in graph.initializers:
        known = graph.initializers.get(name)
        if known is not None and is_constant(known) and _is_same(known, array):
            return known
        name += "'"
    tensor = ir.tensor(array, name=name)
    value = ir.Value(name=name, type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape(array.shape), const_value=tensor)
    graph.register_initializer(value)
    return value


def _is_same(known: ir.Value, array: np.ndarray) -> bool:
    assert known.const_value is not None
    numbers = known.const_value.numpy()
    return numbers.shape == array.shape and numbers.tobytes() == array.tobytes()  # −0 is not 0
