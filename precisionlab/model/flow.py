"""Tells float flow, which can be given a precision, from shape flow, which must not be touched."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import onnx_ir as ir

from precisionlab.model.graph import Obstacle, TensorInfo
from precisionlab.model.lift import own_of
from precisionlab.model.subgraphs import outer_values as outer_values
from precisionlab.model.subgraphs import subgraphs as subgraphs

# Inputs that say how, not what: sizes, axes, indices, scales of a resize. (ONNX operator
# specification.) Rounding a float among them, such as Resize's scales, changes shapes and breaks
# the graph.
_SHAPE_INPUTS: Mapping[str, tuple[int, ...]] = {
    "AffineGrid": (1,),
    "CenterCropPad": (1,),
    "ConstantOfShape": (0,),
    "Expand": (1,),
    "NonMaxSuppression": (2, 3, 4),
    "OneHot": (1,),
    "Pad": (1, 3),
    "Range": (0, 1, 2),
    "Resize": (1, 2, 3),
    "Reshape": (1,),
    "Slice": (1, 2, 3, 4),
    "Split": (1,),
    "Squeeze": (1,),
    "Tile": (1,),
    "TopK": (1,),
    "Unsqueeze": (1,),
    "Upsample": (1,),
}

FLOATS = (ir.DataType.FLOAT, ir.DataType.DOUBLE)
"""What is rounded: TensorRT has no double, and takes it as float32, or lower where that is enabled."""

SHAPE_FLOW = "shape flow"
"""Why a node that computes shapes has no precision: a rounded size is another size."""

LEFT = "; left in float32"
"""What the reason of a node that the reference runs as it is ends with."""

ONNX_DOMAINS = ("", "ai.onnx")
_CONTROL = frozenset({"If", "Loop", "Scan"})
# They put tensors together, and compute nothing.
_CONTAINERS = frozenset(
    {
        "Identity",
        "Optional",
        "OptionalGetElement",
        "SequenceConstruct",
        "SequenceEmpty",
        "SequenceErase",
        "SequenceInsert",
        "SplitToSequence",
    }
)
_SUPPORTED_DOMAINS = (*ONNX_DOMAINS, "com.microsoft")
# Operators whose output holds only values that their inputs held: with rounded inputs there is
# nothing left to round.
KEEPS_VALUES = frozenset(
    [
        "Abs",
        "Clip",
        "Concat",
        "DepthToSpace",
        "Expand",
        "Flatten",
        "Gather",
        "GatherElements",
        "GatherND",
        "GlobalMaxPool",
        "Identity",
        "Max",
        "MaxPool",
        "Min",
        "Neg",
        "Pad",
        "ReduceMax",
        "ReduceMin",
        "Relu",
        "Reshape",
        "Slice",
        "SpaceToDepth",
        "Split",
        "Squeeze",
        "Tile",
        "Transpose",
        "Unsqueeze",
        "Where",
    ]
)
# Nodes that convert between number formats: they have no precision of their own.
_CONVERSIONS = {"Cast", "CastLike", "QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear"}
# Those that do no more than round where the file has their output in half, so that a plan can leave it out.
_TO_FLOATS = {"Cast", "CastLike"}


def is_shape_input(node: ir.Node, index: int) -> bool:
    """Whether this input of the node carries a shape, an axis or an index rather than data."""
    return node.domain in ONNX_DOMAINS and index in _SHAPE_INPUTS.get(node.op_type, ())


_ARITHMETIC = 64
"""Values that are looked at for whether sizes are made of one: they are a few steps away, however long a model is."""


def is_sized(value: ir.Value) -> bool:
    """Whether the value's length must be known for a node to be valid: ONNX takes unknown scales or sizes for none.

    They are so too where they are made of what has an unknown length, as a Concat of half of them.
    """
    seen, waiting = {value}, [value]
    while waiting and len(seen) < _ARITHMETIC:
        for use in waiting.pop().uses():
            if use.node.op_type == "Resize" and is_shape_input(use.node, use.idx):
                return True
            lists = {made for made in use.node.outputs if made.shape is not None and len(made.shape) == 1} - seen
            seen |= lists
            waiting += lists
    return False


def shape_flow(graph: ir.Graph) -> frozenset[ir.Value]:
    """The values that end in shapes only: every use is a shape input, or a node of shape flow."""
    found: set[ir.Value] = set()
    for node in reversed(list(graph)):
        for value in node.outputs:
            if value.is_graph_output() or not value.uses():
                continue
            if all(
                is_shape_input(use.node, use.idx)
                or (use.node.graph is graph and use.node.outputs and all(o in found for o in use.node.outputs))
                for use in value.uses()
            ):
                found.add(value)
    return frozenset(found)


@dataclass(frozen=True)
class Fixed:
    """Why a node cannot be given a precision.

    `held` is true where it computes in floats all the same: what no emulation covers, every export holds at float32.
    """

    reason: str
    held: bool = False
    obstacle: Obstacle = Obstacle.OTHER


def fixed_reason(
    node: ir.Node,
    tensors: Mapping[str, TensorInfo],
    shapes: frozenset[ir.Value],
    functions: frozenset[tuple[str, str]],
    is_lowerable: bool = False,
    held_inside: Fixed | None = None,
) -> Fixed | None:
    """Why this node cannot be given a precision; None where it can.

    `functions` are the (domain, name) of the model's local functions; `is_lowerable` says that the node's bodies hold
    a node that can be given one, `held_inside` why one of these must be held at float32.
    """
    if (node.domain, node.op_type) in functions:
        return Fixed(f"call of the model-local function {node.op_type}{LEFT}", True, Obstacle.FUNCTION)
    if node.domain not in _SUPPORTED_DOMAINS:
        return Fixed(f"custom operator {node.domain}::{node.op_type}{LEFT}", held=True)
    holds_graph = any(True for _ in subgraphs(node))
    if holds_graph and not is_control(node):
        return Fixed(f"{node.op_type} holds a subgraph{LEFT}", held=True)
    if node.op_type == "Constant":  # it is a final output: all others have become initialisers
        return Fixed("a constant, which is not computed")
    outputs = [v for v in node.outputs if v.name]
    if outputs and all(v in shapes for v in outputs):
        return Fixed(SHAPE_FLOW)
    if held_inside is not None:
        return held_inside
    if is_lowerable:
        return None
    dtypes = [tensors[str(v.name)].dtype for v in outputs]
    if all(d is None for d in dtypes):
        if node.domain in ONNX_DOMAINS:
            is_container = node.op_type in _CONTAINERS or holds_graph
            return Fixed("no tensor output, or its type is not known", held=not is_container)
        return Fixed("output type not known; declare it in the model's value_info", held=True)
    if node.op_type in _CONVERSIONS and not (node.op_type in _TO_FLOATS and own_of(node) is not None):
        return Fixed(f"{node.op_type} converts between types and has no precision of its own")
    other = [d for d in dtypes if d is not None and d.is_floating_point() and d not in FLOATS]
    if other:
        return Fixed(f"computes in {other[0].name.lower()}, as the model says", True, Obstacle.OTHER_TYPE)
    if not any(d in FLOATS for d in dtypes):
        return Fixed("no float output (integer, boolean or shape flow)")
    return None


def is_control(node: ir.Node) -> bool:
    """Whether the node runs bodies, of which every node can be given a precision."""
    return node.domain in ONNX_DOMAINS and node.op_type in _CONTROL
