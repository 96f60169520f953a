"""Outlier channels: where one scale for a whole tensor leaves most of its channels few int8 levels.

Activations have one scale (TensorRT quantises them per tensor). A channel whose values are many times the others'
takes it, and the others are told apart in what it leaves them. (G. Xiao et al., "SmoothQuant", ICML 2023, section 3.)
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from precisionlab.calibration.table import INT8_LEVELS
from precisionlab.model import Layer, Model
from precisionlab.system.plain import Amount, Count

FEW_LEVELS = 16
"""Of 127: a median channel that has fewer shares three of seven bits with nobody but the outliers."""

_LEAST_CHANNELS = 4  # fewer have no median that says anything


@dataclass(frozen=True)
class ChannelSpread:
    """The largest |x| of a tensor's channels.

    `channels` along `axis`; `median` over those that are not zero throughout; `largest` in channel `place`, counted
    from 0.
    """

    axis: int
    channels: Count
    median: Amount
    largest: Amount
    place: Count

    def levels(self, amax: float) -> float:
        """How many of the 127 magnitudes the median channel reaches, where the tensor's range ends at `amax`."""
        return min(INT8_LEVELS * self.median / amax, INT8_LEVELS) if amax else 0.0

    def is_uneven(self, amax: float) -> bool:
        """Whether the median channel is left too few levels, by another one that is larger."""
        return self.largest > self.median and self.levels(amax) < FEW_LEVELS

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON; read back by `of_plain`."""
        return asdict(self)


def channel_axes(model: Model) -> dict[str, int]:
    """The channel axis of each tensor that an int8 layer takes, counted from the end but for a convolution's.

    A convolution's is 1, that of a matrix product the one that it sums over. Where two layers differ, the first counts.
    """
    axes: dict[str, int] = {}
    for layer in model.layers:
        for name, axis in _operand_axes(model, layer):
            axes.setdefault(name, axis)
    return axes


def _operand_axes(model: Model, layer: Layer) -> Iterable[tuple[str, int]]:
    if not layer.quantizable:
        return
    node = model.node[layer.nodes[0]]
    first, second = node.inputs[:2]
    if node.op_type == "MatMul":
        axes = (-1, -2)
    elif node.op_type == "Gemm":
        first_turned, second_turned = (_flag(node, name) for name in ("transA", "transB"))
        axes = (-2 if first_turned else -1, -1 if second_turned else -2)
    else:
        axes = (1, 0)
    for value, axis in zip((first, second), axes, strict=True):
        if value is not None and not value.is_initializer():
            yield str(value.name), axis


def _flag(node: ir.Node, name: str) -> bool:
    return name in node.attributes and bool(node.attributes[name].value)


class ChannelMaxima:
    """The largest |x| of each channel of some tensors, over the samples that go by."""

    def __init__(self, axes: Mapping[str, int]) -> None:
        self._axes = axes
        self._largest: dict[str, NDArray[np.float32]] = {}

    def add(self, name: str, tensor: NDArray[np.float32]) -> None:
        """Take the values of a tensor that has its channel axis; NaN and Inf take no part."""
        axis = self._axes[name]
        if not -tensor.ndim <= axis < tensor.ndim or not tensor.size:
            return
        others = tuple(i for i in range(tensor.ndim) if i != axis % tensor.ndim)
        magnitude = np.abs(tensor)
        if not np.isfinite(magnitude.max()):
            magnitude = np.where(np.isfinite(magnitude), magnitude, 0)
        largest = magnitude.max(others)
        known = self._largest.get(name)
        # Another number of channels: the axis is no channel axis of this model.
        if known is None or known.shape == largest.shape:
            self._largest[name] = largest if known is None else np.maximum(known, largest)

    def spreads(self) -> dict[str, ChannelSpread]:
        """What was found; tensors of fewer than four channels, or zero in all of them, are left out."""
        found = {}
        for name, largest in self._largest.items():
            used = largest[largest > 0]
            if largest.size >= _LEAST_CHANNELS and used.size:
                place = int(np.argmax(largest))
                found[name] = ChannelSpread(
                    self._axes[name], largest.size, float(np.median(used)), float(largest[place]), place
                )
        return found
