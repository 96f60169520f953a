"""A part of a graph as a drawing that needs no script: nodes from top to bottom, and what feeds what."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from xml.etree import ElementTree

from markupsafe import Markup

from precisionlab.report.cells import visible
from precisionlab.report.drawing import as_markup
from precisionlab.report.layout import Layout, lay_out

MOST_NODES = 400
"""More no sweep writes; a stranger's file may."""

_W, _H, _COLUMN, _ROW, _EDGE = 196, 40, 212, 62, 6
_HEAD, _BESIDE_A_TAG, _NAME = 23, 15, 27
"""Letters that fit: of a head, of one beside the word for what became of the node, of a name."""
_WORDS = {"new": "new", "gone": "gone", "changed": "changed"}


@dataclass(frozen=True)
class DrawnNode:
    """A node as it is drawn; see `precisionlab.report.subgraph.changed_part`."""

    name: str
    kind: str
    constants: tuple[str, ...]
    state: str
    inputs: tuple[int, ...]
    beyond: tuple[int, ...]

    @property
    def is_edge(self) -> bool:
        """Whether it is an input or output of the model."""
        return self.kind in ("input", "output")

    @property
    def words(self) -> str:
        """`Mul x~scaled (2^-9)`."""
        constants = f" ({', '.join(self.constants)})" if self.constants else ""
        return f"{self.kind} {self.name}{constants}"


def nodes_of(entries: Sequence[Mapping[str, Any]]) -> tuple[DrawnNode, ...]:
    """What `run.json` holds of a part. Raises ValueError for what no sweep writes."""
    if len(entries) > MOST_NODES:
        raise ValueError(f"a part of {len(entries)} nodes")
    return tuple(_node_of(entry, place) for place, entry in enumerate(entries))


def _node_of(entry: Mapping[str, Any], place: int) -> DrawnNode:
    links = [tuple(int(source) for source in entry[key]) for key in ("inputs", "beyond")]
    if not all(0 <= source < place for link in links for source in link):
        raise ValueError(f"node {place} takes from what does not stand before it")
    constants = tuple(map(str, entry["constants"]))
    return DrawnNode(str(entry["name"]), str(entry["kind"]), constants, str(entry["state"]), *links)


@dataclass(frozen=True)
class PartDrawing:
    """A drawing, and how wide it is, in pixels."""

    svg: Markup
    width: int


def draw_part(nodes: Sequence[DrawnNode], description: str) -> PartDrawing:
    """The drawing of a part, as wide as it needs."""
    layout = lay_out([sorted({*node.inputs, *node.beyond}) for node in nodes])
    columns = [*layout.columns, *(column for lane in layout.lanes.values() for column in lane)]
    left, right = min(columns, default=0.0), max(columns, default=0.0)
    width = round(_COLUMN * (right - left) + _W + 2 * _EDGE)
    height = _ROW * max(layout.ranks, default=0) + _H + 2 * _EDGE
    svg = ElementTree.Element(
        "svg", {"class": "part", "viewBox": f"0 0 {width} {height}", "width": str(width), "height": str(height)}
    )
    place = _Places(layout, left)
    for target, node in enumerate(nodes):
        for source in sorted({*node.inputs, *node.beyond}):
            far = source not in node.inputs
            path = {"d": place.path(source, target), "class": "link far" if far else "link"}
            ElementTree.SubElement(svg, "path", path)
    for number, node in enumerate(nodes):
        _draw_node(svg, node, *place.of(number))
    return PartDrawing(as_markup(svg, description), width)


@dataclass(frozen=True)
class _Places:
    layout: Layout
    left: float

    def of(self, node: int) -> tuple[float, float]:
        """The middle of a node's upper edge."""
        return self._x(self.layout.columns[node]), _EDGE + _ROW * self.layout.ranks[node]

    def _x(self, column: float) -> float:
        return _EDGE + _W / 2 + _COLUMN * (column - self.left)

    def path(self, source: int, target: int) -> str:
        """From the lower edge of one node to the upper of another, past the nodes between, with an arrow's head."""
        (x, y), (to_x, to_y) = self.of(source), self.of(target)
        y += _H
        drawn = f"M{x:.1f} {y:.1f}"
        passed = self.layout.ranks[target] - self.layout.ranks[source] - 1
        for lane, column in enumerate(self.layout.lanes.get(source, ())[:passed]):
            lane_x, lane_y = self._x(column), _EDGE + _ROW * (self.layout.ranks[source] + 1 + lane)
            drawn += _curve(x, y, lane_x, lane_y) + f"V{lane_y + _H:.1f}"
            x, y = lane_x, lane_y + _H
        return drawn + _curve(x, y, to_x, to_y) + "m-3.5 -6l3.5 6l3.5 -6"


def _curve(x: float, y: float, to_x: float, to_y: float) -> str:
    bend = (to_y - y) / 2
    return f"C{x:.1f} {y + bend:.1f} {to_x:.1f} {to_y - bend:.1f} {to_x:.1f} {to_y:.1f}"


def _draw_node(svg: ElementTree.Element, node: DrawnNode, x: float, y: float) -> None:
    word = _WORDS.get(node.state, "")
    group = ElementTree.SubElement(svg, "g", {"class": "edge" if node.is_edge else word or "kept"})
    ElementTree.SubElement(group, "title").text = _short(visible(node.words), 200)
    box = {"width": str(_W), "height": str(_H), "rx": str(_H // 2 if node.is_edge else 6)}
    ElementTree.SubElement(group, "rect", {"x": f"{x - _W / 2:.1f}", "y": f"{y:.1f}", **box})
    head = " ".join((node.kind, *(f"· {text}" for text in node.constants)))
    _text(group, x - _W / 2 + 10, y + 17, _short(visible(head), _BESIDE_A_TAG if word else _HEAD), "head")
    _text(group, x - _W / 2 + 10, y + 32, _tail(visible(node.name), _NAME), "what")
    if word:
        _text(group, x + _W / 2 - 8, y + 17, word, "state")


def _text(group: ElementTree.Element, x: float, y: float, text: str, kind: str) -> None:
    element = ElementTree.SubElement(group, "text", {"x": f"{x:.1f}", "y": f"{y:.1f}", "class": kind})
    element.text = text


def _short(text: str, letters: int) -> str:
    return text if len(text) <= letters else text[: letters - 1] + "…"


def _tail(text: str, letters: int) -> str:
    """The end of a long name, which tells more than its beginning."""
    return text if len(text) <= letters else "…" + text[1 - letters :]
