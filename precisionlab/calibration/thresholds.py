"""From a histogram to the range that quantized values stand for: the searches of `precisionlab.calibration.methods`.

`percentile` clips the given share; `mse` minimises the squared error; `entropy`
is the published TensorRT algorithm (S. Migacz, "8-bit Inference with TensorRT", GTC 2017, slides 20–38): 2048
bins, 128 levels, the smallest KL(P‖Q) wins; `capped` is the same with a bound on what may be clipped.
"""

from __future__ import annotations

import math

import numpy as np

from precisionlab.calibration.histogram import Histogram
from precisionlab.calibration.methods import DEFAULT_PERCENTILE
from precisionlab.precision import Format

_MSE_STRIDE = 8


def percentile(histogram: Histogram, share: float = DEFAULT_PERCENTILE) -> float:
    """The upper edge of the first bin up to which at least `share` percent of the values lie.

    The bin of pytorch-quantization's `_compute_amax_percentile`, which takes its lower edge and so clips the bin
    that `share` falls into as well. Never more than the largest value.
    """
    cumulated = np.cumsum(histogram.bins)
    if cumulated[-1] == 0:
        return 0.0
    index = int(np.searchsorted(cumulated, share / 100 * cumulated[-1]))
    return min((index + 1) * histogram.width, histogram.amax)


def mse(histogram: Histogram, number_format: Format) -> float:
    """The threshold with the smallest squared error by the format's own values, from 128 bins up in steps of 8.

    The error of pytorch-quantization's `_compute_amax_mse`: values at their bins' centres, rounded to nearest.
    Candidates are edges of bins here, centres there; exact zeros, which any threshold keeps, take no part.
    """
    from precisionlab.calibration import kernel

    used = _used(histogram)
    if used <= kernel.LEVELS:
        return histogram.amax
    candidates = np.arange(kernel.LEVELS, used + _MSE_STRIDE, _MSE_STRIDE)
    counts = histogram.bins[:used].astype(np.float64)
    counts[0] -= histogram.zeros  # an exact zero is kept exactly by any threshold
    grid = number_format.largest, number_format.normal, number_format.epsilon
    errors = kernel.squared_errors(counts, histogram.width, candidates, *grid)
    return min(float(candidates[int(np.argmin(errors))]) * histogram.width, histogram.amax)


def entropy(histogram: Histogram) -> float:
    """The threshold (i + 0.5) · width whose first i bins, in 128 levels, lose the least information.

    Over at most 2048 bins up to the largest value, as published. Exact zeros take no part: every threshold
    keeps them, and ReLU's would drown all else (pytorch-quantization copies bin 1 over bin 0 for the same
    reason). Never more than the largest value.
    """
    return _least_divergence(histogram, most_clipped=1.0)


def capped_entropy(histogram: Histogram) -> float:
    """As `entropy`, among the thresholds that clip at most one value in 10 000.

    The published algorithm has no such bound. Where many values lie close to zero, as behind HardSwish, Gelu or
    a normalisation, it clips whole percents, and with them what the network lives on.
    """
    return _least_divergence(histogram, most_clipped=1e-4)


def _least_divergence(histogram: Histogram, most_clipped: float) -> float:
    from precisionlab.calibration import kernel

    counts = histogram.bins.astype(np.float64)
    counts[0] -= histogram.zeros
    counts = counts.reshape(-1, 2).sum(1)
    width = 2 * histogram.width
    counts = counts[: min(math.floor(histogram.amax / width) + 1, counts.size)]
    if counts.size <= kernel.LEVELS or counts.sum() == 0:
        return histogram.amax
    found = kernel.divergences(counts)
    kept = np.arange(kernel.LEVELS, counts.size + 1)
    clipped = histogram.count - histogram.zeros - np.cumsum(counts)[kept - 1]
    found[clipped > most_clipped * histogram.count] = np.inf
    return min((int(kept[np.argmin(found)]) + 0.5) * width, histogram.amax)


def _used(histogram: Histogram) -> int:
    """How many bins reach up to the largest value."""
    return min(math.floor(histogram.amax / histogram.width) + 1, histogram.bins.size)
