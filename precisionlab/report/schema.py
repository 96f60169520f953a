"""What a table is: its columns, each with a name, what its cells hold, a title, a unit, and what it is."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd


class Kind(str, Enum):
    """What the cells of a column hold."""

    TEXT = "text"
    NUMBER = "number"
    WHOLE = "whole number"
    COUNT = "whole number or empty"
    FLAG = "True or False"


_TYPES = {Kind.NUMBER: "float64", Kind.WHOLE: "int64", Kind.FLAG: "bool"}
"""As what numpy holds them; text is left to pandas."""

_COUNTS = "Int64"
"""As what pandas holds whole numbers of which some are missing."""


@dataclass(frozen=True)
class Column:
    """One column: what it is called in the file and on pages, and a sentence that says what it is.

    `required` is false for one that runs of older versions lack, and that pages go without.
    """

    name: str
    kind: Kind
    title: str
    what: str
    unit: str = ""
    required: bool = True

    @property
    def head(self) -> str:
        """The head of the column on a page: the title with the unit."""
        return f"{self.title}, {self.unit}" if self.unit else self.title


@dataclass(frozen=True)
class Schema:
    """One table: its file, what a row of it is, and its columns in their order."""

    file: str
    rows: str
    columns_of: Callable[[], Iterable[Column]]

    @property
    def columns(self) -> tuple[Column, ...]:
        """The columns, those of all metrics and methods that there are among them."""
        return tuple(self.columns_of())

    @property
    def names(self) -> list[str]:
        """The columns' names."""
        return [column.name for column in self.columns]

    def column(self, name: str) -> Column:
        """One column. Raises KeyError where there is none of that name."""
        return {column.name: column for column in self.columns}[name]

    def frame(self, rows: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
        """The table with these rows. Raises ValueError for a row that has other columns."""
        import numpy as np
        import pandas as pd

        columns = self.columns
        names = [column.name for column in columns]
        for row in rows:
            if row.keys() != set(names):
                raise ValueError(
                    f"{self.file}: a row lacks, or has beside the others, {sorted(row.keys() ^ set(names))}"
                )
        cells: dict[str, Any] = {column.name: [row[column.name] for row in rows] for column in columns}
        for column in columns:
            if column.kind is Kind.COUNT:
                cells[column.name] = pd.array(cells[column.name], dtype=_COUNTS)
            elif column.kind in _TYPES:
                cells[column.name] = np.array(cells[column.name], dtype=_TYPES[column.kind])
        table: pd.DataFrame = pd.DataFrame(cells, columns=names)
        return table

    def markdown(self) -> str:
        """The columns as a table for the documentation."""
        lines = ["| column | holds | meaning |", "|---|---|---|"]
        for column in self.columns:
            holds = f"{column.kind.value}, {column.unit}" if column.unit else column.kind.value
            lines.append(f"| `{column.name}` | {holds} | {column.what.replace('|', chr(92) + '|')} |")
        return "\n".join(lines)
