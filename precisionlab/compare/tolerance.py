"""What counts as right: bounds on the worst final output, and no NaN or Inf on the way that is no rounding."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from precisionlab.compare.comparison import Comparison
from precisionlab.compare.metrics import METRICS, SQNR, Metric, Scope
from precisionlab.errors import OptionError
from precisionlab.precision import Precision

# An output's name may hold anything but "]" in front of a comparison: commas, colons and slashes too.
_BOUND = re.compile(r"\s*(\w+)\s*(?:\[(.+?)\])?\s*(>=|<=)\s*([-+.\deE]+)\s*(?:,|$)")


@dataclass(frozen=True)
class Bound:
    """One condition, such as sqnr>=30, or sqnr[logits]>=30 for one output; without a name the worst output's."""

    metric: str
    at_least: bool
    value: float
    output: str | None = None

    def __str__(self) -> str:
        return f"{self.figure}{'>=' if self.at_least else '<='}{self.value:g}"

    @property
    def of_metric(self) -> Metric:
        """The metric that it bounds."""
        return METRICS[self.metric]

    @property
    def figure(self) -> str:
        """What it is about: sqnr, or sqnr[logits]."""
        return self.metric if self.output is None else f"{self.metric}[{self.output}]"

    def admits(self, figure: float) -> bool:
        """Whether such a figure holds it; False for NaN."""
        return figure >= self.value if self.at_least else figure <= self.value

    def of(self, comparison: Comparison) -> float:
        """The figure that it is about."""
        return comparison.worst(self.metric, self.output)

    def holds(self, comparison: Comparison) -> bool:
        """False for NaN, whatever the bound."""
        return self.admits(self.of(comparison))

    def margin(self, comparison: Comparison) -> float:
        """How far the figure is on the right side (negative: on the wrong one); −inf for NaN."""
        figure = self.of(comparison)
        if math.isnan(figure):
            return -math.inf
        return figure - self.value if self.at_least else self.value - figure

    def excess(self, comparison: Comparison) -> float:
        """How many times the squared error that it allows there is; NaN where it is about none, or allows none."""
        squared = self.of_metric.squared
        if squared is None or self.at_least is not self.of_metric.higher_is_better:
            return math.nan
        if not (allowed := squared(self.value)) > 0:
            return math.nan
        return squared(self.of(comparison)) / allowed

    def tighter(self, by: float) -> Bound:
        """The same bound, stricter by so much."""
        return replace(self, value=self.value + by if self.at_least else self.value - by)


Tolerance = tuple[Bound, ...]


def parse_tolerance(texts: Iterable[str]) -> Tolerance:
    """Read conditions such as "sqnr>=30", "sqnr>=30,top1>=0.99" or "sqnr[logits]>=40".

    Raises OptionError for an unknown metric or a bound in the senseless direction.
    """
    return tuple(bound for text in texts for bound in _bounds(text))


def _bounds(text: str) -> Iterator[Bound]:
    place = 0
    while place < len(text) or place == 0:
        match = _BOUND.match(text, place)
        if not match:
            raise _unreadable(text)
        yield _bound(text, match)
        place = match.end()
    if text.rstrip().endswith(","):
        raise _unreadable(text)


def _unreadable(text: str) -> OptionError:
    return OptionError(
        f"tolerance {text!r}: write METRIC>=NUMBER or METRIC<=NUMBER, METRIC one of {', '.join(METRICS)}, "
        "or METRIC[OUTPUT]>=NUMBER for one output"
    )


def _bound(text: str, match: re.Match[str]) -> Bound:
    name, output, at_least = match[1], match[2], match[3] == ">="
    metric = METRICS.get(name)
    if metric is None or (output is not None and metric.scope is not Scope.OUTPUT):
        raise _unreadable(text)
    try:
        value = float(match[4])
    except ValueError:
        raise OptionError(f"tolerance {text!r}: {match[4]!r} is not a number") from None
    if not metric.two_sided and at_least != metric.higher_is_better:
        raise OptionError(
            f"tolerance {text!r}: {name} is better when {'lower' if at_least else 'higher'}; turn the sign"
        )
    return Bound(name, at_least, value, output)


def default_tolerance(precision: Precision) -> Tolerance:
    """What the precision's format is held to: sqnr>=30 for floats, sqnr>=20 for int8."""
    return (Bound(SQNR, True, precision.number_format.sqnr_db),)


def meets(comparison: Comparison, tolerance: Sequence[Bound]) -> bool:
    """Whether a variant is right.

    Every bound holds, and no tensor on the way has a NaN or Inf that the reference does not have: a CPU kernel such
    as ReduceMax or Clip may have swallowed it before the output, and a GPU's does not. But an Inf in place of a value
    that the precision cannot hold (the −3.4e38 of an attention mask, which softmax makes 0 as it does −Inf) is right
    where the output is; who wants none of those either asks for nonfinite<=0.
    """
    return not comparison.broken and all(bound.holds(comparison) for bound in tolerance)


def closeness(comparison: Comparison, tolerance: Sequence[Bound]) -> tuple[int, float]:
    """Orders variants by how near they come: fewer broken tensors first, then the worst margin."""
    return -len(comparison.broken), min((bound.margin(comparison) for bound in tolerance), default=0.0)


def excess(comparison: Comparison, tolerance: Sequence[Bound]) -> float:
    """How many times the squared error that the bounds allow there is: above 1 it is too much.

    By the worst of those that are about a squared error. NaN where none is, or where something else keeps the variant
    from being right: a broken tensor, another bound.
    """
    found = [share for bound in tolerance if not math.isnan(share := bound.excess(comparison))]
    worst = max(found, default=math.nan)
    return worst if meets(comparison, tolerance) or (worst > 1 and not comparison.broken) else math.nan
