"""Copies layers with the rounding inside of nodes that ONNX Runtime's CUDA kernels have in half.

Found by holding them against an H100 (ONNX Runtime 1.30), tensor by tensor. Two things are left out: a Resize that
interpolates multiplies and adds in half, and the blocks that sum rows add to each other in any order, so that two runs
on a GPU differ as much as one does from this.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from precisionlab.model import Layer
from precisionlab.model.graph import Scope
from precisionlab.model.opset import opset_of
from precisionlab.plan.arithmetic import ONNXRUNTIME
from precisionlab.precision import Precision
from precisionlab.rewrite.builder import GraphBuilder
from precisionlab.rewrite.flow import LayerCopier
from precisionlab.rewrite.gates import Gates
from precisionlab.rewrite.typed.signature import FLOAT

Inputs = Sequence[ir.Value | None]

_BLOCK, _ROW, _BLOCKS = 512, 32, 512
"""Of the kernel that sums rows: threads of a block, values of a row that it takes side by side, blocks at most."""
_EACH = 4
"""Rows that a thread of it adds at a time."""
_RANGE, _AXES_ARE_INPUT = 11, 13
"""The opsets from which there is Range, and from which ReduceSum takes its axes as an input."""


class SteppedCopier(LayerCopier):
    """Copies layers as ONNX Runtime's CUDA provider computes them in half: node by node, some of them in steps.

    Every node of a layer gives half, and is handed its constants in half, in fused layers too. A convolution gives half
    before its bias is added; HardSwish is four steps; a mean is a sum in half and a division; a sum of rows is one of
    partial sums, all in half; Sigmoid takes its steps in bf16 (in fp16 its kernel computes in float32). In other
    precisions a layer is as it always is.
    """

    usual = ONNXRUNTIME

    def _fuses(self, layer: Layer, precision: Precision) -> bool:
        """A node of a layer in half is not fused."""
        return super()._fuses(layer, precision) and not precision.is_low_float

    def _node(
        self,
        node: ir.Node,
        inputs: Inputs,
        captured: Mapping[ir.Value, ir.Value],
        prefix: str,
        attributes: Mapping[str, ir.Attr],
        precision: Precision,
    ) -> Sequence[ir.Value]:
        """The node's steps, the last one not rounded yet; a copy of a node that has none."""
        steps = _STEPS.get(node.op_type) if precision.is_low_float and node.domain in ("", "ai.onnx") else None
        if steps is not None:
            made = steps(_Steps(self._builder, self._gates, self._model, node, prefix, precision), inputs, attributes)
            if made is not None:
                made.shape = None if node.outputs[0].shape is None else ir.Shape([None] * len(node.outputs[0].shape))
                return [made]
        return super()._node(node, inputs, captured, prefix, attributes, precision)


class _Steps:
    """Makes the steps of one node."""

    def __init__(
        self, builder: GraphBuilder, gates: Gates, model: Scope, node: ir.Node, prefix: str, precision: Precision
    ) -> None:
        self.node, self.model, self.precision = node, model, precision
        self._builder, self._gates, self._prefix, self._count = builder, gates, prefix, 0

    def exact(self, op_type: str, inputs: Inputs, attributes: Mapping[str, ir.Attr] | None = None) -> ir.Value:
        """A step in float32."""
        self._count += 1
        step = ir.Node("", op_type, [], num_outputs=1, name=f"{self.node.name}:{self._count}:{op_type}")
        step.outputs[0].name = f"{self.node.outputs[0].name}:{self._count}:{op_type}"
        (value,) = self._builder.copy(step, inputs, {}, self._prefix, attributes or {}).outputs
        return value

    def half(self, value: ir.Value) -> ir.Value:
        """The value rounded to half."""
        return self._gates.activation(value, self.precision, str(value.name))

    def rounded(self, op_type: str, inputs: Inputs, attributes: Mapping[str, ir.Attr] | None = None) -> ir.Value:
        """A step that gives half."""
        return self.half(self.exact(op_type, inputs, attributes))

    def constant(self, array: NDArray[Any], name: str) -> ir.Value:
        """A constant of the node's."""
        return self._builder.constant(ir.tensor(array), f"{self._prefix}{self.node.name}:{name}")

    @property
    def opset(self) -> int:
        """Of ONNX's own operators."""
        return opset_of(self.model.onnx)

    def sizes(self, value: ir.Value | None) -> tuple[int, ...] | None:
        """The shape of a value of the model, where all of it is known."""
        known = None if value is None else self.model.tensors.get(str(value.name))
        if known is None or known.shape is None:
            return None
        sizes = tuple(dim for dim in known.shape if isinstance(dim, int))
        return sizes if len(sizes) == len(known.shape) else None


def _biased(steps: _Steps, inputs: Inputs, attributes: Mapping[str, ir.Attr]) -> ir.Value | None:
    """A convolution in half, to which the bias is added in a kernel of its own."""
    bias = inputs[2] if len(inputs) > 2 else None
    weight = steps.node.inputs[1]
    if bias is None or weight is None or weight.shape is None:
        return None
    products = steps.rounded(steps.node.op_type, inputs[:2], attributes)
    shape = steps.constant(np.array([-1] + [1] * (len(weight.shape) - 2), np.int64), "shape")
    return steps.exact("Add", [products, steps.exact("Reshape", [bias, shape])])


def _hard_swish(steps: _Steps, inputs: Inputs, attributes: Mapping[str, ir.Attr]) -> ir.Value | None:
    """x · min(max(x / 6 + ½, 0), 1), where each step gives half; the sixth itself is not rounded."""
    sixth, half, zero, one = (
        steps.constant(np.asarray(value, np.float32), name)
        for name, value in (("sixth", 1 / 6), ("half", 0.5), ("zero", 0), ("one", 1))
    )
    moved = steps.rounded("Add", [steps.rounded("Mul", [inputs[0], sixth]), half])
    return steps.exact("Mul", [inputs[0], steps.exact("Clip", [moved, zero, one])])


def _sigmoid(steps: _Steps, inputs: Inputs, attributes: Mapping[str, ir.Attr]) -> ir.Value | None:
    """In bf16 1 / (1 + e^−|x|), taken from 1 where x is not above 0, which is nothing where x is far below."""
    if steps.precision is not Precision.BF16:
        return None
    one, zero = (steps.constant(np.asarray(value, np.float32), name) for value, name in ((1, "one"), (0, "zero")))
    raised = steps.rounded("Exp", [steps.exact("Neg", [steps.exact("Abs", inputs)])])
    upper = steps.rounded("Div", [one, steps.rounded("Add", [one, raised])])
    return steps.exact("Where", [steps.exact("Greater", [inputs[0], zero]), upper, steps.exact("Sub", [one, upper])])


def _mean(steps: _Steps, inputs: Inputs, attributes: Mapping[str, ir.Attr]) -> ir.Value | None:
    """The sum in half, and its division by a length in half; axes in the middle are left to a kernel in float32."""
    reduced = _reduction(steps)
    if reduced is None or not (reduced.leads or reduced.trails):
        return None
    sums = steps.half(reduced.sums(inputs[0]))
    # Counted where it runs: samples may be of other sizes than the first.
    length = steps.exact("Div", [steps.exact("Size", [inputs[0]]), steps.exact("Size", [sums])])
    return steps.exact("Div", [sums, steps.rounded("Cast", [length], {"to": ir.AttrInt64("to", int(FLOAT))})])


def _sum(steps: _Steps, inputs: Inputs, attributes: Mapping[str, ir.Attr]) -> ir.Value | None:
    reduced = _reduction(steps)
    return None if reduced is None else reduced.sums(inputs[0])


@dataclass(frozen=True)
class _Reduction:
    """Which axes are summed, of a tensor with these sizes in the first sample."""

    steps: _Steps
    sizes: tuple[int, ...]
    axes: tuple[int, ...]
    keeps: bool

    def sums(self, value: ir.Value | None) -> ir.Value:
        """The sums, the last step not rounded yet: of whole rows by partial sums in half, else in float32."""
        along = max(self.axes, key=lambda axis: self.sizes[axis])
        down, blocks = self._blocks if self.leads and self.steps.opset >= _RANGE else (1, 1)
        if blocks < 2:
            return self._summed(value, "axes")
        steps = self.steps
        turns = self._turns(value, along, down, blocks)
        total: ir.Value | None = None
        for block in range(blocks):
            own = steps.exact("Equal", [turns, steps.constant(np.asarray(block, np.int64), f"block{block}")])
            rows = steps.exact("Compress", [value, own], {"axis": ir.AttrInt64("axis", along)})
            part = steps.half(self._summed(rows, f"axes{block}"))
            total = part if total is None else steps.exact("Add", [steps.half(total), part])
        assert total is not None
        return total

    def _turns(self, value: ir.Value | None, along: int, down: int, blocks: int) -> ir.Value:
        """For each place of the axis the block whose turn it is, which goes on after `down` places."""
        steps = self.steps
        axis, zero, one, run, count = (
            steps.constant(np.asarray(number, np.int64), name)
            for number, name in ((along, "along"), (0, "first"), (1, "next"), (down, "down"), (blocks, "blocks"))
        )
        places = steps.exact("Range", [zero, steps.exact("Gather", [steps.exact("Shape", [value]), axis]), one])
        return steps.exact("Mod", [steps.exact("Div", [places, run]), count])

    @property
    def _blocks(self) -> tuple[int, int]:
        """How many rows a block of the kernel takes at a time, and how many blocks there are."""
        rows = math.prod(self.sizes[axis] for axis in self.axes)
        columns = math.prod(self.sizes) // rows
        across = _power_of_two(min(columns, _ROW))
        down = _power_of_two(max(1, min(_BLOCK // across, rows // _EACH)))
        beside = max(1, min(columns // across, _BLOCKS))
        return down, max(1, min(_BLOCKS // beside, rows // down // _EACH))

    @property
    def leads(self) -> bool:
        """Whether the axes longer than 1 that are summed stand before all others, of which there are some."""
        summed = self._summed_axes
        return any(summed) and not all(summed) and summed == sorted(summed, reverse=True)

    @property
    def trails(self) -> bool:
        """Whether they stand behind all others, or there are no others."""
        return any(self._summed_axes) and self._summed_axes == sorted(self._summed_axes)

    @property
    def _summed_axes(self) -> list[bool]:
        return [i in self.axes for i, size in enumerate(self.sizes) if size > 1]

    def _summed(self, value: ir.Value | None, name: str) -> ir.Value:
        attributes: dict[str, ir.Attr] = {"keepdims": ir.AttrInt64("keepdims", int(self.keeps))}
        if self.steps.opset < _AXES_ARE_INPUT:
            attributes["axes"] = ir.AttrInt64s("axes", self.axes)
            return self.steps.exact("ReduceSum", [value], attributes)
        axes = self.steps.constant(np.array(self.axes, np.int64), name)
        return self.steps.exact("ReduceSum", [value, axes], attributes)


def _reduction(steps: _Steps) -> _Reduction | None:
    """What the node reduces; None where its sizes or axes are not known, or it reduces nothing."""
    node, attributes = steps.node, steps.node.attributes
    sizes = steps.sizes(node.inputs[0])
    if not sizes or 0 in sizes:
        return None
    axes: Sequence[int] = []
    if "axes" in attributes:
        axes = attributes["axes"].as_ints()
    elif len(node.inputs) > 1 and node.inputs[1] is not None:
        if node.inputs[1].const_value is None:
            return None
        axes = [int(axis) for axis in node.inputs[1].const_value.numpy().ravel()]
    if not axes:
        if "noop_with_empty_axes" in attributes and attributes["noop_with_empty_axes"].as_int():
            return None
        axes = range(len(sizes))
    keeps = "keepdims" not in attributes or bool(attributes["keepdims"].as_int())
    return _Reduction(steps, sizes, tuple(sorted({axis % len(sizes) for axis in axes})), keeps)


def _power_of_two(least: int) -> int:
    return 1 << (least - 1).bit_length()


_STEPS: Mapping[str, Callable[[_Steps, Inputs, Mapping[str, ir.Attr]], ir.Value | None]] = {
    "Conv": _biased,
    "ConvTranspose": _biased,
    "HardSwish": _hard_swish,
    "ReduceMean": _mean,
    "ReduceSum": _sum,
    "Sigmoid": _sigmoid,
}
