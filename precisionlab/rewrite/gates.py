"""Rounding gates: float32 → a precision → float32, as nodes in a graph.

Never a real half-precision graph: ONNX Runtime's CPU provider computes that in float32 and removes the
casts between, so that nothing overflows, or in half, as the processor goes. An explicit pair of casts does
round, at every optimisation level.
"""

from __future__ import annotations

from collections.abc import Mapping
from copy import copy

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from precisionlab.calibration.table import CalibrationTable, weight_scales
from precisionlab.model.blocks import WEIGHT, blocked_axis
from precisionlab.model.mapped import let_go
from precisionlab.plan.arithmetic import Constants
from precisionlab.precision import Precision
from precisionlab.rewrite.blocks import blocked_tensor, scales_in_blocks
from precisionlab.rewrite.builder import Environment, GraphBuilder
from precisionlab.rewrite.constants import (
    clamped_in,
    clamped_tensor,
    constant_array,
    held_tensor,
    is_clamped,
    quantized_tensor,
    round_scalar,
)
from precisionlab.rewrite.fake_quantization import fake_quantized

_SMALLEST = np.float32(2.0**-149)
"""The smallest float32 above 0."""

_BROADCASTS = 8
"""ONNX's first opset whose Min and Max take a scalar beside a tensor."""

_LARGE_TABLE = 1 << 20
"""Bytes of a table from which its rows are clamped where they are taken."""

WEIGHT_SCALES = 2
"""Which scales quantized weights have; of others a journal is not taken over. 1: a weight on the left had one."""

# Attributes that are operands of the arithmetic, with the defaults of the ONNX specification. A half
# kernel holds them in half. Those that are not here (epsilon, axis, …) stay as they are: kernels
# compute normalisation in float32.
_OPERAND_ATTRIBUTES: Mapping[str, Mapping[str, float | None]] = {
    "Celu": {"alpha": 1.0},
    "Clip": {"min": None, "max": None},  # attributes before opset 11, and Pad's as well; None: no default to round
    "Elu": {"alpha": 1.0},
    "Gemm": {"alpha": 1.0, "beta": 1.0},
    "HardSigmoid": {"alpha": 0.2, "beta": 0.5},
    "LeakyRelu": {"alpha": 0.01},
    "Pad": {"value": None},
    "Selu": {"alpha": 1.67326319217681884765625, "gamma": 1.05070102214813232421875},
    "ThresholdedRelu": {"alpha": 1.0},
}


class Gates:
    """Puts rounding gates into one graph, each once for a value and a precision."""

    def __init__(self, builder: GraphBuilder, table: CalibrationTable | None, constants: Constants) -> None:
        self._builder = builder
        self._constants = constants
        self._clamped: dict[tuple[ir.Value, Precision], ir.Value] = {}
        self._table = table
        self._made: dict[tuple[ir.Value, Precision, int | None], ir.Value] = {}
        self._in_blocks: dict[tuple[object, ...], ir.Value] = {}
        self._choices: dict[tuple[ir.Value, ir.Value, ir.Value], ir.Value] = {}
        self._rounded: set[tuple[ir.Value, Precision, ir.Value | None]] = set()
        self.exact = False
        """Whether doubles stay what they are, as in the reference; else fp32 rounds them."""
        self.switch: ir.Value | None = None
        """A bool () that leaves values as they are where it is true, for the gates that are put in meanwhile."""

    def within(self, builder: GraphBuilder) -> Gates:
        """The same gates for a graph inside the one that they are put into; a gate stands where its value does."""
        inside = copy(self)
        inside._builder = builder
        return inside

    def is_rounded(self, value: ir.Value, precision: Precision) -> bool:
        """Whether the value is known to hold nothing but values of the precision."""
        return not {(value, precision, None), (value, precision, self.switch)}.isdisjoint(self._rounded)

    def mark_rounded(self, value: ir.Value, precision: Precision) -> None:
        """Note that the value holds nothing but values of the precision."""
        self._rounded.add((value, precision, self.switch))

    def activation(self, value: ir.Value, precision: Precision, tensor: str) -> ir.Value:
        """The value rounded; a quantized precision with the range that the calibration table has for `tensor`."""
        if not self._rounds(value, precision) or self.is_rounded(value, precision):
            return value
        key = (value, precision, None)
        if key not in self._made:
            if precision.is_quantized:
                assert self._table is not None
                scale = np.asarray(self._table.scale(tensor, precision), np.float32)
                self._made[key] = self._quantize(value, scale, None, precision)
            else:
                self._made[key] = self._cast(value, precision)
                self._rounded.add((self._made[key], precision, None))
        rounded = self._made[key]
        if self.switch is None:
            return rounded
        chosen = self._chosen(value, rounded, precision)
        self._made[(chosen, precision, None)] = rounded  # of either of the two this is what rounding gives
        return chosen

    def _chosen(self, value: ir.Value, rounded: ir.Value, precision: Precision) -> ir.Value:
        """The value itself or what it is rounded to, as the switch has it."""
        if self.switch is None or value is rounded:
            return rounded
        key = (value, rounded, self.switch)
        if key not in self._choices:
            name = f"{value.name}:{precision}_or_not"
            chosen = self._builder.op("Where", [self.switch, value, rounded], name)
            chosen.type, chosen.shape = rounded.type or value.type, value.shape
            self._choices[key] = chosen
        return self._choices[key]

    def weight(self, original: ir.Value, precision: Precision, axis: int | None, weights: Environment) -> ir.Value:
        """The model's initialiser rounded; a quantized precision with a scale for each channel along `axis`.

        One in float32 is rounded once for the graph, and not by nodes of it: folding those takes a session three times
        as long as all the rest.
        """
        if not self._rounds(original, precision):
            return self._builder.weight(original, weights)
        key = (original, precision, axis)
        if key not in self._made:
            self._made[key] = self._rounded_weight(original, precision, axis, weights)
        if self.switch is None:
            return self._made[key]
        return self._chosen(self._builder.weight(original, weights), self._made[key], precision)

    def _rounded_weight(
        self, original: ir.Value, precision: Precision, axis: int | None, weights: Environment
    ) -> ir.Value:
        tensor = original.const_value
        assert tensor is not None
        if precision.is_quantized:
            scales = weight_scales(tensor.numpy(), axis, precision.number_format)
            let_go(tensor)
            if original.dtype == ir.DataType.FLOAT and np.isfinite(scales).all():
                low = quantized_tensor(tensor, scales, axis, precision)
                return self._builder.constant(low, f"{original.name}:{precision}")
            return self._quantize(self._builder.weight(original, weights), scales, axis, precision)
        if original.dtype == ir.DataType.FLOAT:
            constants = self._constants if is_clamped(original, precision) else Constants.ROUNDED
            made = self._builder.constant(held_tensor(tensor, precision, constants), f"{original.name}:{precision}")
        else:
            made = self._cast(self._clamp(original, precision, weights), precision)
        self._rounded.add((made, precision, None))
        return made

    def blocks(self, node: ir.Node, kinds: tuple[Precision, Precision], weights: Environment) -> ir.Value:
        """The weight of a product quantised in blocks, as the float of a kernel takes it.

        `kinds` are the precision of the blocks and that float.
        """
        original, axis = node.inputs[WEIGHT], blocked_axis(node)
        assert original is not None
        assert axis is not None
        assert self._table is not None
        precision, border = kinds
        table = self._table.of(precision)
        own = str(node.name) if table.blocks is not None and table.blocks.scales else ""
        key = (original, axis, own, *kinds)
        if key not in self._in_blocks:
            assert original.const_value is not None
            scales = scales_in_blocks(node, table)
            tensor = blocked_tensor(original.const_value, scales, axis, precision, border)
            self._in_blocks[key] = self._builder.constant(tensor, f"{original.name}:{precision}:{border}")
            self._rounded.add((self._in_blocks[key], border, None))
        if self.switch is None:
            return self._in_blocks[key]
        return self._chosen(self._builder.weight(original, weights), self._in_blocks[key], kinds[0])

    def table(self, original: ir.Value, precision: Precision, weights: Environment) -> ir.Value:
        """An initialiser that rows are taken from: rounded where they are taken (`taken`), which is cheaper."""
        if self._is_clamped(original, precision) and not self._is_raised(original, precision):
            clamped = self._clamp(original, precision, weights)
            if self.switch is None:  # then the original is taken by no node, which ONNX Runtime refuses of large ones
                return clamped
            return self._chosen(self._builder.weight(original, weights), clamped, precision)
        return self.weight(original, Precision.FP32, None, weights)

    def taken(self, rows: ir.Value, original: ir.Value, precision: Precision) -> ir.Value:
        """Rows of such a table: what TensorRT would have put in the place of numbers that round to 0 stands in them."""
        if not self._is_raised(original, precision):
            return rows
        return self._chosen(rows, raised(self._builder, rows, precision), precision)

    def _is_clamped(self, original: ir.Value, precision: Precision) -> bool:
        return self._constants is Constants.CLAMPED and is_clamped(original, precision)

    def _is_raised(self, original: ir.Value, precision: Precision) -> bool:
        """Whether numbers that would be 0 are all that is clamped of a large table: a copy of it costs more than nodes.

        Numbers beyond the precision are clamped in the table, where Inf stands apart from them.
        """
        tensor, clamped = original.const_value, clamped_in(original, precision)
        assert tensor is not None
        if self._constants is not Constants.CLAMPED or clamped is None:
            return False
        is_worth = tensor.nbytes >= _LARGE_TABLE and self._builder.opset >= _BROADCASTS
        return is_worth and abs(clamped[1]) < precision.number_format.largest

    def limit(self, original: ir.Value, precision: Precision, weights: Environment) -> ir.Value:
        """An initialiser that TensorRT makes a parameter of a layer, as Clip's limits: rounded, and never clamped."""
        value = self._builder.weight(original, weights)
        key = (value, precision, None)
        if not self._rounds(value, precision):
            return value
        if key not in self._made:
            self._made[key] = self._cast(value, precision)
            self._rounded.add((self._made[key], precision, None))
        return self._chosen(value, self._made[key], precision)

    def _clamp(self, original: ir.Value, precision: Precision, weights: Environment) -> ir.Value:
        """The model's initialiser, with the nearest number for each that the precision cannot hold."""
        if not self._is_clamped(original, precision):
            return self._builder.weight(original, weights)
        key = (original, precision)
        if key not in self._clamped:
            assert original.const_value is not None
            tensor = clamped_tensor(original.const_value, precision)
            self._clamped[key] = self._builder.constant(tensor, f"{original.name}:clamped")
        return self._clamped[key]

    def _rounds(self, value: ir.Value, precision: Precision) -> bool:
        return precision.is_low or (value.dtype == ir.DataType.DOUBLE and not self.exact)

    def _cast(self, value: ir.Value, precision: Precision) -> ir.Value:
        builder = self._builder.home(value)
        dtype = ir.DataType.DOUBLE if value.dtype == ir.DataType.DOUBLE else ir.DataType.FLOAT
        to = precision.number_format.element
        low = builder.op("Cast", [value], f"{value.name}:{precision}", to=int(to))
        back = builder.op("Cast", [low], f"{value.name}:from_{precision}", to=int(dtype))
        if dtype == ir.DataType.DOUBLE:
            back.type = ir.TensorType(dtype)
        return back

    def _quantize(
        self, value: ir.Value, scales: NDArray[np.float32], axis: int | None, precision: Precision
    ) -> ir.Value:
        return fake_quantized(self._builder.home(value), value, scales, axis, precision)


def raised(builder: GraphBuilder, value: ir.Value, precision: Precision) -> ir.Value:
    """The value, float32, with what is rounded to the precision's least number where it would be rounded to 0.

    Each keeps its sign; 0, Inf and NaN stay. What `clamped_array` does to a constant, but for the last bits, which go
    when it is rounded: each value times least / |value|, or 1 from the least number on. Not by Where: of −0 and 0 ONNX
    Runtime's makes 0.
    """
    builder = builder.home(value)
    least = np.float32(precision.number_format.least)

    def number(name: str, what: np.float32) -> ir.Value:
        return builder.constant(ir.tensor(np.asarray(what)), f"{value.name}:{precision}_{name}")

    limit = number("least", least)
    magnitude = builder.op("Abs", [value], f"{value.name}:magnitude")
    at_most = builder.op("Min", [magnitude, limit], f"{value.name}:at_most_least")
    above_0 = builder.op("Max", [at_most, number("smallest", _SMALLEST)], f"{value.name}:above_0")
    factor = builder.op("Div", [limit, above_0], f"{value.name}:factor")
    return builder.op("Mul", [value, factor], f"{value.name}:raised")


def rounded_attributes(node: ir.Node, precision: Precision, constants: Constants) -> dict[str, ir.Attr]:
    """The node's attributes, with those that are operands rounded to the precision.

    What a ConstantOfShape fills its tensor with is a constant as any other.
    """
    attributes = dict(node.attributes)
    if not precision.is_low_float:
        return attributes
    if node.op_type == "ConstantOfShape" and "value" in attributes:
        filling = attributes["value"].as_tensor()
        if filling.dtype == ir.DataType.FLOAT:
            held = constant_array(np.asarray(filling.numpy(), np.float32), precision, constants)
            attributes["value"] = ir.AttrTensor("value", ir.tensor(held))
    for name, default in _OPERAND_ATTRIBUTES.get(node.op_type, {}).items():
        value = attributes[name].as_float() if name in attributes else default
        if value is not None:
            attributes[name] = ir.AttrFloat32(name, round_scalar(value, precision))
    return attributes


def has_rounded_attributes(node: ir.Node, precision: Precision, constants: Constants) -> bool:
    """Whether any of the node's attributes is another one in the precision."""
    exact, rounded = (rounded_attributes(node, p, constants) for p in (Precision.FP32, precision))
    defaults = _OPERAND_ATTRIBUTES.get(node.op_type, {})

    def held(attributes: Mapping[str, ir.Attr], name: str) -> float | None:
        return attributes[name].as_float() if name in attributes else defaults[name]

    is_filled = node.op_type == "ConstantOfShape" and rounded.get("value") is not exact.get("value")
    return is_filled or any(held(exact, name) != held(rounded, name) for name in defaults)


def weight_axis(node: ir.Node, index: int) -> int | None:
    """The output-channel axis of a weight of Conv, ConvTranspose, Gemm or MatMul; None: per tensor.

    A weight on the left of a MatMul or Gemm gives a row of the output by each of its rows, one on the right a column by
    each of its columns. Of a stack of weights (experts) all have the same scale for a channel: a scale has one axis.
    """
    value = node.inputs[index]
    rank = None if value is None or value.shape is None else len(value.shape)
    if rank is None or rank < 2 or index > 1:
        return None
    if node.op_type in ("Conv", "ConvTranspose"):
        return None if index == 0 else int(node.op_type == "ConvTranspose")
    if node.op_type == "Gemm":
        name = "transB" if index else "transA"
        is_transposed = name in node.attributes and node.attributes[name].as_int()
        return int(bool(is_transposed) != bool(index))
    if node.op_type == "MatMul":
        return rank - 1 if index else rank - 2
    return None
