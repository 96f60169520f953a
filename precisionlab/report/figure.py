"""Drawings that stand by themselves: an SVG with its own style, which a notebook shows and a file keeps."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

import pandas as pd

from precisionlab.errors import OptionError
from precisionlab.report.cells import records_of, visible
from precisionlab.report.chart import draw_chart
from precisionlab.report.each_layer import by_itself
from precisionlab.report.views import layer_view
from precisionlab.results.sweep import SweepFindings
from precisionlab.system.disk import told, write_whole

_STYLE = """
text{fill:#525c67;font:13px system-ui,sans-serif}
.axis.y text{text-anchor:end}.axis.x text{text-anchor:middle}
.axis path,.guides path,.line{stroke:#d5dbe1;fill:none}.background{fill:none}
.curve path{fill:none;stroke-width:2;stroke-linecap:round}
.introduced path{stroke:#b3541e;stroke-width:3}.inherited path{stroke:#2b6cb0}
.mixed path{stroke:#1d7a46;stroke-dasharray:4 5}
.one-on path{stroke:#b3541e;stroke-width:3}.one-off path{stroke:#2b6cb0;stroke-width:1.8}
.whole path{stroke:#b3261e;stroke-dasharray:5 4}
.pins path{stroke:#6b3fa0;stroke-width:1.2;stroke-dasharray:2 3}.pins circle{fill:#6b3fa0}
"""


@dataclass(frozen=True, repr=False)
class Figure:
    """A drawing. `svg` is the whole file's text; the title says what it shows."""

    title: str
    svg: str

    def save(self, path: str | Path) -> Path:
        """Write it as an SVG file, whole or not at all. Raises OptionError where that cannot be done."""
        file = Path(path)
        with told(file, "choose another place"):
            write_whole(file, self.svg)
        return file

    def __repr__(self) -> str:
        """One line."""
        return f"Figure({visible(self.title)})"

    def _repr_svg_(self) -> str:
        return self.svg


def layers_figure(result: SweepFindings, layers: pd.DataFrame, precision: str) -> Figure:
    """The error along the network: introduced, inherited, what is left under the plan found, and pins.

    `layers` is the table of `layers.csv`.
    """
    rows = [row for row in records_of(layers) if row["precision"] == precision]
    plan = result.plans[precision]
    outcome = next(one for one in result.precisions if one.precision.value == precision)
    title = f"{result.model.path.name}, {precision}: SQNR over the layers, dB"
    chart = draw_chart(title, [layer_view(row) for row in rows], bool(plan.pins or plan.repairs), outcome.met)
    return standing(title, str(chart.svg))


def each_figure(result: SweepFindings, layers: pd.DataFrame, precision: str) -> Figure:
    """Each layer alone in the precision and alone in float32, in the network's order.

    Raises OptionError where none was measured so.
    """
    rows = [row for row in records_of(layers) if row["precision"] == precision]
    found = by_itself(result.run["precisions"][precision]["each_layer"], rows, precision.upper())
    if found is None:
        raise OptionError(f"{precision}: no layer was measured by itself; sweep with each_layer, a number of samples")
    title = f"{result.model.path.name}, {precision}: {found.figure} with each layer by itself"
    return standing(title, str(found.chart))


def standing(title: str, svg: str) -> Figure:
    """A drawing of a page as a file of its own: with a style, a ground and a legend."""
    ElementTree.register_namespace("", "http://www.w3.org/2000/svg")
    tree = ElementTree.fromstring(svg)
    style = ElementTree.Element("style")
    style.text = _STYLE
    tree.insert(0, style)
    ground = ElementTree.Element("rect", {"width": "100%", "height": "100%", "fill": "#fff"})
    tree.insert(1, ground)
    if not tree.tag.startswith("{"):
        tree.set("xmlns", "http://www.w3.org/2000/svg")
    return Figure(title, ElementTree.tostring(tree, encoding="unicode"))
