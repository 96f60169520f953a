"""The ranges of all tensors by one method, from their histograms."""

from __future__ import annotations

import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor

from precisionlab.calibration.histogram import Histogram
from precisionlab.calibration.methods import check_method, methods_of
from precisionlab.calibration.table import CalibrationTable, Range
from precisionlab.precision import Precision


def range_of(histogram: Histogram, method: str, threshold: float) -> Range:
    """The range that a threshold found by `method` gives, with what it clips."""
    return Range(
        amax=threshold,
        method=method,
        largest=histogram.amax,
        count=histogram.count,
        clipped=histogram.clipped(threshold),
        nonfinite=histogram.nonfinite,
    )


def table_of(
    histograms: Mapping[str, Histogram],
    method: str,
    samples: int,
    value: float | None = None,
    precision: Precision = Precision.INT8,
) -> CalibrationTable:
    """The ranges of all tensors by one method; `value` is that of its parameter, where it has one, by default its own.

    Raises OptionError for a method that is not known of the precision.
    """
    known = methods_of(precision)
    check_method(method, known)
    chosen, number_format = known[method], precision.number_format
    parameter = chosen.default if value is None else value
    with ThreadPoolExecutor(os.cpu_count()) as pool:  # the search is compiled, and waits for nobody
        found = pool.map(lambda histogram: chosen.find(histogram, parameter, number_format), histograms.values())
        ranges = {
            n: range_of(h, method, threshold) for (n, h), threshold in zip(histograms.items(), found, strict=True)
        }
    return CalibrationTable(ranges, samples, precision)
