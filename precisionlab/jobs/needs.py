"""What an export needs of the samples: looked at when it is asked for, and once."""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir

from precisionlab.backends.converted import SourceRun
from precisionlab.backends.equivalence import Equivalence
from precisionlab.backends.tensorrt.jobs import Profile
from precisionlab.backends.tensorrt.profiles import profiles_for
from precisionlab.calibration.methods import OUTPUT
from precisionlab.calibration.table import CalibrationTable
from precisionlab.data import Dataset
from precisionlab.errors import OptionError
from precisionlab.evaluate.block_scales import chosen_blocks
from precisionlab.evaluate.journal import NoJournal
from precisionlab.evaluate.prepare import Prepared, Source, prepare
from precisionlab.evaluate.ranges import block_ranges, method_of, ranges_of_plan
from precisionlab.jobs.repaired_file import same_in_float32
from precisionlab.model import Model
from precisionlab.model.opset import opset_of
from precisionlab.plan.plan import PrecisionPlan
from precisionlab.precision import any_quantized, quantized_of
from precisionlab.rewrite.plans import completed
from precisionlab.system.observer import Observer


class Needs:
    """A plan's model beside the samples that it was found on, or others."""

    def __init__(
        self, model: Model, plan: PrecisionPlan, source: Source, threads: int | None, observer: Observer
    ) -> None:
        self._model, self._plan, self._source, self._threads, self._observer = model, plan, source, threads, observer
        self._ready: Prepared | None = None
        self._source_run: SourceRun | None = None

    def ranges(self) -> tuple[PrecisionPlan, CalibrationTable]:
        """The plan with the pins that quantized layers need anyway, and the ranges, by the plan's own method.

        Of weights alone the scales, which take no samples.
        """
        weights = [precision for precision in self._plan.precisions if precision.is_weight_only]
        chosen = any(method_of(self._plan, precision) == OUTPUT for precision in weights)
        if not any_quantized(self._plan.precisions) and not chosen:
            plan, table = block_ranges(self._plan)
            return completed(self._model, plan, table), table
        kinds = " and ".join(precision.value for precision in (*quantized_of(self._plan.precisions), *weights))
        ready = self._prepared(f"the plan has {kinds} layers, and their ranges come from the samples; give --data")
        evaluator = ready.evaluator(NoJournal(), self._observer, ready.judging())
        plan, found = ranges_of_plan(evaluator, self._plan, None, chosen_blocks(evaluator, ready.local.look))
        return completed(evaluator.model, plan, found.table), found.table

    def profiles(self, shapes: Sequence[str]) -> tuple[dict[str, Profile], ...]:
        """The shapes of each dynamic input in each profile: as given, and else as the samples have them."""

        def samples(name: str) -> Dataset:
            return self._prepared(f"input {name!r} is of no fixed size; give --shapes or --data").dataset

        return profiles_for(self._model, shapes, samples)

    def same(self) -> Equivalence:
        """How the repaired model lies beside the original, on all samples. Raises ModelError where it is another."""
        ready = self._prepared("the repaired model is run beside the original before it is handed over; give --data")
        return same_in_float32(self._model, ready.dataset, ready.local.threads, self._observer)

    def fault(self, converted: ir.Model) -> str | None:
        """See `Beside`."""
        return self._beside(f"the plan needs opset {opset_of(converted)}").fault(converted)

    def agreement(self, changed: ir.Model) -> float:
        """See `Beside`."""
        return self._beside("what the model quantises to is changed").agreement(changed)

    def _beside(self, why: str) -> SourceRun:
        if self._source_run is None:
            ready = self._prepared(f"{why}, and that is tried on samples; give --data")
            self._source_run = SourceRun(self._model, ready.dataset, ready.local.threads)
        return self._source_run

    def _prepared(self, why: str) -> Prepared:
        if self._ready is None:
            if self._source.data is None and not self._source.shapes:
                raise OptionError(why)
            self._ready = prepare(self._model, self._source, None, self._threads, None, self._observer)
        return self._ready
