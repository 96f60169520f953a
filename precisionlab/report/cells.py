"""Cells of the tables read back, and figures and names as text: what all the pages share.

NaN, ∞ and −∞ are shown as such; "–" stands for a figure that was never taken. The two look alike in a
table's float columns, so the counts beside them (`nan`, `introduced_nan`, …), which are empty only where
nothing was measured, tell them apart.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from precisionlab.compare.metrics import Metric
from precisionlab.compare.tolerance import Bound, Tolerance, parse_tolerance
from precisionlab.errors import OptionError
from precisionlab.precision import Format, Precision

if TYPE_CHECKING:
    import pandas as pd

ABSENT = "–"

Row = Mapping[str, Any]
"""Column → value. None stands for a figure that does not exist; a NaN was measured."""


# Cells


def records_of(table: pd.DataFrame) -> list[Row]:
    """A table's rows, of Python's own values: None for what is missing of whole numbers.

    As pandas' `to_dict("records")`, which looks at each cell by itself and takes six times as long.
    """
    import pandas as pd

    names = [str(name) for name in table]
    columns = [[None if value is pd.NA else value for value in column.tolist()] for _, column in table.items()]
    return [dict(zip(names, cells, strict=True)) for cells in zip(*columns, strict=True)]


def is_absent(value: Any) -> bool:
    """Whether a cell is empty: None, NaN or NA, as tables and files write it."""
    return value is None or value != value or type(value).__name__ == "NAType"


def as_number(row: Row, column: str, counted: str | None = None) -> float | None:
    """A cell as a float; None where it is empty.

    With `counted`, a count that is only empty where nothing was measured, an empty cell beside a filled
    count is a NaN that was measured.
    """
    value = row[column]
    if not is_absent(value):
        return float(value)
    return None if counted is None or is_absent(row[counted]) else math.nan


def as_text(row: Row, column: str) -> str:
    """A cell as text; empty where it is."""
    value = row[column]
    return "" if is_absent(value) else str(value)


def as_flag(row: Row, column: str) -> bool:
    """A cell that says yes or no."""
    return str(row[column]) == "True"  # a file may give it back as text


def is_quantized(precision: str) -> bool:
    """Whether values of a precision of this name are steps of a scale; False for a name that is none."""
    return any(known.is_quantized and known.value == precision for known in Precision)


def needs_ranges(precision: str) -> bool:
    """Whether a precision of this name quantises activations; False for a name that is none."""
    return any(known.needs_ranges and known.value == precision for known in Precision)


def as_format(row: Row) -> Format:
    """What a layer's outputs are held in without pins; float32 where an older version does not say it of int8."""
    name = as_text(row, "format") if "format" in row else as_text(row, "runs_in")
    floats = {p.value: p.number_format for p in Precision.floats()}
    return floats.get(name, Precision.FP32.number_format)


# Text


def show(value: float | None, form: str) -> str:
    """A figure as text: NaN and infinities by name, "–" for None."""
    if value is None:
        return ABSENT
    if math.isnan(value):
        return "NaN"
    if math.isinf(value):
        return "∞" if value > 0 else "−∞"
    return format(value, form).replace("-", "−")


def percent(share: float | None, form: str = ".1f") -> str:
    """A share as a percentage: `51.2 %`."""
    return ABSENT if share is None else f"{show(100 * share, form)} %"


def short_percent(share: float | None) -> str:
    """A share as percent, with three digits that count; less than everything is never rounded up to 100."""
    if share is None or not math.isfinite(share):
        return show(share, "g")
    return show(min(100 * share, 99.9) if share < 1 else 100 * share, ".3g")


_CONTROLS = {**{code: 0x2400 + code for code in range(0x20)}, 0x7F: 0x2421}


def visible(text: Any) -> str:
    """A name with its control characters shown as their pictures (␊ for a newline)."""
    return str(text).translate(_CONTROLS)


def figure_cell(value: float | None, metric: Metric) -> str:
    """The figure of a metric as it is written everywhere, without its unit."""
    return show(value, metric.form)


# Tolerances


def bounds_of(text: str) -> Tolerance:
    """The bounds of a tolerance as `run.json` writes it; none where it cannot be read."""
    try:
        return parse_tolerance([text])
    except OptionError:
        return ()


def tolerance_text(text: str) -> str:
    """A tolerance such as "sqnr>=30" in words; what is not understood stays as it was written."""
    return ", ".join(map(bound_text, bounds_of(text))) or text or "no bound"


def bound_text(bound: Bound) -> str:
    """`SQNR ≥ 30 dB`, `equal top-1 of logits ≥ 0.99`."""
    return f"{figure_text(bound)} {'≥' if bound.at_least else '≤'} {show(bound.value, 'g')}{unit_of(bound)}"


def figure_text(bound: Bound) -> str:
    """What a bound is about: `SQNR`, `SQNR of logits`."""
    name = bound.of_metric.title
    return name if bound.output is None else f"{name} of {bound.output}"


def unit_of(bound: Bound) -> str:
    """The unit behind its figure, with a blank."""
    unit = bound.of_metric.unit
    return f" {unit}" if unit else ""


def in_unit(bound: Bound) -> str:
    """The unit behind the name of its figure: ` in dB`."""
    return f" in{unit_of(bound)}" if unit_of(bound) else ""


def axis_text(bound: Bound) -> str:
    """The figure with its unit, for a column or an axis: `SQNR, dB`."""
    unit = unit_of(bound).strip()
    return f"{figure_text(bound)}, {unit}" if unit else figure_text(bound)


def value_text(bound: Bound, value: float | None) -> str:
    """A figure that a bound is about, without its unit."""
    return figure_cell(value, bound.of_metric)
