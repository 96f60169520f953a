"""What may stand between squares and the logarithm of their sum: operators that are linear, with a way back.

Each step says three things: what it makes of the squares, of the largest of what was squared (which is taken over all
that the step adds up), and how what it gives of that is brought back to the shape in front of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from precisionlab.rewrite.repairs.front import Front
from precisionlab.rewrite.repairs.passing import is_constant, scalar_of
from precisionlab.rewrite.repairs.reductions import axes_of, has_known_axes, keeps_dims, over_axes

_MATRIX = 2


@dataclass(frozen=True)
class Step:
    """A linear node, and the input by which it takes what comes from the squares."""

    node: ir.Node
    index: int = 0

    @property
    def taken(self) -> ir.Value:
        """What it takes of the squares."""
        value = self.node.inputs[self.index]
        assert value is not None
        return value

    def of(self, front: Front, value: ir.Value) -> ir.Value:
        """What it makes of other squares."""
        return front.like(self.node, value, self.index)

    def largest(self, front: Front, value: ir.Value) -> ir.Value:
        """The largest of what it adds up."""
        if self.node.op_type in ("ReduceSum", "ReduceMean"):
            return front.largest(value, self.node)
        if self.node.op_type == "MatMul":
            axis = -1 if self.index == 0 else -2
            return front.added(over_axes(front.graph, "ReduceMax", value, [axis], [ir.AttrInt64("keepdims", 1)]))
        return self.of(front, value) if self.node.op_type == "Transpose" else value

    def back(self, front: Front, value: ir.Value) -> ir.Value:
        """What `largest` gave, in the shape in front of it."""
        if self.node.op_type in ("ReduceSum", "ReduceMean") and not keeps_dims(self.node) and axes_of(self.node):
            return front.added(over_axes(front.graph, "Unsqueeze", value, axes_of(self.node)))
        if self.node.op_type == "Transpose":
            perm = self.node.attributes.get_ints("perm")
            inverse = None if perm is None else [int(place) for place in np.argsort(perm)]
            attributes = [] if inverse is None else [ir.AttrInt64s("perm", inverse)]
            return front.op("Transpose", value, attributes=attributes)
        return value

    def factor(self, shape: Sequence[object] | None) -> float:
        """How much larger the largest that it gives can be than the largest that it takes, of this shape."""
        if self.node.op_type == "MatMul":
            weights = self.node.inputs[1 - self.index]
            assert weights is not None
            assert weights.const_value is not None
            return float(np.abs(weights.const_value.numpy()).astype(np.float64).sum(axis=self.index).max())
        if self.node.op_type == "ReduceSum":
            sizes = [1] if shape is None else [shape[axis] for axis in axes_of(self.node) or range(len(shape))]
            return float(np.prod([size if isinstance(size, int) else 1 for size in sizes]))
        number = scalar_of(self.node.inputs[1 - self.index]) if self.node.op_type in ("Mul", "Div") else None
        if number is None:
            return 1.0
        return number if self.node.op_type == "Mul" else 1 / number


def step_of(node: ir.Node | None) -> Step | None:
    """The node as a step; None where it is none."""
    if node is None or node.domain not in ("", "ai.onnx"):
        return None
    if node.op_type in ("ReduceSum", "ReduceMean"):
        return Step(node) if node.inputs[0] is not None and has_known_axes(node) else None
    if node.op_type == "Transpose":
        return Step(node)
    if node.op_type == "MatMul":
        places = [index for index in (0, 1) if _is_matrix(node.inputs[1 - index])]
        return Step(node, places[0]) if places and not is_constant(node.inputs[places[0]]) else None
    if node.op_type in ("Mul", "Div"):
        for index in (0, 1) if node.op_type == "Mul" else (0,):
            number = scalar_of(node.inputs[1 - index]) if is_constant(node.inputs[1 - index]) else None
            if number is not None and number > 0 and node.inputs[index] is not None:
                return Step(node, index)
    return None


def _is_matrix(value: ir.Value | None) -> bool:
    if value is None or not is_constant(value):
        return False
    assert value.const_value is not None
    return len(value.const_value.shape) == _MATRIX
