"""What identifies a repaired model: a digest of its graph, by content alone."""

from __future__ import annotations

import hashlib
import json

import onnx_ir as ir

from precisionlab.model.graph import Model
from precisionlab.model.mapped import let_go


def repaired_content(model: Model) -> str:
    """SHA-256 of a repaired model's graph beside the hash of its original's file.

    Of operators, attributes and names, and of the constants that the original has not: all others are told by the
    original's hash. Which library has written the graph, and in what order constants stand, leaves no trace.
    """
    return _digest(model.onnx, model.original.onnx if model.original is not None else None, model.sha256)


def layers_digest(model: Model) -> str:
    """SHA-256 of how the model's nodes are grouped into layers."""
    groups = [[*layer.nodes, *layer.inside] for layer in model.layers]
    return hashlib.sha256(json.dumps(groups).encode()).hexdigest()


def _digest(repaired: ir.Model, original: ir.Model | None, sha256: str) -> str:
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


def _content(node: ir.Node) -> bytes:
    """The node as ONNX writes it, without what is only said of it."""
    proto = ir.to_proto(node)
    proto.ClearField("doc_string")
    proto.ClearField("metadata_props")
    content: bytes = proto.SerializeToString(deterministic=True)
    return content
