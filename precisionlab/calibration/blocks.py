"""Weights quantised in blocks: the scales of the blocks, and what their values become."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from precisionlab.calibration.methods import MAX, MSE
from precisionlab.errors import ModelError
from precisionlab.precision import Format

_RATIOS = 1 - np.arange(33) / 64
"""The shares of a block's largest magnitude that are tried for the end of the range; the whole first."""

_DIGITS = 8
_LEAST = 2.0**-24
_MOST = 255 * 2.0**8


@dataclass(frozen=True)
class Blocks:
    """How weights are quantised: in blocks of at most `size` numbers, each with a scale by `method`.

    `scales` has those that samples have chosen, by node; all others are found of the weight itself.
    """

    size: int
    method: str = MSE
    scales: Mapping[str, NDArray[np.float32]] = field(default_factory=dict, compare=False)

    @property
    def digest(self) -> str:
        """Two of the same one quantise alike."""
        found = hashlib.sha256()
        for name, scales in sorted(self.scales.items()):
            found.update(f"{name}\0{scales.shape}".encode() + scales.tobytes())
        chosen = f", chosen: {found.hexdigest()}" if self.scales else ""
        return f"blocks of {self.size} by {self.method}{chosen}"


def held_scales(wanted: NDArray[np.floating]) -> NDArray[np.float32]:
    """The next larger numbers that float16 and bfloat16 both hold, float32, of the same shape.

    Of 8 binary digits, at least 2⁻²⁴, at most 65280. So the levels are the same whatever float stands around, and a
    scale times one of int4's values is exact in float16 (8 digits and 3 are the 11 that it has).
    """
    _, exponent = np.frexp(wanted)
    step = np.ldexp(1.0, np.maximum(exponent - _DIGITS, -24))
    return np.asarray(np.clip(np.ceil(wanted / step) * step, _LEAST, _MOST), np.float32)


def block_scales(
    weight: NDArray[np.float32], axis: int, size: int, number_format: Format, method: str = MSE
) -> NDArray[np.float32]:
    """The scale of each block of `size` numbers along `axis`: float32, as the weight but length / size along the axis.

    `max`: the block's largest |w| over the format's largest value, so that nothing is clipped. `mse`: of that and of 32
    shares of it, down to a half, the one with the least squared error over the block; the larger of two alike. 1 for a
    block of zeros. Raises ModelError for a weight that is not finite; the size divides the axis.
    """
    parts = _in_blocks(np.asarray(weight, np.float32), axis, size)
    amax = np.abs(parts).max(axis=1).astype(np.float64)
    if not np.isfinite(amax).all():
        raise ModelError("a weight that holds NaN or Inf has no scales; leave its layer in a float precision")
    if method == MAX:
        found = held_scales(amax / number_format.largest)
    else:
        found = np.stack([_best(part, end, _squared, number_format) for part, end in zip(parts, amax, strict=True)])
    return np.asarray(np.moveaxis(np.where(amax == 0, np.float32(1), found), 0, axis), np.float32, order="C")


def output_scales(
    weight: NDArray[np.float32], axis: int, moments: NDArray[np.float64], number_format: Format
) -> NDArray[np.float32]:
    """As `block_scales` by `mse`, with the least squared error of what the block adds to the product.

    `moments` are Σ xᵢxⱼ over the values that a block's numbers are multiplied by: float64 (blocks, size, size). Of an
    error e of a column of weights that is eᵀ · moments · e (the clipping of J. Lin et al., "AWQ", 2023, section 3, by
    second moments in the place of samples).
    """
    parts = _in_blocks(np.asarray(weight, np.float32), axis, moments.shape[-1])
    amax = np.abs(parts).max(axis=1).astype(np.float64)

    def measured(moment: NDArray[np.float64]) -> Callable[[NDArray[np.float32]], NDArray[np.float64]]:
        return lambda error: np.asarray(np.einsum("ij,ij->j", moment @ error.astype(np.float64), error))

    found = [_best(*one, number_format) for one in zip(parts, amax, map(measured, moments), strict=True)]
    return np.asarray(np.moveaxis(np.where(amax == 0, np.float32(1), np.stack(found)), 0, axis), np.float32, order="C")


def block_levels(
    weight: NDArray[np.float32], scales: NDArray[np.float32], axis: int, number_format: Format
) -> NDArray[np.float32]:
    """The weight in steps of its blocks' scales, rounded to nearest, ties to even, saturated: whole float32 numbers.

    Source: ONNX's QuantizeLinear-21, blocked quantization.
    """
    steps = np.asarray(weight, np.float32) / spread_blocks(scales, axis, weight.shape[axis])
    return np.asarray(np.clip(np.rint(steps), number_format.lowest, number_format.largest) + np.float32(0), np.float32)


def dequantized_blocks(
    weight: NDArray[np.float32], scales: NDArray[np.float32], axis: int, number_format: Format
) -> NDArray[np.float32]:
    """The weight as it comes back from its levels: float32, of the same shape (ONNX's DequantizeLinear-21)."""
    levels = block_levels(weight, scales, axis, number_format)
    levels *= spread_blocks(scales, axis, weight.shape[axis])
    return levels


def spread_blocks(scales: NDArray[np.float32], axis: int, length: int) -> NDArray[np.float32]:
    """Each block's scale for each of its numbers: the scales repeated along the axis up to its length."""
    return np.repeat(scales, length // scales.shape[axis], axis=axis)


def _in_blocks(weight: NDArray[np.float32], axis: int, size: int) -> NDArray[np.float32]:
    """The weight of two axes as (blocks, size, others), a view where that is possible."""
    turned = np.moveaxis(weight, axis, 0)
    return turned.reshape(turned.shape[0] // size, size, *turned.shape[1:])


def _best(
    part: NDArray[np.float32],
    amax: NDArray[np.float64],
    size_of: Callable[[NDArray[np.float32]], NDArray[np.float64]],
    number_format: Format,
) -> NDArray[np.float32]:
    """The scales of blocks that lie side by side, float32 (others,), of values (size, others).

    `size_of` says how large errors, float32 (size, others), are: float64 (others,).
    """
    part = np.ascontiguousarray(part)
    best = held_scales(amax / number_format.largest)
    least = size_of(_error(part, best, number_format))
    for ratio in _RATIOS[1:]:
        scales = held_scales(amax * ratio / number_format.largest)
        error = size_of(_error(part, scales, number_format))
        is_better = error < least
        best, least = np.where(is_better, scales, best), np.where(is_better, error, least)
    return best


def _error(part: NDArray[np.float32], scales: NDArray[np.float32], number_format: Format) -> NDArray[np.float32]:
    """What quantising by these scales adds to the values."""
    steps = part / scales
    np.rint(steps, out=steps)
    np.clip(steps, number_format.lowest, number_format.largest, out=steps)
    steps *= scales
    steps -= part
    return steps


def _squared(error: NDArray[np.float32]) -> NDArray[np.float64]:
    return np.asarray(np.einsum("ij,ij->j", error, error, dtype=np.float64))
