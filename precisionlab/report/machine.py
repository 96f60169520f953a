"""The result as JSON for machines."""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING, Any

from precisionlab.report.layer_rows import layer_rows
from precisionlab.report.pareto import pareto_rows
from precisionlab.report.shipping import recommendation_of
from precisionlab.report.variant_rows import variant_rows

if TYPE_CHECKING:
    from precisionlab.results.sweep import SweepFindings


def to_json(result: SweepFindings) -> str:
    """One JSON object: `run`, `met`, `recommendation`, `folder`, `plans`; rows of `variants`, `layers` and `pareto`.

    JSON knows neither NaN nor infinities: they stand as the strings "nan", "inf" and "-inf"; a figure
    that does not exist is null. Columns are those of `precisionlab.report.columns`.
    """
    advice = recommendation_of(result)
    content = {
        "met": result.met,
        "recommendation": {"sentence": advice.sentence, "precision": advice.taken},
        "folder": None if result.folder is None else str(result.folder),
        "run": result.run,
        "plans": {name: plan.to_dict() for name, plan in result.plans.items()},
        "variants": variant_rows(result),
        "layers": layer_rows(result),
        "pareto": pareto_rows(result),
    }
    # ASCII alone, so that no terminal or pipe can change it.
    return json.dumps(_strict(content), indent=2, allow_nan=False)


def _strict(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _strict(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_strict(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value
