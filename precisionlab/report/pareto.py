"""The table of all plans that were evaluated, by what they cost and how far they err: `pareto.csv`.

A row for each plan, in the order of evaluation. NaN figures are left as NaN, infinities are `inf` and `-inf`.

| column | meaning |
|---|---|
| precision | the low precision |
| pins, layers | how many layers the plan pins, and a JSON list of their names |
| figure, value | the first bound's figure (sqnr, top1, sqnr[logits], …) and what this plan has of it |
| figures | emulated or measured: where that comes from |
| target | the device that costs are for |
| cost_us, cost_of_fp32 | what the plan costs on it, in microseconds and as a share of the float32 plan's cost |
| cost_figures | estimated, measured or partly measured |
| meets | whether the plan meets the whole tolerance, on the samples that chose |
| on_front | whether no other plan evaluated is as good in both and better in one |
| chosen | whether it is the plan found |

Plans with the same pins may differ in the precisions that these have. Costs compare the plans of one model on one
device; an estimated one is no prediction of latency (`precisionlab.search.cost`).
"""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING, Any

import pandas as pd

from precisionlab.search.pareto import Point, front

if TYPE_CHECKING:
    from precisionlab.results import SweepResult
    from precisionlab.search.outcome import PrecisionResult

_TYPES = {
    "precision": "object",
    "pins": "int64",
    "layers": "object",
    "figure": "object",
    "value": "float64",
    "figures": "object",
    "target": "object",
    "cost_us": "float64",
    "cost_of_fp32": "float64",
    "cost_figures": "object",
    "meets": "bool",
    "on_front": "bool",
    "chosen": "bool",
}


def pareto_table(result: SweepResult) -> pd.DataFrame:
    """The table of `pareto.csv`; without rows where nothing was searched."""
    rows = [{**row, "layers": json.dumps(row["layers"], ensure_ascii=False)} for row in pareto_rows(result)]
    table: pd.DataFrame = pd.DataFrame(rows, columns=list(_TYPES)).astype(_TYPES)
    return table


def pareto_rows(result: SweepResult) -> list[dict[str, Any]]:
    """The rows of `pareto.csv`, with the layers' names as lists."""
    cost = result.reference.cost
    return [row for found in result.precisions for row in _rows(found, cost.seconds if cost else 0.0)]


def _rows(found: PrecisionResult, fp32: float) -> list[dict[str, Any]]:
    bound = found.mixed.tolerance[0]
    on_front = frozenset(front(found.points))
    cost = found.mixed.cost
    return [
        {
            "precision": found.precision.value,
            "pins": len(point.pins),
            "layers": list(point.pins),
            "figure": bound.figure,
            "value": bound.of_metric.as_error(point.error),
            "figures": found.mixed.figures,
            "target": cost.device if cost else "",
            "cost_us": point.cost * 1e6,
            "cost_of_fp32": point.cost / fp32 if fp32 else None,
            "cost_figures": point.figures,
            "meets": point.meets,
            "on_front": point in on_front,
            "chosen": _is_plan_found(point, found),
        }
        for point in found.points
    ]


def _is_plan_found(point: Point, found: PrecisionResult) -> bool:
    """Whether pins, cost and error are those of the plan found: a point does not say its pins' precisions."""
    mixed = found.mixed
    if mixed.cost is None or {pin.layer for pin in mixed.plan.pins} != set(point.pins):
        return False
    figure = mixed.tolerance[0].of(mixed.comparison)
    same = abs(point.error) == abs(figure) or (math.isnan(point.error) and math.isnan(figure))
    return same and point.cost == mixed.cost.seconds
