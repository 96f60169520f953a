"""Tables as CSV that a spreadsheet can open without harm, and read back as they were.

Names come from strangers' models, and a spreadsheet takes a cell such as `=HYPERLINK(…)` for a formula. Text that
begins with one of `= + - @`, a tab or a line's end therefore gets an apostrophe in front, as spreadsheets write text
themselves; text that begins with an apostrophe gets another, so that reading can take away exactly one. Numbers are
never touched: −Inf stays `-inf`.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from precisionlab.report.schema import Column, Kind

if TYPE_CHECKING:
    from collections.abc import Mapping

_FLAGS = frozenset({"True", "False"})
_GUARDED = ("=", "+", "-", "@", "\t", "\r", "\n", "'")


def guarded(text: str) -> str:
    """The text as it can stand in a cell."""
    return "'" + text if text.startswith(_GUARDED) else text


def unguarded(text: str) -> str:
    """The text that stands in a cell; cells of older files, which have no apostrophes in front, stay as they are."""
    return text[1:] if text.startswith("'") and text[1:].startswith(_GUARDED) else text


def to_csv(table: pd.DataFrame) -> str:
    """The table as the text of a CSV file."""
    safe = table.copy()
    for name, column in table.items():
        if not pd.api.types.is_numeric_dtype(column) and any(isinstance(v, str) and v != guarded(v) for v in column):
            safe[name] = column.map(lambda value: guarded(value) if isinstance(value, str) else value)
    # Older Pythons quote a cell for "\n" but not for "\r", which a reader then takes for the end of the row.
    text: str = safe.to_csv(index=False)
    if "\r" in text:
        text = safe.to_csv(index=False, quoting=csv.QUOTE_NONNUMERIC)
    return text


def from_csv(text: str, columns: Iterable[Column] = ()) -> pd.DataFrame:
    """The table of a CSV file's text. Raises ValueError where it is no table, or holds no number where one must be.

    `columns` are those that are known, and hold what their kind says: text is text, whatever it looks like (a layer
    may be called `NA`, or `3`). In others, all `True` and `False` are flags, whole numbers whole, and the rest floats,
    where an empty cell is a NaN.
    """
    if text and not text.endswith("\n"):
        raise ValueError("the last row is cut short")
    cells = pd.read_csv(io.StringIO(text, newline=""), dtype=str, keep_default_na=False, na_filter=False)
    if not isinstance(cells.index, pd.RangeIndex):  # where pandas puts the cells that are too many
        raise ValueError("a row has more cells than the header")
    _check_widths(text)
    kinds = {column.name: column.kind for column in columns}
    read: Mapping[str, Any] = {str(n): _column(str(n), cells[n].tolist(), kinds.get(str(n))) for n in cells}
    table: pd.DataFrame = pd.DataFrame(read)
    return table


def _check_widths(text: str) -> None:
    """Raises ValueError for a row with other cells than the header has: pandas fills up those that are too short."""
    limit = csv.field_size_limit()
    csv.field_size_limit(max(limit, len(text)))  # the nodes of a compiled layer may be thousands
    try:
        widths = {len(row) for row in csv.reader(io.StringIO(text, newline="")) if row}
    except csv.Error as error:
        raise ValueError(str(error)) from None
    finally:
        csv.field_size_limit(limit)
    if len(widths) > 1:
        raise ValueError("a row has fewer cells than the header")


def _column(name: str, cells: list[str], kind: Kind | None) -> Any:
    if kind is Kind.TEXT:
        return pd.Series([unguarded(cell) for cell in cells], dtype=object)
    try:
        if kind is Kind.COUNT:
            return pd.array([None if cell == "" else int(float(cell)) for cell in cells], dtype="Int64")
        if kind is Kind.FLAG or (kind is None and cells and _FLAGS.issuperset(cells)):
            return np.array([_flag(cell) for cell in cells], dtype=bool)
        is_whole = kind is None and cells and all(cell.removeprefix("-").isdecimal() for cell in cells)
        if kind is Kind.WHOLE or is_whole:
            return np.array([int(cell) for cell in cells], dtype="int64")
        # Python reads a float exactly as it was written; pandas does by some of its parsers only.
        return np.array([float(cell) if cell else float("nan") for cell in cells], dtype="float64")
    except (ValueError, OverflowError) as error:
        raise ValueError(f"column {name}: {error}") from None


def _flag(cell: str) -> bool:
    if cell not in _FLAGS:
        raise ValueError(f"{cell!r} is neither True nor False")
    return cell == "True"
