"""Attention without `softmax_precision`, which TensorRT's parser refuses."""

from __future__ import annotations

import onnx_ir as ir

from precisionlab.model.flow import ONNX_DOMAINS
from precisionlab.system.wording import counted

_ATTRIBUTE = "softmax_precision"


def says_softmax_precision(node: ir.Node) -> bool:
    """Whether the node is an Attention that says what its softmax computes in."""
    return node.op_type == "Attention" and node.domain in ONNX_DOMAINS and _ATTRIBUTE in node.attributes


def without_softmax_precision(model: ir.Model) -> tuple[str, ...]:
    """Take the attribute from each Attention, in place; what to say of it."""
    found = [node for node in model.graph.all_nodes() if says_softmax_precision(node)]
    for node in found:
        node.attributes.pop(_ATTRIBUTE)
    if not found:
        return ()
    more = ", …" if len(found) > 1 else ""
    return (
        f"softmax_precision of {counted(len(found), 'node')}, {found[0].name} (Attention){more} is left out, as "
        "TensorRT refuses it: what the softmax computes in is its kernel's choice",
    )
