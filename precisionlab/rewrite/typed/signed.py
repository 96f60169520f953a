"""The uint8 that a model quantises to by itself, as int8: TensorRT has no unsigned quantisation.

It reads uint8 as int8 with the same scale: what was above 127 steps is lost. In int8 the same range needs steps 255/127
times as large; where no value reaches above 127 steps, the same steps do.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from precisionlab.model.flow import ONNX_DOMAINS
from precisionlab.model.names import all_names, new_name

WIDER = 255 / 127
"""How much larger the steps of int8 are than those of uint8 for the same range from 0 on."""
_MIDDLE = 128  # as a zero point of uint8 it is int8's 0, value for value
_QUANTIZE, _DEQUANTIZE = "QuantizeLinear", "DequantizeLinear"
# They pick or move values, or the larger one: the same of any type.
_MOVING = frozenset({"Flatten", "Identity", "MaxPool", "Reshape", "Slice", "Squeeze", "Transpose", "Unsqueeze"})
_NEVER_NEGATIVE = frozenset({"Abs", "Exp", "HardSigmoid", "Relu", "Sigmoid", "Softmax", "Softplus", "Sqrt"})


class NotSignedError(Exception):
    """Why a node cannot be had in int8: the end of a sentence."""


@dataclass(frozen=True)
class Signed:
    """How many nodes were made int8; those of them whose steps are others, or that lose what is above half the range.

    `moved` counts weights of which single values had to be rounded anew.
    """

    nodes: int
    activations: int
    moved: int


def is_unsigned(node: ir.Node) -> bool:
    """Whether the node quantises to uint8, or takes it."""
    if node.domain not in (*ONNX_DOMAINS, "com.microsoft"):
        return False
    if node.op_type == _DEQUANTIZE:
        return _is_uint8(node.inputs[0])
    if node.op_type != _QUANTIZE:
        return False
    zero = node.inputs[2] if len(node.inputs) > 2 else None
    said = node.attributes.get_int("output_dtype", 0)
    return _is_uint8(zero) if zero is not None else said in (0, int(ir.DataType.UINT8))


def _is_uint8(value: ir.Value | None) -> bool:
    """Whether the value is uint8, by the nodes that hand it on: types of values need not be known."""
    if value is None:
        return False
    if value.const_value is not None:
        return value.const_value.dtype == ir.DataType.UINT8
    node = value.producer()
    if node is None:
        return value.dtype == ir.DataType.UINT8
    return _is_uint8(node.inputs[0]) if node.op_type in _MOVING else is_unsigned(node) and node.op_type == _QUANTIZE


def make_signed(model: ir.Model, wider: bool) -> Signed:
    """Have the model quantise to int8 where it does to uint8, in place.

    1. Constants become int8, the zero point taken off: the same values wherever they fit, as around 128; else with
       steps so large that they do.
    2. Activations around 128 become int8 around 0: the same values. Those from 0 on become int8 with `wider` steps for
       the same range, or the same steps for half of it; a Relu before keeps what is negative at 0, where it may be.
    3. What is uint8 of the model's own, as an input, becomes float by Cast, Sub and Mul.

    Raises NotSignedError for other zero points, those that are no constants, and uint8 that something else takes.
    """
    rewrite = _Rewrite(model, wider)
    found = [node for node in model.graph.all_nodes() if is_unsigned(node)]
    for node in found:
        if node.op_type == _QUANTIZE:
            rewrite.quantize(node)
    for node in found:
        if node.op_type == _DEQUANTIZE:
            rewrite.dequantize(node)
    return Signed(len(found), rewrite.activations, rewrite.moved)


class _Rewrite:
    """Makes one model's quantisation signed."""

    def __init__(self, model: ir.Model, wider: bool) -> None:
        self._wider = wider
        self._names = {name for graph in model.graphs() for name in all_names(graph)}
        self._signed: dict[ir.Value, int] = {}
        self.activations = 0
        self.moved = 0

    def quantize(self, node: ir.Node) -> None:
        """An activation, and all that hands it on."""
        zero = _zero_of(node)
        self._hand_on(node, node.outputs[0], zero)
        self._set(node, zero)
        if zero == 0 and not _never_negative(node.inputs[0]):
            self._clipped(node)

    def dequantize(self, node: ir.Node) -> None:
        """A constant, an activation that was quantised here, or uint8 of the model's own."""
        value = node.inputs[0]
        assert value is not None
        if value.const_value is not None:
            self._constant(node, value.const_value.numpy())
        elif value in self._signed:
            if _zero_of(node) != self._signed[value]:
                raise NotSignedError(f"node {node.name} has another zero point than what it takes was quantised with")
            self._set(node, self._signed[value])
        else:
            self._arithmetic(node)

    def _hand_on(self, quantizer: ir.Node, value: ir.Value, zero: int) -> None:
        """The uint8 value is int8 from here on, up to the nodes that dequantise it."""
        self._signed[value] = zero
        value.type = ir.TensorType(ir.DataType.INT8)
        if value.is_graph_output():
            raise NotSignedError(f"uint8 of node {quantizer.name} is an output of the model")
        for use in value.uses():
            taker = use.node
            if taker.op_type == _DEQUANTIZE and use.idx == 0:
                continue
            if taker.op_type not in _MOVING or taker.domain not in ONNX_DOMAINS or len(taker.outputs) > 1:
                raise NotSignedError(f"node {taker.name} ({taker.op_type}) takes uint8 of node {quantizer.name}")
            self._hand_on(quantizer, taker.outputs[0], zero)

    def _set(self, node: ir.Node, zero: int) -> None:
        """int8 around 0, its steps wider where the range began at 0."""
        scale = _scale_of(node)
        if zero == 0:
            self.activations += 1
            scale = (scale * np.float32(WIDER if self._wider else 1)).astype(scale.dtype)
        self._parameters(node, scale)

    def _parameters(self, node: ir.Node, scale: NDArray[np.generic]) -> None:
        node.resize_inputs(3)
        self._replace(node, 1, self._initializer(node, scale, "scale"))
        self._replace(node, 2, self._initializer(node, np.zeros(scale.shape, np.int8), "zero"))
        node.attributes.pop("output_dtype", None)

    def _constant(self, node: ir.Node, levels: NDArray[np.uint8]) -> None:
        scale = _scale_of(node)
        zero = node.inputs[2] if len(node.inputs) > 2 else None
        zeros = np.zeros(scale.shape, np.uint8) if zero is None else _known(zero, node)
        steps = levels.astype(np.int32) - _spread(zeros, levels.shape, node)
        if steps.min(initial=0) < -128 or steps.max(initial=0) > 127:
            scale = (scale * np.float32(WIDER)).astype(scale.dtype)
            steps = np.rint(steps / WIDER).astype(np.int32)
            self.moved += 1
        self._replace(node, 0, self._initializer(node, steps.astype(np.int8), "levels"))
        self._parameters(node, scale)

    def _arithmetic(self, node: ir.Node) -> None:
        """(x − zero) · scale, in the scale's type."""
        scale = _scale_of(node)
        point = node.inputs[2] if len(node.inputs) > 2 else None
        zero = np.zeros(1, np.uint8) if point is None else _known(point, node)
        if scale.size > 1:
            raise NotSignedError(f"node {node.name} takes uint8 with a scale for each channel")
        dtype = ir.DataType.from_numpy(scale.dtype)
        value = self._node("Cast", [node.inputs[0]], node, dtype, [ir.AttrInt64("to", int(dtype))])
        if zero.any():
            less = zero.astype(scale.dtype).reshape(scale.shape)
            value = self._node("Sub", [value, self._initializer(node, less, "zero")], node, dtype)
        given, name = node.outputs[0], str(node.outputs[0].name)
        product = self._node("Mul", [value, self._initializer(node, scale, "scale")], node, dtype)
        product.shape = given.shape
        ir.convenience.replace_all_uses_with(given, product, replace_graph_outputs=True)
        graph, maker = node.graph, product.producer()
        assert graph is not None
        assert maker is not None
        graph.remove(node, safe=True)
        product.name, maker.name = name, node.name

    def _clipped(self, node: ir.Node) -> None:
        """uint8 has nothing below 0; int8 has."""
        taken = node.inputs[0]
        assert taken is not None
        value = self._node("Relu", [taken], node, ir.DataType.from_numpy(_scale_of(node).dtype))
        value.shape = taken.shape
        node.replace_input_with(0, value)

    def _node(
        self,
        op_type: str,
        inputs: list[ir.Value | None],
        before: ir.Node,
        dtype: ir.DataType,
        attributes: list[ir.Attr] | None = None,
    ) -> ir.Value:
        node = ir.Node("", op_type, inputs, attributes or [], num_outputs=1)
        node.name = node.outputs[0].name = new_name(f"{before.name}_{op_type}", self._names)
        node.outputs[0].type = ir.TensorType(dtype)
        graph = before.graph
        assert graph is not None
        graph.insert_before(before, node)
        return node.outputs[0]

    def _replace(self, node: ir.Node, index: int, value: ir.Value) -> None:
        """Give the node another input; a constant that nothing takes any more goes."""
        old = node.inputs[index]
        node.replace_input_with(index, value)
        if old is not None and old.is_initializer() and not old.uses() and not old.is_graph_output():
            assert old.graph is not None
            old.graph.initializers.pop(str(old.name))

    def _initializer(self, node: ir.Node, array: NDArray[np.generic], what: str) -> ir.Value:
        name = new_name(f"{node.name}_{what}", self._names)
        value = ir.Value(name=name, const_value=ir.tensor(array, name=name), shape=ir.Shape(array.shape))
        value.type = ir.TensorType(ir.DataType.from_numpy(array.dtype))
        graph = node.graph
        assert isinstance(graph, ir.Graph)
        graph.register_initializer(value)
        return value


def _known(value: ir.Value, node: ir.Node) -> NDArray[np.generic]:
    if value.const_value is None:
        raise NotSignedError(f"the scale or zero point of node {node.name} is no constant")
    return value.const_value.numpy()


def _scale_of(node: ir.Node) -> NDArray[np.generic]:
    scale = node.inputs[1]
    assert scale is not None
    return _known(scale, node)


def _zero_of(node: ir.Node) -> int:
    """The zero point of an activation. Raises NotSignedError for one that int8 has no form of."""
    value = node.inputs[2] if len(node.inputs) > 2 else None
    zeros = {0} if value is None else set(map(int, _known(value, node).ravel()))
    if len(zeros) != 1 or not zeros <= {0, _MIDDLE}:
        raise NotSignedError(f"node {node.name} has the zero point {', '.join(map(str, sorted(zeros)))}")
    return zeros.pop()


def _spread(zeros: NDArray[np.generic], shape: tuple[int, ...], node: ir.Node) -> NDArray[np.int32]:
    """The zero points for each element, as the node's axis and blocks say."""
    wide = zeros.astype(np.int32)
    if wide.size == 1:
        return np.broadcast_to(wide.reshape(()), shape)
    axis = node.attributes.get_int("axis", 1) % len(shape)
    if wide.ndim == len(shape):  # in blocks along the axis
        size = node.attributes.get_int("block_size", 1)
        return np.take(np.repeat(wide, size, axis), np.arange(shape[axis]), axis)
    return np.broadcast_to(wide.reshape([-1 if i == axis else 1 for i in range(len(shape))]), shape)


def _never_negative(value: ir.Value | None) -> bool:
    """Whether what is quantised has no value below 0, by the node that gives it."""
    node = None if value is None else value.producer()
    while node is not None and node.op_type in _MOVING | {"AveragePool", "GlobalAveragePool", "GlobalMaxPool"}:
        source = node.inputs[0]
        node = None if source is None else source.producer()
    if node is None or node.domain not in ONNX_DOMAINS:
        return False
    if node.op_type == "Clip":
        low = node.inputs[1] if len(node.inputs) > 1 else None
        least = node.attributes.get_float("min", -1.0) if low is None else None
        if low is not None and low.const_value is not None:
            least = float(low.const_value.numpy())
        return least is not None and least >= 0
    return node.op_type in _NEVER_NEGATIVE
