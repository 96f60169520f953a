"""What a layer moves through memory, as far as no plan changes it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import onnx_ir as ir

from precisionlab.model import Layer, Model, TensorInfo
from precisionlab.model.flow import ONNX_DOMAINS, is_control, is_shape_input, outer_values, subgraphs
from precisionlab.model.layers import turns_of
from precisionlab.precision import Precision

# ONNX operator specification: operators whose first input is read only as far as it is given (an embedding
# table of 30,000 rows is not read for 8 tokens), not at all, or handed on as it is.
_READS_WHAT_IT_GIVES = frozenset({"Gather", "GatherElements", "GatherND", "Slice"})


_READS_NOTHING = frozenset({"Shape", "Size"})


_VIEWS = frozenset({"Flatten", "Identity", "Reshape", "Squeeze", "Unsqueeze"})


@dataclass(frozen=True)
class _Traffic:
    """What a layer takes and gives, as far as it does not depend on the plan.

    `operands` are the float tensors that int8 quantises, `others` the rest of the float tensors, `always` those
    taken as float32 whatever the layer's precision. The elements count constants too, of operands `weight_elements` of
    them; they and `fixed_bytes` (all that keeps its type) are what moves. `known` is false where a shape or type is
    missing.
    """

    layer: Layer
    operands: tuple[str, ...]
    others: tuple[str, ...]
    always: tuple[str, ...]
    outputs: tuple[str, ...]
    operand_elements: int
    weight_elements: int
    other_elements: int
    output_elements: tuple[int, ...]
    fixed_bytes: int
    known: bool


_Counts = dict[str, int]


def _traffic(model: Model, layer: Layer) -> _Traffic:
    """Sort what the layer takes by the precision that it takes it in, and count what moves."""
    nodes = [model.node[name] for name in layer.nodes]
    inside = {value for node in nodes for value in node.outputs}
    own = _given(model.tensors, layer.outputs)
    view = len(nodes) == 1 and _is(nodes[0], _VIEWS)
    # Name → elements read; a residual that is the operand as well is read for each.
    operands, others, always, typed = _Counts(), _Counts(), _Counts(), _Counts()
    activations: set[str] = set()
    known = own is not None
    for node in nodes:
        values = [(index, value) for index, value in enumerate(node.inputs) if value is not None]
        # What subgraphs refer to has no index.
        values += [(-1, value) for value in outer_values(node)]
        for index, value in values:
            if value in inside or not value.name or (_is(node, _READS_NOTHING) and index == 0):
                continue
            name = str(value.name)
            if not value.is_initializer():
                activations.add(name)
            info = model.tensors.get(name)
            size = None if info is None else _element_bytes(info)
            elements = None if info is None else info.elements
            if info is None or size is None or elements is None:
                known, elements = False, 0
            if index == 0 and _is(node, _READS_WHAT_IT_GIVES) and own is not None:
                elements = min(elements, own)
            if view:
                elements = 0
            if info is None or info.dtype != ir.DataType.FLOAT:
                typed[name] = math.ceil(elements * (size or 0))
            elif is_shape_input(node, index):
                always[name] = elements
            elif layer.quantizable and node is nodes[0] and index < 2:
                operands[name] = elements
            else:
                others[name] = elements
    in_bodies = [_moved_inside(model, node, model.tensors) for node in nodes]
    known = known and None not in in_bodies
    fixed = sum(typed.values()) + sum(always.values()) * int(Precision.FP32.number_format.itemsize)
    outputs = []
    for name in layer.outputs:
        info = model.tensors.get(name)
        if info is not None and info.dtype == ir.DataType.FLOAT:
            outputs.append((name, 0 if view else info.elements or 0))
        elif info is not None and not view:
            fixed += math.ceil((info.elements or 0) * (_element_bytes(info) or 0))
    return _Traffic(
        layer=layer,
        operands=tuple(name for name in operands if name in activations),
        others=tuple(name for name in others if name in activations),
        always=tuple(name for name in always if name in activations),
        outputs=tuple(name for name, _ in outputs),
        operand_elements=sum(operands.values()),
        weight_elements=sum(count for name, count in operands.items() if name not in activations),
        other_elements=sum(others.values()) + sum(count or 0 for count in in_bodies),
        output_elements=tuple(elements for _, elements in outputs),
        fixed_bytes=fixed,
        known=known,
    )


def _moved_inside(model: Model, node: ir.Node, tensors: Mapping[str, TensorInfo]) -> int | None:
    """How many float32 elements the layers of the node's bodies read and write.

    Those of the larger branch, or of all turns of a loop. Of unknown size a tensor counts nothing; None where the
    number of turns is not known.
    """
    counts = [0]
    for _, graph in subgraphs(node) if is_control(node) else ():
        body, moved = model.bodies[graph], 0
        for layer in body.layers:
            inner = [_moved_inside(model, body.node[name], body.tensors) for name in layer.nodes]
            if None in inner:
                return None
            infos = [body.tensors.get(name) for name in (*layer.inputs, *layer.weights, *layer.outputs)]
            sizes = (info.elements or 0 for info in infos if info is not None and info.dtype == ir.DataType.FLOAT)
            is_view = all(_is(body.node[name], _VIEWS) for name in layer.nodes)
            moved += (0 if is_view else sum(sizes)) + sum(count for count in inner if count is not None)
        counts.append(moved)
    turns = turns_of(node, tensors) if max(counts) else 1
    return None if turns is None else max(counts) * turns


def _given(tensors: Mapping[str, TensorInfo], outputs: Iterable[str]) -> int | None:
    """How many elements these tensors have together; None where a shape or type is not known."""
    total = 0
    for name in outputs:
        info = tensors.get(name)
        if info is None or info.elements is None or _element_bytes(info) is None:
            return None
        total += info.elements
    return total


def _element_bytes(info: TensorInfo) -> float | None:
    """Bytes of one element as the model has it; None for what is no tensor of numbers."""
    if info.dtype is None or info.dtype in (ir.DataType.UNDEFINED, ir.DataType.STRING):
        return None
    return info.dtype.bitwidth / 8


def _is(node: ir.Node, operators: frozenset[str]) -> bool:
    return node.domain in ONNX_DOMAINS and node.op_type in operators
