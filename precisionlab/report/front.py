"""The trade between error and cost: the plans evaluated, the front among them, and the plan found."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from markupsafe import Markup

from precisionlab.compare.tolerance import Bound
from precisionlab.report.cells import (
    ABSENT,
    Row,
    as_flag,
    as_number,
    as_text,
    axis_text,
    figure_text,
    in_unit,
    percent,
    show,
    unit_of,
    value_text,
    visible,
)
from precisionlab.report.drawing import SETTLED, Scale, as_markup, labels, round_step, scale_of, ticks, tidy, tree_of
from precisionlab.system.wording import counted

_FEWEST = 3
"""Fewer plans make no trade."""


@dataclass(frozen=True)
class PlanView:
    """One plan that was evaluated. `cost` is relative to float32."""

    pins: int
    repairs: int
    value: float
    shown: str
    cost: float
    meets: bool
    on_front: bool
    chosen: bool

    @property
    def changes(self) -> str:
        """`2 pins`, `1 repair, no pin`."""
        pins = counted(self.pins, "pin") if self.pins else "no pin"
        return f"{counted(self.repairs, 'repair')}, {pins}" if self.repairs else pins

    def __str__(self) -> str:
        return f"{self.changes}, {self.shown}, {percent(self.cost, '.2f')} of FP32"


@dataclass(frozen=True)
class Front:
    """The drawing, what it says in words, and the plans on the front, the cheapest first.

    `bought` says for each plan what it has over the one before it on the front, and for how much.
    """

    svg: Markup
    axes: str
    words: str
    figure: str
    plans: tuple[PlanView, ...]
    bought: tuple[str, ...]
    others: bool
    chosen: PlanView | None


def draw_front(title: str, bound: Bound | None, rows: Sequence[Row], target: str) -> Front | None:
    """The plans of one precision by cost and figure; None for fewer than three, or where no cost is known."""
    if bound is None:
        return None
    plans = [plan for row in rows if (plan := _plan(row, bound)) is not None]
    if len(plans) < _FEWEST:
        return None
    front = tuple(sorted((plan for plan in plans if plan.on_front), key=lambda plan: plan.cost))
    others = tuple(plan for plan in plans if not plan.on_front)
    kinds = " and ".join(dict.fromkeys(as_text(row, "cost_figures") for row in rows))
    axes = f"{figure_text(bound)}{in_unit(bound)} against cost in % of FP32, {kinds} for {target}"
    words = _words(plans, bound)
    svg = _draw(plans, front, bound, f"{title}: {axes}. {words}")
    chosen = next((plan for plan in plans if plan.chosen), None)
    return Front(svg, axes, words, axis_text(bound), front, _bought(front, bound), bool(others), chosen)


def _plan(row: Row, bound: Bound) -> PlanView | None:
    cost, value = as_number(row, "cost_of_fp32"), as_number(row, "value", "pins")
    if cost is None or value is None or not math.isfinite(cost):
        return None
    shown = value_text(bound, value) + unit_of(bound)
    flags = (as_flag(row, name) for name in ("meets", "on_front", "chosen"))
    repairs = as_number(row, "repairs") if "repairs" in row else None  # runs of older versions do not say
    return PlanView(int(row["pins"]), int(repairs or 0), value, shown, cost, *flags)


def _bought(front: Sequence[PlanView], bound: Bound) -> tuple[str, ...]:
    """What each step along the front buys: how much of the figure, for how much of float32's cost."""
    said = [ABSENT] * min(1, len(front))
    for before, after in pairwise(front):
        more = after.value - before.value
        # Out of NaN or −∞ there is no difference; the figure itself says what was bought.
        what = "a finite figure" if not math.isfinite(more) else f"{show(more, '+.3g')}{unit_of(bound)}"
        said.append(f"{what} for {percent(after.cost - before.cost, '+.2f')}")
    return tuple(said)


def _words(plans: Sequence[PlanView], bound: Bound) -> str:
    """What the picture says: how many plans, the plan found, and whether a cheaper one meets the tolerance."""
    meeting = [plan for plan in plans if plan.meets]
    found = next((plan for plan in plans if plan.chosen), None)
    least = min(plans, key=lambda plan: plan.cost)
    met = f"{len(meeting) or 'none'} of them met the tolerance on the samples that chose"
    said = [f"{counted(len(plans), 'plan')} evaluated; {met}."]
    if found is None:
        return said[0]
    said.append(f"The plan found: {found}.")
    if least.cost < found.cost:
        said.append(f"The cheapest: {least}.")
    cheaper = min((plan for plan in meeting if plan.cost < found.cost), key=lambda plan: plan.cost, default=None)
    if found.meets and cheaper is not None:
        # One with more pins was passed over because few were asked for; others may have failed held-out samples.
        hint = " (--minimize cost asks for such)" if cheaper.pins > found.pins else ""
        said.append(f"A cheaper one met it there: {cheaper}{hint}.")
    elif found.meets:
        said.append("None that met it is cheaper.")
    return " ".join(said)


def _draw(plans: Sequence[PlanView], front: Sequence[PlanView], bound: Bound, description: str) -> Markup:
    import pygal  # type: ignore[import-untyped]

    scale = _scale(plans, bound)
    costs = [100 * plan.cost for plan in plans]
    left, right = min(costs), max(costs)
    room = max((right - left) * 0.05, 0.05)
    chart = pygal.XY(
        width=1000,
        height=360,
        margin=4,
        x_title="Cost, % of FP32",
        y_title=axis_text(bound)[:1].upper() + axis_text(bound)[1:],
        margin_right=12,
        range=scale.range,
        xrange=(left - room, right + room),
        y_labels=scale.labels,
        x_labels=labels(ticks(left - room, right + room, 10), " %"),
        show_legend=False,
        show_dots=False,
        allow_interruptions=True,
        js=[],  # pygal's own tooltips would be fetched from the network
    )
    series: dict[str, tuple[list[Any], int]] = {
        "tolerance": ([(left - room, bound.value), (right + room, bound.value)], 0),
        "front": (_stairs(front, scale), 0),
        "tried": (_dots((p for p in plans if not p.on_front and not p.chosen), scale), 4),
        "best": (_dots((p for p in plans if p.on_front and not p.chosen), scale), 5),
        "found": (_dots((p for p in plans if p.chosen), scale), 8),
    }
    names = [name for name, (points, _) in series.items() if points]
    for name in names:
        points, size = series[name]
        chart.add(name, points, stroke=not size, show_dots=bool(size), dots_size=size)
    tree = tree_of(chart)
    # What was taken has the colour of a plan that is right only where it met the tolerance.
    is_right = all(plan.meets for plan in plans if plan.chosen)
    tidy(tree, [f"{name} missed" if name == "found" and not is_right else name for name in names])
    return as_markup(tree, description)


def _scale(plans: Sequence[PlanView], bound: Bound) -> Scale:
    values = [plan.value for plan in plans] + [bound.value]
    most = max(SETTLED, bound.value) if bound.of_metric.unit == "dB" else math.inf
    finite = [value for value in values if math.isfinite(value) and value <= most]
    least = bound.of_metric.least_span
    span = max(max(finite) - min(finite), 0.1 * abs(bound.value) if least is None else least)
    return scale_of(values, round_step(span / 6), span, most)


def _stairs(front: Sequence[PlanView], scale: Scale) -> list[Any]:
    """What can be had for each cost: level up to the next plan that is better."""
    points: list[Any] = []
    for plan in front:
        height = scale.place(plan.value)
        if points:
            points.append((100 * plan.cost, points[-1][1]))
        points.append((100 * plan.cost, height))
    return points if len(front) > 1 else []


def _dots(plans: Any, scale: Scale) -> list[Any]:
    return [{"value": (100 * plan.cost, scale.place(plan.value)), "label": visible(plan)} for plan in plans]
