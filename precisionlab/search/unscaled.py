"""What becomes of a quantized plan whose sums are kept in half before they are scaled.

So TensorRT-RTX has them in a model with half around int8 and a scale for each channel of a weight, as other tools write
it; typed models of ours are written otherwise (see `rewrite/typed/channels.py`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from precisionlab.calibration.table import CalibrationTable
from precisionlab.compare.comparison import Comparison
from precisionlab.compare.tolerance import Tolerance, meets
from precisionlab.evaluate.evaluator import Evaluator
from precisionlab.evaluate.integer_sums import IntegerSums, Look, integer_sums
from precisionlab.plan.arithmetic import Sums
from precisionlab.plan.plan import PrecisionPlan
from precisionlab.precision import Precision
from precisionlab.system.wording import counted, decibel

_END = Precision.FP16.number_format.largest


@dataclass(frozen=True)
class UnscaledSums:
    """The layers whose sums in steps half would harm, and what the plan would come to: its SQNR in dB, and its verdict.

    `met` says whether the tolerance would hold all the same, `noun` what the sums are called.
    """

    layers: Mapping[str, IntegerSums]
    sqnr: float
    met: bool
    noun: str = "integer sums"

    def to_dict(self) -> dict[str, Any]:
        """What run.json holds of it: the layers, and the sentences."""
        layers = {
            name: {"beyond": sums.beyond, "largest": sums.largest, "lost": sums.lost}
            for name, sums in self.layers.items()
        }
        return {"layers": layers, "title": self.title, "why": self.why, "met": self.met}

    @property
    def title(self) -> str:
        """Which sums, by the layer that it is worst for."""
        name = max(self.layers, key=lambda layer: (self.layers[layer].beyond, self.layers[layer].lost))
        worst, others = self.layers[name], len(self.layers) - 1
        said = []
        if worst.beyond:
            said.append(f"{_share(worst.beyond)} of {name}'s {self.noun} pass {_END:.5g}, up to {worst.largest:.4g}")
        if worst.lost:
            said.append(f"the scales of {_share(worst.lost)} of {name}'s channels are 0 in half")
        return "; ".join(said) + (f" (and of {counted(others, 'other layer')})" if others else "")

    @property
    def why(self) -> str:
        """What that does, and to whom."""
        figure = f"{decibel(self.sqnr)} dB"
        return (
            f"where a weight has a scale for each channel and floats are half, TensorRT-RTX keeps the {self.noun} "
            f"of a MatMul in half before they are scaled: so written, as others do, this plan has {figure}, emulated"
        )


REMEDY = (
    "typed models and engines of this plan have one scale in the product, and the channels' factors behind it, which "
    "harms no sum"
)


def unscaled_sums(
    evaluator: Evaluator,
    plan: PrecisionPlan,
    table: CalibrationTable | None,
    tolerance: Tolerance,
    known: Comparison,
    look: Look,
) -> UnscaledSums | None:
    """What would become of the plan; None where half would harm none of its sums in steps.

    `known` has what the reference holds of its own, `look` shows the reference's tensors sample by sample.
    """
    sums = integer_sums(evaluator, plan, table, look)
    harmed = {name: found for name, found in sums.items() if found.harms}
    if not harmed:
        return None
    under = replace(evaluator, arithmetic=replace(evaluator.arithmetic, integers=Sums.HALF))
    noun = "integer sums" if plan.default.number_format.is_uniform else "unscaled sums"
    comparison = under.judge(f"{plan.default}, {noun} in half", plan, table, known)
    return UnscaledSums(harmed, comparison.worst("sqnr"), meets(comparison, tolerance), noun)


def _share(share: float) -> str:
    return f"{100 * share:.0f} %" if share >= 0.1 else f"{100 * share:.2g} %"
