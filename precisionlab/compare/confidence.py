"""How far the figures of a comparison hang on the samples that it rests on."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from precisionlab.compare.comparison import LOWER_IS_BETTER, Comparison, OutputErrors
from precisionlab.compare.tolerance import Bound, Tolerance

FEWEST = 8
"""Below it no interval is given: resampling a handful of samples says nothing of those that were not seen."""

_RESAMPLES = 2000
_SEED = 0
_TAIL = 2.5  # percent on each side
_RESAMPLED = ("sqnr", "rel_l2", "cosine", "top1")
_NORMAL = 1.959964  # the standard normal's 97.5 % quantile


@dataclass(frozen=True)
class Interval:
    """A 95 % confidence interval over samples, in the figure's own unit."""

    low: float
    high: float

    def holds(self, bound: Bound) -> bool | None:
        """Whether the bound holds at both ends (True), at neither (False), or hangs on the samples (None)."""
        ends = {bound.admits(self.low), bound.admits(self.high)}
        return None if len(ends) > 1 else ends.pop()


def interval(comparison: Comparison, bound: Bound) -> Interval | None:
    """The 95 % interval of the figure that a bound is about; None for too few samples, or where there is none.

    Percentile bootstrap over samples (Efron, "Bootstrap methods", Annals of Statistics 7, 1979) with a fixed seed;
    for a task metric its standard error times 1.96. A largest error has no such interval, nor has a count of tensors.
    """
    if bound.metric in ("metric", "metric_drop"):
        return _of_metric(comparison, bound)
    every = [errors for name, errors in comparison.each.items() if bound.output in (None, name)]
    if bound.metric not in _RESAMPLED or comparison.samples < FEWEST or not every:
        return None
    weights = _weights(comparison.samples)
    found = [values for errors in every if (values := _resampled(errors, bound.metric, weights)) is not None]
    if not found:
        return None
    worst = np.max(found, 0) if bound.metric in LOWER_IS_BETTER else np.min(found, 0)
    if np.isnan(worst).any():
        return None
    low, high = np.percentile(worst, [_TAIL, 100 - _TAIL], method="nearest")
    return Interval(float(low), float(high))


def hangs_on_samples(comparison: Comparison, tolerance: Tolerance) -> tuple[tuple[Bound, Interval], ...]:
    """The bounds whose verdict another choice of samples might turn, and their figures' intervals."""
    found = ((bound, interval(comparison, bound)) for bound in tolerance)
    return tuple((bound, ends) for bound, ends in found if ends is not None and ends.holds(bound) is None)


def _weights(samples: int) -> NDArray[np.float64]:
    """How often each sample is drawn in each resample; (resamples, samples)."""
    drawn = np.random.default_rng(_SEED).integers(0, samples, (_RESAMPLES, samples))
    return np.stack([np.bincount(row, minlength=samples) for row in drawn]).astype(np.float64)


def _resampled(
    errors: tuple[OutputErrors, ...], metric: str, weights: NDArray[np.float64]
) -> NDArray[np.float64] | None:
    """The figure of one output in every resample; None where the output has none."""
    if metric == "top1":
        counts = weights @ np.array([[e.top1.agree, e.top1.total] for e in errors], np.float64)
        if not counts[:, 1].all():
            return None
        return np.asarray(counts[:, 0] / counts[:, 1])
    sums = [e.errors for e in errors if e.errors is not None]
    if len(sums) < len(errors):
        return None
    table = np.array([[s.ref2, s.err2, s.ref_out, s.out2] for s in sums], np.float64)
    with np.errstate(all="ignore"):
        ref2, err2, ref_out, out2 = (weights @ table).T
        if metric == "sqnr":
            return np.asarray(10 * (np.log10(ref2) - np.log10(err2)))
        if metric == "rel_l2":
            return np.asarray(np.sqrt(err2 / ref2))
        return np.asarray(ref_out / (np.sqrt(ref2) * np.sqrt(out2)))


def _of_metric(comparison: Comparison, bound: Bound) -> Interval | None:
    error = comparison.metric_error
    value = comparison.worst(bound.metric)
    if error is None or not math.isfinite(value) or not math.isfinite(error):
        return None
    if bound.metric == "metric_drop":
        if not comparison.reference_metric:
            return None
        error /= abs(comparison.reference_metric)
    return Interval(value - _NORMAL * error, value + _NORMAL * error)
