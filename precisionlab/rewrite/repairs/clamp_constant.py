"""A mask of −3.4e38 in front of a Softmax, with a number that the precision holds in its place.

What is masked has a probability of e^c = 0 whatever c is, from −104 on; so −32768 masks as well, and leaves room for
what it is added to. Only a row in which all is masked tells them apart: there c is all that a far larger one leaves of
the scores.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import onnx_ir as ir

from precisionlab.model.repair import Exactness, Repair
from precisionlab.rewrite.repairs.base import Sight, node_of, refused, scale_of
from precisionlab.rewrite.repairs.scaling import constant

_CARRIES = frozenset(
    [*("Add", "Sub", "Mul", "Where", "Unsqueeze", "Squeeze", "Reshape", "Transpose", "Expand", "Identity", "Slice")]
)
_ENDS = frozenset({"Softmax"})
_SCALE = "mask"


class ClampConstant:
    """A mask that the precision holds, in the place of one beyond it."""

    name = "clamp_constant"
    title = "a mask that the precision holds"

    def find(self, sight: Sight) -> Iterator[Repair]:
        """One for each constant beyond the precision that leads to nothing but a Softmax."""
        half = int(math.log2(sight.number_format.largest))
        for node in sight.model.onnx.graph:
            if any(_is_mask(value, 2.0**half) for value in node.inputs) and _masks(node):
                yield Repair(
                    self.name,
                    Exactness.BITWISE,
                    sight.layer_of(node),
                    (str(node.name),),
                    ((_SCALE, half),),
                    ("no row is masked as a whole",),
                )

    def apply(self, graph: ir.Graph, repair: Repair) -> None:
        """Clamp the mask. Raises PlanError where the node has none, or what it gives leads elsewhere."""
        node, bound = node_of(graph, repair), 2.0 ** scale_of(repair, _SCALE)
        masks = [index for index, value in enumerate(node.inputs) if _is_mask(value, bound)]
        if not masks or not _masks(node):
            raise refused(repair, f"node {node.name!r} has no mask that leads to a Softmax alone")
        for index in masks:
            value = node.inputs[index]
            assert value is not None
            assert value.const_value is not None
            numbers = np.clip(value.const_value.numpy(), -bound, None)
            node.replace_input_with(index, constant(graph, numbers, f"{value.name}~clamped"))


def _is_mask(value: ir.Value | None, bound: float) -> bool:
    """Whether it is a constant of numbers that are 0, ordinary, or far below the bound."""
    if value is None or value.const_value is None or value.dtype != ir.DataType.FLOAT:
        return False
    numbers = value.const_value.numpy()
    return bool(numbers.size and numbers.min() < -bound and numbers.max() <= bound)


def _masks(node: ir.Node) -> bool:
    """Whether all that the node's result goes into is a Softmax in the end."""
    if node.op_type not in _CARRIES:
        return False
    waiting, seen = [node], set[ir.Node]()
    while waiting:
        current = waiting.pop()
        if current in seen:
            continue
        seen.add(current)
        for value in current.outputs:
            uses = [use.node for use in value.uses()]
            if value.is_graph_output() or not uses:
                return False
            for user in uses:
                if user.op_type in _CARRIES:
                    waiting.append(user)
                elif user.op_type not in _ENDS:
                    return False
    return True
