"""The tensors of a graph in the types that its nodes want them in, each made once."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from precisionlab.calibration.table import CalibrationTable
from precisionlab.model.blocks import blocked_axis
from precisionlab.model.flow import ONNX_DOMAINS
from precisionlab.model.graph import TensorInfo
from precisionlab.model.names import all_names, new_name
from precisionlab.plan.arithmetic import Constants
from precisionlab.precision import Precision
from precisionlab.rewrite.blocks import levels_tensor, scales_in_blocks
from precisionlab.rewrite.constants import is_clamped
from precisionlab.rewrite.typed.assignment import short
from precisionlab.rewrite.typed.channels import HALF, ChannelFactors
from precisionlab.rewrite.typed.constants import (
    Written,
    constants_of,
    converted_tensor,
    held,
    quantised_by,
    quantised_tensor,
    scale_in,
)
from precisionlab.rewrite.typed.signature import FLOAT

_FLOATS = tuple(precision.number_format.element for precision in Precision.floats())
_SMALL_CONSTANT = 8  # numbers; it is read to see whether it is clamped
_SMALL = frozenset(
    {ir.DataType.BOOL, ir.DataType.INT8, ir.DataType.UINT8, ir.DataType.INT16, ir.DataType.UINT16}
)  # float32 holds them all
# What a Cast makes the same half of as a Cast to float32 and another one behind it. An integer that float32 has to
# round is beyond float16's range either way; for bfloat16 it would be rounded twice.
_STRAIGHT = {
    ir.DataType.FLOAT16: _SMALL | {ir.DataType.INT32, ir.DataType.INT64},
    ir.DataType.BFLOAT16: _SMALL,
}


class Stock:
    """Makes casts, converted constants and Q/DQ in one graph, and gives out those that are there already.

    New nodes stand before their first consumer; the graph's nodes are asked for in topological order.
    """

    def __init__(
        self,
        graph: ir.Graph,
        tensors: Mapping[str, TensorInfo],
        halves: Mapping[str, ir.DataType],
        constants: Constants,
        around: Stock | None = None,
    ) -> None:
        """`halves` are the graph's inputs and outputs that are to be in half, with their type.

        `constants` says what becomes of those that half cannot hold. `around` is the stock of the graph around this
        one, where this one is inside a node.
        """
        self._graph = graph
        self._around = around
        self._tensors = tensors
        self._halves = halves
        self._constants = constants
        self.clamped: list[Written] = [] if around is None else around.clamped
        self._types: dict[ir.Value, ir.DataType] = {}
        self._made: dict[tuple[object, ...], ir.Value] = {}
        self._copies: dict[ir.Value, list[ir.Value]] = {}
        self._names: set[str] = set(all_names(graph)) if around is None else around._names
        self.casts: list[ir.Node] = []
        self.widened: list[ir.Node] = []
        self._passed_over: dict[ir.Node, None] = {}
        self.changed = False
        for value in graph.inputs:
            if str(value.name) in halves:
                self.set_type(value, halves[str(value.name)])

    def type_of(self, value: ir.Value) -> ir.DataType | None:
        """The element type that the value has now; None where it is not known."""
        if value in self._types:
            return self._types[value]
        if self._around is not None and value.graph is not self._graph:
            return self._around.type_of(value)
        known = self._tensors.get(str(value.name))
        return known.dtype if known is not None else value.dtype

    def set_type(self, value: ir.Value, dtype: ir.DataType) -> None:
        """Note the type that a node gives its output in."""
        if self.type_of(value) != dtype:
            self._types[value] = dtype
            value.type = ir.TensorType(dtype)
            self.changed = True

    def in_type(self, value: ir.Value, dtype: ir.DataType, consumer: ir.Node | None) -> ir.Value:
        """The value in this type, for a node that stands at `consumer` (None: at the end of the graph)."""
        if self.type_of(value) == dtype:
            return value
        if value.const_value is not None:
            return self._converted(value, dtype, consumer)
        source = self._before_widening(value)
        if self.type_of(source) == dtype:
            return source
        return self._cast(self._before_conversion(source, dtype), dtype, consumer, value)

    def _cast(self, source: ir.Value, dtype: ir.DataType, consumer: ir.Node | None, value: ir.Value) -> ir.Value:
        """The source cast to the type, under a name that tells of `value`."""
        key = ("cast", source, dtype)
        if key not in self._made:
            to = ir.AttrInt64("to", int(dtype))
            self._made[key] = self._node("Cast", [source], f"{value.name}_{short(dtype)}", dtype, consumer, [to])
            self._made[key].shape = None if value.shape is None else value.shape.copy()
            self.casts.append(_producer(self._made[key]))
        return self._made[key]

    def wide(self, value: ir.Value, consumer: ir.Node) -> ir.Value:
        """A half value cast to float32 as it is: constants too, and what was float32 before it was rounded."""
        key = ("cast", value, FLOAT)
        if key not in self._made:
            to = ir.AttrInt64("to", int(FLOAT))
            self._made[key] = self._node("Cast", [value], f"{value.name}_{short(FLOAT)}", FLOAT, consumer, [to])
            self._made[key].shape = None if value.shape is None else value.shape.copy()
            self.widened.append(_producer(self._made[key]))
        return self._made[key]

    def narrowed(self, node: ir.Node, dtype: ir.DataType) -> None:
        """Have the node's output cast to the type at once: the Cast's takes over its name, and all that take it."""
        given, name = node.outputs[0], node.outputs[0].name
        cast = ir.Node("", "Cast", [given], [ir.AttrInt64("to", int(dtype))], num_outputs=1)
        cast.name = new_name(f"{name}_{short(dtype)}", self._names)
        self._take_over(node, cast, dtype)
        given.name = new_name(f"{name}_{short(FLOAT)}", self._names)
        self._types[given] = FLOAT
        given.type = ir.TensorType(FLOAT)
        self.widened.append(cast)

    def _take_over(self, node: ir.Node, behind: ir.Node, dtype: ir.DataType) -> None:
        """Put a new node behind another: what it gives, in the type, has the name and the takers of the other's."""
        given, taken = node.outputs[0], behind.outputs[0]
        taken.shape, taken.type = given.shape, ir.TensorType(dtype)
        ir.convenience.replace_all_uses_with(given, taken, replace_graph_outputs=True)
        behind.replace_input_with(0, given)
        self._graph.insert_after(node, behind)
        taken.name, given.name = given.name, None
        self._types[taken] = dtype
        self.changed = True

    def constant(self, array: NDArray[np.generic], dtype: ir.DataType, name: str) -> ir.Value:
        """A new constant that holds this array, which is of the type already."""
        return self._initializer(ir.tensor(array, dtype=dtype), name)

    def folded(self, array: NDArray[np.float32], dtype: ir.DataType, name: str) -> ir.Value:
        """A new constant that holds what this float32 array is in the type."""
        precision = Precision.of_element(dtype)
        if self._constants is Constants.CLAMPED and precision is not None:
            self.clamped.append(Written(name, ir.tensor(array), precision))
        return self.constant(held(array, dtype, self._constants), dtype, name)

    def quantised_weight(
        self, weight: ir.Value, axis: int | None, dtype: ir.DataType, consumer: ir.Node, precision: Precision
    ) -> ir.Value:
        """A constant, quantised ahead, dequantised to the type with a scale for each channel along `axis`."""
        key = ("weight", weight, axis, dtype, precision)
        if key not in self._made:
            assert weight.const_value is not None
            levels, scales = quantised_tensor(weight.const_value, axis, dtype, precision)
            low = self._initializer(levels, f"{weight.name}_{precision}")
            scale = self.constant(scales, dtype, f"{weight.name}_scale")
            zero = self._zeros(scales.shape, precision, f"{weight.name}_zero")
            attributes = [] if axis is None else [ir.AttrInt64("axis", axis)]
            name = f"{weight.name}_from_{precision}"
            made = self._node("DequantizeLinear", [low, scale, zero], name, dtype, consumer, attributes)
            made.shape = low.shape
            self._made[key] = made
        return self._made[key]

    def blocked_weight(
        self, weight: ir.Value, table: CalibrationTable, dtype: ir.DataType, consumer: ir.Node
    ) -> ir.Value:
        """A constant, quantised ahead in blocks along what the consumer sums over, dequantised to the type.

        Its scales are in the type, which holds them exactly: a Cast behind float32 ones would be a kernel of its own.
        Symmetric, so without a zero point.
        """
        axis = blocked_axis(consumer)
        assert axis is not None
        precision, scales = table.precision, scales_in_blocks(consumer, table)
        key = ("blocks", weight, axis, dtype, scales.tobytes())
        if key not in self._made:
            assert weight.const_value is not None
            levels = levels_tensor(weight.const_value, scales, axis, precision)
            low = self._initializer(levels, f"{weight.name}_{precision}")
            scale = self.constant(scale_in(scales, dtype), dtype, f"{weight.name}_scale")
            size = int(weight.const_value.shape.numpy()[axis]) // scales.shape[axis]
            attributes = [ir.AttrInt64("axis", axis), ir.AttrInt64("block_size", size)]
            name = f"{weight.name}_from_{precision}"
            self._made[key] = self._node("DequantizeLinear", [low, scale], name, dtype, consumer, attributes)
            self._made[key].shape = low.shape
        return self._made[key]

    def split_weight(
        self, weight: ir.Value, axis: int, split: ChannelFactors, consumer: ir.Node, precision: Precision
    ) -> ir.Value:
        """A constant, quantised by the scales of its channels, dequantised to half with their one scale alone."""
        key = ("split weight", weight, axis, split.scale.tobytes(), precision)
        if key not in self._made:
            assert weight.const_value is not None
            levels = quantised_by(weight.const_value, split.scales, axis, precision)
            low = self._initializer(levels, f"{weight.name}_{precision}")
            scale = self.constant(split.scale, HALF, f"{weight.name}_scale")
            inputs, name = [low, scale, self._zero(precision)], f"{weight.name}_from_{precision}"
            self._made[key] = self._node("DequantizeLinear", inputs, name, HALF, consumer, [])
            self._made[key].shape = low.shape
        return self._made[key]

    def multiplied(self, node: ir.Node, factors: NDArray[np.generic], name: str) -> None:
        """Have the node's half output multiplied by half constants; the Mul's takes over its name, and its takers."""
        given, constant = node.outputs[0], self.constant(factors, HALF, f"{name}_channels")
        mul = ir.Node("", "Mul", [given, constant], num_outputs=1, name=new_name(f"{node.name}_channels", self._names))
        self._take_over(node, mul, HALF)
        given.name = new_name(f"{node.name}_product", self._names)
        self._types[given] = HALF
        given.type = ir.TensorType(HALF)

    def quantised_activation(
        self,
        value: ir.Value,
        scale: NDArray[np.float32],
        dtype: ir.DataType,
        consumer: ir.Node,
        precision: Precision,
    ) -> ir.Value:
        """An activation quantised with one scale, float32 (), and dequantised to the type.

        It is quantised from float32, or from the type itself: with the same scale on both sides.
        """
        source = value if self.type_of(value) in (FLOAT, dtype) else self.in_type(value, FLOAT, consumer)
        given = self.type_of(source)
        assert given is not None
        step = scale_in(scale, dtype)
        key = ("dequantised", source, dtype, precision)
        if key not in self._made:
            zero, element = self._zero(precision), precision.number_format.element
            before = self._scale(step, given, f"{value.name}_scale")
            after = self._scale(step, dtype, f"{value.name}_scale")
            quantised = ("quantised", source, before, precision)
            if quantised not in self._made:
                inputs, name = [source, before, zero], f"{value.name}_{precision}"
                self._made[quantised] = self._node("QuantizeLinear", inputs, name, element, consumer, [])
                self._made[quantised].shape = source.shape
            inputs, name = [self._made[quantised], after, zero], f"{value.name}_from_{precision}"
            self._made[key] = self._node("DequantizeLinear", inputs, name, dtype, consumer, [])
            self._made[key].shape = source.shape
        return self._made[key]

    def keep_outputs(self) -> None:
        """Give the graph's outputs back in the type that they had, under their names."""
        renamed: dict[ir.Value, ir.Value] = {}
        for index, value in enumerate(list(self._graph.outputs)):
            known = self._tensors.get(str(value.name))
            if value in renamed:  # cast already for an earlier place among the outputs
                self._graph.outputs[index] = renamed[value]
                continue
            wanted = self._halves.get(str(value.name), None if known is None else known.dtype)
            given = self.type_of(value)
            if wanted is None or given is None or wanted == given or value.is_graph_input():
                continue
            cast = renamed[value] = self._cast(value, wanted, None, value)
            name = value.name
            value.name = new_name(f"{name}_{short(given)}", self._names)
            cast.name = name
            self._graph.outputs[index] = cast

    def drop_unused(self, constants: Iterable[ir.Value]) -> None:
        """Remove the constants that nothing takes any more; their only copy takes over their name."""
        for value in constants:
            if value.uses() or value.is_graph_output():
                continue
            name = str(value.name)
            self._graph.initializers.pop(name)
            copies = self._copies.get(value, [])
            if len(copies) == 1:
                copies[0].name = name

    def drop_passed_over(self) -> None:
        """Remove the model's own Casts from integers that nothing takes the float32 of any more."""
        for cast in self._passed_over:
            given = cast.outputs[0]
            if not given.uses() and not given.is_graph_output():
                self._graph.remove(cast, safe=True)

    def _converted(self, value: ir.Value, dtype: ir.DataType, consumer: ir.Node | None) -> ir.Value:
        precision = Precision.of_element(dtype)
        assert value.const_value is not None
        clamps = precision is not None and precision.number_format.clamps_constants and self._clamps(value, consumer)
        if clamps and precision is not None and value.const_value.size <= _SMALL_CONSTANT:
            clamps = is_clamped(value, precision)  # so that one that is a limit too is not written twice for nothing
        key = ("constant", value, dtype, clamps)
        if key not in self._made:
            tensor = converted_tensor(value.const_value, dtype, Constants.CLAMPED if clamps else Constants.ROUNDED)
            self._made[key] = self._initializer(tensor, f"{value.name}_{short(dtype)}")
            self._copies.setdefault(value, []).append(self._made[key])
            if clamps and precision is not None:
                self.clamped.append(Written(str(value.name), value.const_value, precision))
        return self._made[key]

    def _clamps(self, value: ir.Value, consumer: ir.Node | None) -> bool:
        """Whether constants are clamped, and this one is more than a parameter of a layer, here or in a body."""
        takers = (use.node for use in value.uses()) if consumer is None or value not in consumer.inputs else (consumer,)
        return any(constants_of(node, self._constants) is Constants.CLAMPED for node in takers)

    def _before_widening(self, value: ir.Value) -> ir.Value:
        """The value that casts have widened to this one: they lose nothing, and are not needed to narrow it."""
        while (cast := value.producer()) is not None and cast.op_type == "Cast" and cast.domain in ("", "ai.onnx"):
            source = cast.inputs[0]
            if source is None or self.type_of(value) != FLOAT or self.type_of(source) not in _FLOATS:
                break
            value = source
        return value

    def _before_conversion(self, value: ir.Value, dtype: ir.DataType) -> ir.Value:
        """The integers or truth values that the model's own Cast makes float32 of, where half can be made of those."""
        cast = value.producer()
        if cast is None or cast.op_type != "Cast" or cast.domain not in ONNX_DOMAINS or self.type_of(value) != FLOAT:
            return value
        source = cast.inputs[0]
        if source is None or self.type_of(source) not in _STRAIGHT.get(dtype, ()):
            return value
        self._passed_over[cast] = None
        return source

    def _scale(self, step: NDArray[np.generic], dtype: ir.DataType, name: str) -> ir.Value:
        key = ("scale", step.astype(np.float32).tobytes(), dtype)
        if key not in self._made:
            self._made[key] = self.constant(scale_in(step.astype(np.float32), dtype), dtype, name)
        return self._made[key]

    def _zero(self, precision: Precision) -> ir.Value:
        key = ("zero", precision)
        if key not in self._made:
            self._made[key] = self._zeros((), precision, f"{precision}_zero")
        return self._made[key]

    def _zeros(self, shape: tuple[int, ...], precision: Precision, name: str) -> ir.Value:
        number_format = precision.number_format
        return self.constant(np.zeros(shape, number_format.numpy), number_format.element, name)

    def _initializer(self, tensor: ir.TensorProtocol, name: str) -> ir.Value:
        shape = ir.Shape(tuple(tensor.shape.numpy()))
        value = ir.Value(
            name=new_name(name, self._names), type=ir.TensorType(tensor.dtype), shape=shape, const_value=tensor
        )
        self._graph.register_initializer(value)
        self._types[value] = tensor.dtype
        self.changed = True
        return value

    def _node(
        self,
        op_type: str,
        inputs: Iterable[ir.Value],
        name: str,
        dtype: ir.DataType,
        consumer: ir.Node | None,
        attributes: Iterable[ir.Attr],
    ) -> ir.Value:
        node = ir.Node("", op_type, list(inputs), list(attributes), num_outputs=1)
        node.name = node.outputs[0].name = new_name(name, self._names)
        node.outputs[0].type = ir.TensorType(dtype)
        if consumer is None:
            self._graph.append(node)
        else:
            self._graph.insert_before(consumer, node)
        self._types[node.outputs[0]] = dtype
        self.changed = True
        return node.outputs[0]


def _producer(value: ir.Value) -> ir.Node:
    node = value.producer()
    assert node is not None
    return node
