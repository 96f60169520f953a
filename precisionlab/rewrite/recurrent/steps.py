"""Single steps of arithmetic at any opset, each of which may be rounded."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from precisionlab.model.recurrent import Activation
from precisionlab.plan.arithmetic import Constants
from precisionlab.precision import Precision
from precisionlab.rewrite.builder import GraphBuilder
from precisionlab.rewrite.gates import Gates

# From which opset what was an attribute is an input, or an operator is there at all.
_WHERE, _THRESHOLDED_RELU, _CLIP_INPUTS, _AXES_INPUT = 9, 10, 11, 13

_WITH_ALPHA = frozenset({"Elu", "HardSigmoid", "LeakyRelu", "ThresholdedRelu"})


class Steps:
    """Makes nodes in one graph, all named behind `prefix`."""

    def __init__(self, builder: GraphBuilder, prefix: str, precision: Precision) -> None:
        self.builder = builder
        self.opset = builder.opset
        self._prefix = prefix
        self._precision = precision
        self._gates = Gates(builder, None, Constants.ROUNDED)

    def inside(self) -> Steps:
        """For the body of a node of this graph."""
        return Steps(self.builder.inner(), self._prefix, self._precision)

    def name(self, what: str) -> str:
        """What a value is to be called."""
        return f"{self._prefix}:{what}"

    def op(self, op_type: str, inputs: Sequence[ir.Value | None], **attributes: Any) -> ir.Value:
        """A step that is not rounded."""
        return self.builder.op(op_type, inputs, self.name(op_type), **attributes)

    def rounded(self, value: ir.Value) -> ir.Value:
        """The value as it is stored in the precision; as it is in float32."""
        return self._gates.activation(value, self._precision, str(value.name))

    def constant(self, array: NDArray[Any], what: str) -> ir.Value:
        """A constant of this content."""
        return self.builder.constant(ir.tensor(array), self.name(what))

    def scalar(self, number: float) -> ir.Value:
        """A float32 constant without axes."""
        return self.constant(np.asarray(number, np.float32), "number")

    def integers(self, numbers: Sequence[int] | int) -> ir.Value:
        """An int64 constant."""
        return self.constant(np.asarray(numbers, np.int64), "integers")

    def split(self, value: ir.Value, sizes: Sequence[int], axis: int) -> Sequence[ir.Value]:
        """Parts of these sizes along an axis."""
        if len(sizes) == 1:
            return [value]
        names = [self.name("part")] * len(sizes)
        if self.opset < _AXES_INPUT:
            return self.builder.ops("Split", [value], names, axis=axis, split=list(sizes))
        return self.builder.ops("Split", [value, self.integers(list(sizes))], names, axis=axis)

    def unsqueeze(self, value: ir.Value, axis: int) -> ir.Value:
        """With another axis of length 1."""
        if self.opset < _AXES_INPUT:
            return self.op("Unsqueeze", [value], axes=[axis])
        return self.op("Unsqueeze", [value, self.integers([axis])])

    def cast(self, value: ir.Value, dtype: ir.DataType) -> ir.Value:
        """In another type."""
        return self.op("Cast", [value], to=int(dtype))

    def clipped(self, value: ir.Value, bound: float) -> ir.Value:
        """Between −bound and bound; NaN stays NaN."""
        if math.isinf(bound):
            return value
        if self.opset < _CLIP_INPUTS:
            return self.op("Clip", [value], min=-bound, max=bound)
        return self.op("Clip", [value, self.scalar(-bound), self.scalar(bound)])

    def is_below(self, one: ir.Value, other: ir.Value) -> ir.Value:
        """Whether one int64 is below the other: where it is chosen by, as truth values or as float32 0 and 1."""
        if self.opset < _WHERE:  # no comparison of integers, and nothing that chooses
            numbers = [self.cast(v, ir.DataType.FLOAT) for v in (one, other)]
            return self.cast(self.op("Less", numbers), ir.DataType.FLOAT)
        return self.op("Less", [one, other])

    def chosen(self, where: ir.Value, one: ir.Value, other: ir.Value | None) -> ir.Value:
        """`one` where `is_below` says so, else `other` (None: 0)."""
        if self.opset >= _WHERE:
            return self.op("Where", [where, one, self.scalar(0) if other is None else other])
        # Inf · 0 would be NaN. float32's largest is infinite in fp16 again, and bf16 is not to be had at these opsets.
        largest = float(np.finfo(np.float32).max)
        taken = self.op("Mul", [where, self.clipped(one, largest)])
        if other is None:
            return taken
        left = self.op("Mul", [self.op("Sub", [self.scalar(1), where]), self.clipped(other, largest)])
        return self.op("Add", [taken, left])

    def activated(self, value: ir.Value, function: Activation) -> ir.Value:
        """The activation's value; alpha and beta stay float32, as TensorRT's IActivationLayer holds them."""
        name, alpha, beta = function.name, function.alpha, function.beta
        if name == "Affine":
            return self.op("Add", [self.op("Mul", [value, self.scalar(alpha)]), self.scalar(beta)])
        if name == "ScaledTanh":
            return self.op("Mul", [self.op("Tanh", [self.op("Mul", [value, self.scalar(beta)])]), self.scalar(alpha)])
        if name == "ThresholdedRelu" and self.opset < _THRESHOLDED_RELU:
            above = self.op("Greater", [value, self.scalar(alpha)])
            if self.opset >= _WHERE:
                return self.op("Where", [above, value, self.scalar(0)])
            return self.chosen(self.cast(above, ir.DataType.FLOAT), value, None)
        attributes = {"alpha": alpha} if name in _WITH_ALPHA else {}
        if name == "HardSigmoid":
            attributes["beta"] = beta
        return self.op(name, [value], **attributes)
