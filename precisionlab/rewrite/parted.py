"""What of a fused layer a strongly typed TensorRT keeps apart, so that it is rounded between.

Read from what TensorRT-RTX 1.7.1 logs of its kernels for SM75 to SM120 (benchmarks/README.md has the table). A
BatchNormalization, or a factor, is never folded into a Conv's weights. One kernel runs both where all that takes the
result is another Conv, a MaxPool or an AveragePool, by way of pointwise operators at most. As an output of the model,
in front of a residual sum, of GlobalAveragePool, Resize or Softmax, they are kernels of their own. A bias, a residual
sum and Relu or Sigmoid behind are the Conv's own. What stands behind a MatMul or Gemm is apart from it where it has one
row, and often with more.

Around int8 products in half, all that stands behind is computed node by node in half; but a BatchNormalization's or
another factor is one with the scales, in float32.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import onnx_ir as ir

from precisionlab.model import Layer, Model
from precisionlab.model.layers import ACTIVATIONS
from precisionlab.plan.arithmetic import Fusing
from precisionlab.plan.assign import precision_of
from precisionlab.plan.plan import PrecisionPlan
from precisionlab.precision import Precision
from precisionlab.rewrite.sums import CONV, CONVOLUTIONS

_BATCHNORM = "BatchNormalization"
_FACTORS = (_BATCHNORM, "Mul", "Div")
_SHIFTS = ("Add", "Sub")
_OWN_ACTIVATIONS = ("Relu", "Sigmoid")
_POOLS = ("MaxPool", "AveragePool")


def rounded_behind(nodes: Sequence[ir.Node], precision: Precision, fusing: Fusing) -> frozenset[ir.Node]:
    """The nodes of a fused layer, but for its last, that give a value which is rounded before the next takes it.

    `precision` is the layer's. Where it cannot be known, they are taken to be apart: then no overflow between them goes
    unseen.
    """
    if fusing is Fusing.FOLDED or len(nodes) < 2:
        return frozenset()
    pairs = list(pairwise(nodes))
    if precision.is_quantized:
        return frozenset(node for node, after in pairs if not (_is_convolution(node) and after.op_type in _FACTORS))
    if fusing is Fusing.COMPILED or not precision.is_low_float or _is_one_kernel(nodes):
        return frozenset()
    return frozenset(node for node, _ in pairs)


def layers_apart(model: Model, plan: PrecisionPlan) -> tuple[Layer, ...]:
    """The layers that one kernel runs where types are weak, and several where they are strong, in less than float32."""
    found = []
    for layer in model.layers:
        nodes = [model.node[name] for name in layer.nodes]
        if layer.fixed is None and rounded_behind(nodes, precision_of(layer, plan), Fusing.TYPED):
            found.append(layer)
    return tuple(found)


def _is_one_kernel(nodes: Sequence[ir.Node]) -> bool:
    first = nodes[0]
    if not _is_convolution(first):
        return False
    behind = [node.op_type for node in nodes[1:]]
    if first.op_type == CONV and all(kind in _SHIFTS or kind in _OWN_ACTIVATIONS for kind in behind):
        return True
    joins = any(len([v for v in node.inputs if v is not None and not v.is_initializer()]) > 1 for node in nodes[1:])
    return not joins and _leads_to_convolutions(nodes[-1])


def _is_convolution(node: ir.Node) -> bool:
    return node.op_type in CONVOLUTIONS


def _leads_to_convolutions(last: ir.Node) -> bool:
    """Whether all that takes what the node gives is a Conv or a pool, by way of pointwise operators on it alone."""
    block, waiting = set(last.outputs), list(last.outputs)
    while waiting:
        value = waiting.pop()
        if value.is_graph_output() or not value.uses():
            return False
        for use in value.uses():
            node = use.node
            if node.graph is not last.graph:
                return False
            if (_is_convolution(node) and use.idx == 0 and not _is_depthwise(node)) or node.op_type in _POOLS:
                continue
            taken = [v for v in node.inputs if v is not None and not v.is_initializer()]
            if node.op_type not in (*ACTIVATIONS, "Mul") or not block.issuperset(taken):
                return False
            fresh = [v for v in node.outputs if v not in block]
            block.update(fresh)
            waiting += fresh
    return True


def _is_depthwise(node: ir.Node) -> bool:
    """On SM75 a BatchNormalization in front of one is a kernel of its own."""
    return "group" in node.attributes and node.attributes["group"].as_int() > 1
