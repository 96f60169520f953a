"""Rows that an operator picks by value, matched with their twins: the same rows may stand in another order.

Rows are assigned by how close they are, all tensors of the same rows together: scores, boxes and classes of one row
belong together. What has no twin is an error as large as itself, so that what is lost is seen.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import astuple, dataclass
from functools import reduce
from operator import add
from typing import Any

import numpy as np
from numpy.typing import NDArray

from precisionlab.compare.suppression import Chosen
from precisionlab.system.plain import Count

Array = NDArray[Any]
Scores = tuple[NDArray[np.float64], NDArray[np.float64]]
"""Of the reference's rows and the output's: float64 (batches, rows), or (rows,) of one batch."""

_TWIN = 0.25
"""Rows further apart than that are no twins: a quarter of how far rows lie from their mean, squared."""

_OUTLIER = 25.0
"""A pair so many times as far apart as the median pair is, squared, is one only for want of a better one."""

_INTEGER = 0.01
"""What another class or index adds to the distance of two rows: it decides between rows that are equally close."""

_AT_CUT = 4.0
"""A score so many times the noise of the twins' scores above the lowest one picked may fall below it."""

CUT_SHARE = 0.05
"""Of the rows, how many at most are set aside as fallen at the cut."""

_PAIRS = 1 << 24
"""Pairs of rows looked at; of more rows only those near each other in the order."""


@dataclass(frozen=True)
class RowCounts:
    """What became of rows: how many the reference and the output have, and how many have no twin in the other.

    `at_cut` of both together are near-ties: they fell out of what was picked, or came to stand in it, by no more than
    the noise of what they were picked by; `fallen` are those of the reference. They are no error, and not among `lost`
    and `new`; of many that happens by more than noise, see `is_aside`. `other_number` counts the samples, of `samples`,
    where there are more or fewer rows than in the reference.

    Of places that an ArgMax or ArgMin chooses an entry for, `choices`, another one is taken for `near`, as near-ties
    that are no error, and for `differ` others.
    """

    reference: Count = 0
    output: Count = 0
    lost: Count = 0
    new: Count = 0
    at_cut: Count = 0
    moved: Count = 0
    other_number: Count = 0
    samples: Count = 0
    fallen: Count = 0
    choices: Count = 0
    near: Count = 0
    differ: Count = 0

    def __add__(self, other: RowCounts) -> RowCounts:
        return RowCounts(*(a + b for a, b in zip(astuple(self), astuple(other), strict=True)))

    @property
    def is_aside(self) -> bool:
        """Whether no more of the rows are set aside than near-ties may be."""
        most = max(1, int(CUT_SHARE * self.reference))
        few = self.near <= max(1, int(CUT_SHARE * self.choices))
        return few and max(self.fallen, self.at_cut - self.fallen) <= most

    def to_list(self) -> list[int]:
        """Plain values, for the journal; read back by `of_plain`."""
        return list(astuple(self))


@dataclass(frozen=True)
class Matched:
    """One tensor with its rows matched: `reference` and `output` in the order of the reference's rows, of one shape.

    The axis of rows is where it was; of several batches the rows stand behind each other. A row that is lost is zero in
    `output`, one at the cut in both. `extra` are the rows that only the output has. `twins` says for each row whether
    it has one.
    """

    reference: Array
    output: Array
    extra: Array
    twins: NDArray[np.bool_]


@dataclass(frozen=True)
class Matching:
    """All tensors with the same rows, matched, and what became of the rows; `strict` with no near-tie set aside."""

    tensors: Mapping[str, Matched]
    counts: RowCounts
    strict: Matching | None = None


def match_rows(
    reference: Mapping[str, Array],
    output: Mapping[str, Array],
    axes: Mapping[str, int],
    scale: Mapping[str, Array],
    scores: Scores | None,
    choose: Callable[[tuple[int, int]], Chosen | None] | None = None,
) -> Matching | None:
    """Match the rows of tensors that have the same rows, along `axes`; None where their shapes do not allow it.

    `scale` is by what a float tensor's features, float64 (features,) of one row, are divided before they are compared.
    `scores` of either side tell what stands at the cut. `choose` tells rows by what they are, where that is
    known, from how many there are on either side.
    """
    folded = [{name: fold_rows(side[name], axis) for name, axis in axes.items()} for side in (reference, output)]
    batches = {rows.shape[0] for side in folded for rows in side.values()}
    counts = [{rows.shape[1] for rows in side.values()} for side in folded]
    features = all(folded[0][name].shape[2] == folded[1][name].shape[2] for name in axes)
    if len(batches) != 1 or any(len(found) != 1 for found in counts) or not features:
        return None
    pairs = []
    for batch in range(len(next(iter(folded[0].values())))):
        sides = [{name: rows[batch] for name, rows in side.items()} for side in folded]
        own = None if scores is None else (scores[0][batch], scores[1][batch])
        chosen = None
        if choose is not None and batches == {1}:
            chosen = choose((min(counts[0]), min(counts[1])))
        pairs.append(_chosen_pairs(chosen, *map(min, counts)) if chosen else _pairs(sides[0], sides[1], scale, own))
    other = RowCounts(other_number=int(counts[0] != counts[1]), samples=1)

    def matching(every: Sequence[_Pairs], strict: Matching | None) -> Matching:
        total = reduce(add, (pair.counts for pair in every), other)
        tensors = {name: _matched(reference[name], output[name], axis, every) for name, axis in axes.items()}
        return Matching(tensors, total, strict)

    has_ties = any(pair.counts.at_cut for pair in pairs)
    return matching(pairs, matching([pair.strict or pair for pair in pairs], None) if has_ties else None)


@dataclass(frozen=True)
class _Pairs:
    """Of one batch: for each row of the reference its twin's place or −1, and rows set aside on either side.

    `strict` is the same with none set aside.
    """

    twin: NDArray[np.int64]
    at_cut: NDArray[np.bool_]
    extra: NDArray[np.int64]
    counts: RowCounts
    strict: _Pairs | None = None


def fold_rows(array: Array, axis: int) -> Array:
    """(batches, rows, features) of a tensor whose rows lie along `axis`."""
    if axis == 0:
        return array.reshape(1, array.shape[0], _features(array, (0,)))
    moved = np.moveaxis(array, axis, 1)
    return moved.reshape(moved.shape[0], moved.shape[1], _features(array, (0, axis)))


def _features(array: Array, without: Sequence[int]) -> int:
    return int(np.prod([size for k, size in enumerate(array.shape) if k not in without], dtype=np.int64))


def _pairs(
    reference: Mapping[str, Array], output: Mapping[str, Array], scale: Mapping[str, Array], scores: Scores | None
) -> _Pairs:
    from precisionlab.compare import assignment  # numba takes a while: not before it is needed

    first, second = (_features_of(side, scale) for side in (reference, output))
    whole = [
        np.concatenate([rows.astype(np.int64) for name, rows in side.items() if name not in scale] or [_none(side)], 1)
        for side in (reference, output)
    ]
    n, m = len(first), len(second)
    width = max(n, m) if n * m <= _PAIRS else max(1, _PAIRS // max(n, m) // 2)
    twin, distance = assignment.assign(first, second, whole[0], whole[1], _INTEGER, width)
    is_twin = (twin >= 0) & (distance <= _TWIN)
    twin = np.where(is_twin, twin, -1)
    missing = np.ones(m, bool)
    missing[twin[is_twin]] = False
    moved = int(np.count_nonzero(twin[is_twin] != np.flatnonzero(is_twin)))
    is_outlier = is_twin & (distance > _OUTLIER * np.median(distance[is_twin])) if is_twin.any() else ~is_twin
    fallen, risen = _at_cut(twin, is_outlier, np.flatnonzero(missing), scores)
    return _settled(twin, fallen, risen, m, moved)


def _chosen_pairs(chosen: Chosen, n: int, m: int) -> _Pairs:
    kept = chosen.twin[chosen.twin >= 0]
    moved = int(np.count_nonzero(kept != np.flatnonzero(chosen.twin >= 0)))
    assert len(chosen.twin) == n
    return _settled(chosen.twin, chosen.fallen, chosen.risen, m, moved)


def _settled(
    twin: NDArray[np.int64], fallen: NDArray[np.int64], risen: NDArray[np.int64], m: int, moved: int
) -> _Pairs:
    """The pairs with these rows of either side, of `m` in the output, set aside."""
    none = np.zeros(0, np.int64)
    strict = _settled(twin, none, none, m, moved) if len(fallen) or len(risen) else None
    n = len(twin)
    missing = np.ones(m, bool)
    missing[twin[twin >= 0]] = False
    twin = twin.copy()
    twin[fallen] = -1
    lost = int(np.count_nonzero(twin < 0)) - len(fallen)
    extra = np.setdiff1d(np.flatnonzero(missing), risen)
    at_cut = np.zeros(n, bool)
    at_cut[fallen] = True
    counts = RowCounts(n, m, lost, len(extra), len(fallen) + len(risen), moved, fallen=len(fallen))
    return _Pairs(twin, at_cut, extra, counts, strict)


def _features_of(side: Mapping[str, Array], scale: Mapping[str, Array]) -> NDArray[np.float64]:
    """The float features of each row in units of their scale, (rows, features)."""
    found = [side[name].astype(np.float64) / scale[name] for name in scale]
    return np.ascontiguousarray(np.concatenate(found or [_none(side).astype(np.float64)], 1))


def _none(side: Mapping[str, Array]) -> NDArray[np.int64]:
    return np.zeros((len(next(iter(side.values()))), 0), np.int64)


def _at_cut(
    twin: NDArray[np.int64], is_outlier: NDArray[np.bool_], new: NDArray[np.int64], scores: Scores | None
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The rows of either side without a true twin that stand at the cut: as low as the lowest that was picked.

    But for the noise that the scores of the twins have. Where more rows do than noise moves, none is set aside.
    """
    none = np.zeros(0, np.int64)
    close = np.flatnonzero((twin >= 0) & ~is_outlier)
    if scores is None or not close.size or np.count_nonzero(twin < 0) != len(new):
        return none, none  # of another number of rows the lowest one picked tells no cut
    first, second = scores
    noise = float(np.sqrt(np.mean((first[close] - second[twin[close]]) ** 2)))
    line = min(first.min(), second.min()) + _AT_CUT * noise
    lost = np.flatnonzero((twin < 0) | is_outlier)
    fallen = lost[first[lost] <= line]
    fallen = fallen[(twin[fallen] < 0) | (second[twin[fallen]] <= line)]
    risen = np.concatenate([new[second[new] <= line], twin[fallen[twin[fallen] >= 0]]])
    most = max(1, int(CUT_SHARE * max(len(first), len(second))))
    return (fallen, risen) if max(len(fallen), len(risen)) <= most else (none, none)


def _matched(reference: Array, output: Array, axis: int, pairs: Sequence[_Pairs]) -> Matched:
    parts: list[tuple[Array, Array, Array]] = []
    for batch, pair in enumerate(pairs):
        one = slice(None) if axis == 0 else slice(batch, batch + 1)
        true, low = (np.moveaxis(array[one], axis, 0) for array in (reference, output))
        paired = np.zeros_like(true, dtype=low.dtype)
        paired[pair.twin >= 0] = low[pair.twin[pair.twin >= 0]]
        true = true.copy()
        true[pair.at_cut] = 0
        parts.append((true, paired, low[pair.extra]))
    joined = [np.moveaxis(np.concatenate(side), 0, axis) for side in zip(*parts, strict=True)]
    return Matched(joined[0], joined[1], joined[2], np.concatenate([pair.twin >= 0 for pair in pairs]))
