"""How far the figures of a comparison hang on the samples that it rests on."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from precisionlab.compare.comparison import Comparison
from precisionlab.compare.metrics import AgreementMetric, ErrorMetric, Metric, RunMetric, Sums
from precisionlab.compare.output import OutputErrors, PartErrors
from precisionlab.compare.tolerance import Bound, Tolerance

FEWEST = 8
"""Below it no interval is given: resampling a handful of samples says nothing of those that were not seen."""

_RESAMPLES = 2000
_SEED = 0
_TAIL = 2.5  # percent on each side
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
    metric = bound.of_metric
    if isinstance(metric, RunMetric):
        return _of_run(comparison, metric)
    if not _is_resampled(metric) or comparison.samples < FEWEST or not comparison.each:
        return None
    weights = _weights(comparison.samples)
    columns = _columns(comparison, bound)
    found = [values for column in columns if (values := _resampled(column, metric, weights)) is not None]
    if not found:
        return None
    worst = np.min(found, 0) if metric.higher_is_better else np.max(found, 0)
    if np.isnan(worst).any():
        return None
    low, high = np.percentile(worst, [_TAIL, 100 - _TAIL], method="nearest")
    return Interval(float(low), float(high))


def inconclusive_bounds(comparison: Comparison, tolerance: Tolerance) -> tuple[tuple[Bound, Interval], ...]:
    """The bounds whose verdict another choice of samples might turn, and their figures' intervals."""
    found = ((bound, interval(comparison, bound)) for bound in tolerance)
    return tuple((bound, ends) for bound, ends in found if ends is not None and ends.holds(bound) is None)


def _weights(samples: int) -> NDArray[np.float64]:
    """How often each sample is drawn in each resample; (resamples, samples)."""
    drawn = np.random.default_rng(_SEED).integers(0, samples, (_RESAMPLES, samples))
    return np.stack([np.bincount(row, minlength=samples) for row in drawn]).astype(np.float64)


def _columns(comparison: Comparison, bound: Bound) -> list[NDArray[np.float64]]:
    """For each output or part that the bound is about, what its figure is made of, sample by sample.

    (samples, 2) for top-1: how many agree, of how many; else (samples, 4): Σref², Σerr², Σref·out, Σout².
    """
    found: list[NDArray[np.float64]] = []
    agrees = isinstance(bound.of_metric, AgreementMetric)
    for name, errors in comparison.outputs.items():
        each = comparison.each.get(name, ())
        if name == bound.output or (bound.output is None and errors.counts):
            if agrees:
                found.append(np.array([[e.top1.agree, e.top1.total] for e in each], np.float64))
                continue
            own = [part for part in errors.judged if part not in errors.scaleless]
            found += [_sums([e.parts.get(part) if part else e for e in each]) for part in own]
        elif bound.output is not None and bound.output in errors.parts and not agrees:
            found.append(_sums([e.parts.get(bound.output) for e in each]))
    return found


def _sums(each: Sequence[OutputErrors | PartErrors | None]) -> NDArray[np.float64]:
    """What one output or part is made of, (samples, 4); nothing where a sample has no errors of it."""
    sums = [e.errors for e in each if e is not None and e.errors is not None]
    if len(sums) < len(each):
        return np.zeros((0, 4))
    return np.array([[s.ref2, s.err2, s.ref_out, s.out2] for s in sums], np.float64)


def _is_resampled(metric: Metric) -> bool:
    return isinstance(metric, AgreementMetric) or (isinstance(metric, ErrorMetric) and metric.resampled is not None)


def _resampled(table: NDArray[np.float64], metric: Metric, weights: NDArray[np.float64]) -> NDArray[np.float64] | None:
    """The figure of one output or part in every resample; None where it has none."""
    if not table.size:
        return None
    if not isinstance(metric, ErrorMetric) or metric.resampled is None:
        counts = weights @ table
        return np.asarray(counts[:, 0] / counts[:, 1]) if counts[:, 1].all() else None
    with np.errstate(all="ignore"):
        return np.asarray(metric.resampled(Sums(*(weights @ table).T)))


def _of_run(comparison: Comparison, metric: RunMetric) -> Interval | None:
    error = metric.error(comparison) if metric.error else None
    value = metric.of(comparison)
    if error is None or not math.isfinite(value) or not math.isfinite(error):
        return None
    return Interval(value - _NORMAL * error, value + _NORMAL * error)
