"""The table of all plans that were evaluated, by what they cost and how far they err: `pareto.csv`.

NaN figures are left as NaN, infinities are `inf` and `-inf`; the columns are those of `precisionlab.report.columns`.

Plans with the same pins may differ in the precisions that these have. Costs compare the plans of one model on one
device; an estimated one is no prediction of latency (`precisionlab.search.cost`).
"""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING, Any

from precisionlab.report.columns import PARETO
from precisionlab.search.pareto import Point, front

if TYPE_CHECKING:
    import pandas as pd

    from precisionlab.results.sweep import SweepFindings
    from precisionlab.search.outcome import PrecisionResult


def pareto_table(result: SweepFindings) -> pd.DataFrame:
    """The table of `pareto.csv`; without rows where nothing was searched."""
    rows = [{**row, "layers": json.dumps(row["layers"], ensure_ascii=False)} for row in pareto_rows(result)]
    return PARETO.frame(rows)


def pareto_rows(result: SweepFindings) -> list[dict[str, Any]]:
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
            "repairs": point.repairs,
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
    if point.repairs != len(mixed.plan.repairs):
        return False
    figure = mixed.tolerance[0].of(mixed.comparison)
    same = abs(point.error) == abs(figure) or (math.isnan(point.error) and math.isnan(figure))
    return same and point.cost == mixed.cost.seconds
