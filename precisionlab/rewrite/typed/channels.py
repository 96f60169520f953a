"""Quantized products with a scale for each channel in a half model: one scale for the compiler, factors behind.

TensorRT-RTX 1.7.1 has the GEMM of such a MatMul or Gemm, in INT8 or FP8, give its sums as they are, in half, and
multiplies by a half vector of both scales behind it, on every target: sums beyond 65504 are Inf (in FP8 a single
product may be three times that), and products of scales below 3e-8 are 0.
Where the weight has one scale, that with the activation's is the GEMM's own factor, in float32. So the weight is given
one scale s₀, and what the channels differ by stands behind the product, where the compiler multiplies as well:

    x·W ≈ (sₓ·s₀ · Q) · (s_c / s₀),  Q the sums in steps, s_c the scale of channel c

A float32 product between Casts would do too, and takes as many kernels, but sums of twice the bytes; and TensorRT-RTX
compiles no float32 GEMM for SM75.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from precisionlab.calibration.grid import rounded_to_grid, spread_along
from precisionlab.calibration.table import CalibrationTable, weight_scales
from precisionlab.precision import Precision
from precisionlab.rewrite.typed.constants import scale_in

HALF = ir.DataType.FLOAT16
_LARGEST = Precision.FP16.number_format.largest
_LEAST = Precision.FP16.number_format.least
_LEAST_STEP = 2.0**-14  # below it half loses digits, and the sums would


@dataclass(frozen=True)
class ChannelFactors:
    """A weight's one scale, half (), and what each channel's own is of it, half (channels,)."""

    scale: NDArray[np.generic]
    factors: NDArray[np.generic]

    @property
    def scales(self) -> NDArray[np.float32]:
        """The scale that each channel has in effect, float32 (channels,)."""
        return np.asarray(self.factors.astype(np.float32) * self.scale.astype(np.float32), np.float32)


def step_of(table: CalibrationTable, tensor: str, precision: Precision) -> float:
    """The scale of an activation as a half model has it."""
    return float(scale_in(np.asarray(table.scale(tensor, precision), np.float32), HALF).astype(np.float32))


def channel_factors(weight: NDArray[np.float32], axis: int, step: float, precision: Precision) -> ChannelFactors | None:
    """The scale and the factors of a weight in a quantized precision, for an activation whose scale is `step`.

    No sum, times both scales, is beyond half: the largest is that of a channel's steps, all taken without their sign,
    times the largest of an activation (128 of int8, 448 of fp8). Within that, the sums are about as large as the
    results, and lose no digits below half's normal numbers. None where half holds no such scale, or not the factors.
    """
    number_format = precision.number_format
    scales = weight_scales(weight, axis, number_format).astype(np.float64)
    spread = spread_along(scales.astype(np.float32), axis, weight.ndim)
    steps = np.abs(rounded_to_grid(weight / spread, number_format)).astype(np.float64)
    sums = steps.sum(axis=_summed_over(weight.ndim, axis)).max(initial=1.0) * -number_format.lowest
    wanted = min(max(float(np.median(scales)) * step, _LEAST_STEP), _LARGEST / sums)
    scale = np.float16(min(2.0 ** np.floor(np.log2(wanted)) / step, _LARGEST))
    if float(scale) * step * sums > _LARGEST:  # rounded up
        scale = np.nextafter(scale, np.float16(0))
    if scale < _LEAST:
        return None
    factors = scale_in((scales / float(scale)).astype(np.float32), HALF)
    return ChannelFactors(np.asarray(scale), factors) if np.isfinite(factors.astype(np.float32)).all() else None


def _summed_over(rank: int, axis: int) -> int:
    """The axis of a weight that the product sums over: of its last two the one that is not the channels'."""
    return rank - 1 if axis == rank - 2 else rank - 2
