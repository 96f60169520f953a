"""Puts the bodies of model-local functions in the place of their calls, under names that tell the call.

TensorRT's parser goes into functions too, but calls a layer inside after the function's node alone (metadata
`[ONNX Layer: node | Local Function: f]`, onnx-tensorrt `processMetadata`), so that two calls cannot be told apart; a
function called like an operator of ONNX it takes for that operator (`parseNode`). Therefore a model with functions is
handed on as it is here, never as the file has it.
"""

from __future__ import annotations

from collections.abc import Iterator

import onnx
import onnx_ir as ir
from onnx_ir.passes import common as passes

from precisionlab.model.flow import ONNX_DOMAINS
from precisionlab.model.names import new_name

_SEPARATOR = "/"


def inline_functions(model: ir.Model) -> int:
    """Inline the calls of model-local functions, in subgraphs and in each other too; returns how many.

    What the node `norm` calls is named `norm/` and the name inside: nodes (without one: `node_of_<first output>`) and
    tensors alike, so that names are unique, the same at each load, and say where they come from. What a call gives
    keeps its name. A call stays where it cannot be inlined without another meaning: graphs as arguments, and a function
    written for another version of an operator. Functions that nothing calls go.
    """
    site = _CallSites(model)
    calls = sum(site.specialise(node) for node in list(model.graph.all_nodes()))
    passes.InlinePass(criteria=lambda function: function.identifier() in site.made)(model)
    _drop_unused(model)
    return calls


class _CallSites:
    """Gives each call a function of its own, with names after the call: the inliner of onnx-ir keeps names.

    `made` has the identifiers of these functions.
    """

    def __init__(self, model: ir.Model) -> None:
        self._model = model
        self.made: set[ir.OperatorIdentifier] = set()
        graphs = list(model.graphs())
        self._values = {str(v.name) for graph in graphs for v in _values(graph)}
        self._nodes = {str(node.name) for graph in graphs for node in graph}
        self._loose = frozenset(i for i, f in model.functions.items() if not _fits(f, model.opset_imports))

    def specialise(self, node: ir.Node) -> int:
        """Point the call to a copy of its function; returns how many calls that makes, those within included."""
        function = self._model.functions.get(node.op_identifier())
        if function is None or function.identifier() in self.made or not self._can(node, function):
            return 0
        own = function.clone()
        name = node.name or _default_name(node)
        for inner in list(own.all_nodes()):
            inner.name = new_name(f"{name}{_SEPARATOR}{inner.name or _default_name(inner)}", self._nodes)
        for graph in (own.graph, *own.subgraphs()):
            for value in list(_values(graph)):
                if value.name:
                    value.name = new_name(f"{name}{_SEPARATOR}{value.name}", self._values)
        _give_copies(own, self._values)
        node.resize_outputs(len(own.outputs))
        for outer, value in zip(node.outputs, own.outputs, strict=True):
            outer.name = outer.name or value.name  # one that the call leaves out may be used inside
        own.overload = f"{len(self.made)}{_SEPARATOR}{name}"
        own.opset_imports.update({d: v for d, v in self._model.opset_imports.items() if d in own.opset_imports})
        self._model.functions[own.identifier()] = own
        self.made.add(own.identifier())
        node.overload = own.overload
        return 1 + sum(self.specialise(inner) for inner in list(own.all_nodes()))

    def _can(self, node: ir.Node, function: ir.Function) -> bool:
        return (
            function.identifier() not in self._loose
            and len(node.inputs) <= len(function.inputs)
            and len(node.outputs) <= len(function.outputs)
            and not any(_has_graph(a) for a in (*node.attributes.values(), *function.attributes.values()))
        )


def _drop_unused(model: ir.Model) -> None:
    called: set[ir.OperatorIdentifier] = set()
    waiting: list[ir.Graph | ir.Function] = [model.graph]
    while waiting:
        for identifier in {node.op_identifier() for node in waiting.pop().all_nodes()} & model.functions.keys():
            if identifier not in called:
                called.add(identifier)
                waiting.append(model.functions[identifier])
    for identifier in set(model.functions) - called:
        del model.functions[identifier]


def _fits(function: ir.Function, opsets: dict[str, int]) -> bool:
    """Whether the function's operators mean the same at the versions that the model has."""
    for domain, version in function.opset_imports.items():
        other = opsets.get(domain, version)
        if other == version:
            continue
        if domain not in ONNX_DOMAINS:
            return False
        for node in function.all_nodes():
            if node.domain in ONNX_DOMAINS and _since(node.op_type, version) != _since(node.op_type, other):
                return False
    return True


def _since(operator: str, opset: int) -> int | None:
    """The opset that gave the operator the meaning that it has in this one."""
    try:
        return int(onnx.defs.get_schema(operator, opset).since_version)
    except onnx.defs.SchemaError:
        return None


def _give_copies(function: ir.Function, used: set[str]) -> None:
    """Have the function give what it only passes on, or gives twice, by an Identity: each output has a name of its own.

    Without that, a call's output would be renamed to its input, and an output of the model could not be.
    """
    seen = set(function.inputs)
    for index, value in enumerate(function.outputs):
        if value in seen:
            node = ir.Node("", "Identity", [value], name=new_name(f"{value.name}_passed", used))
            node.outputs[0].name = node.name
            node.outputs[0].type, node.outputs[0].shape = value.type, value.shape
            function.append(node)
            function.outputs[index] = node.outputs[0]
        seen.add(value)


def _values(graph: ir.Graph) -> Iterator[ir.Value]:
    yield from graph.inputs
    yield from graph.initializers.values()
    for node in graph:
        yield from node.outputs


def _default_name(node: ir.Node) -> str:
    return f"node_of_{next((v.name for v in node.outputs if v.name), '')}"


def _has_graph(attribute: ir.Attr) -> bool:
    return attribute.type in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS)
