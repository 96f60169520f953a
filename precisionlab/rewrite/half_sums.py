"""Copies layers with the running sums of their products in half."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from precisionlab.model import Layer
from precisionlab.plan.arithmetic import Fusing, Sums
from precisionlab.precision import Precision
from precisionlab.rewrite.batchnorm import folded_batchnorm
from precisionlab.rewrite.builder import GraphBuilder
from precisionlab.rewrite.constants import constant_array
from precisionlab.rewrite.flow import LayerCopier
from precisionlab.rewrite.sums import CONV, CONVOLUTIONS, MATMUL, adds_up, product

_LEAST_SCALE = np.float32(2.0**-100)
"""65504 divided by it is a float32 yet; of a weight times less nothing is left in half."""


class HalfSumsCopier(LayerCopier):
    """Copies layers as weakly typed TensorRT's kernels in half compute them that keep their sums in half.

    What comes behind the products of a fused layer (bias, BatchNormalization, activation) is computed in float32, as
    ever. The scale of a BatchNormalization is in the weights by then, as TensorRT folds it: it decides how large sums
    are on the way. Products inside of bodies and recurrent cells are added up in float32.
    """

    _folds: Mapping[ir.Node, NDArray[np.float32]] = {}
    """What the layer at hand has folded into the weight of its first node, float32 (channels,)."""
    _sums = Sums.FLOAT32
    """What it keeps its sums in."""

    def copy(
        self,
        layer: Layer,
        source: Mapping[ir.Value, ir.Value],
        precision: Precision,
        around: Precision,
        prefix: str,
    ) -> dict[ir.Value, ir.Value]:
        """Copy a layer that takes its inputs from `source`; returns its outputs' stand-ins."""
        nodes = [self._model.node[name] for name in layer.nodes]
        keeps = precision.number_format.sums_in_itself
        self._sums = self._arithmetic.sums_of(layer.name) if keeps else Sums.FLOAT32
        in_half = self._fuses(layer, precision) and keeps
        folds = in_half and self._arithmetic.fusing is Fusing.FOLDED
        scale = folded_scale(nodes) if folds else None
        self._folds = {} if scale is None else {nodes[0]: scale}
        return super().copy(layer, source, precision, around, prefix)

    def _node(
        self,
        node: ir.Node,
        inputs: Sequence[ir.Value | None],
        captured: Mapping[ir.Value, ir.Value],
        prefix: str,
        attributes: Mapping[str, ir.Attr],
        precision: Precision,
    ) -> Sequence[ir.Value]:
        """What one node of a layer becomes."""
        # A graph is cut at its products, and a body is not cut.
        if self._sums is Sums.FLOAT32 or not adds_up(node) or self._builder.is_inner:
            return super()._node(node, inputs, captured, prefix, attributes, precision)
        first, second = inputs[0], inputs[1]
        assert first is not None
        assert second is not None
        addend, name = inputs[2] if len(inputs) > 2 else None, f"{prefix}{node.outputs[0].name}"
        if node.op_type in CONVOLUTIONS:
            return [self._convolution(node, first, second, addend, attributes, name, precision)]
        return [self._matrix_product(node, first, second, addend, attributes, name)]

    def _convolution(
        self,
        node: ir.Node,
        first: ir.Value,
        second: ir.Value,
        bias: ir.Value | None,
        attributes: Mapping[str, ir.Attr],
        name: str,
        precision: Precision,
    ) -> ir.Value:
        builder, scale, sums = self._builder, self._folds.get(node), self._sums
        if scale is None:
            made = product(builder, node.op_type, [first, second], f"{name}:sums", attributes, sums)
        else:
            weight = self._folded_weight(node, scale, precision)
            made = product(builder, node.op_type, [first, weight], f"{name}:sums", attributes, sums)
            unscaled = builder.constant(ir.tensor(1 / scale), f"{name}:unscaled")
            made = builder.op("Mul", [made, _along_channels(builder, node, unscaled)], f"{name}:unfolded")
        return made if bias is None else builder.op("Add", [made, _along_channels(builder, node, bias)], name)

    def _folded_weight(self, node: ir.Node, scale: NDArray[np.float32], precision: Precision) -> ir.Value:
        """The weight with the scale of each channel, rounded then; made once for all flows."""
        weight = node.inputs[1]
        assert weight is not None
        assert weight.const_value is not None
        key = (node, precision)
        if key not in self._batchnorms:
            array = weight.const_value.numpy() * scale.reshape(-1, *[1] * (len(weight.const_value.shape) - 1))
            folded = constant_array(np.asarray(array, np.float32), precision, self._arithmetic.constants)
            self._batchnorms[key] = {1: self._builder.constant(ir.tensor(folded), f"{weight.name}:folded:{precision}")}
        return self._batchnorms[key][1]

    def _matrix_product(
        self,
        node: ir.Node,
        first: ir.Value,
        second: ir.Value,
        addend: ir.Value | None,
        attributes: Mapping[str, ir.Attr],
        name: str,
    ) -> ir.Value:
        builder, sums = self._builder, self._sums
        if node.op_type == MATMUL:
            return product(builder, MATMUL, [first, second], name, {}, sums)
        left = _transposed(builder, first, attributes.get("transA"), f"{name}:a")
        right = _transposed(builder, second, attributes.get("transB"), f"{name}:b")
        made = product(builder, MATMUL, [left, right], f"{name}:sums", {}, sums)
        made = _scaled(builder, made, attributes.get("alpha"), f"{name}:alpha")
        if addend is None:
            return made
        return builder.op("Add", [made, _scaled(builder, addend, attributes.get("beta"), f"{name}:beta")], name)


def folded_scale(nodes: Sequence[ir.Node]) -> NDArray[np.float32] | None:
    """The scale of a BatchNormalization right behind a Conv with a constant weight, float32 (channels,).

    1 where it is not finite, or so small (0 too) that no sum in half could be divided by it again.
    """
    if len(nodes) < 2 or nodes[0].op_type != CONV:
        return None
    weight = nodes[0].inputs[1]
    if weight is None or weight.const_value is None or weight.dtype != ir.DataType.FLOAT:
        return None
    folded = folded_batchnorm(nodes[1])
    if folded is None:
        return None
    scale = folded[1]
    return np.where(np.isfinite(scale) & (np.abs(scale) >= _LEAST_SCALE), scale, np.float32(1)).astype(np.float32)


def _along_channels(builder: GraphBuilder, node: ir.Node, bias: ir.Value) -> ir.Value:
    weight = node.inputs[1]
    assert weight is not None
    assert weight.shape is not None
    shape = builder.constant(ir.tensor(np.array([-1] + [1] * (len(weight.shape) - 2), np.int64)), "channels")
    return builder.op("Reshape", [bias, shape], f"{bias.name}:channels")


def _transposed(builder: GraphBuilder, value: ir.Value, wanted: ir.Attr | None, name: str) -> ir.Value:
    if wanted is None or not wanted.as_int():
        return value
    return builder.op("Transpose", [value], name, perm=[1, 0])


def _scaled(builder: GraphBuilder, value: ir.Value, factor: ir.Attr | None, name: str) -> ir.Value:
    if factor is None or factor.as_float() == 1.0:
        return value
    kind = np.float64 if value.dtype == ir.DataType.DOUBLE else np.float32
    constant = builder.constant(ir.tensor(np.asarray(factor.as_float(), kind)), f"{name}:factor")
    return builder.op("Mul", [value, constant], name)
