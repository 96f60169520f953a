"""A histogram in so few numbers that a run can keep one for each of thousands of tensors, and a report draw it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from precisionlab.calibration.histogram import BINS, Histogram
from precisionlab.system.plain import Amount, Count, of_plain

OCTAVES = 10
PARTS = 4  # of each octave, of equal width, as two bits of a float's mantissa tell them apart
COARSE = OCTAVES * PARTS
_FIRST = BINS >> OCTAVES  # of the fine bins: below it an octave has fewer than PARTS
_STARTS = np.array([(_FIRST << octave) // PARTS * (PARTS + part) for octave in range(OCTAVES) for part in range(PARTS)])

_FURTHEST = 200  # powers of two: those of float32 end at −149 and 128


@dataclass(frozen=True)
class CoarseHistogram:
    """|x| of a tensor over any number of samples.

    `bins` counts the finite values from 2^(exponent − 10) to 2^exponent: four bins of equal width to each octave, in
    rising order. `below` counts what is smaller and not zero, `zeros` exact zeros, `nonfinite` NaN and Inf. `amax` is
    the largest finite |x|.
    """

    exponent: int
    bins: tuple[Count, ...]
    below: Count
    zeros: Count
    nonfinite: Count
    amax: Amount

    @classmethod
    def of(cls, histogram: Histogram) -> CoarseHistogram:
        """The same values in fewer bins: each fine bin lies within one of them, so that nothing is estimated."""
        bins = np.add.reduceat(histogram.bins, _STARTS)
        below = int(histogram.bins[:_FIRST].sum()) - histogram.zeros
        return cls(
            histogram.exponent, tuple(bins.tolist()), below, histogram.zeros, histogram.nonfinite, histogram.amax
        )

    @property
    def count(self) -> int:
        """How many finite values."""
        return sum(self.bins) + self.below + self.zeros

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {
            "exponent": self.exponent,
            "bins": list(self.bins),
            "below": self.below,
            "zeros": self.zeros,
            "nonfinite": self.nonfinite,
            "amax": self.amax,
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> CoarseHistogram:
        """What `to_dict` wrote. Raises ValueError where it is something else."""
        found = of_plain(cls, data)
        if len(found.bins) != COARSE or not abs(found.exponent) <= _FURTHEST or not math.isfinite(found.amax):
            raise ValueError("not a histogram")
        return found
