"""Which opset of ONNX's own operators a model is written in."""

from __future__ import annotations

import onnx_ir as ir


def opset_of(model: ir.Model) -> int:
    """The opset of ONNX's own operators, whose domain may be left empty or written out; 1 where none is named."""
    imports = model.graph.opset_imports
    return imports.get("", imports.get("ai.onnx", 1))
