"""The chart of errors along the network."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any, Protocol

from markupsafe import Markup

from precisionlab.report.cells import visible
from precisionlab.report.drawing import SETTLED, Scale, as_markup, labels, scale_of, ticks, tidy, tree_of

Point = tuple[float, float]
HALF = 0.4  # half a layer's width, less a gap, so that a single layer is a stroke that can be seen


class Charted(Protocol):
    """A layer as the chart has it: its place (None: as it comes), its SQNR in dB on each curve, and its pin."""

    @property
    def layer(self) -> str:
        """Its name."""
        ...

    @property
    def index(self) -> float | None:
        """Its place; None: as it comes."""
        ...

    @property
    def introduced(self) -> float | None:
        """What it loses."""
        ...

    @property
    def inherited(self) -> float | None:
        """What is lost so far."""
        ...

    @property
    def mixed(self) -> float | None:
        """What is lost under a plan."""
        ...

    @property
    def pinned(self) -> bool:
        """Whether it has a pin."""
        ...

    @property
    def pinned_to(self) -> str:
        """To what."""
        ...


@dataclass(frozen=True)
class Chart:
    """The drawing, and which of its parts need a word in the legend."""

    svg: Markup
    first: float  # the place of layer 0 and the width of one layer, for the script that reads the chart
    step: float
    mixed: bool
    pins: bool


def draw_chart(title: str, layers: Sequence[Charted], changed: bool, met: bool = True) -> Chart:
    """Introduced and inherited SQNR over the layers, what is left under the plan found where it `changed`, and pins.

    `met` says whether that plan is right: only then its curve has the colour of one that is.
    """
    import pygal  # type: ignore[import-untyped]

    places = [float(number) if view.index is None else view.index for number, view in enumerate(layers)]
    pinned = [(x, view) for x, view in zip(places, layers, strict=True) if view.pinned]
    figures = {
        "introduced": [view.introduced for view in layers],
        "inherited": [view.inherited for view in layers],
        # Else the plan found is the variant without pins, and its curve the same.
        "mixed": [view.mixed if changed else None for view in layers],
    }
    scale = scale_of((v for curve in figures.values() for v in curve if v is not None), 10, 20, SETTLED)
    chart = pygal.XY(
        width=1000,
        height=380,
        margin=4,
        x_title="Layer, by its place in the network",
        y_title="SQNR, dB",
        margin_right=12,
        range=scale.range,
        xrange=(min(places) - HALF, max(places) + HALF),
        y_labels=scale.labels,
        x_labels=labels(ticks(min(places), max(places), 12, whole=True)),
        show_legend=False,
        show_dots=False,
        allow_interruptions=True,
        js=[],  # pygal's own tooltips would be fetched from the network
    )
    shifts = {"introduced": 1.0, "inherited": 0.0, "mixed": -1.0}
    names = []
    if pinned:  # first, so that the curves stand over its lines
        chart.add("pins", _pin_marks(pinned, *scale.ends), show_dots=True, dots_size=4)
        names.append("pins")
    for name, values in figures.items():
        if drawn := strokes(places, values, scale, shifts[name], joined=name != "introduced"):
            chart.add(name, drawn)
            names.append(name)
    tree = tree_of(chart)
    tidy(tree, [f"{name} missed" if name == "mixed" and not met else name for name in names])
    first, step = _places(tree)
    words = f"{title}: SQNR over the layers of the network. The layer table below holds all its figures."
    return Chart(as_markup(tree, words), first, step, "mixed" in names, bool(pinned))


def _places(svg: Any) -> tuple[float, float]:
    """Where on the drawing layer 0 stands, and the width of one layer."""
    plot = svg.find("g").find("g[@class='plot']")
    left = float(re.findall(r"[\d.]+", plot.get("transform"))[0])
    marks = [
        (float(text.text.replace("−", "-")), float(text.get("x"))) for text in plot.findall("g[@class='axis x']/g/text")
    ]
    if len(marks) < 2:
        return left + (marks[0][1] if marks else 0.0), 0.0
    step = (marks[-1][1] - marks[0][1]) / (marks[-1][0] - marks[0][0])
    return round(left + marks[0][1] - marks[0][0] * step, 2), round(step, 4)


def _pin_marks(pinned: Iterable[tuple[float, Charted]], bottom: float, top: float) -> list[Any]:
    """A line from bottom to top for each pin, with a dot that says its name."""
    marks: list[Any] = []
    for x, view in pinned:
        name = f"{visible(view.layer)}: pinned to {view.pinned_to.upper()}"
        marks += [{"value": (x, bottom)}, {"value": (x, top), "label": name}, None]
    return marks


def strokes(
    places: Sequence[float], values: Sequence[float | None], scale: Scale, shift: float, joined: bool
) -> list[Point | None]:
    """One curve as strokes, None between two of them; each is as wide as its layers, less a gap.

    Layers next to each other that share a lane make one stroke; finite ones make one where `joined`,
    and one each where not. A layer without a figure is a gap.
    """

    def stretch(item: tuple[int, tuple[float, float | None]]) -> Any:
        number, (_, value) = item
        if value is None:
            return None
        return scale.lane_of(value) or ("finite", 0 if joined else number)

    points: list[Point | None] = []
    for key, items in groupby(enumerate(zip(places, values, strict=True)), key=stretch):
        run = [(x, scale.place(value, shift)) for _, (x, value) in items if value is not None]
        if key is None:
            continue
        if isinstance(key, str):  # a lane: its two ends are enough
            run = [run[0], run[-1]]
            points += [(run[0][0] - HALF, run[0][1]), (run[1][0] + HALF, run[1][1]), None]
        else:
            points += [end for x, y in run for end in ((x - HALF, y), (x + HALF, y))] + [None]
    return points
