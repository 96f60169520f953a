"""What the report's charts share: scales with lanes for what is no number, ticks, and pygal's drawing made plain."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from xml.etree import ElementTree

from markupsafe import Markup

from precisionlab.report.cells import show

SETTLED = 120.0
"""Above so many dB an SQNR is drawn as no error: float32's own sums leave less, and one such spike flattens a chart."""


@dataclass(frozen=True)
class Scale:
    """Where figures stand: finite ones on an axis, the others in lanes of their own, with those above `most`."""

    low: float
    high: float
    lanes: Mapping[str, float]
    lane_height: float
    most: float = math.inf

    def lane_of(self, value: float) -> str | None:
        """The lane that a figure stands in; None for one that has its place on the axis."""
        if value > self.most:
            return "∞"
        return None if math.isfinite(value) else show(value, "g")

    def place(self, value: float, shift: float = 0.0) -> float:
        """The height of a figure; `shift` in −1…1 keeps curves that share a lane apart."""
        lane = self.lane_of(value)
        return value if lane is None else self.lanes[lane] + shift * self.lane_height / 4

    @property
    def ends(self) -> tuple[float, float]:
        """The lowest and the highest of axis and lanes."""
        return min([self.low, *self.lanes.values()]), max([self.high, *self.lanes.values()])

    @property
    def range(self) -> tuple[float, float]:
        """The ends, with room beyond them."""
        bottom, top = self.ends
        return bottom - self.lane_height / 2, top + self.lane_height / 2

    @property
    def labels(self) -> list[dict[str, Any]]:
        """What stands at the axis."""
        top = "∞" if math.isinf(self.most) else f"> {self.most:g}"
        lanes = [{"value": height, "label": top if kind == "∞" else kind} for kind, height in self.lanes.items()]
        return labels(ticks(self.low, self.high, 6)) + lanes


def scale_of(values: Iterable[float], unit: float, least: float, most: float = math.inf) -> Scale:
    """A scale with room for the finite values and a lane for each kind of other that occurs.

    Its ends are multiples of `unit`, and `least` apart at least. Values above `most` are drawn as infinite ones.
    """
    found = [math.inf if value > most else value for value in values]
    finite = [value for value in found if math.isfinite(value)] or [0.0, 3 * least]
    low, high = math.floor(min(finite) / unit) * unit, math.ceil(max(finite) / unit) * unit
    high = max(high, low + least)
    height = (high - low) * 0.1
    kinds = {show(value, "g") for value in found if not math.isfinite(value)}
    below = [kind for kind in ("−∞", "NaN") if kind in kinds]
    lanes: dict[str, float] = {kind: low - (place + 0.4) * height for place, kind in enumerate(below, 1)}
    if "∞" in kinds:
        lanes["∞"] = high + 1.4 * height
    return Scale(low, high, lanes, height, most)


def labels(values: Iterable[float], unit: str = "") -> list[dict[str, Any]]:
    """Labels at these values of an axis, as pygal takes them."""
    return [{"value": value, "label": show(value, "g") + unit} for value in values]


def ticks(low: float, high: float, about: int, whole: bool = False) -> list[float]:
    """Round numbers from low to high, about so many."""
    step = round_step((high - low) / about)
    if whole:
        step = max(1.0, step)
    return [step * n for n in range(math.ceil(low / step), math.floor(high / step) + 1)]


def round_step(rough: float) -> float:
    """1, 2 or 5 times a power of ten, no less than so much."""
    rough = max(rough, 1e-9)
    power = 10.0 ** math.floor(math.log10(rough))
    return next(power * f for f in (1, 2, 5, 10) if power * f >= rough * 0.999)


def tree_of(chart: Any) -> Any:
    """A pygal chart as a tree of the standard library's elements, whether or not lxml is installed.

    pygal takes lxml where it finds it, whose elements differ in what can be done with them.
    """
    from pygal.etree import etree  # type: ignore[import-untyped]

    was_lxml = etree.lxml
    etree.to_etree()
    try:
        return chart.render_tree()
    finally:
        if was_lxml:
            etree.to_lxml()


_DECIMALS = re.compile(r"(\.\d)\d+")


def tidy(svg: Any, names: Sequence[str]) -> None:
    """Take out of pygal's drawing what the page does not use, and name its curves.

    Its style, script and hidden tooltips go (the page's own style applies); a curve becomes one path,
    with coordinates to a tenth of a pixel; classes say what a curve is.
    """
    for child in list(svg):
        if not isinstance(child.tag, str) or child.tag in ("defs", "title"):
            svg.remove(child)
    svg.attrib.pop("id", None)
    graph = svg.find("g")
    for group in list(graph):
        if "text-overlay" in group.get("class", "") or "tooltip-overlay" in group.get("class", ""):
            graph.remove(group)
    for element in list(svg.iter("g")):
        _tidy_group(element, names)


def as_markup(svg: Any, description: str) -> Markup:
    """The drawing as an image with a description. An XML serialiser escapes every name in it."""
    svg.set("role", "img")
    svg.set("aria-label", description)
    return Markup(ElementTree.tostring(svg, encoding="unicode"))


def _tidy_group(group: Any, names: Sequence[str]) -> None:
    kind = group.get("class", "")
    if kind == "guides":  # its <title> would show a lane's height as if it were a figure
        for title in group.findall("title"):
            group.remove(title)
    elif kind == "dots":
        _name_dot(group)
    elif match := re.match(r"series serie-(\d+)", kind):
        group.set("class", f"curve {names[int(match[1])]}")
        paths = group.findall("path")
        if paths:
            drawn = "".join(path.get("d") for path in paths)
            paths[0].attrib = {"d": _DECIMALS.sub(r"\1", drawn).replace(" L", "L")}
            for path in paths[1:]:
                group.remove(path)


def _name_dot(dot: Any) -> None:
    """Turn a dot's hidden description into the <title> that browsers show; a dot without one goes."""
    label = dot.find("desc[@class='label']")
    circle = dot.find("circle")
    for child in list(dot):
        dot.remove(child)
    if label is not None:
        dot.append(circle)
        ElementTree.SubElement(circle, "title").text = label.text
