"""What identifies a repaired model: a digest of its graph, by content alone."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable

import onnx_ir as ir

from precisionlab.model.mapped import let_go


def graph_digest(repaired: ir.Model, original: ir.Model | None, sha256: str) -> str:
    """SHA-256 of a graph beside the hash of its original's file.

    Of operators, attributes and names, and of the constants that the original has not: all others are told by the
    original's hash. Which library has written the graph, and in what order constants stand, leaves no trace.
    """
    digest = hashlib.sha256(sha256.encode())
    known = {} if original is None else original.graph.initializers
    for node in repaired.graph:
        digest.update(_content(node))
    for name in sorted(map(str, repaired.graph.initializers)):
        tensor = repaired.graph.initializers[name].const_value
        if name in known or tensor is None:
            continue
        digest.update(f"{name} {tensor.dtype.name} {list(tensor.shape.numpy())}".encode())
        digest.update(tensor.tobytes())
        let_go(tensor)
    return digest.hexdigest()


def grouping_digest(groups: Iterable[Iterable[str]]) -> str:
    """SHA-256 of how nodes are grouped."""
    return hashlib.sha256(json.dumps([list(group) for group in groups]).encode()).hexdigest()


def _content(node: ir.Node) -> bytes:
    """The node as ONNX writes it, without what is only said of it."""
    # Not `ir.to_proto`, which takes three times as long to find out that it is a node.
    proto = ir.serde.serialize_node(node)
    proto.ClearField("doc_string")
    proto.ClearField("metadata_props")
    content: bytes = proto.SerializeToString(deterministic=True)
    return content
