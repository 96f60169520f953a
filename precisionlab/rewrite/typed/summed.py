"""Matrix products in half that add up in float32, as strongly typed TensorRT is told of them.

The product stands between Casts: its operands, which are half, are widened to float32, and the result is cast back at
once. TensorRT makes one kernel of that, which takes and gives half and adds up in float32 (Torch-TensorRT's
`use_fp32_acc` rests on it; TensorRT-RTX 1.7.1 compiles the GEMM with `accumulation_type=2` then, and 0 else). Nothing
else may be in float32 there: with a bias, a factor or an activation in float32 behind the product the kernel takes
float32 weights, and costs what fp32 does.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
from onnx_ir.passes import InPlacePass, PassResult, PostconditionError

from precisionlab.model.names import all_names, new_name
from precisionlab.rewrite.sums import GEMM
from precisionlab.rewrite.typed.assignment import Assignment

LEAST_OPSET = 11
"""The first at which a Gemm needs no bias."""

_FACTORS = ("alpha", "beta")


class PlainGemm(InPlacePass):
    """A Gemm with something right behind its product becomes that alone; alpha, beta and the bias are nodes behind it.

    That is one that is to add up in float32, or whose channels have factors behind it.

    The Gemm keeps its name, and the last node the output's. `added` are the new nodes, each of which has one name with
    its output but for the last one, `tensors` the other new tensors.
    """

    def __init__(self, assignment: Assignment) -> None:
        self._assignment = assignment
        self.added: dict[str, str] = {}
        """New node → the Gemm that it comes of."""
        self.tensors: tuple[str, ...] = ()

    def call(self, model: ir.Model) -> PassResult:
        """Replace the nodes in place."""
        names = set(all_names(model.graph))
        for node in [n for n in model.graph if self._is_wanted(n)]:
            self._take_apart(model.graph, node, names)
        return PassResult(model, bool(self.added))

    def ensures(self, model: ir.Model) -> None:
        """No such Gemm is left."""
        if any(self._is_wanted(node) for node in model.graph):
            raise PostconditionError("a Gemm whose product is to stand alone has a bias or a factor of its own")

    def _is_wanted(self, node: ir.Node) -> bool:
        if str(node.name) not in self._assignment.summed | self._assignment.split or node.op_type != GEMM:
            return False
        return _bias(node) is not None or _factor(node, "alpha") != 1.0

    def _take_apart(self, graph: ir.Graph, node: ir.Node, names: set[str]) -> None:
        given, bias = node.outputs[0], _bias(node)
        alpha, beta = (_factor(node, name) for name in _FACTORS)
        left = {key: value for key, value in node.attributes.items() if key not in _FACTORS}
        product = ir.Node("", GEMM, list(node.inputs[:2]), list(left.values()), num_outputs=1, name=node.name)
        made, value = [product], product.outputs[0]
        value.name = new_name(f"{node.name}_product", names)
        self.tensors += (value.name,)

        def behind(op_type: str, first: ir.Value, second: ir.Value, label: str) -> ir.Value:
            name = new_name(f"{node.name}_{label}", names)
            made.append(ir.Node("", op_type, [first, second], num_outputs=1, name=name))
            made[-1].outputs[0].name = name
            self.added[name] = str(node.name)
            return made[-1].outputs[0]

        if alpha != 1.0:
            value = behind("Mul", value, self._constant(graph, alpha, f"{node.name}_alpha", names), "scaled")
        if bias is not None:
            if beta != 1.0:
                bias = behind("Mul", bias, self._constant(graph, beta, f"{node.name}_beta", names), "bias")
            value = behind("Add", value, bias, "sum")
        for new in made:
            new.outputs[0].type = given.type
            new.outputs[0].shape = given.shape if new.outputs[0] is not bias else None
        graph.insert_before(node, made)
        ir.convenience.replace_all_uses_with(given, value, replace_graph_outputs=True)
        name = given.name
        graph.remove(node, safe=True)
        value.name = name

    def _constant(self, graph: ir.Graph, number: float, name: str, names: set[str]) -> ir.Value:
        tensor, name = ir.tensor(np.asarray(number, np.float32)), new_name(name, names)
        made = ir.Value(name=name, type=ir.TensorType(tensor.dtype), shape=ir.Shape(()), const_value=tensor)
        graph.register_initializer(made)
        self.tensors += (name,)
        return made


def _bias(node: ir.Node) -> ir.Value | None:
    return node.inputs[2] if len(node.inputs) > 2 else None


def _factor(node: ir.Node, name: str) -> float:
    return node.attributes[name].as_float() if name in node.attributes else 1.0
