"""What every backend can do."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Protocol

from precisionlab.calibration.histogram import Histogram
from precisionlab.calibration.table import CalibrationTable
from precisionlab.compare.comparison import Comparison, Spreads
from precisionlab.compare.errors import ErrorSums
from precisionlab.compare.gather import Gathering, SampleResult
from precisionlab.compare.judging import Judging, judging_of
from precisionlab.compare.sensitivity import Sensitivities, Toggled
from precisionlab.compare.task import TaskMetric
from precisionlab.data import Sample
from precisionlab.model import Layer, Model
from precisionlab.model.layers import quantized_operands
from precisionlab.plan.arithmetic import TENSORRT, Arithmetic
from precisionlab.plan.assign import format_of, inside_format, precision_of
from precisionlab.plan.plan import PrecisionPlan
from precisionlab.precision import Format
from precisionlab.rewrite.observe import Flow, observed_rows, row_formats

Progress = Callable[[int], None]
"""Called with the number of samples done."""


class Detail(Enum):
    """What an evaluation tells of the layers, beside the final outputs."""

    NONFINITE = "nonfinite"  # how many of the variant's values are not finite
    INHERITED = "inherited"  # the statistics of every layer's output in the variant
    INTRODUCED = "introduced"  # those, and of each layer alone


_FLOWS = {
    Detail.NONFINITE: (Flow.VARIANT,),
    Detail.INHERITED: (Flow.REFERENCE, Flow.VARIANT),
    Detail.INTRODUCED: (Flow.REFERENCE, Flow.VARIANT, Flow.ALONE),
}


@dataclass(frozen=True)
class Evaluation:
    """One plan to be run beside the reference, and what of it is judged. `values` asks for the final outputs."""

    plan: PrecisionPlan
    table: CalibrationTable | None
    detail: Detail
    values: bool
    judging: Judging
    arithmetic: Arithmetic = TENSORRT

    @property
    def flows(self) -> tuple[Flow, ...]:
        """Of which flows every layer's output is looked at."""
        return _FLOWS[self.detail]

    @property
    def is_beside_reference(self) -> bool:
        """Whether layers are compared with the reference's, so that it has to run as well."""
        return self.detail is not Detail.NONFINITE


@dataclass(frozen=True)
class SensitivityRequest:
    """Each of `layers`, one at a time, as `other` has it, while all others run under `plan`.

    What a layer alone does: `plan` is float32 throughout, `other` the low precision. What restoring a
    layer buys: the other way round. `values` asks for the final outputs, with each layer toggled.
    """

    plan: PrecisionPlan
    other: PrecisionPlan
    layers: tuple[str, ...]
    table: CalibrationTable | None
    judging: Judging
    arithmetic: Arithmetic = TENSORRT
    values: bool = False


class Collector(Protocol):
    """Histograms of tensors in the reference, over whatever samples it is given."""

    def add(self, samples: Iterable[Sample], progress: Progress) -> None:
        """Count the values of these samples."""
        ...

    def restore(self, histograms: Mapping[str, Histogram]) -> None:
        """Add what an earlier run has counted."""
        ...

    def histogram(self, tensor: str) -> Histogram:
        """What has been counted so far of one tensor."""
        ...

    def histograms(self) -> dict[str, Histogram]:
        """What has been counted so far."""
        ...


class Backend(ABC):
    """Builds variants of one model and compares them with the float32 reference."""

    name: str
    figures: str
    """Where its error figures come from: "emulated" or "measured"."""
    threads: int
    workers: int = 1
    """How many processes or machines share its work."""
    sees_every_layer: bool = True
    """Whether `compare` and `judge` tell of every layer's output."""
    model: Model
    """The model at the shapes of the data. With repairs that round elsewhere its final outputs are held to those of the
    model without; layers are held to its own float32, which is nearly the same."""

    @abstractmethod
    def collector(self, tensors: Sequence[str]) -> Collector:
        """Takes the histograms of |x| of these float32 tensors from reference passes."""

    @abstractmethod
    def results(self, evaluation: Evaluation, samples: Iterable[Sample]) -> Iterator[SampleResult]:
        """Run reference and variant for each sample, in the samples' order.

        The rows of a result are those of `observed_rows` for the model, the plan and the flows.
        """

    @abstractmethod
    def toggled(self, request: SensitivityRequest, samples: Iterable[Sample]) -> Iterator[Toggled]:
        """What each layer does, toggled by itself: some layers at a time, each on the samples in their order."""

    def sensitivities(self, request: SensitivityRequest, samples: Iterable[Sample]) -> Iterator[Sensitivities]:
        """How sensitive all that is judged is to each layer: for each sample, in the samples' order."""
        for toggled in self.toggled(request, samples):
            yield toggled.sensitivities

    def compare(
        self,
        plan: PrecisionPlan,
        table: CalibrationTable | None,
        samples: Iterable[Sample],
        progress: Progress,
        *,
        metric: Callable[[], TaskMetric] | None,
        introduced: bool,
        judging: Judging | None = None,
        arithmetic: Arithmetic = TENSORRT,
    ) -> Comparison:
        """Run the variant and the reference, and sum the errors of every layer's output.

        `introduced` asks for each layer's own error too, which costs about another plain pass. `judging` says what is
        judged, by default what the model's graph alone tells. `arithmetic` is how an emulated variant computes.
        """
        started = time.perf_counter()
        detail = Detail.INTRODUCED if introduced else Detail.INHERITED
        evaluation = Evaluation(plan, table, detail, metric is not None, judging or judging_of(self.model), arithmetic)
        rows = observed_rows(self.model, plan, evaluation.flows)
        gathering = Gathering(len(rows), metric)
        for result in self.results(evaluation, samples):
            progress(gathering.add(result))
        variant, alone = (
            {name: row for (flow, name), row in rows.items() if flow is kind} for kind in (Flow.VARIANT, Flow.ALONE)
        )
        inherited = {name: gathering.layers.row(row) for name, row in variant.items()}
        own = {name: gathering.layers.row(row) for name, row in alone.items()}
        broken = broken_tensors(self.model, plan, inherited, inherited)
        spreads = Spreads(gathering.spreads(variant), gathering.spreads(alone))
        return gathering.comparison(inherited, own, broken, time.perf_counter() - started, spreads)

    def judge(
        self,
        plan: PrecisionPlan,
        table: CalibrationTable | None,
        samples: Iterable[Sample],
        progress: Progress,
        *,
        metric: Callable[[], TaskMetric] | None,
        known: Comparison | None,
        judging: Judging | None = None,
        arithmetic: Arithmetic = TENSORRT,
    ) -> Comparison:
        """As `compare`, at less than half the cost: of the layers only whether NaN or Inf are new.

        How many the reference has of its own is `known` from a comparison over the same samples. Raises ValueError
        without one, where a backend looks at the layers.
        """
        if known is None:
            raise ValueError("what the reference has of NaN and Inf must be known")
        started = time.perf_counter()
        judged = judging or judging_of(self.model)
        evaluation = Evaluation(plan, table, Detail.NONFINITE, metric is not None, judged, arithmetic)
        rows = observed_rows(self.model, plan, evaluation.flows)
        gathering = Gathering(len(rows), metric)
        for result in self.results(evaluation, samples):
            progress(gathering.add(result))
        formats = row_formats(self.model, plan, (name for _, name in rows))
        counted = {
            name: _new_nonfinite(gathering.layers.row(i), known.inherited[name], held_in)
            for ((_, name), i), held_in in zip(rows.items(), formats, strict=True)
        }
        broken = broken_tensors(self.model, plan, counted, known.inherited)
        return gathering.comparison(counted, {}, broken, time.perf_counter() - started)


_SIZES = frozenset(
    {
        *(
            "Add",
            "AveragePool",
            "Conv",
            "ConvTranspose",
            "Einsum",
            "Gemm",
            "GlobalAveragePool",
            "MatMul",
            "Mean",
            "Mul",
        ),
        *("Neg", "ReduceL1", "ReduceL2", "ReduceMean", "ReduceSum", "ReduceSumSquare", "Relu", "Sub", "Sum"),
    }
)
"""Operators that give an Inf of finite values only where the result is too large."""


def broken_tensors(
    model: Model, plan: PrecisionPlan, inherited: Mapping[str, ErrorSums], known: Mapping[str, ErrorSums]
) -> tuple[str, ...]:
    """The tensors of a variant that hold a NaN or Inf which no rounding gives, in topological order.

    Every new NaN, and every Inf that begins where the format that its layer gives could hold the reference's value (a
    logarithm or a division by what was rounded to zero). An Inf that begins where the reference is too large for it is
    what that rounds to, and so is one in what the layer takes and rounds itself, or beside such a one where the layer
    only adds and multiplies: an error that it has inherited makes a value larger. Every device goes on from it alike
    (exp(−Inf) is 0, Inf − Inf is NaN), so what it does is seen at the outputs. A NaN's course is not: CPU kernels of
    Max, Clip, Relu or ReduceMax lose it, and a GPU's do not. Where the reference itself is NaN there is nothing to
    break; where it is Inf, that must stay. `known` has the reference's largest values.
    """
    found = []
    for layer in model.layers:
        passed_on = any(inherited[name].new_nonfinite for name in layer.inputs if name in inherited)
        passed_on = passed_on or _rounds_to_inf(model, layer, plan, known)
        for name in layer.watched:
            errors = inherited.get(name)
            if errors is None:
                continue
            begins = errors.unforced_inf and not passed_on and not _overflows(layer, known[name], plan)
            if errors.new_nan or errors.inf_mismatch or begins:
                found.append(name)
            if name in layer.inside:  # what comes behind it in the bodies may go on from it
                limit = inside_format(model.inner[name], layer, plan).overflowing
                passed_on = passed_on or errors.new_nonfinite > 0 or known[name].max_ref >= limit
    return tuple(found)


def _overflows(layer: Layer, known: ErrorSums, plan: PrecisionPlan) -> bool:
    """Whether an Inf in what the layer gives is a value beyond its format: by size, and not by a zero."""
    return known.max_ref >= format_of(layer, plan).overflowing and _SIZES.issuperset(layer.op_types)


def _rounds_to_inf(model: Model, layer: Layer, plan: PrecisionPlan, known: Mapping[str, ErrorSums]) -> bool:
    """Whether the layer takes values that are too large for the format that it rounds them to. int8 clips instead."""
    quantized = quantized_operands(model, layer) if precision_of(layer, plan).needs_ranges else ()
    limit = format_of(layer, plan).overflowing
    return any(known[name].max_ref >= limit for name in layer.inputs if name in known and name not in quantized)


def _new_nonfinite(counted: ErrorSums, known: ErrorSums, held_in: Format) -> ErrorSums:
    """What a tensor has of NaN and Inf beyond those that are known of the reference.

    Which of its values the reference has there is not known: an Inf is taken for rounding where any is too large.
    """
    new_nonfinite = max(0, counted.nan + counted.inf - known.ref_nonfinite)
    new_nan = max(0, counted.nan - known.ref_nan)
    return ErrorSums(
        nan=counted.nan,
        inf=counted.inf,
        new_nonfinite=new_nonfinite,
        new_nan=new_nan,
        unforced_inf=0 if known.max_ref >= held_in.overflowing else max(0, new_nonfinite - new_nan),
    )
