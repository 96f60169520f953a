"""A tensor's histogram as a small picture: where its values lie, and where its INT8 range ends."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from precisionlab.calibration.histogram import Histogram
from precisionlab.report.cells import short_percent, show

COLUMNS = 64


@dataclass(frozen=True)
class Sparkline:
    """A histogram as two SVG paths in a box of WIDTH × HEIGHT.

    `kept` is the outline of what lies within the range, to be filled; `clipped` has a single stroke for each column
    beyond it. `threshold` is where the range ends on the drawing; None where that is not on it. `words` say the
    same for those who do not see it.
    """

    WIDTH = 2 * COLUMNS + 2  # two for each column, one of margin at both ends, so that no line is cut in half
    HEIGHT = 28

    kept: str
    clipped: str
    threshold: float | None
    words: str


def sparkline(histogram: Histogram, amax: float) -> Sparkline | None:
    """Where the values of a tensor lie between 0 and the largest, and where its range ends; None for nothing but zeros.

    The height of a column is logarithmic. Exact zeros are not drawn: every range keeps them, and those of a
    ReLU would flatten all else. Values count as clipped bin by bin, as `Histogram.clipped` counts them.

    Paths written by hand and not by pygal, as the chart of the sweep's report is: pygal gives 10 kB of groups, labels
    and tooltips for a picture that needs 300 bytes and no axis, and there are 700 of them on a page.
    """
    if histogram.amax == 0:
        return None
    counts = histogram.bins.copy()
    counts[0] -= histogram.zeros
    place = np.minimum((np.arange(counts.size) + 0.5) * (histogram.width / histogram.amax) * COLUMNS, COLUMNS - 1)
    shown = 0 <= amax <= histogram.amax
    end = COLUMNS * (amax / histogram.amax) if shown else float(COLUMNS)  # in columns
    first_beyond = math.ceil(amax / histogram.width) if shown and amax < histogram.amax else counts.size
    # The column that the range ends in is split there, and a bin is drawn on the side that it counts to.
    kept = _columns(place[:first_beyond], counts[:first_beyond], 0, max(math.ceil(end) - 1, 0))
    clipped = _columns(place[first_beyond:], counts[first_beyond:], min(int(end), COLUMNS - 1), COLUMNS - 1)
    top = max(int((kept + clipped).max()), 1)
    return Sparkline(
        _outline(_heights(kept, top), end),
        _strokes(_heights(clipped, top), end),
        round(1 + 2 * end, 1) if shown else None,
        _words(histogram, amax, shown),
    )


def _columns(place: NDArray[np.float64], counts: NDArray[np.int64], first: int, last: int) -> NDArray[np.float64]:
    """Bins added up into columns; those that fall beside first … last count to the nearest of these."""
    columns = np.clip(place.astype(np.int64), first, last)
    return np.asarray(np.bincount(columns, weights=counts, minlength=COLUMNS), np.float64)


def _heights(columns: NDArray[np.float64], top: int) -> list[int]:
    """Logarithmic heights; what is not empty can be seen."""
    room = Sparkline.HEIGHT - 1
    return [max(1, round(room * math.log1p(count) / math.log1p(top))) if count else 0 for count in columns]


def _outline(heights: Sequence[int], end: float) -> str:
    """The outline of columns up to `end`, with equal neighbours drawn as one."""
    base, drawn, at, height = Sparkline.HEIGHT, "", 0.0, 0
    for column, now in enumerate([*heights[: math.ceil(end)], 0]):
        here = min(float(column), end)
        if now != height:
            drawn += (f"H{1 + 2 * here:.4g}" if here > at else "") + f"V{base - now}"
            at, height = here, now
    return f"M1 {base}{drawn}z" if drawn else ""


def _strokes(heights: Sequence[int], end: float) -> str:
    """One upright stroke in the middle of each column, of the part beyond `end` in the one that is split."""
    return "".join(
        f"M{1 + max(column, end) + column + 1:.4g} {Sparkline.HEIGHT}v-{height}"
        for column, height in enumerate(heights)
        if height
    )


def _words(histogram: Histogram, amax: float, shown: bool) -> str:
    start = f"Histogram of the magnitudes up to {show(histogram.amax, '.3g')}. "
    if not shown:
        return f"{start}The range ends at {show(amax, '.3g')}, outside the picture."
    beyond = histogram.clipped(amax)
    where = "there" if amax == histogram.amax else f"at {short_percent(amax / histogram.amax)} % of that"
    lies = "nothing lies" if not beyond else f"{short_percent(beyond / histogram.count)} % of the values lie"
    return f"{start}The range ends {where}; {lies} beyond."
