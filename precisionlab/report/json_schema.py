"""The JSON schema of what `precisionlab sweep --json` prints, made of the columns that the tables have.

Keys and columns may be added: what is not here is allowed. JSON Schema, draft 2020-12.
`python -m precisionlab.report.json_schema` prints it; it stands in `docs/reference/sweep.schema.json` too.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from precisionlab.plan.plan import PLAN_SCHEMA
from precisionlab.precision import Precision
from precisionlab.report.columns import LAYERS, PARETO, VARIANTS
from precisionlab.report.earlier import RUN_SCHEMA
from precisionlab.report.schema import Column, Kind, Schema
from precisionlab.search.verdict import State

_WORDS = {"enum": ["nan", "inf", "-inf"]}
_NUMBER: Mapping[str, Any] = {"anyOf": [{"type": "number"}, _WORDS]}
_TEXT: Mapping[str, Any] = {"type": "string"}
_FLAG: Mapping[str, Any] = {"type": "boolean"}
_WHOLE: Mapping[str, Any] = {"type": "integer"}
_SHA: Mapping[str, Any] = {"type": "string", "pattern": "^[0-9a-f]{64}$"}
_CELLS: Mapping[Kind, Mapping[str, Any]] = {
    Kind.TEXT: {"type": ["string", "null"]},
    Kind.NUMBER: {"anyOf": [{"type": ["number", "null"]}, _WORDS]},
    Kind.WHOLE: _WHOLE,
    Kind.COUNT: {"type": ["integer", "null"]},
    Kind.FLAG: _FLAG,
}


def sweep_schema() -> dict[str, Any]:
    """The schema."""
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "precisionlab sweep --json",
        "description": "NaN and infinities are the words nan, inf and -inf; null is a figure that does not exist.",
        **_object(
            {
                "met": {**_FLAG, "description": "Whether every precision swept is right; what the exit code says."},
                "recommendation": _object({"sentence": _TEXT, "precision": _or_null(_TEXT)}),
                "folder": _or_null(_TEXT),
                "run": _run(),
                "plans": _map(_plan()),
                "variants": _rows(VARIANTS),
                "layers": _rows(LAYERS),
                "pareto": _pareto(),
            }
        ),
    }


def _object(properties: Mapping[str, Any], optional: Mapping[str, Any] | None = None) -> dict[str, Any]:
    found = {"type": "object", "required": list(properties), "properties": {**properties, **(optional or {})}}
    return dict(found)


def _or_null(schema: Mapping[str, Any]) -> dict[str, Any]:
    return {"anyOf": [schema, {"type": "null"}]}


def _list(schema: Mapping[str, Any]) -> dict[str, Any]:
    return {"type": "array", "items": schema}


def _map(schema: Mapping[str, Any]) -> dict[str, Any]:
    return {"type": "object", "additionalProperties": schema}


def _rows(schema: Schema) -> dict[str, Any]:
    """A list of rows; each has all columns."""
    return {"description": f"A row for {schema.rows}.", **_list(_object({c.name: _cell(c) for c in schema.columns}))}


def _pareto() -> dict[str, Any]:
    """The rows of plans, in which names are a list, and not the text of one."""
    rows = _rows(PARETO)
    names = rows["items"]["properties"]["layers"]
    rows["items"]["properties"]["layers"] = {**_list(_TEXT), "description": names["description"]}
    return rows


def _cell(column: Column) -> dict[str, Any]:
    unit = f" In {column.unit}." if column.unit else ""
    return {**_CELLS[column.kind], "description": f"{column.what}{unit}"}


def _plan() -> dict[str, Any]:
    precisions = {"enum": [precision.value for precision in Precision]}
    pin = _object({"layer": _TEXT, "nodes": _list(_TEXT), "precision": precisions, "reason": _TEXT})
    repair = _object({"kind": _TEXT, "exactness": _TEXT, "for": _TEXT, "nodes": _list(_TEXT), "reason": _TEXT})
    return _object(
        {
            "schema": {"const": PLAN_SCHEMA},
            "model": _object({"sha256": _SHA}),
            "default": precisions,
            "around": precisions,
            "repairs": _list(repair),
            "pins": _list(pin),
        },
        {"calibration": _TEXT},
    )


def _run() -> dict[str, Any]:
    verdict = _object(
        {
            "state": {"enum": [state.value for state in State]},
            "sentence": _TEXT,
            "figure": _TEXT,
            "on_random": _FLAG,
            "in_part": _FLAG,
        }
    )
    precision = _object(
        {
            "met": _FLAG,
            "verdict": verdict,
            "pins": _WHOLE,
            "touched": _WHOLE,
            "evaluations": _WHOLE,
            "proven": _or_null(_FLAG),
        }
    )
    data = _object(
        {
            "folder": _or_null(_TEXT),
            "samples": _WHOLE,
            "choosing": _WHOLE,
            "held_out": _WHOLE,
            "seed": _WHOLE,
            "random": _FLAG,
            "skipped": _list(_TEXT),
            "sha256": _or_null(_TEXT),
        }
    )
    return _object(
        {
            "schema": {"const": RUN_SCHEMA},
            "precisionlab": _TEXT,
            "versions": _map(_TEXT),
            "command": _list(_TEXT),
            "created": _TEXT,
            "seconds": _NUMBER,
            "backend": _TEXT,
            "figures": {"enum": ["emulated", "measured"]},
            "engines": _or_null({"type": "object"}),
            "target": _object({"name": _TEXT, "title": _TEXT}),
            "model": _object({"path": _TEXT, "sha256": _SHA, "layers": _WHOLE}),
            "data": data,
            "tolerance": _map(_TEXT),
            "precisions": _map(precision),
        },
        {
            "request": _TEXT,
            "not_swept": {**_map(_TEXT), "description": "Precision asked for → why it is not swept."},
        },
    )


def text() -> str:
    """The schema as a file holds it."""
    return json.dumps(sweep_schema(), indent=1, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    print(text(), end="")
