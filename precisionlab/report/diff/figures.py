"""One figure of two runs: what it is called, how it is written, and whether it became better or worse.

Nothing decides by a rounding: a change that no page would show is none; nor is one that lies within what other samples
might have changed.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from precisionlab.compare.metrics import METRICS, Metric, Scope
from precisionlab.report.cells import show

Ends = tuple[float, float]
WORSE, BETTER, SAME = "worse", "better", "same"


@dataclass(frozen=True)
class Kind:
    """What a figure is called, how it is written, by how much it may differ unseen, and whether more is better.

    With `share` it may differ by so much of A's figure instead. A `decisive` one says whether a run became better or
    worse as a whole, others say the same as one that is. `of_output` says that each output has one.
    """

    words: str
    unit: str
    form: str
    least: float
    more: bool

    share: float | None = None
    decisive: bool = True
    of_output: bool = False


_OTHERS: Mapping[str, Kind] = {
    "pins": Kind("pins", "", ".0f", 0.0, False),
    "cost": Kind("cost", "share of FP32", ".3f", 5e-4, False),
    "latency": Kind("latency", "ms", ".3g", 0.0, False, share=0.03),  # times jitter
}
"""Figures that are no metrics: what a plan takes, not how far it errs."""


def kinds() -> dict[str, Kind]:
    """Name → all figures that are compared: the metrics that grow first, then those that shrink, then the others."""
    metrics = sorted(METRICS.values(), key=lambda metric: not metric.higher_is_better)
    return {**{m.name: _of_metric(m) for m in metrics if m.least_change is not None}, **_OTHERS}


def output_kinds() -> tuple[str, ...]:
    """The names of those that an output has of its own."""
    return tuple(name for name, kind in kinds().items() if kind.of_output)


def run_kinds() -> tuple[str, ...]:
    """The names of those metrics that are of the task or the whole network."""
    return tuple(name for name, kind in kinds().items() if name in METRICS and not kind.of_output)


def _kind(name: str) -> Kind:
    return _OTHERS.get(name) or _of_metric(METRICS[name])


def _of_metric(m: Metric) -> Kind:
    words, least, of_output = m.short or m.title, m.least_change or 0.0, m.scope is Scope.OUTPUT
    return Kind(words, m.unit, m.form, least, m.higher_is_better, m.least_share, m.decisive, of_output)


@dataclass(frozen=True)
class Change:
    """One figure in both runs; None where it does not exist, NaN where it was measured as such.

    `kind` is a key such as "sqnr", `output` the output that it belongs to (None: the worst), `held_out` whether it is
    that of the samples that chose nothing. `intervals` are the 95 % intervals of A's figure and of B's over samples;
    None where there is none. `beside` is another figure of the same sums, which says whether this one is within.
    """

    kind: str
    before: float | None
    after: float | None
    output: str | None = None
    held_out: bool = False
    intervals: tuple[Ends | None, Ends | None] = (None, None)
    beside: Change | None = None

    @property
    def of(self) -> Kind:
        """What kind of figure it is."""
        return _kind(self.kind)

    @property
    def name(self) -> str:
        """The figure as a condition names it: `sqnr`, `sqnr[logits]`."""
        return self.kind if self.output is None else f"{self.kind}[{self.output}]"

    @property
    def label(self) -> str:
        """The figure in words."""
        words, unit = self.of.words, self.of.unit
        which = "" if self.output is None else f" of {self.output}"
        return words + which + (" held out" if self.held_out else "") + (f", {unit}" if unit else "")

    @property
    def loss(self) -> float | None:
        """By how much B is worse, in the figure's unit; negative where it is better, infinite where a NaN came."""
        if self.before is None or self.after is None:
            return None
        if self.before == self.after or (math.isnan(self.before) and math.isnan(self.after)):
            return 0.0
        if math.isnan(self.before) or math.isnan(self.after):
            return math.inf if math.isnan(self.after) else -math.inf
        return self.before - self.after if self.of.more else self.after - self.before

    @property
    def is_within(self) -> bool:
        """Whether each run's figure lies within the other's interval: other samples might have turned them round."""
        if self.beside is not None:
            return self.beside.is_within
        figures = (self.after, self.before)
        return all(
            ends is not None and figure is not None and ends[0] <= figure <= ends[1]
            for ends, figure in zip(self.intervals, figures, strict=True)
        )

    @property
    def trend(self) -> str:
        """Worse, better or the same; the same too where one is missing, or no digit shown differs, or `is_within`."""
        return SAME if self.is_within else self._trend

    @property
    def _trend(self) -> str:
        loss = self.loss
        if loss is None:
            return SAME
        kind = self.of
        least = kind.share * abs(self.before) if kind.share is not None and self.before else kind.least
        return WORSE if loss > least else BETTER if loss < -least else SAME

    @property
    def texts(self) -> tuple[str, str, str]:
        """A's figure, B's, and the change as it is written, with its sign."""
        form = self.of.form
        change = "" if self.loss is None or self._trend == SAME else _signed(self, form)
        return show(self.before, form), show(self.after, form), change


def _signed(change: Change, form: str) -> str:
    """B's figure less A's; nothing where that is no number."""
    by = (change.after or 0.0) - (change.before or 0.0)
    return show(by, "+" + form) if math.isfinite(by) else ""
