"""Near-ties of a threshold whose mask picks rows: values that noise alone lets pass or not."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from precisionlab.compare.suppression import HALF, NOISE, Chosen, sigma
from precisionlab.model.pickers import Threshold

_FEWEST = 8


def passed_rows(how: Threshold, reference: NDArray[Any], output: NDArray[Any], rows: tuple[int, int]) -> Chosen | None:
    """The rows of both sides by the values that they passed with; None where there are not as many rows as such."""
    true, low = (side.astype(np.float64).reshape(-1) for side in (reference, output))
    passing = [how.passes(side) for side in (true, low)]
    if true.shape != low.shape or tuple(int(np.count_nonzero(side)) for side in passing) != rows:
        return None
    place = np.where(passing[1], np.cumsum(passing[1]) - 1, -1)
    twin = place[passing[0]]
    noise = NOISE * _noise(true, low, passing[0] != passing[1], how.line)
    near = np.maximum(np.abs(true - how.line), np.abs(low - how.line)) <= noise
    fallen = np.flatnonzero((near & ~passing[1])[passing[0]])
    risen = np.flatnonzero((near & ~passing[0])[passing[1]])
    return Chosen(twin, fallen, risen)


def _noise(true: NDArray[np.float64], low: NDArray[np.float64], flipped: NDArray[np.bool_], line: float) -> float:
    """One standard deviation of what the values nearest to the line differ by, of those that do not cross it."""
    distance = np.where(flipped, np.inf, np.abs(true - line))
    nearest = np.argsort(distance)[: max(_FEWEST, len(distance) // 4)]
    nearest = nearest[np.isfinite(distance[nearest])]
    return max(sigma(np.abs(true - low)[nearest]), HALF * abs(line))
