"""What runs of older versions call things, so that they are read under today's names.

`run.json` says by its `schema` which names hold in the folder. 1: none is written, and it is `vanished`; 2: it is
`underflow`; 3: bounds that other samples might turn are `inconclusive`, and no longer `hangs`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd

RUN_SCHEMA = 3

_COLUMNS = {"introduced_vanished": "introduced_underflow", "inherited_vanished": "inherited_underflow"}

_PRECISION_KEYS = {"hangs": "inconclusive"}

_CAUSE_KINDS = {"input_vanishes": "input_underflows", "constant_vanishes": "constant_underflows"}


def check_schema(run: Mapping[str, Any]) -> None:
    """Raises ValueError where a later version has written the run, whose names are not known here."""
    schema = run.get("schema", 1)
    if schema not in range(1, RUN_SCHEMA + 1) or isinstance(schema, bool):
        raise ValueError(f"schema is {str(schema)[:20]}, this version reads 1 to {RUN_SCHEMA}")


def facts_under_current_names(precision: Mapping[str, Any]) -> dict[str, Any]:
    """What `run.json` says of one precision, with the keys of older versions replaced by today's, in the same order."""
    return {_PRECISION_KEYS.get(key, key): value for key, value in precision.items()}


def under_current_names(table: pd.DataFrame) -> pd.DataFrame:
    """The table with the columns, and the words for causes, of older versions replaced by today's."""
    old = {name: _COLUMNS[name] for name in map(str, table) if name in _COLUMNS and _COLUMNS[name] not in table}
    table = table.rename(columns=old)
    if "cause_kinds" in table:
        table["cause_kinds"] = [_kinds(str(cell)) for cell in table["cause_kinds"]]
    return table


def _kinds(cell: str) -> str:
    return " ".join(_CAUSE_KINDS.get(word, word) for word in cell.split(" "))
