"""What counts as right: bounds on the worst final output, and no new NaN or Inf anywhere."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from precisionlab.compare.comparison import LOWER_IS_BETTER, Comparison
from precisionlab.errors import OptionError
from precisionlab.precision import Precision

_METRICS = ("sqnr", "cosine", "rel_l2", "max_error", "top1", "metric", "metric_drop")
_BOUND = re.compile(r"\s*(\w+)\s*(>=|<=)\s*([-+.\deE]+)\s*")

# Noise of a thousandth of the signal's power for the float formats, of a hundredth for int8: what
# models in good health reach, and what task metrics do not notice.
DEFAULT_SQNR = {Precision.FP32: 30.0, Precision.FP16: 30.0, Precision.BF16: 30.0, Precision.INT8: 20.0}


@dataclass(frozen=True)
class Bound:
    """One condition, such as sqnr>=30."""

    metric: str
    at_least: bool
    value: float

    def __str__(self) -> str:
        return f"{self.metric}{'>=' if self.at_least else '<='}{self.value:g}"

    def holds(self, comparison: Comparison) -> bool:
        """False for NaN, whatever the bound."""
        figure = comparison.worst(self.metric)
        return figure >= self.value if self.at_least else figure <= self.value

    def margin(self, comparison: Comparison) -> float:
        """How far the figure is on the right side (negative: on the wrong one); −inf for NaN."""
        figure = comparison.worst(self.metric)
        if math.isnan(figure):
            return -math.inf
        return figure - self.value if self.at_least else self.value - figure


Tolerance = tuple[Bound, ...]


def parse_tolerance(texts: Iterable[str]) -> Tolerance:
    """Read conditions such as "sqnr>=30" or "sqnr>=30,top1>=0.99".

    Raises OptionError for an unknown metric or a bound in the senseless direction.
    """
    return tuple(_bound(part) for text in texts for part in text.split(","))


def _bound(text: str) -> Bound:
    match = _BOUND.fullmatch(text)
    if not match or match[1] not in _METRICS:
        raise OptionError(
            f"tolerance {text!r}: write METRIC>=NUMBER or METRIC<=NUMBER, METRIC one of {', '.join(_METRICS)}"
        )
    metric, at_least = match[1], match[2] == ">="
    try:
        value = float(match[3])
    except ValueError:
        raise OptionError(f"tolerance {text!r}: {match[3]!r} is not a number") from None
    if metric != "metric" and at_least == (metric in LOWER_IS_BETTER):
        raise OptionError(
            f"tolerance {text!r}: {metric} is better when {'lower' if at_least else 'higher'}; turn the sign"
        )
    return Bound(metric, at_least, value)


def default_tolerance(precision: Precision) -> Tolerance:
    """sqnr>=30 for the float formats, sqnr>=20 for int8."""
    return (Bound("sqnr", True, DEFAULT_SQNR[precision]),)


def meets(comparison: Comparison, tolerance: Sequence[Bound]) -> bool:
    """Whether a variant is right.

    Every bound holds, and no tensor on the way has a NaN or Inf that the reference does not have: a CPU
    kernel such as ReduceMax or Clip may have swallowed it before the output, and a GPU's does not.
    """
    return not comparison.nonfinite and all(bound.holds(comparison) for bound in tolerance)


def closeness(comparison: Comparison, tolerance: Sequence[Bound]) -> tuple[int, float]:
    """Orders variants by how near they come: fewer non-finite tensors first, then the worst margin."""
    return -len(comparison.nonfinite), min((bound.margin(comparison) for bound in tolerance), default=0.0)
