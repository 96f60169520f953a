"""What the weights of a model's layers hold: histograms, and the largest of each output channel."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx_ir as ir

from precisionlab.calibration.channels import ChannelMaxima, ChannelSpread
from precisionlab.calibration.coarse import CoarseHistogram
from precisionlab.calibration.histogram import histogram_of
from precisionlab.model import Layer, Model
from precisionlab.rewrite.gates import weight_axis

_LEAST = 2
"""Dimensions: what has fewer is a bias or a scale, and has no channels of its own."""


def weight_values(model: Model, layer: Layer) -> Iterator[tuple[str, CoarseHistogram, ChannelSpread | None]]:
    """Each float weight of the layer's nodes: its name, |w| counted, and its output channels, where these are known.

    Output channels are those that int8 has a scale for each of. A weight that several nodes take stands once.
    """
    seen = set()
    for node_name in layer.nodes:
        node = model.node[node_name]
        for place, value in enumerate(node.inputs):
            if value is None or not value.is_initializer() or value.const_value is None or value.name in seen:
                continue
            if len(value.const_value.shape) < _LEAST or not _is_float(value.const_value):
                continue
            seen.add(value.name)
            array = value.const_value.numpy().astype(np.float32, copy=False)
            yield str(value.name), CoarseHistogram.of(histogram_of(array)), _channels(node, place, array)


def _is_float(tensor: ir.TensorProtocol) -> bool:
    return tensor.dtype.is_floating_point() and tensor.size > 0


def _channels(node: ir.Node, place: int, array: np.ndarray) -> ChannelSpread | None:
    axis = weight_axis(node, place)
    if axis is None:
        return None
    maxima = ChannelMaxima({"": axis})
    maxima.add("", array)
    return maxima.spreads().get("")
