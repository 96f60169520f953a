"""All layers by themselves along the network: two strokes a layer, alone in the low precision and alone in float32."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain

from markupsafe import Markup

from precisionlab.report.chart import HALF, strokes
from precisionlab.report.drawing import SETTLED, Scale, as_markup, labels, round_step, scale_of, ticks, tidy, tree_of


@dataclass(frozen=True)
class EachPoint:
    """One layer: its place in the network, and its figure alone in the precision and alone in float32.

    NaN was measured, None was not.
    """

    place: int
    on: float | None
    off: float | None


def draw_each(words: str, figure: str, points: Sequence[EachPoint], whole: float | None, *, decibels: bool) -> Markup:
    """The drawing of `figure`, in the network's order; `whole` is that of the precision throughout, a line across.

    `words` say what it shows. There must be a layer.
    """
    import pygal  # type: ignore[import-untyped]

    places = [float(point.place) for point in points]
    left, right = min(places) - HALF, max(places) + HALF
    curves = {"one-on": [point.on for point in points], "one-off": [point.off for point in points]}
    scale = _scale([v for v in (*chain(*curves.values()), whole) if v is not None], decibels)
    chart = pygal.XY(
        width=1000,
        height=300,
        margin=4,
        x_title="Layer, by its place in the network",
        y_title=figure,
        margin_right=12,
        range=scale.range,
        xrange=(left, right),
        y_labels=scale.labels,
        x_labels=labels(ticks(min(places), max(places), 12, whole=True)),
        show_legend=False,
        show_dots=False,
        allow_interruptions=True,
        js=[],  # pygal's own tooltips would be fetched from the network
    )
    names = []
    if whole is not None:
        height = scale.place(whole)
        chart.add("whole", [(left, height), (right, height)])
        names.append("whole")
    for name, shift in (("one-off", -1.0), ("one-on", 1.0)):
        if drawn := strokes(places, curves[name], scale, shift, joined=False):
            chart.add(name, drawn)
            names.append(name)
    tree = tree_of(chart)
    tidy(tree, names)
    return as_markup(tree, words)


def _scale(values: Sequence[float], decibels: bool) -> Scale:
    if decibels:
        return scale_of(values, 10, 20, SETTLED)
    finite = [value for value in values if math.isfinite(value)] or [0.0, 1.0]
    span = max(finite) - min(finite) or abs(max(finite)) or 1.0
    return scale_of(values, round_step(span / 6), span)
