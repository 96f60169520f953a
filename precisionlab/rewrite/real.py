"""Copies layers into a graph in real low precision: half tensors and integer products, in the place of rounding gates.

What the emulation claims to be like. It has to be run by a provider that computes in half; ONNX Runtime's CPU provider
does so here and there, as the processor goes, but its integer products are real.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from precisionlab.calibration.table import CalibrationTable, weight_scales
from precisionlab.model import Layer, Model
from precisionlab.model.layers import layer_of
from precisionlab.model.mapped import let_go
from precisionlab.model.opset import opset_of
from precisionlab.plan.arithmetic import ONNXRUNTIME, Arithmetic, Constants
from precisionlab.precision import Precision
from precisionlab.rewrite.batchnorm import folded_batchnorm
from precisionlab.rewrite.builder import MICROSOFT, Environment, GraphBuilder
from precisionlab.rewrite.flow import LayerCopier, nodes_outputs
from precisionlab.rewrite.gates import Gates
from precisionlab.rewrite.real_float8 import as_leading, columns_in_float8, product, rows_in_float8
from precisionlab.rewrite.typed.constants import constants_of, converted_tensor, held, quantised
from precisionlab.rewrite.typed.signature import FLOAT, Places, places

ZERO = 128
"""Of uint8, which stands for 0: the products of two uint8 are exact on every CPU, those with int8 saturate on some."""


@dataclass(frozen=True)
class _Operand:
    """What a uint8 value stands for: scale · (value − 128), with a scale for each channel along `axis`."""

    scales: NDArray[np.float32]
    axis: int | None


class _Operands(Gates):
    """Gates whose int8 values stay integers, as uint8 around 128."""

    def __init__(self, builder: GraphBuilder, table: CalibrationTable | None, constants: Constants) -> None:
        super().__init__(builder, table, constants)
        self.known: dict[ir.Value, _Operand] = {}
        self.float8: dict[ir.Value, ir.Value] = {}
        """Stand-ins for operands in E4M3, each with its tensor: how long its rows must be, the weight says."""
        self.lengths: dict[ir.Value, tuple[int, ...]] = {}
        """Of a weight in E4M3 how many columns it has, and how long they are."""
        self.zero = builder.constant(ir.tensor(np.asarray(ZERO, np.uint8)), "real/zero")

    def weight(self, original: ir.Value, precision: Precision, axis: int | None, weights: Environment) -> ir.Value:
        """The model's initialiser rounded; int8 quantised ahead."""
        if not precision.is_quantized:
            return super().weight(original, precision, axis, weights)
        assert original.const_value is not None
        array = original.const_value.numpy()
        scales = weight_scales(array, axis, precision.number_format)
        if not precision.number_format.is_uniform:
            low = np.moveaxis(quantised(array, scales, axis, precision), axis or 0, 0)
            let_go(original.const_value)
            value = self._builder.constant(columns_in_float8(low), f"{original.name}:float8")
            self.known[value] = _Operand(scales, axis)
            self.lengths[value] = low.shape
            return value
        levels = quantised(array, scales, axis, precision).astype(np.int16) + ZERO
        let_go(original.const_value)
        value = self._builder.constant(ir.tensor(levels.astype(np.uint8)), f"{original.name}:uint8")
        self.known[value] = _Operand(scales, axis)
        return value

    def _quantize(
        self, value: ir.Value, scales: NDArray[np.float32], axis: int | None, precision: Precision
    ) -> ir.Value:
        if not precision.number_format.is_uniform:
            operand = self._builder.op("Identity", [value], f"{value.name}:operand")
            self.known[operand], self.float8[operand] = _Operand(scales, axis), value
            return operand
        scale = self._builder.constant(ir.tensor(scales), f"{value.name}:scale")
        name = f"{value.name}:uint8"
        levels = self._builder.op("QuantizeLinear", [value, scale, self.zero], name, domain=MICROSOFT)
        levels.type = ir.TensorType(ir.DataType.UINT8)
        self.known[levels] = _Operand(scales, axis)
        return levels


class RealCopier(LayerCopier):
    """Copies layers into one graph as they are, or computed in another precision in truth.

    A float layer takes its float inputs by a Cast at its border, its constants converted ahead (BatchNormalization's
    folded), and gives float32 again; inside, every node is one in half, so that what it gives is rounded, in fused
    layers too. An int8 layer quantises its two operands to uint8 around 128, multiplies and sums integers, and scales
    the int32 sums; its bias and what is fused behind it are as the emulation has them. A ConvTranspose, which ONNX has
    for floats alone, takes the integers as float32, which holds their sums exactly (see `real_refusals`).
    """

    def __init__(
        self,
        builder: GraphBuilder,
        model: Model,
        table: CalibrationTable | None,
        watched: frozenset[ir.Value] = frozenset(),
        arithmetic: Arithmetic = ONNXRUNTIME,
    ) -> None:
        """Of the arithmetic what becomes of constants is heeded; all else is what the device does."""
        super().__init__(builder, model, table, watched, arithmetic)
        self._operands = _Operands(builder, table, arithmetic.constants)
        self._gates = self._operands
        self._opset = opset_of(model.onnx)
        self._cast: dict[tuple[ir.Value, ir.DataType], ir.Value] = {}
        self._constants: dict[tuple[ir.Value, ir.DataType, Constants], ir.Value] = {}

    def copy(
        self,
        layer: Layer,
        source: Mapping[ir.Value, ir.Value],
        precision: Precision,
        around: Precision,
        prefix: str,
    ) -> dict[ir.Value, ir.Value]:
        """Copy a layer that takes its inputs from `source`; returns its outputs' stand-ins."""
        if not precision.is_low_float:
            return super().copy(layer, source, precision, around, prefix)
        inside: dict[ir.Value, ir.Value] = {}
        nodes = [self._model.node[name] for name in layer.nodes]
        dtype = precision.number_format.element
        for node in nodes:
            where = places(node, dtype, self._opset, self._model.tensors)
            folded = folded_batchnorm(node)
            inputs = [self._taken(node, i, source, inside, where, dtype, folded) for i in range(len(node.inputs))]
            attributes = _attributes(node, dtype, self._arithmetic.constants, folded is not None)
            copied = self._builder.copy(node, inputs, {}, prefix, attributes)
            for index, (old, new) in enumerate(zip(node.outputs, copied.outputs, strict=True)):
                inside[old] = new
                known = self._model.tensors.get(str(old.name))
                if known is not None and known.dtype is not None:
                    new.type = ir.TensorType(dtype if index in where.outputs else known.dtype)
        shown = (v for v in nodes_outputs(nodes) if str(v.name) in layer.outputs)
        return {v: self._in_type(inside[v], FLOAT) if inside[v].dtype == dtype else inside[v] for v in shown}

    def _taken(
        self,
        node: ir.Node,
        index: int,
        source: Mapping[ir.Value, ir.Value],
        inside: Mapping[ir.Value, ir.Value],
        where: Places,
        dtype: ir.DataType,
        folded: Mapping[int, NDArray[np.float32]] | None,
    ) -> ir.Value | None:
        """An input as the node takes it: a float in half where the node may have that, all else as it is."""
        value = node.inputs[index]
        if value is None:
            return None
        wanted = dtype if index in where.inputs else FLOAT
        if value.is_initializer():
            if folded is not None and index in folded:
                tensor = ir.tensor(held(folded[index], wanted, self._arithmetic.constants), dtype=wanted)
                return self._builder.constant(tensor, f"{value.name}:folded")
            if wanted == FLOAT:
                return self._builder.weight(value, self._weights)
            constants = constants_of(node, self._arithmetic.constants)
            known_as = (value, wanted, constants)
            if known_as not in self._constants:
                assert value.const_value is not None
                tensor = converted_tensor(value.const_value, wanted, constants)
                self._constants[known_as] = self._builder.constant(tensor, f"{value.name}:{wanted.name.lower()}")
            return self._constants[known_as]
        given = inside[value] if value in inside else source[value]
        known = self._model.tensors.get(str(value.name))
        is_float = known is not None and known.dtype == FLOAT
        return self._in_type(given, wanted) if is_float else given

    def _in_type(self, value: ir.Value, dtype: ir.DataType) -> ir.Value:
        if value.dtype == dtype:
            return value
        key = (value, dtype)
        if key not in self._cast:
            cast = self._builder.op("Cast", [value], f"{value.name}:{dtype.name.lower()}", to=int(dtype))
            cast.type, cast.shape = ir.TensorType(dtype), _of_rank(value.shape)
            self._cast[key] = cast
        return self._cast[key]

    def _node(
        self,
        node: ir.Node,
        inputs: Sequence[ir.Value | None],
        captured: Mapping[ir.Value, ir.Value],
        prefix: str,
        attributes: Mapping[str, ir.Attr],
        precision: Precision,
    ) -> Sequence[ir.Value]:
        """A copy of the node; of one whose operands are integers, what computes with those."""
        if len(inputs) < 2 or inputs[0] not in self._operands.known:
            return super()._node(node, inputs, captured, prefix, attributes, precision)
        first, second = (v for v in inputs[:2] if v is not None)
        bias = inputs[2] if len(inputs) > 2 else None
        a, b = self._operands.known[first], self._operands.known[second]
        if first in self._operands.float8:
            return [self._float8(node, (first, a), (second, b), bias, prefix, attributes)]
        if node.op_type == "Gemm":
            given = self._gemm(node, (first, a), (second, b), bias, prefix, attributes)
            given.shape = _of_rank(node.outputs[0].shape)
            return [given]
        if node.op_type == "ConvTranspose":
            first, second = self._as_float(first), self._as_float(second)
            sums = self._made(node, "ConvTranspose", [first, second], prefix, attributes)
        else:
            zeros = [self._operands.zero, self._operands.zero]
            op_type = "ConvInteger" if node.op_type == "Conv" else "MatMulInteger"
            sums = self._made(node, op_type, [first, second, *zeros], prefix, attributes)
            sums = self._op("Cast", [sums], node, prefix, to=int(FLOAT))
        rank = node.inputs[1].shape.rank() if node.inputs[1] is not None and node.inputs[1].shape is not None else 0
        trailing = rank - 2 if node.op_type in ("Conv", "ConvTranspose") and b.axis is not None else 0
        scales = b.scales
        if node.op_type == "ConvTranspose" and b.axis is not None:  # its axis has a group's channels alone
            scales = np.tile(scales, attributes["group"].as_int() if "group" in attributes else 1)
        left = a.scales if a.axis is None or rank < 2 else a.scales[:, None]  # a scale for each row
        given = self._scaled(sums, left * scales, trailing, node, prefix)
        if bias is not None:
            if node.op_type in ("Conv", "ConvTranspose") and rank > 2:
                axes = self._builder.constant(ir.tensor(np.array([-1] + [1] * (rank - 2), np.int64)), "real/shape")
                bias = self._op("Reshape", [bias, axes], node, prefix)
            given = self._op("Add", [given, bias], node, prefix)
        given.shape = _of_rank(node.outputs[0].shape)
        return [given]

    def _gemm(
        self,
        node: ir.Node,
        first: tuple[ir.Value, _Operand],
        second: tuple[ir.Value, _Operand],
        bias: ir.Value | None,
        prefix: str,
        attributes: Mapping[str, ir.Attr],
    ) -> ir.Value:
        """alpha · A · B + beta · C, where A and B are integers."""
        taken = []
        for (value, _), turned in ((first, "transA"), (second, "transB")):
            is_turned = turned in attributes and attributes[turned].as_int()
            taken.append(self._op("Transpose", [value], node, prefix) if is_turned else value)
        zeros = [self._operands.zero, self._operands.zero]
        sums = self._op("MatMulInteger", [*taken, *zeros], node, prefix)
        sums = self._op("Cast", [sums], node, prefix, to=int(FLOAT))
        left = first[1].scales if first[1].axis is None else first[1].scales[:, None]  # a scale for each row
        return self._with_factors(sums, left * second[1].scales, bias, node, prefix, attributes)

    def _float8(
        self,
        node: ir.Node,
        first: tuple[ir.Value, _Operand],
        second: tuple[ir.Value, _Operand],
        bias: ir.Value | None,
        prefix: str,
        attributes: Mapping[str, ir.Attr],
    ) -> ir.Value:
        """The same, or a MatMul, where A is rows and B columns of E4M3."""
        name = f"{prefix}{node.name}:float8"
        tensor, (count, length) = self._operands.float8[first[0]], self._operands.lengths[second[0]]
        rows = rows_in_float8(self._builder, tensor, np.float32(first[1].scales), length)
        sums = product(self._builder, rows, second[0], count, name)
        scales = np.asarray(first[1].scales * second[1].scales, np.float32)
        given = self._with_factors(sums, scales, bias, node, prefix, attributes)
        given = as_leading(self._builder, given, tensor, name)
        given.type, given.shape = ir.TensorType(FLOAT), _of_rank(node.outputs[0].shape)
        return given

    def _with_factors(
        self,
        sums: ir.Value,
        scales: NDArray[np.float32],
        bias: ir.Value | None,
        node: ir.Node,
        prefix: str,
        attributes: Mapping[str, ir.Attr],
    ) -> ir.Value:
        """alpha · scales · sums + beta · bias."""
        alpha = np.float32(attributes["alpha"].as_float() if "alpha" in attributes else 1.0)
        beta = np.float32(attributes["beta"].as_float() if "beta" in attributes else 1.0)
        given = self._scaled(sums, np.asarray(alpha * scales), 0, node, prefix)
        if bias is None:
            return given
        if beta != 1:
            factor = self._builder.constant(ir.tensor(np.asarray(beta)), f"{node.name}:beta")
            bias = self._op("Mul", [bias, factor], node, prefix)
        return self._op("Add", [given, bias], node, prefix)

    def _scaled(
        self, sums: ir.Value, scales: NDArray[np.float32], trailing: int, node: ir.Node, prefix: str
    ) -> ir.Value:
        shaped = np.asarray(scales, np.float32)
        shaped = shaped.reshape(shaped.shape + (1,) * trailing)
        factor = self._builder.constant(ir.tensor(shaped), f"{node.name}:scales")
        return self._op("Mul", [sums, factor], node, prefix)

    def _as_float(self, value: ir.Value) -> ir.Value:
        one = self._builder.constant(ir.tensor(np.asarray(1, np.float32)), "real/one")
        name = f"{value.name}:levels"
        levels = self._builder.op("DequantizeLinear", [value, one, self._operands.zero], name, domain=MICROSOFT)
        levels.type = ir.TensorType(FLOAT)
        return levels

    def _op(
        self, op_type: str, inputs: Iterable[ir.Value | None], node: ir.Node, prefix: str, to: int | None = None
    ) -> ir.Value:
        name = f"{prefix}{node.name}:{op_type}"
        attributes = {} if to is None else {"to": to}
        value = self._builder.op(op_type, inputs, name, domain="", **attributes)
        integers = op_type in ("MatMulInteger", "ConvInteger")
        kind = ir.DataType.UINT8 if op_type == "Transpose" else ir.DataType.INT32 if integers else FLOAT
        value.type = ir.TensorType(kind)
        return value

    def _made(
        self,
        node: ir.Node,
        op_type: str,
        inputs: Sequence[ir.Value],
        prefix: str,
        attributes: Mapping[str, ir.Attr],
    ) -> ir.Value:
        """A node with the attributes of the model's."""
        like = ir.Node("", op_type, [], num_outputs=1, name=f"{node.name}:{op_type}")
        like.outputs[0].name = like.name
        (value,) = self._builder.copy(like, inputs, {}, prefix, attributes).outputs
        value.type = ir.TensorType(FLOAT if op_type == "ConvTranspose" else ir.DataType.INT32)
        return value


class IntegerCopier(RealCopier):
    """Has integer products in truth, and rounds what is in half as the emulation does: for a CPU."""

    def copy(
        self,
        layer: Layer,
        source: Mapping[ir.Value, ir.Value],
        precision: Precision,
        around: Precision,
        prefix: str,
    ) -> dict[ir.Value, ir.Value]:
        """Copy a layer as the emulation has it, but for products of int8."""
        return LayerCopier.copy(self, layer, source, precision, around, prefix)


def one_node_layers(model: Model) -> Model:
    """The same model where every node that can be given a precision is a layer of its own."""
    layers = []
    for layer in model.layers:
        if len(layer.nodes) == 1:
            layers.append(layer)
        else:
            layers += [layer_of([model.node[name]], None, model.tensors) for name in layer.nodes]
    place = {node.name: i for i, node in enumerate(model.onnx.graph)}
    return replace(model, layers=tuple(sorted(layers, key=lambda layer: place[layer.nodes[0]])))


def _attributes(node: ir.Node, dtype: ir.DataType, constants: Constants, folded: bool) -> dict[str, ir.Attr]:
    attributes = dict(node.attributes)
    if folded:
        attributes["epsilon"] = ir.AttrFloat32("epsilon", 0.0)
    if node.op_type == "Cast":  # the model's own to half, which stands here as one to float32
        attributes["to"] = ir.AttrInt64("to", int(dtype))
    if node.op_type == "ConstantOfShape":
        value = node.attributes["value"].as_tensor().numpy() if "value" in node.attributes else np.zeros(1, np.float32)
        attributes["value"] = ir.AttrTensor("value", ir.tensor(held(value, dtype, constants), dtype=dtype))
    return attributes


def _of_rank(shape: ir.Shape | None) -> ir.Shape | None:
    return None if shape is None else ir.Shape([None] * len(shape))
