"""Products whose running sum is kept in half: as nodes of a domain of our own, and graphs cut at those nodes.

ONNX has no such operator, and ONNX Runtime none that keeps a sum in half on a CPU. So a layer's Conv, ConvTranspose,
Gemm or MatMul becomes a node here that `precisionlab.backends.sums` runs, and the graph around it is run by ONNX
Runtime in steps: all that can run before the products that wait, those products, and so on.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import onnx_ir as ir

from precisionlab.model.flow import ONNX_DOMAINS, outer_values
from precisionlab.plan.arithmetic import Sums
from precisionlab.rewrite.builder import GraphBuilder

DOMAIN = "precisionlab.sums"
CONV, CONV_TRANSPOSE, GEMM, MATMUL = "Conv", "ConvTranspose", "Gemm", "MatMul"
SUMS = "sums"
"""The attribute that says what the running sum is kept in."""

CONVOLUTIONS = (CONV, CONV_TRANSPOSE)


def is_product(node: ir.Node) -> bool:
    """Whether the node is one of this domain."""
    return node.domain == DOMAIN


def sums_of(node: ir.Node) -> Sums:
    """What a node of this domain keeps its running sum in."""
    return Sums(node.attributes[SUMS].as_string())


def adds_up(node: ir.Node) -> bool:
    """Whether a node of ONNX's own adds products up, in a way that is emulated with sums in half."""
    return node.domain in ONNX_DOMAINS and node.op_type in (*CONVOLUTIONS, GEMM, MATMUL)


def product(
    builder: GraphBuilder,
    op_type: str,
    inputs: Sequence[ir.Value],
    name: str,
    attributes: Mapping[str, ir.Attr],
    sums: Sums,
) -> ir.Value:
    """A new node of this domain."""
    node = ir.Node(DOMAIN, op_type, inputs, [*attributes.values(), ir.AttrString(SUMS, sums.value)], num_outputs=1)
    made = builder.add(node, name)
    made.type = ir.TensorType(inputs[0].dtype or ir.DataType.FLOAT)
    return made


@dataclass(frozen=True)
class Step:
    """Nodes that ONNX Runtime runs in one graph, and the products that can be added up then."""

    nodes: tuple[ir.Node, ...]
    products: tuple[ir.Node, ...]


def constants_of(graph: ir.Graph) -> set[ir.Value]:
    """The initialisers, and what is computed of them alone."""
    constants = set(graph.initializers.values())
    for node in graph:
        taken = _taken(node)
        if not is_product(node) and taken and constants.issuperset(taken):
            constants.update(node.outputs)
    return constants


def steps_of(graph: ir.Graph, constants: set[ir.Value]) -> list[Step]:
    """The graph's nodes but for those that give `constants`, in steps, as few as their order allows.

    A node that needs no product that waits goes in front of it, so that what does not hang together is run together.
    """
    steps: list[Step] = []
    now: list[ir.Node] = []
    waiting: list[ir.Node] = []
    later: list[ir.Node] = []
    behind: set[ir.Value] = set()  # what hangs on a product that waits
    for node in graph:
        if constants.issuperset(node.outputs):
            continue
        taken = _taken(node)
        if is_product(node) and not behind.isdisjoint(taken):
            steps.append(Step(tuple(now), tuple(waiting)))
            now, waiting, later, behind = later, [], [], set()
        if is_product(node):
            waiting.append(node)
            behind.update(node.outputs)
        elif behind.isdisjoint(taken):
            now.append(node)
        else:
            later.append(node)
            behind.update(node.outputs)
    steps.append(Step(tuple(now), tuple(waiting)))
    if later:
        steps.append(Step(tuple(later), ()))
    return steps


@dataclass(frozen=True)
class Part:
    """A graph of some of another's nodes. `feeds` are its inputs, by the other's names."""

    graph: ir.Model
    feeds: tuple[str, ...]


def part_of(
    whole: ir.Model,
    nodes: Iterable[ir.Node],
    wanted: Iterable[ir.Value],
    constants: set[ir.Value],
    types: Mapping[str, ir.DataType],
) -> Part:
    """The graph of these nodes that gives the `wanted` values; of what it takes the element types are known.

    The constants that it takes are made in it again.
    """
    builder = _Part(whole, constants, types)
    for node in nodes:
        builder.take(node)
    shown = [builder.value(value) for value in wanted]
    return Part(builder.builder.model(shown), tuple(builder.feeds))


class _Part:
    """One graph under construction, of another's nodes."""

    def __init__(self, whole: ir.Model, constants: set[ir.Value], types: Mapping[str, ir.DataType]) -> None:
        self.builder = GraphBuilder(whole)
        self.feeds: dict[str, None] = {}
        self._constants = constants
        self._types = types
        self._made: dict[ir.Value, ir.Value] = {}

    def take(self, node: ir.Node) -> None:
        """Copy a node, and what constants it takes."""
        inputs = [None if value is None else self.value(value) for value in node.inputs]
        captured = {value: self.value(value) for value in outer_values(node)}
        copied = self.builder.copy(node, inputs, captured, "", node.attributes)
        for old, new in zip(node.outputs, copied.outputs, strict=True):
            self._made[old] = new

    def value(self, value: ir.Value) -> ir.Value:
        """What stands for the value here: a copy, a constant made again, or an input."""
        if value not in self._made:
            if value.is_initializer():
                assert value.const_value is not None
                self._made[value] = self.builder.constant(value.const_value, str(value.name))
            elif value in self._constants:
                for node in self._makers(value):
                    self.take(node)
            else:
                name = str(value.name)
                self._made[value] = self.builder.input(value, name, self._types.get(name))
                self.feeds[name] = None
        return self._made[value]

    def _makers(self, value: ir.Value) -> list[ir.Node]:
        """The nodes that a computed constant is not made without, in order; of thousands in a chain too."""
        found: dict[ir.Node, None] = {}
        waiting = [value.producer()]
        while waiting:
            node = waiting[-1]
            assert node is not None
            lacking = [
                v.producer()
                for v in _taken(node)
                if v not in self._made and not v.is_initializer() and v.producer() not in found
            ]
            waiting.extend(lacking)
            if not lacking:
                found[node] = None
                waiting.pop()
        return list(found)


def _taken(node: ir.Node) -> list[ir.Value]:
    return [value for value in (*node.inputs, *outer_values(node)) if value is not None]
