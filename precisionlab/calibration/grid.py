"""The values of a quantized format, and rounding to them: what QuantizeLinear makes of numbers, in steps of a scale."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from precisionlab.precision import Format

_DIGITS = 24
"""Binary digits of a float32 significand."""


def rounded_to_grid(steps: NDArray[np.float32], number_format: Format) -> NDArray[np.float32]:
    """Numbers in steps of a scale, rounded to the format's values: to nearest, ties to even, saturated; float32.

    Of any shape. What lies beyond the largest value becomes that, Inf too; NaN stays NaN, and there is no −0. Source:
    ONNX's QuantizeLinear and its table "FP8 E4M3FN saturate" (`docs/docsgen/source/technical/float8.md`).
    """
    return _round(np.array(steps, np.float32), number_format)


def splitting(number_format: Format) -> tuple[float, float]:
    """What rounds to values that are not all as far apart by additions of float32 alone: a factor, and an addend.

    From the smallest normal value on a number keeps p digits: with C = 2^(24 − p) + 1 and g = C·x that is g + (x − g)
    (G. W. Veltkamp's splitting: T. J. Dekker, "A floating-point technique for extending the available precision",
    1971, section 5; a tie has 24 − p zeros behind it, so that x − g is rounded to an even multiple, and the sum to the
    even neighbour). Below it values lie as far apart as the least: there 1.5 · 2^23 of these are added and taken off.
    """
    kept = _DIGITS - (1 - round(math.log2(number_format.epsilon)))
    return 2.0**kept + 1, 1.5 * 2.0 ** (_DIGITS - 1) * number_format.least


def _round(values: NDArray[np.float32], number_format: Format) -> NDArray[np.float32]:
    """The same in place: float32 numbers in steps, which are changed."""
    np.clip(values, number_format.lowest, number_format.largest, out=values)
    if number_format.is_uniform:
        np.rint(values, out=values)
    else:
        factor, addend = map(np.float32, splitting(number_format))
        with np.errstate(invalid="ignore"):  # signalling NaN
            is_small = np.abs(values) < np.float32(number_format.normal)
            normal = values * factor
            normal += values - normal
            values += addend
            values -= addend
        np.copyto(values, normal, where=~is_small)
    values += np.float32(0)
    return values


def quantized_array(
    array: NDArray[np.float32], scales: NDArray[np.float32], axis: int | None, number_format: Format
) -> NDArray[np.float32]:
    """The array as QuantizeLinear and DequantizeLinear to the format leave it, float32, of the same shape.

    `scales` are those of the channels along `axis`, float32 (channels,), or of all, float32 ().
    """
    spread = spread_along(scales, axis, array.ndim)
    found = _round(np.asarray(np.divide(array, spread), np.float32), number_format)
    found *= spread
    return found


def spread_along(scales: NDArray[np.float32], axis: int | None, rank: int) -> NDArray[np.float32]:
    """Scales in a shape that is broadcast over an array of this rank: along `axis`, or one for all."""
    return scales if axis is None else scales.reshape([-1 if i == axis else 1 for i in range(rank)])
