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
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from heapq import heapify, heappop, heappush
from itertools import pairwise
from typing import Any

import numpy as np
from markupsafe import Markup

from precisionlab.report.cells import Row, as_flag, as_number, as_text, show

REPEATS = 3  # a part that repeats fewer times is not folded
LEAST_FOLDED = 12  # layers; where fewer would go, the fold hides more than it clears up

Inputs = Sequence[Sequence[int]]
"""For each layer in topological order, the layers that it takes from."""


@dataclass(frozen=True)
class Graph:
    """What the page draws. `data` is JSON that can stand inside a script element."""

    data: Markup
    layers: int
    links: int
    folds: int


@dataclass(frozen=True)
class Fold:
    """`times` blocks of `size` layers each, alike in kinds and wiring; the first begins at layer `start`."""

    start: int
    size: int
    times: int

    @property
    def end(self) -> int:
        """The first layer behind the blocks."""
        return self.start + self.size * self.times


@dataclass(frozen=True)
class Layout:
    """Where each layer stands: `ranks` count from the top, `columns` are in node widths.

    `lanes` holds, for each layer with a link that passes ranks, the columns where it passes those below the layer.
    """

    ranks: tuple[int, ...]
    columns: tuple[float, ...]
    lanes: Mapping[int, tuple[float, ...]]


def draw_graph(layers: Sequence[Row], precisions: Sequence[str]) -> Graph | None:
    """The graph of the rows of `layers.csv`; None where they do not say what feeds what, as older runs' do not."""
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
    }
    return Graph(_as_data(content), len(first), sum(map(len, inputs)), len(folds))


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


# Folding


def find_folds(kinds: Sequence[str], inputs: Inputs) -> list[Fold]:
    """The parts that repeat, in order: those that cover most first, and of those the shortest block.

    Of a part that overlaps one taken before, the blocks outside it are a part of their own.
    """
    wiring = _Wiring.of(kinds, inputs)
    count = len(kinds)
    found: list[Fold] = []
    inside: list[Fold | None] = [None] * count  # the fold of shortest blocks found so far
    for size in range(1, count // REPEATS + 1):
        for start, end in wiring.stretches(size):
            known = inside[start]
            if known and end <= known.end and size % known.size == 0:
                continue
            start = wiring.beginning(start, size)
            fold = Fold(start, size, (end - start) // size)
            if _is_worth_folding(fold):
                found.append(fold)
                inside[start:end] = [fold] * (end - start)
    return _apart(found, count)


def _is_worth_folding(fold: Fold) -> bool:
    return fold.times >= REPEATS and fold.size * fold.times >= LEAST_FOLDED


def _apart(found: Iterable[Fold], count: int) -> list[Fold]:
    """Of parts that may overlap, those that are folded."""
    free = np.ones(count, bool)
    waiting = [(fold.start - fold.end, fold.size, fold.start) for fold in found]  # the first to be taken is the least
    heapify(waiting)
    chosen: list[Fold] = []
    while waiting:
        less, size, start = heappop(waiting)
        times = -less // size
        blocks = np.asarray(free[start : start - less].reshape(times, size).all(axis=1))
        if blocks.all():
            free[start : start - less] = False
            chosen.append(Fold(start, size, times))
            continue
        for first, end in _runs(blocks, REPEATS):
            rest = Fold(start + first * size, size, end - first)
            if _is_worth_folding(rest):
                heappush(waiting, (rest.start - rest.end, rest.size, rest.start))
    return sorted(chosen, key=lambda fold: fold.start)


_COMPARED = 4  # inputs from either end of a layer's; only a Concat has more


@dataclass(frozen=True)
class _Wiring:
    """Each layer's kind and number of inputs as one code, and its inputs side by side, filled up with −1."""

    codes: np.ndarray
    inputs: np.ndarray

    @classmethod
    def of(cls, kinds: Sequence[str], inputs: Inputs) -> _Wiring:
        known: dict[tuple[str, int], int] = {}
        codes = [known.setdefault((kind, len(taken)), len(known)) for kind, taken in zip(kinds, inputs, strict=True)]
        table = np.full((2 * _COMPARED, len(kinds)), -1)
        for layer, taken in enumerate(inputs):
            few = taken if len(taken) <= len(table) else [*taken[:_COMPARED], *taken[-_COMPARED:]]
            table[: len(few), layer] = few
        return cls(np.array(codes, int), table[(table >= 0).any(axis=1)])

    def stretches(self, size: int) -> list[tuple[int, int]]:
        """Start and end of what repeats with this size of block, but for the first block, for which see `beginning`.

        Each layer is alike to the one a block further on: of the same kind, and its inputs are a block further on as
        well, or the same, which all the blocks share.
        """
        least = (REPEATS - 2) * size
        same = self.codes[:-size] == self.codes[size:]
        if not _runs(same, least):
            return []
        for one in self.inputs:
            moved = one[size:] - one[:-size]
            same &= (moved == 0) | (moved == size)
        return [(start, end + size) for start, end in _runs(same, least)]

    def beginning(self, start: int, size: int) -> int:
        """Where the first block begins: in place of a block before, it takes from what stands before the fold."""
        found = start
        after, least, most = -1, len(self.codes), -1  # inputs of the first block, and in their places of the second
        for layer in range(start - 1, max(start - size, 0) - 1, -1):
            here, there = self.inputs[:, layer], self.inputs[:, layer + size]
            other = (there != here) & (there != here + size)
            if other.any():
                after = max(after, int(here[other].max()))
                least, most = min(least, int(there[other].min())), max(most, int(there[other].max()))
            if self.codes[layer] != self.codes[layer + size] or after >= layer or most >= layer + size:
                break
            if layer <= least:
                found = layer
        return found


def _runs(same: np.ndarray, least: int) -> list[tuple[int, int]]:
    """Start and end of the runs of at least so many true values."""
    edges = np.concatenate(([-1], np.flatnonzero(~same), [len(same)]))
    return [(int(edges[i]) + 1, int(edges[i + 1])) for i in np.flatnonzero(np.diff(edges) > least)]


# Layout


def lay_out(inputs: Inputs, folds: Sequence[Fold] = ()) -> Layout:
    """A layered layout in which every fold and every block of one has ranks of its own."""
    ranks = [0] * len(inputs)
    _rank(_tree(len(inputs), folds), inputs, ranks)
    net = _Net.of(inputs, ranks)
    net.order()
    columns = net.place()
    lanes = {source: tuple(columns[item] for item in lane) for source, lane in net.lanes.items()}
    return Layout(tuple(ranks), tuple(columns[: len(inputs)]), lanes)


@dataclass(frozen=True)
class _Part:
    """A stretch of layers, and the parts that it is made of; one layer has none."""

    first: int
    end: int
    parts: tuple[_Part, ...] = ()


def _tree(count: int, folds: Sequence[Fold]) -> _Part:
    """All layers as a tree: folds, their blocks, and layers."""

    def single(first: int, end: int) -> tuple[_Part, ...]:
        return tuple(_Part(layer, layer + 1) for layer in range(first, end))

    parts: list[_Part] = []
    place = 0
    for fold in folds:
        starts = range(fold.start, fold.end, fold.size)
        blocks = tuple(_Part(at, at + fold.size, single(at, at + fold.size)) for at in starts)
        parts += [*single(place, fold.start), _Part(fold.start, fold.end, blocks)]
        place = fold.end
    return _Part(0, count, (*parts, *single(place, count)))


def _rank(part: _Part, inputs: Inputs, ranks: list[int]) -> int:
    """Set the ranks of a part's layers, counted from its own top; returns how many it takes."""
    if not part.parts:
        return 1
    spans = [_rank(one, inputs, ranks) for one in part.parts]
    owner = [number for number, one in enumerate(part.parts) for _ in range(one.first, one.end)]
    sources = [
        {
            owner[i - part.first]
            for layer in range(one.first, one.end)
            for i in inputs[layer]
            if part.first <= i < one.first
        }
        for one in part.parts
    ]
    starts = _starts(spans, sources)
    for one, start in zip(part.parts, starts, strict=True):
        for layer in range(one.first, one.end):
            ranks[layer] += start
    return max(start + span for start, span in zip(starts, spans, strict=True))


def _starts(spans: Sequence[int], sources: Sequence[set[int]]) -> list[int]:
    """The rank at which each part starts: below all that it takes from; lower where that makes its links shorter."""
    starts: list[int] = []
    for taken in sources:
        starts.append(max((starts[i] + spans[i] for i in taken), default=0))
    ends = [math.inf] * len(spans)  # where the first of a part's consumers starts
    uses = [0] * len(spans)
    for number in reversed(range(len(spans))):
        if uses[number] > len(sources[number]):
            starts[number] = int(ends[number]) - spans[number]
        for i in sources[number]:
            ends[i] = min(ends[i], starts[number])
            uses[i] += 1
    return starts


_LANES = (64, 32, 16, 8, 4, 2)  # how many ranks a link passes at most in a lane; a longer one is drawn as an arc
_LANES_PER_LAYER = 4  # in all, so that time and size stay linear
_LANE_WIDTH = 0.3  # of a node
_PULL = 0.05  # of the middle, beside a link's; without it long networks drift to one side
_ORDERINGS, _PLACINGS = 6, 6  # sweeps; more change little


@dataclass(frozen=True)
class _Net:
    """Layers and the places in their lanes, as items in ranks whose links lead from one rank to the next."""

    layers: int
    rows: list[list[int]]
    above: list[list[int]]
    below: list[list[int]]
    lanes: dict[int, list[int]]

    @classmethod
    def of(cls, inputs: Inputs, ranks: Sequence[int]) -> _Net:
        rows: list[list[int]] = [[] for _ in range(max(ranks, default=-1) + 1)]
        for layer, rank in enumerate(ranks):
            rows[rank].append(layer)
        reach = _reach(inputs, ranks)
        above: list[list[int]] = [[] for _ in inputs]
        below: list[list[int]] = [[] for _ in inputs]
        lanes: dict[int, list[int]] = {}

        def link(upper: int, lower: int) -> None:
            below[upper].append(lower)
            above[lower].append(upper)

        for target, taken in enumerate(inputs):
            for source in taken:
                passed = ranks[target] - ranks[source] - 1
                if not 0 <= passed <= reach:
                    continue
                lane = lanes.setdefault(source, []) if passed else []
                while len(lane) < passed:
                    above.append([])
                    below.append([])
                    item = len(above) - 1
                    link(lane[-1] if lane else source, item)
                    lane.append(item)
                    rows[ranks[source] + len(lane)].append(item)
                link(lane[passed - 1] if passed else source, target)
        return cls(len(inputs), rows, above, below, lanes)

    def order(self) -> None:
        """Order every rank by the barycentres of its items' links, downwards and upwards in turn."""
        at = [0.0] * len(self.above)
        for row in self.rows:
            _number(row, at)
        for sweep in range(_ORDERINGS):
            down = sweep % 2 == 0
            links = self.above if down else self.below
            for row in self.rows if down else reversed(self.rows):
                if len(row) > 1:
                    keys = {i: sum(at[j] for j in links[i]) / len(links[i]) if links[i] else at[i] for i in row}
                    row.sort(key=keys.__getitem__)
                    _number(row, at)

    def place(self) -> list[float]:
        """Each item's column: near its links', in the order of its rank, no two too near each other."""
        at = [0.0] * len(self.above)
        width = [1.0 if item < self.layers else _LANE_WIDTH for item in range(len(at))]
        both = [[*up, *down] for up, down in zip(self.above, self.below, strict=True)]
        for sweep in range(_PLACINGS):
            down = sweep % 2 == 0
            links = both if sweep == _PLACINGS - 1 else self.above if down else self.below
            for row in self.rows if down else reversed(self.rows):
                wanted = [sum(at[j] for j in links[i]) / (len(links[i]) + _PULL) if links[i] else at[i] for i in row]
                _spread(row, wanted, width, [1.0 + len(links[i]) for i in row], at)
        return at


def _reach(inputs: Inputs, ranks: Sequence[int]) -> int:
    """The longest way in a lane that keeps all lanes together short."""
    for most in _LANES:
        lanes: dict[int, int] = {}
        for target, taken in enumerate(inputs):
            for source in taken:
                passed = ranks[target] - ranks[source] - 1
                if passed <= most:
                    lanes[source] = max(lanes.get(source, 0), passed)
        if sum(lanes.values()) <= _LANES_PER_LAYER * len(inputs):
            return most
    return 0


def _number(row: Sequence[int], at: list[float]) -> None:
    """Number a rank's items from its middle, so that ranks of unlike lengths can be compared."""
    for place, item in enumerate(row):
        at[item] = place - (len(row) - 1) / 2


def _spread(
    row: Sequence[int], wanted: Sequence[float], width: Sequence[float], weights: Sequence[float], at: list[float]
) -> None:
    """Place a rank's items as near as can be to where they want to stand, with room between them.

    Without the room that each needs this is a regression under an order, which pooling adjacent violators solves.
    """
    if len(row) == 1:
        at[row[0]] = wanted[0]
        return
    room = [0.0]
    for left, right in pairwise(row):
        room.append(room[-1] + (width[left] + width[right]) / 2)
    pools: list[tuple[float, float, int]] = []  # mean, weight, items
    for wish, weight, needed in zip(wanted, weights, room, strict=True):
        pool = (wish - needed, weight, 1)
        while pools and pools[-1][0] > pool[0]:
            mean, mass, items = pools.pop()
            total = mass + pool[1]
            pool = ((mean * mass + pool[0] * pool[1]) / total, total, items + pool[2])
        pools.append(pool)
    means = [mean for mean, _, items in pools for _ in range(items)]
    for item, mean, needed in zip(row, means, room, strict=True):
        at[item] = mean + needed
