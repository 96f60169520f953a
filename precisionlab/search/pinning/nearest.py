"""Which of the plans tried comes nearest to a tolerance that none of them holds."""

from __future__ import annotations

import math
from collections.abc import Mapping

from precisionlab.compare.comparison import Comparison
from precisionlab.compare.confidence import interval
from precisionlab.compare.tolerance import Tolerance, closeness
from precisionlab.evaluate.ranges import typical_sqnr
from precisionlab.search.pinning.choice import Key

TYPICAL = (
    "which of the plans tried is nearest hangs on the samples: of those that they cannot tell apart (within the best "
    "one's 95 % interval) the one that is most exact on the typical sample is taken"
)


def nearest(found: Mapping[Key, Comparison], tolerance: Tolerance) -> Key:
    """The plan that comes nearest; `found` has the evaluated ones, at least one.

    One bad sample can rule an error over all, and which pins it asks for is chance. So among the plans whose figure
    lies within the 95 % interval of the best one's the typical sample decides; of the same the fewest pins.
    """
    best = strictly_nearest(found, tolerance)
    broken, margin = closeness(found[best], tolerance)
    bound = min(tolerance, key=lambda one: one.margin(found[best]))
    ends = interval(found[best], bound)
    if ends is None:
        return best
    least = min(margin, ends.low - bound.value if bound.at_least else bound.value - ends.high)
    near = [key for key in found if closeness(found[key], tolerance) >= (broken, least)]
    return max(near, key=lambda key: (_or_least(typical_sqnr(found[key])), closeness(found[key], tolerance), -len(key)))


def strictly_nearest(found: Mapping[Key, Comparison], tolerance: Tolerance) -> Key:
    """The same by the figures alone."""
    return max(found, key=lambda key: (closeness(found[key], tolerance), -len(key)))


def _or_least(sqnr: float) -> float:
    return -math.inf if math.isnan(sqnr) else sqnr
