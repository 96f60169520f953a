"""Which graphs one sample's run of stands for another's: what CUDA captures of a run are kernels and addresses alone.

A value that the host reads on the way, a shape that is computed from data, would stay what it was when the run was
captured, and nothing would say so. So a graph is captured only if what hangs on its inputs' values is read by operands
that ONNX Runtime's CUDA kernels read on the GPU; of an operator that is not listed here that is not known.
"""

from __future__ import annotations

import onnx_ir as ir

_EVERY = frozenset(
    [
        "Abs",
        "Add",
        "And",
        "AveragePool",
        "BatchNormalization",
        "Cast",
        "Ceil",
        "Celu",
        "Concat",
        "Conv",
        "ConvTranspose",
        "Cos",
        "DepthToSpace",
        "Div",
        "Elu",
        "Equal",
        "Erf",
        "Exp",
        "Flatten",
        "Floor",
        "Gather",
        "GatherElements",
        "Gelu",
        "Gemm",
        "GlobalAveragePool",
        "GlobalMaxPool",
        "Greater",
        "GreaterOrEqual",
        "HardSigmoid",
        "HardSwish",
        "Identity",
        "InstanceNormalization",
        "LayerNormalization",
        "LeakyRelu",
        "Less",
        "LessOrEqual",
        "Log",
        "LogSoftmax",
        "MatMul",
        "Max",
        "MaxPool",
        "Min",
        "Mod",
        "Mul",
        "Neg",
        "Not",
        "Or",
        "PRelu",
        "Pow",
        "Reciprocal",
        "Relu",
        "Round",
        "Selu",
        "Sigmoid",
        "Sign",
        "Sin",
        "Softmax",
        "Softplus",
        "Softsign",
        "SpaceToDepth",
        "Sqrt",
        "Sub",
        "Sum",
        "Tanh",
        "ThresholdedRelu",
        "Transpose",
        "Where",
        "Xor",
        "DequantizeLinear",
        "QuantizeLinear",
    ]
)
"""Operators that read every operand on the GPU."""

_FIRST = frozenset(
    [
        "Clip",
        "CumSum",
        "Expand",
        "Pad",
        "ReduceL1",
        "ReduceL2",
        "ReduceMax",
        "ReduceMean",
        "ReduceMin",
        "ReduceProd",
        "ReduceSum",
        "ReduceSumSquare",
        "Reshape",
        "Resize",
        "Slice",
        "Split",
        "Squeeze",
        "Tile",
        "Unsqueeze",
    ]
)
"""Operators that read the first one there, and shapes, axes and limits in the host's memory."""

_SHAPES = frozenset({"Shape", "Size"})
"""What they give hangs on shapes alone."""


def is_replayable(graph: ir.Model) -> bool:
    """Whether what was captured of one run holds for every other at the same shapes of its inputs.

    All that hangs on values is float32 where it leaves the graph: other types ONNX Runtime hands out in the host's
    memory here.
    """
    reached = set(graph.graph.inputs)
    for node in graph.graph:
        if not _is_plain(node):
            return False
        read = [index for index, value in enumerate(node.inputs) if value in reached]
        if not read or node.op_type in _SHAPES:
            continue
        if node.op_type not in _EVERY and (node.op_type not in _FIRST or read != [0]):
            return False
        reached.update(node.outputs)
    return all(value not in reached or value.dtype == ir.DataType.FLOAT for value in graph.graph.outputs)


def _is_plain(node: ir.Node) -> bool:
    """Whether the node is one of ONNX's own operators, with no graph inside."""
    inside = (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS)
    return node.domain in ("", "ai.onnx") and not any(a.type in inside for a in node.attributes.values())
