"""How true the emulation is: the table of `fidelity.csv`, and the page with scatters of emulated and real errors.

The columns are those of `precisionlab.report.columns`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from markupsafe import Markup

from precisionlab.report.cells import visible
from precisionlab.report.columns import FIDELITY
from precisionlab.report.drawing import as_markup, scale_of, tidy, tree_of
from precisionlab.report.html import load_template
from precisionlab.system.wording import counted

if TYPE_CHECKING:
    import pandas as pd

    from precisionlab.results.fidelity import FidelityFindings, PrecisionFidelity, Row

_FLOWS = ("introduced", "inherited")


def fidelity_table(result: FidelityFindings) -> pd.DataFrame:
    """One row for each tensor that a layer gives, precision by precision."""
    rows = [
        {
            "precision": found.precision.value,
            "layer": row.layer,
            "kind": row.kind,
            "tensor": row.tensor,
            "introduced_emulated": row.introduced[0],
            "introduced_real": row.introduced[1],
            "inherited_emulated": row.inherited[0],
            "inherited_real": row.inherited[1],
            "nonfinite_emulated": row.nonfinite[0],
            "nonfinite_real": row.nonfinite[1],
            "unsupported": row.unsupported or "",
        }
        for found in result.found
        for row in found.rows
    ]
    return FIDELITY.frame(rows)


def fidelity_page(result: FidelityFindings) -> str:
    """The whole page, which opens offline."""
    sections = [(found, _scatters(found)) for found in result.found]
    page = load_template().environment.get_template("fidelity.html.j2")
    met = [goal.met for found in result.found for goal in found.goals]
    return page.render(
        result=result,
        facts=result.facts,
        sections=sections,
        headline=headline(result.found),
        tone="missed" if False in met else "met" if True in met else "open",
    )


def headline(found: Sequence[PrecisionFidelity]) -> str:
    """Whether the emulation can be trusted here, in a sentence without a full stop."""
    goals = [(one, goal) for one in found for goal in one.goals]
    judged = [goal for _, goal in goals if goal.met is not None]
    missed = [f"{one.precision.value.upper()}: {goal.name}" for one, goal in goals if goal.met is False]
    others = len(goals) - len(judged)
    left_out = f"; {others} {'has' if others == 1 else 'have'} no figure" if others else ""
    if not judged:
        return "Nothing was compared: no goal has a figure"
    if missed:
        are = "is" if len(missed) == 1 else "are"
        return f"{len(missed)} of {counted(len(judged), 'goal')} {are} missed: {'; '.join(missed)}{left_out}"
    every = {1: "its one goal is", 2: "both goals are"}.get(len(judged), f"all {len(judged)} goals are")
    return f"The emulation is true here: {every} met{left_out}"


def _scatters(found: PrecisionFidelity) -> list[tuple[str, Markup]]:
    pick: dict[str, Callable[[Row], tuple[float | None, float | None]]] = {
        "introduced": lambda row: row.introduced,
        "inherited": lambda row: row.inherited,
    }
    drawn = []
    for flow in _FLOWS:
        points = [(row, *pick[flow](row)) for row in found.rows if row.unsupported is None]
        known = [(row, x, y) for row, x, y in points if x is not None and y is not None]
        if known:
            drawn.append((flow, _scatter(f"{found.precision}, {flow}", flow, known)))
    return drawn


def _scatter(title: str, flow: str, points: Sequence[tuple[Row, float, float]]) -> Markup:
    """Emulated to the right, real upwards; a line where they are equal, lanes for what is no number."""
    import pygal  # type: ignore[import-untyped]

    scale = scale_of([value for _, x, y in points for value in (x, y)], unit=10, least=20)
    chart = pygal.XY(
        width=520,
        height=420,
        stroke=False,
        show_legend=False,
        dots_size=2.5,
        range=scale.range,
        xrange=scale.range,
        x_title="emulated, dB",
        y_title="real, dB",
        x_labels=scale.labels,
        y_labels=scale.labels,
        js=(),
    )
    chart.add("equal", [(scale.low, scale.low), (scale.high, scale.high)], stroke=True, show_dots=False)
    dots = [
        {"value": (scale.place(x), scale.place(y)), "label": f"{visible(row.tensor)}: {_db(x)} emulated, {_db(y)} real"}
        for row, x, y in points
    ]
    chart.add(flow, dots)
    tree = tree_of(chart)
    tidy(tree, ["equal", flow])
    return as_markup(tree, f"{title}: SQNR of each tensor, emulated and real. The file fidelity.csv holds all figures.")


def _db(value: float) -> str:
    return f"{value:.1f} dB" if math.isfinite(value) else str(value)
