"""Parts of a network that repeat, found to be drawn once: the blocks of a transformer."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from heapq import heapify, heappop, heappush

import numpy as np

REPEATS = 3  # a part that repeats fewer times is not folded


LEAST_FOLDED = 12  # layers; where fewer would go, the fold hides more than it clears up


Inputs = Sequence[Sequence[int]]
"""For each layer in topological order, the layers that it takes from."""


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
