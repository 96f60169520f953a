"""One figure of two runs: what it is called, how it is written, and whether it became better or worse.

Nothing decides by a rounding: a change that no page would show is none.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from precisionlab.report.cells import show

WORSE, BETTER, SAME = "worse", "better", "same"


@dataclass(frozen=True)
class Kind:
    """What a figure is called, how it is written, by how much it may differ unseen, and whether more is better."""

    words: str
    form: str
    least: float
    more: bool


KINDS: Mapping[str, Kind] = {
    "sqnr": Kind("SQNR, dB", ".1f", 0.05, True),
    "cosine": Kind("cosine", ".5f", 5e-6, True),
    "top1": Kind("equal top-1", ".3f", 5e-4, True),
    "metric": Kind("task metric", ".3f", 5e-4, True),
    "rel_l2": Kind("relative L2", ".3g", 0.0, False),
    "max_error": Kind("largest error", ".3g", 0.0, False),
    "nonfinite": Kind("NaN/Inf tensors", ".0f", 0.0, False),
    "pins": Kind("pins", ".0f", 0.0, False),
    "cost": Kind("cost, share of FP32", ".3f", 5e-4, False),
    "latency": Kind("latency, ms", ".3g", 0.0, False),
}
ERRORS = ("sqnr", "cosine", "top1", "rel_l2", "max_error")
_RELATIVE = {"rel_l2": 0.005, "max_error": 0.005, "latency": 0.03}  # of A's: digits not shown, and times that jitter
DECISIVE = ("sqnr", "top1", "metric", "nonfinite", "pins", "cost", "latency")  # others say the same as the SQNR


@dataclass(frozen=True)
class Change:
    """One figure in both runs; None where it does not exist, NaN where it was measured as such.

    `kind` is a key such as "sqnr", `output` the output that it belongs to (None: the worst), `held_out` whether it is
    that of the samples that chose nothing.
    """

    kind: str
    before: float | None
    after: float | None
    output: str | None = None
    held_out: bool = False

    @property
    def name(self) -> str:
        """The figure as a condition names it: `sqnr`, `sqnr[logits]`."""
        return self.kind if self.output is None else f"{self.kind}[{self.output}]"

    @property
    def label(self) -> str:
        """The figure in words."""
        words, _, unit = KINDS[self.kind].words.partition(", ")
        of = "" if self.output is None else f" of {self.output}"
        return words + of + (" held out" if self.held_out else "") + (f", {unit}" if unit else "")

    @property
    def loss(self) -> float | None:
        """By how much B is worse, in the figure's unit; negative where it is better, infinite where a NaN came."""
        if self.before is None or self.after is None:
            return None
        if self.before == self.after or (math.isnan(self.before) and math.isnan(self.after)):
            return 0.0
        if math.isnan(self.before) or math.isnan(self.after):
            return math.inf if math.isnan(self.after) else -math.inf
        return self.before - self.after if KINDS[self.kind].more else self.after - self.before

    @property
    def trend(self) -> str:
        """Worse, better or the same; the same too where one of the two is missing, or no digit shown differs."""
        loss = self.loss
        if loss is None:
            return SAME
        least = KINDS[self.kind].least
        if self.kind in _RELATIVE and self.before:
            least = _RELATIVE[self.kind] * abs(self.before)
        return WORSE if loss > least else BETTER if loss < -least else SAME

    @property
    def texts(self) -> tuple[str, str, str]:
        """A's figure, B's, and the change as it is written, with its sign."""
        form = KINDS[self.kind].form
        change = "" if self.loss is None or self.trend == SAME else _signed(self, form)
        return show(self.before, form), show(self.after, form), change


def _signed(change: Change, form: str) -> str:
    """B's figure less A's; nothing where that is no number."""
    by = (change.after or 0.0) - (change.before or 0.0)
    return show(by, "+" + form) if math.isfinite(by) else ""
