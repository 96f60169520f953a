"""Near-ties of NonMaxSuppression: boxes that noise alone makes it keep or drop.

The boxes and scores ahead of it, on either side, tell which box each row is, and for a box that one side alone keeps
what decided it: its score at the threshold, an overlap at the threshold, two scores in the other order, or another box
that is such a case itself. Where that decision lies within the noise of what is ahead, the row is a near-tie.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from precisionlab.model.pickers import Suppression

Array = NDArray[Any]
Box = tuple[int, int, int]
"""Batch, class, and place among the boxes."""

NOISE = 4.0
"""A decision so many times the noise away from its threshold is none of noise."""

HALF = 2.0**-11
"""What one rounding to half moves a value by, relatively: no noise is taken for less."""

_ONE_SIGMA = 0.6827
_FEWEST = 8
"""Of fewer boxes than that the noise cannot be told."""


@dataclass(frozen=True)
class Chosen:
    """Rows told by what they are: for each of the reference its twin's place or −1, and the near-ties of both sides."""

    twin: NDArray[np.int64]
    fallen: NDArray[np.int64]
    risen: NDArray[np.int64]


@dataclass(frozen=True)
class Detections:
    """What NonMaxSuppression takes: boxes (batch, boxes, 4) and scores (batch, classes, boxes)."""

    how: Suppression
    boxes: Array
    scores: Array

    @cached_property
    def corners(self) -> NDArray[np.float32]:
        """Low and high corners of each box, float32 (batch, boxes, 2, 2)."""
        boxes = self.boxes.astype(np.float32)
        if self.how.centered:
            centre, half = boxes[..., :2], boxes[..., 2:] / np.float32(2)
            return np.stack([centre - half, centre + half], -2)
        ends = boxes.reshape(*boxes.shape[:2], 2, 2)
        return np.stack([ends.min(-2), ends.max(-2)], -2)

    @cached_property
    def kept(self) -> dict[Box, None]:
        """The boxes kept, in the operator's order."""
        batches, classes, _ = self.scores.shape
        return {
            (batch, label, place): None
            for batch in range(batches)
            for label in range(classes)
            for place in self._kept_of(batch, label)
        }

    def kept_in(self, box: Box) -> list[int]:
        """The places kept of the same batch and class."""
        return [place for batch, label, place in self.kept if (batch, label) == box[:2]]

    def overlap(self, batch: int, one: int, others: Array) -> NDArray[np.float32]:
        """The intersection over the union of a box with others."""
        return overlap_of(self.corners[batch, one], self.corners[batch, others])

    def _kept_of(self, batch: int, label: int) -> list[int]:
        scores = self.scores[batch, label]
        left = np.argsort(-scores, kind="stable")
        if self.how.score is not None:
            left = left[scores[left] > np.float32(self.how.score)]
        found: list[int] = []
        while left.size and len(found) < self.how.most:
            found.append(int(left[0]))
            left = left[1:]
            left = left[~(self.overlap(batch, found[-1], left) > np.float32(self.how.iou))]
        return found


def overlap_of(one: Array, others: Array) -> NDArray[np.float32]:
    """Intersection over union of boxes given by their corners, (…, 2, 2), as ONNX Runtime computes it."""
    low, high = np.maximum(one[..., 0, :], others[..., 0, :]), np.minimum(one[..., 1, :], others[..., 1, :])
    inner = np.prod(np.maximum(high - low, np.float32(0)), -1)
    first, second = (np.prod(box[..., 1, :] - box[..., 0, :], -1) for box in (one, others))
    union = first + second - inner
    with np.errstate(divide="ignore", invalid="ignore"):
        share = inner / union
    return np.asarray(np.where((inner > 0) & (first > 0) & (second > 0), share, 0), np.float32)


def chosen_rows(reference: Detections, output: Detections, rows: tuple[int, int]) -> Chosen | None:
    """The rows of both sides by the boxes that they are; None where there are not as many rows as boxes kept."""
    sides = (reference, output)
    if reference.scores.shape != output.scores.shape or tuple(len(side.kept) for side in sides) != rows:
        return None
    place = {box: row for row, box in enumerate(output.kept)}
    twin = np.array([place.get(box, -1) for box in reference.kept], np.int64)
    only = [[box for box in side.kept if box not in other.kept] for side, other in (sides, sides[::-1])]
    ties = _Ties(sides, set(only[0]) | set(only[1])) if any(only) else None
    near = [
        np.array([row for row, box in enumerate(side.kept) if ties and box in only[k] and ties.is_near(k, box)], int)
        for k, side in enumerate(sides)
    ]
    return Chosen(twin, near[0], near[1])


class _Ties:
    """Whether the boxes that one side alone keeps are near-ties."""

    def __init__(self, sides: tuple[Detections, Detections], only: set[Box]) -> None:
        self._sides = sides
        self._how = sides[0].how
        self._known: dict[tuple[int, Box], bool] = {}
        self._score_noise = NOISE * _score_noise(sides, only)
        self._overlap_noise = NOISE * _overlap_noise(sides, only)

    def is_near(self, side: int, box: Box) -> bool:
        """Whether the other side drops a box by no more than noise."""
        if (side, box) not in self._known:
            self._known[side, box] = False  # what explains itself explains nothing
            self._known[side, box] = self._is_near(side, box)
        return self._known[side, box]

    def _is_near(self, side: int, box: Box) -> bool:
        here, there = self._sides[side], self._sides[1 - side]
        batch, _, place = box
        line = self._how.score
        if line is not None and not there.scores[box] > np.float32(line):
            return bool(here.scores[box] - line <= self._score_noise and line - there.scores[box] <= self._score_noise)
        kept = np.array(there.kept_in(box), np.int64)
        ahead = kept[there.scores[batch, box[1], kept] >= there.scores[box]]
        over = ahead[there.overlap(batch, place, ahead) > np.float32(self._how.iou)]
        if over.size:
            return all(self._is_near_pair(side, box, int(other)) for other in over)
        if len(kept) < self._how.most:
            return False
        last = int(kept[-1])
        return self._in_other_order(box, last) or any(self._is_new(side, (box[0], box[1], int(k))) for k in kept)

    def _is_near_pair(self, side: int, box: Box, other: int) -> bool:
        """Whether it is by noise that the one side drops a box for the other one, and this side does not."""
        if self._is_new(side, (box[0], box[1], other)) or self._in_other_order(box, other):
            return True
        overlaps = [float(one.overlap(box[0], box[2], np.array([other]))[0]) for one in self._sides]
        return overlaps[side] <= self._how.iou and all(abs(o - self._how.iou) <= self._overlap_noise for o in overlaps)

    def _is_new(self, side: int, other: Box) -> bool:
        return other not in self._sides[side].kept and self.is_near(1 - side, other)

    def _in_other_order(self, box: Box, other: int) -> bool:
        """Whether the scores of two boxes stand in another order by noise."""
        apart = [float(one.scores[box] - one.scores[(box[0], box[1], other)]) for one in self._sides]
        return apart[0] * apart[1] <= 0 and max(map(abs, apart)) <= np.sqrt(2) * self._score_noise


def _score_noise(sides: tuple[Detections, Detections], only: set[Box]) -> float:
    """One standard deviation of what the scores of candidates, or of the highest ones, differ by.

    Of those that both sides treat alike: what is to be explained is no noise.
    """
    first, second = (side.scores.astype(np.float64) for side in sides)
    highest = np.maximum(first, second)
    line = sides[0].how.score
    least = highest.max(initial=0.0)
    of = highest > (least if line is None else line)
    for box in only:
        of[box] = False
        highest[box] = -np.inf
    if np.count_nonzero(of) < _FEWEST:
        few = min(_FEWEST, highest.size)
        of = highest >= np.partition(highest.reshape(-1), -few)[-few]
    return max(sigma(np.abs(first - second)[of]), HALF * least if np.isfinite(least) else 0.0)


def _overlap_noise(sides: tuple[Detections, Detections], only: set[Box]) -> float:
    """One standard deviation of how much less than wholly a box overlaps with itself on the other side."""
    of = np.ones(sides[0].boxes.shape[:2], bool)
    for batch, _, place in only:
        of[batch, place] = False
    itself = overlap_of(sides[0].corners, sides[1].corners)
    candidates = np.maximum(sides[0].scores, sides[1].scores).max(1, initial=0.0) > (sides[0].how.score or 0.0)
    of = of & candidates if np.count_nonzero(of & candidates) >= _FEWEST else of
    return max(sigma(1 - itself[of].astype(np.float64)), HALF)


def sigma(errors: Array) -> float:
    """One standard deviation of errors, by their size alone and whatever the few largest are; 0 where they are few."""
    found = errors[np.isfinite(errors)]
    return float(np.quantile(found, _ONE_SIGMA)) if found.size >= _FEWEST else 0.0
