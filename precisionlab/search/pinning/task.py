"""What one search is about: what it is given, and never changes."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

from precisionlab.calibration.table import CalibrationTable, tables_in
from precisionlab.compare.comparison import Comparison
from precisionlab.compare.tolerance import Tolerance, meets
from precisionlab.evaluate.evaluator import Evaluator
from precisionlab.evaluate.running_sums import RunningSum
from precisionlab.model import Layer, Model
from precisionlab.plan.assign import can_have, is_lowered
from precisionlab.plan.plan import PrecisionPlan
from precisionlab.precision import Precision
from precisionlab.search.cost import CostModel
from precisionlab.search.options import Minimize, Options
from precisionlab.search.outcome import Variant
from precisionlab.search.pinning.choice import Aim
from precisionlab.search.rank import ALONE, Measure
from precisionlab.system.deadline import Deadline


@dataclass(frozen=True)
class Task:
    """One low precision to be made right by pins.

    `low_plan` is the precision without pins, but for those that it cannot do without; `table` has its ranges. The
    search ends by the deadline. `measure` is what layers are ranked by, `running_sums`
    are those of layers whose kernels may keep sums in the precision. `largest` has the largest |x| of the reference's
    tensors, where that is known. `expected` is told how many seconds the search may still take at most.
    """

    evaluator: Evaluator
    options: Options
    cost: CostModel
    low_plan: PrecisionPlan
    table: CalibrationTable | None
    deadline: Deadline = field(default_factory=lambda: Deadline(None))
    measure: Measure = ALONE
    running_sums: Mapping[str, RunningSum] = field(default_factory=dict)
    largest: Mapping[str, float] = field(default_factory=dict)
    expected: Callable[[float], None] = lambda seconds: None

    @property
    def model(self) -> Model:
        """The model at the shapes of the data."""
        return self.evaluator.model

    @property
    def precision(self) -> Precision:
        """The low precision."""
        return self.low_plan.default

    @property
    def tolerance(self) -> Tolerance:
        """What the user holds it to."""
        return self.options.tolerance_of(self.precision)

    @cached_property
    def touched(self) -> Sequence[Layer]:
        """The layers that it has in less than float32."""
        return [layer for layer in self.model.layers if is_lowered(self.model, layer, self.low_plan)]

    @property
    def aim(self) -> Aim:
        """What the plan is to have as little of as possible."""
        if self.options.spend is not None:
            return Aim.ERROR
        counts_pins = self.options.minimize is Minimize.PINS and self.options.max_cost is None
        return Aim.PINS if counts_pins else Aim.COST

    @property
    def rungs(self) -> tuple[Precision, ...]:
        """The precisions that pins may have. FP32 alone is enough where pins are counted: others need no fewer.

        But for weights alone: there bytes are what is saved, and a pin to float32 gives more of them away than it must.
        """
        asked = self.options.ladder
        if asked is None and self.aim is Aim.PINS and not self.precision.is_weight_only:
            return (Precision.FP32,)
        return tuple(
            rung
            for rung in self.precision.rungs
            if (self._is_at_hand(rung) if asked is None else rung in asked)
            and (not rung.needs_ranges or any(table.precision is rung for table in tables_in(self.table)))
            and self.cost.device.peak(rung) is not None
            and (rung.is_quantized or rung.number_format.opset <= self.model.opset)
        )

    def takes(self, name: str, rung: Precision) -> bool:
        """Whether a pin of the layer to the rung is another than none."""
        layer = self.model.layer[name]
        return layer.takes(rung) if rung.is_quantized else can_have(layer, rung)

    def on_rung(self, names: Sequence[str], rung: Precision) -> dict[str, Precision]:
        """Layer → the rung; FP32 for those that it is none for."""
        return {name: rung if self.takes(name, rung) else Precision.FP32 for name in names}

    def _is_at_hand(self, rung: Precision) -> bool:
        if rung.is_quantized:
            return self.precision.is_weight_only  # elsewhere its ranges are another calibration: where it is asked for
        if rung.is_for_pins:
            return self.options.chooses_sums
        if self.precision.is_weight_only and self.aim is Aim.PINS:
            return rung in (Precision.FP32, self.low_plan.around)
        around = self.low_plan.around if self.precision.is_quantized else self.precision
        return not self.options.no_new_precision or rung in (Precision.FP32, around)

    @cached_property
    def fp32_seconds(self) -> float:
        """What float32 throughout costs, in seconds."""
        return self.cost.seconds(PrecisionPlan(self.model.sha256, Precision.FP32))

    @property
    def most_seconds(self) -> float:
        """The most that a plan may cost, in seconds."""
        return math.inf if self.options.max_cost is None else self.options.max_cost * self.fp32_seconds

    def variant(self, name: str, plan: PrecisionPlan, comparison: Comparison) -> Variant:
        """The variant with its verdict: on the samples that chose, and on those held out."""
        held_out = self.evaluator.hold_to(name, plan, self.table)
        met = meets(comparison, self.tolerance) and (held_out is None or meets(held_out, self.tolerance))
        figures = self.evaluator.backend.figures
        return Variant(name, plan, comparison, figures, self.tolerance, met, held_out, self.cost.of(plan))

    def note(self, text: str) -> None:
        """Tell the user something of this precision."""
        self.evaluator.observer.note(f"{self.precision}: {text}")
