"""Cuts off what ONNX Runtime cannot compute at a model's end: plugins of TensorRT, such as EfficientNMS_TRT.

A plugin runs in its own precision whatever a plan says. So the model is judged by what the plugin takes, and what is
exported has it again.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from pathlib import Path

import onnx
import onnx_ir as ir

from precisionlab.errors import ModelError
from precisionlab.model.flow import ONNX_DOMAINS
from precisionlab.model.inference import inferred
from precisionlab.model.tail import Tail
from precisionlab.system.wording import counted

_WEIGHTED = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul", "LSTM", "GRU", "RNN"})


def has_strangers(proto: onnx.ModelProto) -> bool:
    """Whether the file has operators that ONNX Runtime does not know: ONNX's own checker may refuse them."""
    own = {(function.domain, function.name) for function in proto.functions}
    return any((n.domain, n.op_type) not in own and _is_unknown(n.domain, n.op_type) for n in proto.graph.node)


def cut_strangers(model: ir.Model, path: Path) -> Tail | None:
    """Cut the main graph in front of them, in place; None where there are none.

    What they take, and what is computed in front of them, become outputs. Raises ModelError where layers with weights
    stand behind one, or nothing in front.
    """
    cut: dict[ir.Node, None] = {}
    strangers = []
    for node in model.graph:
        is_stranger = any(
            inner.op_identifier() not in model.functions and _is_unknown(inner.domain, inner.op_type)
            for inner in _with_inner(node)
        )
        if is_stranger:
            strangers.append(node)
        if is_stranger or any(v is not None and v.producer() in cut for v in _taken(node)):
            cut[node] = None
    if not strangers:
        return None
    first = f"node {strangers[0].name!r} ({_kind(strangers[0])})"
    if behind := [node for node in cut if node.op_type in _WEIGHTED]:
        raise ModelError(
            f"{path}: {first} is no operator that ONNX Runtime knows, and {counted(len(behind), 'layer')} with weights "
            f"from {behind[0].name!r} on depend on it; replace it by ONNX's own operators, or define it as a function "
            "in the model"
        )
    outputs = tuple(model.graph.outputs)
    computed = (v for node in cut for v in _taken(node) if v.producer() is not None)
    taken = dict.fromkeys(v for v in computed if v.producer() not in cut)
    left = [v for v in outputs if v.producer() not in cut]
    if not taken and not left:
        raise ModelError(
            f"{path}: {first} is no operator that ONNX Runtime knows, and nothing is computed in front of it; "
            "replace it by ONNX's own operators, or define it as a function in the model"
        )
    model.graph.outputs.clear()
    model.graph.outputs.extend(dict.fromkeys([*left, *taken]))
    for node in reversed(cut):
        model.graph.remove(node)
    _give_types(model)
    names = tuple(f"{node.name!r} ({_kind(node)})" for node in strangers)
    return Tail(tuple(cut), outputs, names, tuple(str(v.name) for v in taken))


def _give_types(model: ir.Model) -> None:
    """Types for the new outputs, which a model must declare."""
    for value, known in zip(model.graph.outputs, inferred(model).graph.outputs, strict=True):
        value.type, value.shape = known.type, known.shape


def _with_inner(node: ir.Node) -> list[ir.Node]:
    graphs = [a.as_graph() for a in node.attributes.values() if a.type == ir.AttributeType.GRAPH]
    return [node, *(inner for graph in graphs for inner in graph.all_nodes())]


def _taken(node: ir.Node) -> list[ir.Value]:
    """What the node takes, the outer values of its subgraphs too."""
    return [v for inner in _with_inner(node) for v in inner.inputs if v is not None and v.graph is node.graph]


def _kind(node: ir.Node) -> str:
    return f"{node.domain}::{node.op_type}" if node.domain else node.op_type


def _is_unknown(domain: str, operator: str) -> bool:
    # ONNX Runtime has schemas of plugins among ONNX's own operators, but nothing that computes them.
    if domain in ONNX_DOMAINS:
        return not onnx.defs.has(operator)
    return operator not in _known_operators().get(domain, frozenset())


@cache
def _known_operators() -> Mapping[str, frozenset[str]]:
    """The operators of ONNX Runtime, by domain."""
    from onnxruntime.capi import onnxruntime_pybind11_state as ort

    found: dict[str, set[str]] = {}
    for schema in ort.get_all_operator_schema():
        found.setdefault(schema.domain, set()).add(schema.name)
    return {domain: frozenset(names) for domain, names in found.items()}
