"""Where the layers of a graph stand: ranks downwards, and a place in each rank."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from precisionlab.report.folds import Fold, Inputs

_ORDERINGS, _PLACINGS = 6, 6  # sweeps; more change little


@dataclass(frozen=True)
class Layout:
    """Where each layer stands: `ranks` count from the top, `columns` are in node widths.

    `lanes` holds, for each layer with a link that passes ranks, the columns where it passes those below the layer.
    """

    ranks: tuple[int, ...]
    columns: tuple[float, ...]
    lanes: Mapping[int, tuple[float, ...]]


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
