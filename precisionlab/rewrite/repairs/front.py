"""New nodes in front of one that they make needless."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import onnx_ir as ir

from precisionlab.model.names import all_names, new_name
from precisionlab.rewrite.repairs.reductions import reduction
from precisionlab.rewrite.repairs.scaling import constant


class Front:
    """Puts float32 nodes in front of `node`; they and what they give are named after it."""

    def __init__(self, graph: ir.Graph, node: ir.Node) -> None:
        self.graph, self._node = graph, node
        self._names = set(all_names(graph))

    def op(self, kind: str, *inputs: ir.Value | None, attributes: Iterable[ir.Attr] = ()) -> ir.Value:
        """What a node of this kind gives."""
        return self.added(ir.Node("", kind, inputs, attributes, num_outputs=1))

    def added(self, node: ir.Node) -> ir.Value:
        """What the node gives."""
        (output,) = node.outputs
        node.name = output.name = new_name(f"{self._node.name}~{node.op_type}", self._names)
        output.type = ir.TensorType(ir.DataType.FLOAT)
        self.graph.insert_before(self._node, node)
        return output

    def like(self, node: ir.Node, value: ir.Value, index: int = 0) -> ir.Value:
        """What such a node gives of another value in the place of its input."""
        inputs = [value if place == index else given for place, given in enumerate(node.inputs)]
        return self.op(node.op_type, *inputs, attributes=list(node.attributes.values()))

    def largest(self, value: ir.Value, like: ir.Node, *, keepdims: bool | None = None) -> ir.Value:
        """The largest over the axes that the node reduces."""
        return self.added(reduction(self.graph, "ReduceMax", value, like, keepdims=keepdims))

    def number(self, number: float, name: str) -> ir.Value:
        """A constant."""
        return constant(self.graph, np.float32(number), f"{self._node.name}~{name}")
