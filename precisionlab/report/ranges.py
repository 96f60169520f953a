"""The table of a calibration, `ranges.csv`; its columns are those of `precisionlab.report.columns`."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from precisionlab.calibration.histogram import Histogram
from precisionlab.model.layers import quantized_operands
from precisionlab.precision import Precision
from precisionlab.report.columns import RANGES

if TYPE_CHECKING:
    import pandas as pd

    from precisionlab.results.calibration import CalibrationFindings

_MAGNITUDES = 128


def ranges_table(result: CalibrationFindings) -> pd.DataFrame:
    """The table of `ranges.csv`."""
    operands = {name for layer in result.model.layers for name in quantized_operands(result.model, layer)}
    rows = [_row(result, name, name in operands) for name in result.table.ranges]
    return RANGES.frame(rows)


def _row(result: CalibrationFindings, name: str, operand: bool) -> dict[str, Any]:
    found, histogram = result.table.ranges[name], result.histograms[name]
    by_method = {method: table.ranges[name].amax for method, table in result.methods.items()}
    if found.is_empty:
        by_method = dict.fromkeys(by_method, math.nan)
    least, most = min(by_method.values()), max(by_method.values())
    return {
        "tensor": name,
        "method": found.method,
        "amax": math.nan if found.is_empty else found.amax,
        "scale": math.nan if found.is_empty else found.scale(Precision.INT8.number_format),
        "largest": found.largest,
        "count": found.count,
        "zeros": histogram.zeros,
        "nonfinite": found.nonfinite,
        "clipped": found.clipped,
        "clipped_share": found.clipped_share,
        "levels_used": levels_used(histogram, found.amax),
        **by_method,
        "disagreement": most / least if least > 0 else math.nan,
        "operand": operand,
    }


def levels_used(histogram: Histogram, amax: float) -> int:
    """How many of the 128 magnitudes 0 … 127 some value rounds to, by its bin's centre."""
    if amax == 0:
        return 1
    filled = np.flatnonzero(histogram.bins)
    centres = (filled + 0.5) * histogram.width
    levels = np.minimum(np.rint(centres / (amax / (_MAGNITUDES - 1))), _MAGNITUDES - 1)
    return int(np.unique(np.concatenate([levels, [0.0]]) if histogram.zeros else levels).size)
