"""The method `auto`: for each tensor the range that costs the layers that take it least, measured."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace

from precisionlab.calibration.table import CalibrationTable, Range
from precisionlab.compare.errors import ErrorSums
from precisionlab.model import Model
from precisionlab.model.layers import quantized_operands


def cheapest_ranges(
    model: Model, methods: Mapping[str, CalibrationTable], introduced: Mapping[str, Mapping[str, ErrorSums]]
) -> CalibrationTable:
    """Each tensor's range from the method under which the layers that take it lose least.

    `introduced` has for each method the error that each layer introduces on its own, by output tensor. The
    cost of a tensor's range is the sum of Σerr² / Σref² over the outputs of the layers that quantise it;
    ties, and tensors that no such layer takes, go to the first method.
    """
    first = next(iter(methods))
    takers: dict[str, list[str]] = {}
    for layer in model.layers:
        for tensor in quantized_operands(model, layer):
            takers.setdefault(tensor, []).extend(layer.outputs)
    ranges: dict[str, Range] = {}
    for tensor in methods[first].ranges:
        outputs = takers.get(tensor, [])
        costs = {name: sum(_noise(introduced[name].get(o)) for o in outputs) for name in methods}
        best = min(methods, key=lambda name: (costs[name], list(methods).index(name)))
        ranges[tensor] = methods[best].ranges[tensor]
    return replace(methods[first], ranges=ranges)


def _noise(errors: ErrorSums | None) -> float:
    """Noise to signal, Σerr² / Σref²; infinite where it is not a number."""
    if errors is None or errors.elements == 0:
        return 0.0
    noise = errors.rel_l2**2
    return math.inf if math.isnan(noise) else noise
