"""Whether B is worse than allowed: verdicts that fell, and the conditions of `--fail-if`."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from precisionlab.errors import OptionError
from precisionlab.report.diff.figures import Change, kinds
from precisionlab.report.diff.plans import PrecisionChange
from precisionlab.report.redraw import RunFiles
from precisionlab.search.verdict import State

_CONDITION = re.compile(r"\s*(\w+)\s*(?:\[(.+)\])?\s+(drop|rise)\s*>\s*(\d+(?:\.\d+)?(?:e-?\d+)?)\s*(%?)\s*", re.I)


@dataclass(frozen=True)
class Condition:
    """By how much a figure of the plans found may become worse: "sqnr drop>1", "cost rise>5%"."""

    text: str
    kind: str
    output: str | None
    most: float
    relative: bool

    @classmethod
    def parse(cls, text: str) -> Condition:
        """Read a condition. Raises OptionError for anything else, and for a change that would be for the better."""
        match, known = _CONDITION.fullmatch(text), kinds()
        if match is None or match[1].lower() not in known:
            raise OptionError(
                f'--fail-if {text!r}: write FIGURE drop>NUMBER or FIGURE rise>NUMBER, such as "sqnr drop>1" or '
                f'"cost rise>5%", FIGURE one of {", ".join(known)}, or FIGURE[OUTPUT] for one output'
            )
        kind, falls = match[1].lower(), match[3].lower() == "drop"
        if falls != known[kind].more:
            raise OptionError(f"--fail-if {text!r}: {kind} is worse when it {'rises' if falls else 'drops'}; say that")
        if match[2] is not None and not known[kind].of_output:
            raise OptionError(f"--fail-if {text!r}: {kind} is of the whole network, not of an output")
        percent = bool(match[5])
        return cls(text.strip(), kind, match[2], float(match[4]) / (100 if percent else 1), percent)

    def concerns(self, change: Change) -> bool:
        """Whether it is about this figure."""
        return change.kind == self.kind and change.output == self.output

    def breaks(self, change: Change) -> bool:
        """Whether the figure became worse by more; also where B does not have it any more."""
        if change.before is None:
            return False
        loss = change.loss
        if loss is None:
            return not change.held_out  # B may have held out nothing: that is a setting
        return loss == math.inf or loss > self.most * (abs(change.before) if self.relative else 1)


def failures_of(
    before: RunFiles, after: RunFiles, precisions: Sequence[PrecisionChange], conditions: Sequence[Condition]
) -> Iterable[str]:
    """Why B is worse than A allows, a sentence each. Raises OptionError for a condition on a figure A does not have."""
    for name, found in before.run["precisions"].items():
        if found["met"] and name not in after.run["precisions"]:
            yield f"{name}: the tolerance was met, and B did not sweep it"
    for precision in precisions:
        if precision.met == (True, False):
            said = precision.verdicts[1]
            why = "not met any more" if said.state is State.NOT_MET else f"now {said.mark}"
            yield f"{precision.name}: the tolerance was met, and is {why}"
    for condition in conditions:
        concerned = [(p, c) for p in precisions for c in p.found if condition.concerns(c) and c.before is not None]
        if precisions and not concerned:
            raise OptionError(f"--fail-if {condition.text!r}: {before.folder} has no such figure")
        for precision, change in concerned:
            if condition.breaks(change):
                a, b, _ = change.texts
                yield f"{precision.name}: {condition.text}: {change.label} {a} → {b}"
