"""A second model beside the first: the table of `compare.csv`, and the page.

The columns are those of `precisionlab.report.columns`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from precisionlab.compare.confidence import interval
from precisionlab.compare.errors import ErrorSums
from precisionlab.compare.metrics import SQNR, error_metrics
from precisionlab.report.cells import bound_text, value_text
from precisionlab.report.chart import Chart, draw_chart
from precisionlab.report.columns import COMPARE
from precisionlab.report.html import load_template

if TYPE_CHECKING:
    import pandas as pd

    from precisionlab.results.compare import CompareFindings, CompareRow

WORST = 10
"""So many layers are shown before all of them."""
_COUNTS = ("nan", "inf", "new_nonfinite", "overflow", "underflow", "reshaped")


@dataclass(frozen=True)
class _Layer:
    """A row as the chart draws it: a curve for what it introduces, one for what it has inherited."""

    layer: str
    introduced: float | None
    inherited: float | None
    index: int | None = None
    mixed: float | None = None
    pinned: bool = False
    pinned_to: str = ""


def compare_table(found: CompareFindings) -> pd.DataFrame:
    """One row for each float tensor that a layer of the first model gives, in topological order."""
    return COMPARE.frame([_row(row) for row in found.rows])


def _row(row: CompareRow) -> dict[str, Any]:
    cells: dict[str, Any] = {
        "layer": row.layer,
        "kind": row.kind,
        "tensor": row.tensor,
        "twin": row.twin,
        "by": row.by,
        "operator": row.operator,
        "type": row.type,
    }
    for flow, errors in (("introduced", row.introduced), ("inherited", row.inherited)):
        for metric in error_metrics():
            cells[f"{flow}_{metric.column}"] = None if errors is None else metric.of(errors)
    for name in _COUNTS:
        cells[name] = None if row.inherited is None else getattr(row.inherited, name)
    return {**cells, "why": row.why}


def compare_page(found: CompareFindings) -> str:
    """The whole page, which opens offline."""
    bounds = [
        (bound_text(b), value_text(b, b.of(found.comparison)), _ends(found, b), b.holds(found.comparison))
        for b in found.tolerance
    ]
    return _drawn("page", found, facts=found.facts, bounds=bounds, chart=_chart(found), steps=_steps(found))


def compare_fragment(found: CompareFindings) -> str:
    """Verdict, outputs and worst layers, to stand inside another page such as a notebook: no script, and no ids."""
    return _drawn("fragment", found)


def _drawn(kind: str, found: CompareFindings, **more: Any) -> str:
    page = load_template().environment.get_template("compare.html.j2")
    worst = found.worst_rows(WORST)
    text = page.render(kind=kind, found=found, outputs=_outputs(found), worst=worst, **more)
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def _outputs(found: CompareFindings) -> list[Mapping[str, Any]]:
    """The judged tensors, each with its figures: None where it has none."""
    comparison = found.comparison
    rows: list[Mapping[str, Any]] = []
    for name, errors in comparison.outputs.items():
        figures = {m: comparison.worst(m, name) for m in (SQNR, "cosine", "top1") if comparison.figures(m, name)}
        rows.append({"name": name, "role": errors.role, "figures": figures})
    return rows


def _ends(found: CompareFindings, bound: Any) -> str:
    ends = interval(found.comparison, bound)
    return "" if ends is None else f"{value_text(bound, ends.low)} to {value_text(bound, ends.high)}"


def _chart(found: CompareFindings) -> Chart | None:
    twins = [row for row in found.rows if row.inherited is not None]
    layers = [_Layer(row.layer, _sqnr(row.introduced), _sqnr(row.inherited)) for row in twins]
    if not any(layer.inherited is not None for layer in layers):
        return None
    return draw_chart(f"{found.other} beside {found.model}", layers, changed=False)


def _sqnr(errors: ErrorSums | None) -> float | None:
    return None if errors is None or not (errors.elements or errors.reshaped) else errors.sqnr


def _steps(found: CompareFindings) -> list[tuple[str, list[str]]]:
    """What to do now, each with its command."""
    facts = found.facts
    model, other, data = (facts[name][key] for name, key in (("model", "path"), ("other", "path"), ("data", "origin")))
    steps = []
    if worst := found.worst_rows(1):
        cut = ["extract", model, "--other", other, "--data", data, "--layer", worst[0].layer]
        pairs = [word for ours, theirs in facts["match"].items() for word in ("--match", f"{ours}={theirs}")]
        steps.append(("The worst layer of both as models of their own, with its inputs, for a report:", [*cut, *pairs]))
    sweep = ["sweep", model, "--data", data]
    steps.append(("What the layers lose in precisions that this tool gives them, and which pins repair that:", sweep))
    return [(text, ["precisionlab", *map(str, words)]) for text, words in steps]
