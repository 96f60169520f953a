"""Scales of weights in blocks, chosen by what the samples multiply them with."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Callable, Iterable
from itertools import islice
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from precisionlab.calibration.blocks import Blocks, output_scales
from precisionlab.calibration.methods import OUTPUT
from precisionlab.calibration.table import CalibrationTable, block_table
from precisionlab.data import Sample
from precisionlab.evaluate.evaluator import Evaluator
from precisionlab.evaluate.ranges import ChosenBlocks
from precisionlab.evaluate.values import Look
from precisionlab.model import Model
from precisionlab.model.blocks import WEIGHT, block_of, blocked_axis
from precisionlab.model.mapped import let_go
from precisionlab.precision import Precision

_SAMPLES = 32
"""Second moments settle soon; each sample costs as many products as the model itself has, block by block."""

_ROWS = 4096


def chosen_table(
    model: Model,
    samples: Iterable[Sample],
    look: Look,
    size: int,
    progress: Callable[[int], None],
    precision: Precision,
) -> CalibrationTable:
    """Each layer's scales by `output`, over the first samples; a layer whose weight is not finite has none.

    `look` shows the float32 reference's tensors, `progress` is told after each sample.
    """
    moments = _Moments(model, size, precision)

    def shown(each: Iterable[Sample]) -> Iterable[Sample]:
        for sample in each:
            yield sample
            progress(1)

    look(shown(islice(samples, _SAMPLES)), moments.add)
    scales = {}
    for name, node in moments.nodes.items():
        weight, axis = node.inputs[WEIGHT], blocked_axis(node)
        assert weight is not None
        assert weight.const_value is not None
        assert axis is not None
        content = weight.const_value.numpy()
        if np.isfinite(content).all():
            scales[name] = _scales_once(content, axis, moments.sums[name], precision)
        let_go(weight.const_value)
    return block_table(Blocks(size, OUTPUT, scales), precision)


_known: OrderedDict[bytes, NDArray[np.float32]] = OrderedDict()
_MOST_KNOWN = 1024
"""Weights: trials of repairs ask for the scales of dozens of models in which a few weights differ."""


def _scales_once(
    weight: NDArray[np.float32], axis: int, moments: NDArray[np.float64], precision: Precision
) -> NDArray[np.float32]:
    """`output_scales`, found once of the same weight and moments."""
    asked = hashlib.sha256(f"{precision} {axis} {weight.shape} {moments.shape}".encode())
    for part in (weight, moments):
        asked.update(np.ascontiguousarray(part).tobytes())
    key = asked.digest()
    if key not in _known:
        _known[key] = output_scales(weight, axis, moments, precision.number_format)
        if len(_known) > _MOST_KNOWN:
            _known.popitem(last=False)
    return _known[key]


def chosen_blocks(evaluator: Evaluator, look: Look) -> ChosenBlocks:
    """What finds the scales by `output`, on the samples that choose."""

    def found(size: int, precision: Precision) -> CalibrationTable:
        evaluator.observer.stage(f"{precision}, scales by {OUTPUT}", min(_SAMPLES, len(evaluator.chosen)))
        return chosen_table(evaluator.model, evaluator.chosen, look, size, evaluator.observer.advance, precision)

    return found


class _Moments:
    """By product Σ xᵢxⱼ of what each block of its weight is multiplied by, float64 (blocks, size, size)."""

    def __init__(self, model: Model, size: int, precision: Precision) -> None:
        products = (model.node[layer.nodes[0]] for layer in model.layers if layer.takes(precision))
        self.nodes = {str(node.name): node for node in products}
        self.sums: dict[str, NDArray[np.float64]] = {}
        self._takers: dict[str, list[str]] = {}
        for name, node in self.nodes.items():
            weight, axis, other = node.inputs[WEIGHT], blocked_axis(node), node.inputs[1 - WEIGHT]
            assert weight is not None
            assert weight.shape is not None
            assert axis is not None
            assert other is not None
            length = int(weight.shape.numpy()[axis])
            block = block_of(length, size)
            assert block is not None
            self.sums[name] = np.zeros((length // block, block, block))
            self._takers.setdefault(str(other.name), []).append(name)

    def add(self, tensor: str, values: NDArray[Any]) -> None:
        """Add a sample's values; rows that are not finite are left out."""
        for name in self._takers.get(tensor, ()):
            sums = self.sums[name]
            turned = np.swapaxes(values, -1, -2) if _is_turned(self.nodes[name]) else values
            rows = turned.reshape(-1, sums.shape[0] * sums.shape[1]).astype(np.float64)
            rows = rows[np.isfinite(rows).all(axis=1)]
            for start in range(0, len(rows), _ROWS):
                parts = rows[start : start + _ROWS].reshape(-1, *sums.shape[:2])
                sums += np.matmul(parts.transpose(1, 2, 0), parts.transpose(1, 0, 2))


def _is_turned(node: ir.Node) -> bool:
    return "transA" in node.attributes and bool(node.attributes["transA"].as_int())
