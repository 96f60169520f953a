"""What a verdict stands on: whether the float32 reference has numbers to compare with, and gives them again."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from precisionlab.compare.comparison import Comparison
from precisionlab.compare.metrics import SQNR, ErrorMetric, Scope
from precisionlab.compare.tolerance import Bound, Tolerance
from precisionlab.search.certificate import json_number
from precisionlab.search.undefined import Undefined
from precisionlab.system.wording import counted

HEADROOM = 10.0
"""So many dB must the reference's own answer to a change in the last bits stand above what a tolerance asks: else most
of the noise that a precision may make is the model's own, and another machine's float32 might pass or fail as well."""

MEASURED_BY = "ONNX Runtime in float32"


@dataclass(frozen=True)
class Grounds:
    """What is known of the reference itself.

    `undefined` are the outputs that it leaves without a number in places. `steady` compares its final outputs with the
    last bits of inputs and sums moved, against those without; None where that was not measured.
    """

    undefined: tuple[Undefined, ...] = ()
    steady: Comparison | None = None

    def unknown(self, tolerance: Tolerance) -> str:
        """Why nothing can be said of what a tolerance asks; empty where something can."""
        for bound in tolerance:
            blank = [found for found in self._of(bound) if found.blank]
            if blank:
                return blank[0].text
            if self.is_unsteady(bound):
                assert self.steady is not None
                return (
                    f"the float32 model itself answers with {_figure(bound, self.steady)} to a change in the last bits "
                    f"of what it takes and adds up, so that {bound} cannot judge it"
                )
        return ""

    def caveat(self, tolerance: Tolerance) -> str:
        """What a verdict by this tolerance leaves out; empty where nothing."""
        found = dict.fromkeys(undefined.brief for bound in tolerance for undefined in self._of(bound))
        return "; ".join(found)

    def is_unsteady(self, bound: Bound) -> bool:
        """Whether the reference itself, its last bits moved, comes too near to what the bound forbids."""
        if self.steady is None or bound.of_metric.scope is not Scope.OUTPUT:
            return False
        figure = bound.of(self.steady)
        asked = bound.tighter(HEADROOM) if bound.of_metric.unit == "dB" else bound
        return not math.isnan(figure) and not asked.admits(figure)

    def to_dict(self, tolerances: Mapping[str, Tolerance]) -> dict[str, Any]:
        """The JSON object in `run.json`; `tolerances` are those that the precisions are held to, by name."""
        return {"undefined": [found.to_dict() for found in self.undefined], "steadiness": self._steadiness(tolerances)}

    def _steadiness(self, tolerances: Mapping[str, Tolerance]) -> dict[str, Any] | None:
        """`limits` are the precisions whose tolerance cannot judge a reference that is as unsteady as this one."""
        if self.steady is None:
            return None
        figures = {n: json_number(o.errors.sqnr) for n, o in self.steady.outputs.items() if o.errors is not None}
        return {
            "by": MEASURED_BY,
            "samples": self.steady.samples,
            "sqnr_db": json_number(self.steady.worst(SQNR)),
            "outputs": figures,
            "limits": [name for name, tolerance in tolerances.items() if any(map(self.is_unsteady, tolerance))],
        }

    def _of(self, bound: Bound) -> Sequence[Undefined]:
        """The undefined outputs that a bound is about; a part of an output is called `output:part`."""
        if not isinstance(bound.of_metric, ErrorMetric):
            return ()
        name = bound.output
        return [u for u in self.undefined if name is None or name == u.output or name.startswith(f"{u.output}:")]


def steadiness_text(facts: Mapping[str, Any]) -> str:
    """The figure in `run.json`, in words."""
    figure = float(facts["sqnr_db"])  # the words nan and inf, where JSON has no number
    value = "unmoved" if figure == math.inf else f"with {figure:.1f} dB" if math.isfinite(figure) else "with no number"
    return (
        f"The float32 model itself answers {value} to a change in the last bits of its inputs and sums "
        f"({counted(int(facts['samples']), 'sample')}, measured by {facts['by']} on this machine)"
    )


def _figure(bound: Bound, comparison: Comparison) -> str:
    figure = bound.of(comparison)
    return f"{figure:.1f} dB" if bound.metric == SQNR else f"{bound.figure} {figure:.4g}"
