"""The network as the report draws it: which layer feeds which, where each stands, and which blocks repeat.

The layout is a layered one (Sugiyama, Tagawa and Toda 1981): a layer stands below all that it takes from (longest
path), the order within a rank is by barycentres, and a link that passes other ranks gets a lane of its own there. It
is ours since none of the libraries fits: grandalf is GPL and rests since 2022, igraph is GPL, fast-sugiyama has wheels
for some machines alone, networkx orders nothing.

A part that repeats is one node until it is opened, then its blocks, then their layers. So that links lead downwards
whatever is open, each part has ranks that hold nothing it depends on: the longest path is that of the parts, a part
being as long as its own longest path. The page leaves ranks out where nothing is shown.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from precisionlab.report.cells import Row, as_flag, as_number, as_text, show, visible
from precisionlab.report.folds import find_folds
from precisionlab.report.layout import lay_out
from precisionlab.report.network import Network


@dataclass(frozen=True)
class Graph:
    """What the page draws. `data` is JSON that can stand inside a script element; `network`: with tensors."""

    data: Markup
    layers: int
    links: int
    folds: int
    network: bool


def draw_graph(layers: Sequence[Row], precisions: Sequence[str], network: Network | None = None) -> Graph | None:
    """The graph of the rows of `layers.csv`; None where they do not say what feeds what, as older runs' do not.

    `network` has its tensors, the model's inputs and outputs, and attributes; None leaves these out.
    """
    rows = {name: [row for row in layers if row["precision"] == name] for name in precisions}
    first = next(iter(rows.values()), [])
    if not first or "inputs" not in first[0]:
        return None
    inputs = read_inputs(first)
    kinds = [as_text(row, "kind") for row in first]
    folds = find_folds(kinds, inputs)
    layout = lay_out(inputs, folds)
    content = {
        "inputs": inputs,
        "ranks": layout.ranks,
        "columns": _hundredths(layout.columns),
        "lanes": {source: _hundredths(lane) for source, lane in layout.lanes.items()},
        "folds": [(fold.start, fold.size, fold.times) for fold in folds],
        "precisions": [_figures(name, mine) for name, mine in rows.items()],
        "network": None if network is None or len(network.layers) != len(first) else _network(network),
    }
    is_whole = content["network"] is not None
    return Graph(_as_data(content), len(first), sum(map(len, inputs)), len(folds), is_whole)


def read_inputs(rows: Sequence[Row]) -> list[list[int]]:
    """Each layer's inputs; what is no other layer of the table is left out."""
    found = []
    for index, row in enumerate(rows):
        numbers = [int(word) for word in as_text(row, "inputs").split() if word.isdecimal()]
        found.append(sorted({number for number in numbers if number < len(rows) and number != index}))
    return found


def _figures(name: str, rows: Sequence[Row]) -> dict[str, Any]:
    """What the nodes are coloured by in one precision."""
    return {
        "title": name.upper(),
        "introduced": [_short(as_number(row, "introduced_sqnr_db", "introduced_nan")) for row in rows],
        "inherited": [_short(as_number(row, "inherited_sqnr_db", "inherited_nan")) for row in rows],
        "runs": [(as_text(row, "pinned_to") or as_text(row, "runs_in")).upper() for row in rows],
        "pinned": [index for index, row in enumerate(rows) if as_flag(row, "pinned")],
        "fixed": [index for index, row in enumerate(rows) if as_text(row, "fixed")],
        "repaired": [index for index, row in enumerate(rows) if "repair" in row and as_text(row, "repair")],
    }


def _network(network: Network) -> dict[str, Any]:
    """The network in short: lists in the order of the fields, names as they are shown."""
    return {
        "tensors": [[visible(tensor.name), visible(tensor.shape), tensor.kind] for tensor in network.tensors],
        "inputs": network.inputs,
        "outputs": network.outputs,
        "gives": [layer.gives for layer in network.layers],
        "takes": [layer.takes for layer in network.layers],
        "weights": [layer.weights for layer in network.layers],
        "nodes": [
            [
                [visible(node.operator), {visible(k): visible(v) for k, v in node.attributes.items()}]
                for node in one.nodes
            ]
            for one in network.layers
        ],
    }


def _short(value: float | None) -> float | str | None:
    """A figure in JSON, which has no NaN and no infinities: those stand as their words."""
    if value is None:
        return None
    return round(value, 1) if math.isfinite(value) else show(value, "g")


def _hundredths(values: Iterable[float]) -> list[int]:
    return [round(100 * value) for value in values]


def _as_data(content: Any) -> Markup:
    """JSON that ends no script element and starts no markup, whatever stands in it."""
    text = json.dumps(content, separators=(",", ":"), allow_nan=False)
    return Markup(text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026"))
