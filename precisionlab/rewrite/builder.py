"""Builds a new graph out of copies of a model's nodes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, MutableMapping, Sequence

import onnx_ir as ir

from precisionlab.model.flow import is_sized
from precisionlab.model.names import new_name

MICROSOFT = "com.microsoft"

Environment = MutableMapping[ir.Value, ir.Value]
"""A value of the model → the value that stands for it in the graph under construction."""


class GraphBuilder:
    """Collects copies of nodes, gates and constants, and makes a model of them.

    Values and nodes of the original model are never changed; its constants are shared, not copied.
    """

    def __init__(self, original: ir.Model) -> None:
        self._original = original
        self._nodes: list[ir.Node] = []
        self._inputs: list[ir.Value] = []
        self._constants: dict[str, ir.Value] = {}
        self._names: set[str] = set()
        self._around: GraphBuilder | None = None
        self._made: set[ir.Value] = set()

    def inner(self) -> GraphBuilder:
        """A builder of a graph inside a node of this one: it may refer to all values here, and shares the constants."""
        inside = GraphBuilder(self._original)
        inside._constants, inside._names, inside._around = self._constants, self._names, self
        return inside

    @property
    def is_inner(self) -> bool:
        """Whether it builds a graph inside a node of another one's."""
        return self._around is not None

    def home(self, value: ir.Value) -> GraphBuilder:
        """The builder of the graph that the value belongs to: this one, or one around it."""
        return self if self._around is None or value in self._made else self._around.home(value)

    @property
    def opset(self) -> int:
        """Of ONNX's own operators."""
        imports = self._original.opset_imports
        return imports.get("", imports.get("ai.onnx", 1))

    def input(self, like: ir.Value, name: str, dtype: ir.DataType | None) -> ir.Value:
        """A graph input that takes tensors of this type (None: what `like` is), of any shape of the same rank."""
        kind = like.type if dtype is None else ir.TensorType(dtype)
        shape = like.shape if is_sized(like) else _any_of_rank(like)
        value = ir.Value(name=new_name(name, self._names, "~"), type=kind, shape=shape)
        self._inputs.append(value)
        self._made.add(value)
        return value

    def constant(self, tensor: ir.TensorProtocol, name: str) -> ir.Value:
        """An initialiser with this content."""
        value = ir.Value(
            name=new_name(name, self._names, "~"),
            type=ir.TensorType(tensor.dtype),
            shape=ir.Shape(tuple(tensor.shape.numpy())),
            const_value=tensor,
        )
        self._constants[str(value.name)] = value
        return value

    def weight(self, original: ir.Value, environment: Environment) -> ir.Value:
        """The model's initialiser in this graph, shared between all flows of the environment."""
        if original not in environment:
            assert original.const_value is not None
            environment[original] = self.constant(original.const_value, str(original.name))
        return environment[original]

    def op(
        self,
        op_type: str,
        inputs: Iterable[ir.Value | None],
        name: str,
        *,
        domain: str = "",
        **attributes: int | float | Sequence[int] | ir.Graph,
    ) -> ir.Value:
        """A new node with one output, called `name`."""
        return self.ops(op_type, inputs, [name], domain=domain, **attributes)[0]

    def ops(
        self,
        op_type: str,
        inputs: Iterable[ir.Value | None],
        names: Sequence[str],
        *,
        domain: str = "",
        **attributes: int | float | Sequence[int] | ir.Graph,
    ) -> Sequence[ir.Value]:
        """A new node with outputs of these names, itself called as the first."""
        given = ir.convenience.convert_attributes(attributes)
        node = ir.Node(domain, op_type, list(inputs), given, num_outputs=len(names))
        for output, name in zip(node.outputs, names, strict=True):
            output.name = new_name(name, self._names, "~")
        node.name = node.outputs[0].name
        self._add(node)
        return node.outputs

    def choice(self, switch: ir.Value, names: Sequence[str], bodies: Mapping[str, ir.Graph]) -> Sequence[ir.Value]:
        """A new If over a bool (): the outputs, of these names, of the one or the other of its bodies by attribute."""
        then, other = bodies["then_branch"], bodies["else_branch"]
        return self.ops("If", [switch], names, then_branch=then, else_branch=other)

    def add(self, node: ir.Node, name: str) -> ir.Value:
        """Take in a node with one output, and call both so."""
        (output,) = node.outputs
        output.name = node.name = new_name(name, self._names, "~")
        self._add(node)
        return output

    def body(self, outputs: Iterable[ir.Value], name: str) -> ir.Graph:
        """What an inner builder has built."""
        return ir.Graph(self._inputs, list(outputs), nodes=self._nodes, name=name)

    def copy(
        self,
        node: ir.Node,
        inputs: Iterable[ir.Value | None],
        captured: Mapping[ir.Value, ir.Value],
        prefix: str,
        attributes: Mapping[str, ir.Attr],
        more: Sequence[str] = (),
    ) -> ir.Node:
        """A copy of the node with other inputs and attributes, its outputs named `prefix` + name.

        `captured` replaces the outer values that subgraphs of the node refer to. `more` names further outputs, which
        come after the node's own.
        """
        copied = ir.Node(
            node.domain,
            node.op_type,
            list(inputs),
            [_with_captured(a, captured) for a in attributes.values()],
            overload=node.overload,
            num_outputs=len(node.outputs) + len(more),
            name=prefix + str(node.name),
        )
        for old, new in zip(node.outputs, copied.outputs, strict=False):
            new.name = new_name(prefix + old.name, self._names, "~") if old.name else ""
            new.type, new.shape = old.type, old.shape if is_sized(old) else _any_of_rank(old)
        for name, new in zip(more, copied.outputs[len(node.outputs) :], strict=True):
            new.name = new_name(prefix + name, self._names, "~")
        self._add(copied)
        return copied

    def model(self, outputs: Iterable[ir.Value]) -> ir.Model:
        """The graph built so far, with these outputs, as a model that ONNX Runtime can load."""
        graph = ir.Graph(
            self._inputs,
            list(outputs),
            nodes=self._nodes,
            initializers=list(self._constants.values()),
            opset_imports={**self._original.opset_imports, MICROSOFT: 1},
            name="precisionlab",
        )
        functions = [f.clone() for f in self._original.functions.values()]
        return ir.Model(graph, ir_version=self._original.ir_version, functions=functions)

    def _add(self, node: ir.Node) -> None:
        self._nodes.append(node)
        self._made.update(node.outputs)


def _any_of_rank(value: ir.Value) -> ir.Shape | None:
    return None if value.shape is None else ir.Shape([None] * len(value.shape))


def _with_captured(attribute: ir.Attr, captured: Mapping[ir.Value, ir.Value]) -> ir.Attr:
    if attribute.type not in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS) or not captured:
        return attribute
    held = [attribute.as_graph()] if attribute.type == ir.AttributeType.GRAPH else list(attribute.as_graphs())
    graphs = [graph.clone(allow_outer_scope_values=True) for graph in held]
    for graph in graphs:
        for inner in list(graph.all_nodes()):
            for index, value in enumerate(inner.inputs):
                if value is not None and value in captured:
                    inner.replace_input_with(index, captured[value])
    if attribute.type == ir.AttributeType.GRAPH:
        return ir.AttrGraph(attribute.name, graphs[0])
    return ir.AttrGraphs(attribute.name, graphs)
