"""How much noise int8 makes of a region's channels, whatever their scales, and the scales that are worth a trial.

A product of activations x and weights W loses Δx²/12 · Σ ‖Wc‖² of x, and Σj Δw(j)²/12 · Σ xc² of W, where a step Δ is a
127th of the largest number that it has to reach: of all of x, and of the weights of output j. With channel c of x times
2^e(c) and its weights times 2^-e(c) both change, and the product does not: what one gains, the other may lose.
Source of the rule: G. Xiao et al., "SmoothQuant", ICML 2023, equation 4, with max|x|^α / max|W|^(1 − α) rounded to a
power of two. Which α is right differs from group to group; the noise that is estimated here, and evaluations, say it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from precisionlab.calibration.table import INT8_LEVELS
from precisionlab.rewrite.gates import weight_axis
from precisionlab.rewrite.repairs.channel_region import ChannelRegion
from precisionlab.rewrite.repairs.channel_values import ChannelValues, Floats
from precisionlab.rewrite.repairs.passing import is_constant
from precisionlab.rewrite.repairs.profiles import Profile, of_rank

Scales = NDArray[np.int32]

_LEAST = 2.0**-20  # of the largest: what is smaller is as good as nothing
_FURTHEST = 10
"""Powers of two that a channel may be moved by: a channel that is small on these samples may not be so on others."""

Largest = Callable[[ChannelValues], Floats]


@dataclass(frozen=True)
class _Activation:
    """A quantised tensor: whether it takes scales or their inverse, its channels' largest, what their noise costs."""

    sign: int
    largest: Floats
    cost: Floats


@dataclass(frozen=True)
class _Weights:
    """Quantised weights: largest |w| and how many, by channel and output, and the power of what multiplies them."""

    sign: int
    largest: Floats
    count: Floats
    power: Floats


@dataclass(frozen=True)
class ChannelNoise:
    """The int8 noise of all that is quantised in a region, in parts of what each product gives."""

    channels: int
    activations: tuple[_Activation, ...]
    weights: tuple[_Weights, ...]

    def of(self, scales: Scales) -> float:
        """The noise with these scales: Σ over products of noise to signal, estimated."""
        total = 0.0
        for part in self.activations:
            powers = np.exp2(part.sign * scales)
            total += float((powers * part.largest).max() ** 2 * (part.cost / powers**2).sum())
        for weights in self.weights:
            powers = np.exp2(weights.sign * scales)
            steps = (powers[:, None] * weights.largest).max(0)
            total += float((steps**2 * (weights.count * (weights.power / powers**2)[:, None])).sum())
        return total / (12 * INT8_LEVELS**2)

    def scales(self, alpha: float) -> Scales:
        """SmoothQuant's, as powers of two around the median: 1 moves all from activations to weights, 0 nothing."""
        scaled, inverse = np.zeros((2, self.channels))
        sides = {1: scaled, -1: inverse}
        unknown = np.zeros(self.channels, bool)
        parts = [(part.sign, part.largest) for part in self.activations]
        parts += [(weights.sign, weights.largest.max(1)) for weights in self.weights]
        for sign, largest in parts:
            unknown |= largest == 0
            share = largest / (largest.max() or 1.0)
            sides[sign][:] = np.maximum(sides[sign], share)
        logs = -alpha * np.log2(np.maximum(scaled, _LEAST)) + (1 - alpha) * np.log2(np.maximum(inverse, _LEAST))
        known = logs[~unknown]
        if not known.size:
            return np.zeros(self.channels, np.int32)
        found = np.clip(np.round(logs - np.median(known)), -_FURTHEST, _FURTHEST)
        return np.asarray(np.where(unknown, 0, found), np.int32)

    def by_power(self, alpha: float) -> Scales:
        """Scales of what weights alone lose: the more a channel is multiplied with, the larger its weights, by alpha.

        Powers of two around the median, of (the root of the mean of x²)^alpha. A weight that is larger than before has
        less error in the product, where the largest of its block is another one.
        Source: J. Lin et al., "AWQ", MLSys 2024, section 3.2, with the mean of |x| there.
        """
        logs = np.zeros(self.channels)
        for weights in self.weights:
            share = np.sqrt(weights.power / (weights.power.max() or 1.0))
            logs += weights.sign * np.log2(np.maximum(share, _LEAST)) / len(self.weights)
        found = np.round(alpha * (logs - np.median(logs)))
        return np.asarray(np.clip(found, -_FURTHEST, _FURTHEST), np.int32)


def noise_of(
    region: ChannelRegion, products: Iterable[ir.Node], values: Mapping[str, ChannelValues], largest: Largest
) -> ChannelNoise:
    """The noise of a region whose quantised nodes are these, by what its tensors hold.

    `largest` says which of a channel's figures its range is told by. Tensors of which nothing is known count nothing.
    """
    activations: list[_Activation] = []
    weights: list[_Weights] = []
    for node in products:
        for index in (0, 1):
            value, other = node.inputs[index], node.inputs[1 - index]
            seen = None if value is None else values.get(str(value.name))
            if value is None or seen is None or value not in region.values:
                continue
            sign = _sign(region.values[value])
            if other is None or not is_constant(other):
                power = None if other is None else values.get(str(other.name))
                gains = np.ones(region.channels) if power is None or other not in region.values else power.power
                activations.append(_Activation(sign, largest(seen), gains / _whole(gains * seen.power)))
                continue
            profile = next(p for p in region.constants[node, 1 - index] if _sign(p) == -sign)
            squares, most, count = _by_channel(node, 1 - index, profile, region.channels)
            signal = _whole(squares * seen.power)
            activations.append(_Activation(sign, largest(seen), squares / signal))
            weights.append(_Weights(-sign, most, count, seen.power / signal))
    return ChannelNoise(region.channels, tuple(activations), tuple(weights))


def _sign(profile: Profile) -> int:
    return int(np.sign(profile[profile != 0].flat[0]))


def _whole(parts: Floats) -> float:
    return float(parts.sum()) or 1.0


def _by_channel(node: ir.Node, index: int, profile: Profile, channels: int) -> tuple[Floats, Floats, Floats]:
    """Of a product's weights Σw² by channel; the largest |w|, and how many, by channel and output."""
    value = node.inputs[index]
    assert value is not None
    assert value.const_value is not None
    numbers = value.const_value.numpy().astype(np.float64)
    place = np.broadcast_to(np.abs(of_rank(profile, numbers.ndim)) - 1, numbers.shape)
    axis = weight_axis(node, index)
    axis = numbers.ndim - 1 if axis is None else axis
    outputs = numbers.shape[axis]
    flat = np.moveaxis(numbers, axis, -1).reshape(-1, outputs)
    at = np.moveaxis(place, axis, -1).reshape(-1, outputs) * outputs + np.arange(outputs)
    squares = np.bincount(at.ravel(), (flat**2).ravel(), channels * outputs).reshape(channels, outputs)
    count = np.bincount(at.ravel(), minlength=channels * outputs).reshape(channels, outputs).astype(np.float64)
    most = np.zeros(channels * outputs)
    np.maximum.at(most, at.ravel(), np.abs(flat).ravel())
    by_channel: Floats = squares.sum(1)
    return by_channel, most.reshape(channels, outputs), count


def held_normal(region: ChannelRegion, scales: Scales) -> Scales:
    """The scales without those by which a constant would leave the range of normal float32 numbers."""
    held: Scales = scales.copy()
    for use, profiles in region.constants.items():
        value = use[0].inputs[use[1]]
        assert value is not None
        assert value.const_value is not None
        numbers, changed = value.const_value.numpy(), region.changed(use, scales)
        normal = np.isfinite(changed) & ((np.abs(changed) >= np.finfo(np.float32).tiny) | (changed == 0))
        lost = ~normal | ((changed == 0) & (numbers != 0))
        lost &= changed != numbers
        if lost.any():
            for profile in profiles:
                held[np.abs(np.broadcast_to(profile, lost.shape)[lost]) - 1] = 0
    return held
