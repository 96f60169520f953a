"""What TensorRT must be held to for a plan, node by node, as far as the ONNX model tells it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import onnx_ir as ir

from precisionlab.export.subject import Subject
from precisionlab.model import Model, TensorInfo
from precisionlab.model.flow import is_control, subgraphs
from precisionlab.model.graph import Scope
from precisionlab.precision import Precision

_FLOATS = frozenset({ir.DataType.DOUBLE, *(precision.number_format.element for precision in Precision.floats())})
_LEFT_ALONE = {
    **dict.fromkeys(("Cast", "CastLike"), "converts between types"),
    **dict.fromkeys(("QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear"), "converts between types"),
    **dict.fromkeys(("Constant", "ConstantOfShape"), "a constant"),
}
"""Operators whose layers TensorRT does not let be constrained, or that are no layers."""


@dataclass(frozen=True)
class NodeConstraint:
    """One node of the model and the precision that its layers are held to.

    `stores` is false where the types of its outputs are left to TensorRT: for int8, and for outputs of the model whose
    declared type is another. `alike` is true where all tensors that the node takes and gives are floats, so that every
    layer made of it can be held to the same.
    """

    node: str
    layer: str
    precision: Precision
    stores: bool
    alike: bool


@dataclass(frozen=True)
class Constraints:
    """The nodes to be constrained, in the model's order, and why others of pinned layers are not: node → reason."""

    nodes: tuple[NodeConstraint, ...]
    left_alone: dict[str, str]


def constraints_of(subject: Subject) -> Constraints:
    """What `pins.py` does to the layers of a network, said of the nodes that they are made of, in bodies too."""
    model = subject.model
    finals = {info.name: info.dtype for info in model.outputs}
    found: list[NodeConstraint] = []
    left_alone: dict[str, str] = {}
    for pin in subject.pins:
        first = model.node[pin.nodes[0]]
        for node, tensors in (each for name in pin.nodes for each in _with_inner(model, model.node[name], model)):
            name = str(node.name)
            reason = _reason(tensors, node, model.layer[pin.layer].held)
            if reason is None and pin.precision.is_quantized and node is not first:
                reason = "has no int8 arithmetic of its own"
            if reason is not None:
                left_alone[name] = reason
                continue
            given = [str(value.name) for value in node.outputs if value.name]
            element = pin.precision.number_format.element
            fits = all(finals.get(tensor, element) == element for tensor in given)
            stores = not pin.precision.is_quantized and fits
            taken = (str(value.name) for value in node.inputs if value is not None)
            alike = _all_float(tensors, [*taken, *given])
            found.append(NodeConstraint(name, pin.layer, pin.precision, stores, alike))
            if not pin.precision.is_quantized:
                found += (NodeConstraint(idle, pin.layer, pin.precision, True, True) for idle in _idle(model, given))
    return Constraints(tuple(found), left_alone)


def _with_inner(model: Model, node: ir.Node, scope: Scope) -> Iterator[tuple[ir.Node, Mapping[str, TensorInfo]]]:
    """The node, or in the place of one that runs bodies the nodes in them, with the tensors that they refer to."""
    if not is_control(node):
        yield node, scope.tensors
    for _, graph in subgraphs(node) if is_control(node) else ():
        for inner in graph:
            yield from _with_inner(model, inner, model.bodies[graph])


def _idle(model: Model, tensors: Iterable[str]) -> Iterator[str]:
    """The nodes of the file that hand these on: each is a layer to TensorRT's parser, but for a Cast of one type."""
    if model.exported is None:  # what is written in place of the file has them not
        behind = (node for tensor in tensors for node in model.idle_behind.get(tensor, ()))
        yield from (node.name for node in behind if node.operator not in _LEFT_ALONE)


def _reason(tensors: Mapping[str, TensorInfo], node: ir.Node, held: bool) -> str | None:
    """Why a node's layers must not be given a precision; None where they may. What is `held` may be of unknown type."""
    if node.op_type in _LEFT_ALONE:
        return _LEFT_ALONE[node.op_type]
    for value in node.outputs:
        if value.name and not _all_float(tensors, [str(value.name)]):
            dtype = tensors[str(value.name)].dtype
            if held and dtype is None:
                continue
            return f"its output {value.name!r} is {'of unknown type' if dtype is None else dtype.name.lower()}"
    return None


def _all_float(tensors: Mapping[str, TensorInfo], names: Iterable[str]) -> bool:
    return all(name in tensors and tensors[name].dtype in _FLOATS for name in names)
