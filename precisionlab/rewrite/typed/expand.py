"""Operators that TensorRT has in a type only as the operators that they are made of."""

from __future__ import annotations

import onnx_ir as ir
from onnx_ir.passes import InPlacePass, PassResult, PostconditionError

from precisionlab.rewrite.typed.assignment import Assignment


class ExpandHardSwish(InPlacePass):
    """HardSwish in bfloat16 becomes HardSigmoid and Mul.

    TensorRT's parser takes HardSwish in float32 and float16 only, and makes those two of it. The Mul keeps the node's
    name, and its output's. `added` are the HardSigmoids, each of which has one name with its output.
    """

    def __init__(self, assignment: Assignment) -> None:
        self._assignment = assignment
        self.added: tuple[str, ...] = ()

    def call(self, model: ir.Model) -> PassResult:
        """Replace the nodes in place."""
        added = []
        for node in [n for n in model.graph if self._is_wanted(n)]:
            taken, given = node.inputs[0], node.outputs[0]
            # HardSwish(x) = x · max(0, min(1, x/6 + 1/2)), by ONNX's definition.
            attributes = [ir.AttrFloat32("alpha", 1 / 6), ir.AttrFloat32("beta", 0.5)]
            gate = ir.Node("", "HardSigmoid", [taken], attributes, num_outputs=1, name=f"{node.name}_gate")
            gate.outputs[0].name, gate.outputs[0].shape = gate.name, given.shape
            product = ir.Node("", "Mul", [taken, gate.outputs[0]], num_outputs=1, name=node.name)
            product.outputs[0].type, product.outputs[0].shape = given.type, given.shape
            model.graph.insert_before(node, [gate, product])
            ir.convenience.replace_all_uses_with(given, product.outputs[0], replace_graph_outputs=True)
            name = given.name
            model.graph.remove(node, safe=True)
            product.outputs[0].name = name
            added.append(str(gate.name))
        self.added = tuple(added)
        return PassResult(model, bool(added))

    def ensures(self, model: ir.Model) -> None:
        """No such node is left."""
        if any(self._is_wanted(node) for node in model.graph):
            raise PostconditionError("a HardSwish in bfloat16 is left")

    def _is_wanted(self, node: ir.Node) -> bool:
        return node.op_type == "HardSwish" and self._assignment.dtypes.get(str(node.name)) == ir.DataType.BFLOAT16
