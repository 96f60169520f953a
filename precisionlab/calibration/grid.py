"""The values of a quantized format, and rounding to them: what QuantizeLinear makes of numbers, in steps of a scale."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from precisionlab.precision import Format


def rounded_to_grid(steps: NDArray[np.float32], number_format: Format) -> NDArray[np.float32]:
    """Numbers in steps of a scale, rounded to the format's values: to nearest, ties to even, saturated; float32.

    Of any shape. What lies beyond the largest value becomes that, Inf too; NaN stays NaN, and there is no −0. Source:
    ONNX's QuantizeLinear and its table "FP8 E4M3FN saturate" (`docs/docsgen/source/technical/float8.md`).
    """
    clipped = np.clip(np.asarray(steps, np.float32), number_format.lowest, number_format.largest)
    if number_format.is_uniform:
        return np.asarray(np.rint(clipped) + np.float32(0))
    # |x| lies in [2^(e − 1), 2^e), where values are 2^(e − 1) · epsilon apart, and in the subnormal range `least`.
    _, least = math.frexp(number_format.normal)
    _, digits = math.frexp(number_format.epsilon)
    with np.errstate(invalid="ignore"):  # signalling NaN
        _, exponent = np.frexp(clipped)
        power = np.maximum(exponent, least) + (digits - 2)
        whole = np.rint(np.ldexp(clipped, -power))
        return np.asarray(np.ldexp(whole, power) + np.float32(0), np.float32)


def quantized_array(
    array: NDArray[np.float32], scales: NDArray[np.float32], axis: int | None, number_format: Format
) -> NDArray[np.float32]:
    """The array as QuantizeLinear and DequantizeLinear to the format leave it, float32, of the same shape.

    `scales` are those of the channels along `axis`, float32 (channels,), or of all, float32 ().
    """
    spread = spread_along(scales, axis, array.ndim)
    return np.asarray(rounded_to_grid(np.asarray(array, np.float32) / spread, number_format) * spread, np.float32)


def spread_along(scales: NDArray[np.float32], axis: int | None, rank: int) -> NDArray[np.float32]:
    """Scales in a shape that is broadcast over an array of this rank: along `axis`, or one for all."""
    return scales if axis is None else scales.reshape([-1 if i == axis else 1 for i in range(rank)])
