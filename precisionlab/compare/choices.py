"""Near-ties of ArgMax and ArgMin: places where the best value and another one are equal but for noise."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from precisionlab.model.choices import Choice, Chosen

Arrays = Mapping[str, NDArray[Any]]

_NOISE = 4.0
_ONE_SIGMA = 0.6827
_FEWEST = 8
_HALF = 2.0**-11
"""What one rounding to half moves a value by, relatively: the noise where few places tell it."""


@dataclass(frozen=True)
class Flips:
    """For each place chosen for, in C order, whether another entry is taken, and whether that is a near-tie."""

    flipped: NDArray[np.bool_]
    near: NDArray[np.bool_]


def flips_of(chosen: Chosen, reference: Arrays, output: Arrays) -> Flips | None:
    """What the choices make of each place; None where what they go by is not at hand.

    Of several choices for one place, as a residual quantiser makes, the first that differs decides: the others follow.
    """
    flips: Flips | None = None
    for choice in chosen.choices:
        if choice.scores not in reference or choice.scores not in output:
            return None
        true, low = (_by_place(choice, side[choice.scores]) for side in (reference, output))
        if true.shape != low.shape or (flips is not None and len(true) != len(flips.near)):
            return None
        own = _flips(true, low)
        flips = own if flips is None else Flips(flips.flipped | own.flipped, flips.near | (own.near & ~flips.flipped))
    return flips


def without(array: NDArray[Any], axes: tuple[int, ...], places: NDArray[np.bool_]) -> NDArray[Any] | None:
    """The array with zeros at these places along its axes; None where it has not as many."""
    sizes = [array.shape[axis] for axis in axes if axis < array.ndim]
    if len(sizes) < len(axes) or int(np.prod(sizes)) != len(places):
        return None
    copy: NDArray[Any] = array.copy()
    np.moveaxis(copy, axes, range(len(axes)))[places.reshape(sizes)] = 0
    return copy


def _by_place(choice: Choice, scores: NDArray[Any]) -> NDArray[np.float64]:
    """(places, entries), the best being the largest."""
    entries = np.moveaxis(scores.astype(np.float64), choice.axis, -1)
    entries = entries.reshape(-1, entries.shape[-1])
    return entries if choice.is_largest else -entries


def _flips(true: NDArray[np.float64], low: NDArray[np.float64]) -> Flips:
    """How far the two best entries of the other places move against each other is the noise."""
    line = np.arange(len(true))
    best, best_low = true.argmax(1), low.argmax(1)
    flipped = best != best_low
    others = true.copy()
    others[line, best] = -np.inf
    second = others.argmax(1)
    with np.errstate(invalid="ignore"):
        shifts = np.abs((low[line, best] - low[line, second]) - (true[line, best] - true[line, second]))[~flipped]
        shifts = shifts[np.isfinite(shifts)]
        least = _HALF * float(np.abs(true[line, best]).max(initial=0.0))
        noise = _NOISE * (float(np.quantile(shifts, _ONE_SIGMA)) if shifts.size >= _FEWEST else least)
        distance = np.maximum(true[line, best] - true[line, best_low], low[line, best_low] - low[line, best])
    return Flips(flipped, flipped & (distance <= noise))
