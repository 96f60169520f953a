"""Moves a model's float32 values by one unit in the last place, to see how far its answer moves.

What is moved is what a model's own arithmetic does not fix: its float inputs, what it looks up, and sums, whose order
is a machine's own. Whole numbers are left alone, as pixels, masks and sentinels are exact in any arithmetic (1 − mask
must stay 0).
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from precisionlab.model import Layer
from precisionlab.model.flow import SHAPE_FLOW
from precisionlab.model.graph import Scope
from precisionlab.model.opset import opset_of
from precisionlab.rewrite.flow import LayerCopier

_STEP = 2.0**-23  # a unit in the last place of float32, relative
_FLOATS = (ir.DataType.FLOAT, ir.DataType.DOUBLE)
_SUMS = frozenset(
    [
        *("Attention", "AveragePool", "Conv", "ConvTranspose", "CumSum", "Einsum", "GRU", "Gemm", "GlobalAveragePool"),
        *("GroupNormalization", "InstanceNormalization", "LSTM", "LayerNormalization", "LogSoftmax", "LpNormalization"),
        *("MatMul", "RMSNormalization", "RNN", "ReduceL1", "ReduceL2", "ReduceLogSum", "ReduceLogSumExp", "ReduceMean"),
        *("ReduceProd", "ReduceSum", "ReduceSumSquare", "SimplifiedLayerNormalization", "Softmax"),
        *("SkipLayerNormalization", "SkipSimplifiedLayerNormalization", "MultiHeadAttention"),
    ]
)
"""Operators that add up many values."""

_WHOLE = frozenset({"Cast", "ConstantOfShape", "EyeLike", "OneHot", "Range", "Where"})
"""What makes floats without a fraction of integers and booleans."""

_LEAST_OPSET = 9  # Sign
_SPREAD = 1e4  # neighbouring values go up and down without order
_END = 1e30  # every float32 from 2^24 on is a whole number; beyond this Inf is held off from Floor and Sin


def nudged(inputs: Mapping[str, NDArray[Any]], seed: int = 0) -> dict[str, NDArray[Any]]:
    """A sample's inputs with each float32 that is no whole number moved by one unit in the last place, up or down."""
    rng = np.random.default_rng(seed)
    found: dict[str, NDArray[Any]] = {}
    for name, array in inputs.items():
        found[name] = array
        if array.dtype == np.float32:
            towards = np.where(rng.random(array.shape) < 0.5, -np.inf, np.inf).astype(np.float32)
            found[name] = np.where(_has_fraction(array), np.nextafter(array, towards), array)
    return found


def _has_fraction(array: NDArray[np.float32]) -> NDArray[np.bool_]:
    found: NDArray[np.bool_] = np.isfinite(array) & (array != np.floor(array))
    return found


def moved_layers(model: Scope) -> frozenset[str]:
    """The layers whose float outputs are moved: those that add up, as the order is a machine's own, and look-ups.

    What is rounded alike on every machine stays exact beside its input: a peak is where x equals the largest of its
    neighbours.
    """
    return frozenset(
        layer.name
        for layer in model.layers
        if layer.fixed != SHAPE_FLOW and (not _SUMS.isdisjoint(layer.op_types) or _looks_up(model, layer))
    )


def _looks_up(model: Scope, layer: Layer) -> bool:
    """Whether the layer makes floats with a fraction of what are none: an embedding, or what was quantised."""
    dtypes = {model.tensors[name].dtype for name in layer.inputs if name in model.tensors}
    floats = any(model.tensors[o].dtype == ir.DataType.FLOAT for o in layer.outputs)
    return floats and dtypes.isdisjoint(_FLOATS) and not _WHOLE.intersection(layer.op_types)


class NudgingCopier(LayerCopier):
    """Copies layers as they are, in float32, but for the last bit of what those that add up give."""

    @cached_property
    def _layers(self) -> frozenset[str]:
        return moved_layers(self._model) if opset_of(self._model.onnx) >= _LEAST_OPSET else frozenset()

    def reference(self, layer: Layer, source: Mapping[ir.Value, ir.Value], prefix: str) -> dict[ir.Value, ir.Value]:
        """Copy a layer; the outputs of one that adds up moved."""
        given = super().reference(layer, source, prefix)
        if layer.name in self._layers:
            for value, copied in given.items():
                if self._model.tensors[str(value.name)].dtype == ir.DataType.FLOAT:
                    given[value] = self._moved(copied)
        return given

    def _moved(self, value: ir.Value) -> ir.Value:
        """y · (1 ± 2^-23), the sign by the value itself; whole numbers, NaN and infinities as they are."""
        builder, name = self._builder, f"{value.name}:nudged"

        def op(kind: str, *inputs: ir.Value | float) -> ir.Value:
            taken = [v if isinstance(v, ir.Value) else builder.constant(ir.tensor(np.float32(v)), name) for v in inputs]
            made = builder.op(kind, taken, name)
            made.type = ir.TensorType(ir.DataType.FLOAT)
            return made

        bounded = op("Max", op("Min", value, _END), -_END)
        is_broken = op("Sign", op("Sub", bounded, op("Floor", bounded)))
        sign = op("Sign", op("Sin", op("Mul", bounded, _SPREAD)))
        factor = op("Add", op("Mul", op("Mul", is_broken, sign), _STEP), 1.0)
        return op("Mul", value, factor)
