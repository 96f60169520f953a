"""The emulation: every precision as rounding gates in float32 graphs, on any machine's CPU."""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from queue import SimpleQueue
from typing import Any, Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from precisionlab.backends.base import Progress
from precisionlab.backends.session import Session
from precisionlab.calibration.histogram import Histogram, Histograms
from precisionlab.calibration.table import CalibrationTable
from precisionlab.compare.comparison import Comparison, OutputErrors
from precisionlab.compare.errors import ErrorSums, ErrorTable, agreement, error_sums
from precisionlab.compare.task import TaskMetric
from precisionlab.data import Sample
from precisionlab.model import Model
from precisionlab.model.layers import one_node_a_layer
from precisionlab.model.load import at_shapes
from precisionlab.precision import Precision, PrecisionPlan
from precisionlab.rewrite.gates import check_opset
from precisionlab.rewrite.observe import Flow, Key, Segment, cut, segments, shape_probe

T = TypeVar("T")

DEFAULT_BUDGET = 128 * 1024**2
"""Bytes of activations that one segment may show for one sample; each thread holds one sample."""

_CACHED = 4 * 1024**2
"""As much as a segment may show for a core's cache to hold it still when its values are counted: calibration reads
every value that was just written, and does little else (orient: 12.8 ms a sample in one segment, 8.7 in eighteen).
Comparing does more with each value, and gains nothing by it."""


class OnnxRuntimeBackend:
    """Emulates any plan in ONNX Runtime, and compares it with the float32 reference beside it.

    Each sample runs on one thread and samples run side by side: that is faster than several threads
    for each, and gives the same bits whatever their number.
    """

    name = "onnxruntime"
    figures = "emulated"

    def __init__(self, model: Model, first: Sample, threads: int | None = None, budget: int = DEFAULT_BUDGET) -> None:
        """`first` is a sample that says the shapes. Raises ModelError where the model does not run."""
        self.threads = threads or os.cpu_count() or 1
        self.budget = budget
        self.model = at_shapes(model, self._shapes(model, first))

    def _shapes(self, model: Model, first: Sample) -> dict[str, tuple[int, ...]]:
        graph, names = shape_probe(model)
        values = Session(graph, self.threads).run(first.inputs)
        shapes = {name: array.shape for name, array in first.inputs.items()}
        return {**shapes, **{names[output]: tuple(value.tolist()) for output, value in values.items()}}

    def collector(self, tensors: Sequence[str]) -> OnnxRuntimeCollector:
        """Takes the histograms of |x| of these float32 tensors from reference passes."""
        return OnnxRuntimeCollector(self, tensors)

    def compare(
        self,
        plan: PrecisionPlan,
        table: CalibrationTable | None,
        samples: Iterable[Sample],
        progress: Progress,
        *,
        metric: Callable[[], TaskMetric] | None,
        introduced: bool,
    ) -> Comparison:
        """Run reference and variant, and with `introduced` each layer alone, in one graph."""
        started = time.perf_counter()
        flows = (Flow.REFERENCE, Flow.VARIANT, Flow.ALONE) if introduced else (Flow.REFERENCE, Flow.VARIANT)
        runner = _Runner(self.model, plan, table, flows, flows, self.budget)
        errors = ErrorTable(len(runner.rows))
        finals = _Finals(metric)
        for result in _side_by_side(runner.errors_of, samples, self.threads):
            errors.merge(result.errors)
            progress(finals.add(result))
        return finals.comparison(
            inherited={name: errors.row(i) for (flow, name), i in runner.rows.items() if flow is Flow.VARIANT},
            introduced={name: errors.row(i) for (flow, name), i in runner.rows.items() if flow is Flow.ALONE},
            seconds=time.perf_counter() - started,
        )

    def judge(
        self,
        plan: PrecisionPlan,
        table: CalibrationTable | None,
        samples: Iterable[Sample],
        progress: Progress,
        *,
        metric: Callable[[], TaskMetric] | None,
        known: Comparison,
    ) -> Comparison:
        """As `compare`, at less than half the cost: of the layers only whether NaN or Inf are new.

        How many the reference has of its own is `known` from a comparison over the same samples.
        """
        started = time.perf_counter()
        runner = _Runner(self.model, plan, table, (Flow.REFERENCE, Flow.VARIANT), (Flow.VARIANT,), self.budget)
        nonfinite = np.zeros(len(runner.rows), np.int64)
        finals = _Finals(metric)
        for result in _side_by_side(runner.nonfinite_of, samples, self.threads):
            nonfinite += result.errors
            progress(finals.add(result))
        inherited = {
            name: ErrorSums(new_nonfinite=max(0, int(nonfinite[i]) - known.inherited[name].ref_nonfinite))
            for (_, name), i in runner.rows.items()
        }
        return finals.comparison(inherited=inherited, introduced={}, seconds=time.perf_counter() - started)


class _Finals:
    """The errors of the final outputs and the task metrics, one sample after the other."""

    def __init__(self, metric: Callable[[], TaskMetric] | None) -> None:
        self._samples = 0
        self._outputs: dict[str, OutputErrors] = {}
        self._variant: TaskMetric | None = metric() if metric else None
        self._reference: TaskMetric | None = metric() if metric else None

    def add(self, result: _SampleErrors[Any]) -> int:
        """Take one sample; returns how many there were."""
        for name, reference in result.reference.items():
            found = _output_errors(reference, result.variant[name])
            self._outputs[name] = self._outputs[name] + found if name in self._outputs else found
        if self._variant and self._reference and result.label is not None:
            self._variant.update(result.variant, result.label)
            self._reference.update(result.reference, result.label)
        self._samples += 1
        return self._samples

    def comparison(
        self, inherited: dict[str, ErrorSums], introduced: dict[str, ErrorSums], seconds: float
    ) -> Comparison:
        """Everything together."""
        return Comparison(
            samples=self._samples,
            inherited=inherited,
            introduced=introduced,
            outputs=self._outputs,
            metric=self._variant.compute() if self._variant else None,
            reference_metric=self._reference.compute() if self._reference else None,
            metric_name=self._variant.name if self._variant else None,
            higher_is_better=self._variant.higher_is_better if self._variant else True,
            seconds=seconds,
        )


class OnnxRuntimeCollector:
    """Histograms of tensors in the reference, one pass over whatever samples it is given.

    A tensor inside a fused layer can be asked for too; then nothing is fused in that pass.
    """

    def __init__(self, backend: OnnxRuntimeBackend, tensors: Sequence[str]) -> None:
        model = backend.model
        shown = {name for layer in model.layers for name in (*layer.inputs, *layer.outputs)}
        if not shown.issuperset(tensors):
            model = one_node_a_layer(model)
        flows = (Flow.REFERENCE,)
        plan = PrecisionPlan(model.sha256, Precision.FP32)
        self._runner = _Runner(model, plan, None, flows, flows, min(backend.budget, _CACHED))
        self._tensors = tuple(tensors)
        self._wanted = frozenset(tensors)
        # A set of histograms for each thread: counts are integers, so who counted what leaves no trace.
        self._every = [Histograms(tensors) for _ in range(backend.threads)]

    def add(self, samples: Iterable[Sample], progress: Progress) -> None:
        """Count the values of these samples."""
        idle: SimpleQueue[Histograms] = SimpleQueue()
        for histograms in self._every:
            idle.put(histograms)

        def count(sample: Sample) -> None:
            own = idle.get()
            try:
                for name in self._wanted.intersection(sample.inputs):
                    own.add(name, sample.inputs[name])
                for segment, state in self._runner.run(sample):
                    for name in self._wanted.intersection(segment.observed):
                        own.add(name, state[Flow.REFERENCE, name])
            finally:
                idle.put(own)

        for done, _ in enumerate(_side_by_side(count, samples, len(self._every)), 1):
            progress(done)

    def restore(self, histograms: Mapping[str, Histogram]) -> None:
        """Add what an earlier run has counted."""
        for name in self._tensors:
            self._every[0].merge(name, histograms[name])

    def histograms(self) -> dict[str, Histogram]:
        """What has been counted so far."""
        total = Histograms(self._tensors)
        for own in self._every:
            for name in self._tensors:
                total.merge(name, own[name])
        return {name: total[name] for name in self._tensors}


def _side_by_side(work: Callable[[Sample], T], samples: Iterable[Sample], threads: int) -> Iterator[T]:
    """Work on `threads` samples at a time; the results come in the samples' order.

    No more than that are read ahead, so that memory does not grow with their number.
    """
    with ThreadPoolExecutor(threads) as pool:
        pending: deque[Future[T]] = deque()
        try:
            for sample in samples:
                pending.append(pool.submit(work, sample))
                del sample
                if len(pending) > threads:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            for future in pending:
                future.cancel()


@dataclass(frozen=True)
class _SampleErrors(Generic[T]):
    errors: T
    reference: dict[str, NDArray[Any]]
    variant: dict[str, NDArray[Any]]
    label: str | None


class _Runner:
    """The sessions of one plan's segments, run one after the other for a sample."""

    def __init__(
        self,
        model: Model,
        plan: PrecisionPlan,
        table: CalibrationTable | None,
        flows: tuple[Flow, ...],
        shown: tuple[Flow, ...],
        budget: int,
    ) -> None:
        check_opset(model.onnx, plan)
        # Not shared between the threads: where the model is cut, and so the last bits, must not depend on them.
        parts = cut(model, len(shown), budget)
        self._segments = segments(model, plan, table, parts, flows, shown)
        self._sessions = [Session(segment.graph, 1) for segment in self._segments]
        self._outputs = [info.name for info in model.outputs]
        constants = {str(v.name): v.const_value for v in model.onnx.graph.outputs if v.is_initializer()}
        self._constants = {name: value.numpy() for name, value in constants.items() if value is not None}
        self._last: dict[Key, int] = {}
        for index, segment in enumerate(self._segments):
            self._last.update((key, index) for key in segment.feeds.values())
        observed = [(s, name) for s in self._segments for name in s.observed]
        keys = [(Flow.VARIANT, name) for _, name in observed]
        keys += [(Flow.ALONE, name) for s, name in observed if (Flow.ALONE, name) in s.fetches.values()]
        self.rows: dict[Key, int] = {key: i for i, key in enumerate(keys)}
        """Where the statistics of each tensor stand: in topological order, flow by flow."""

    def run(self, sample: Sample) -> Iterator[tuple[Segment, Mapping[Key, NDArray[Any]]]]:
        """Each segment with the values that stand after it: its own, and those still needed later."""
        state: dict[Key, NDArray[Any]] = {(Flow.REFERENCE, name): array for name, array in sample.inputs.items()}
        for index, (segment, session) in enumerate(zip(self._segments, self._sessions, strict=True)):
            values = session.run({name: state[key] for name, key in segment.feeds.items()})
            state.update((segment.fetches[name], value) for name, value in values.items())
            values.clear()
            yield segment, state
            state = {key: value for key, value in state.items() if self._last.get(key, -1) > index}

    def errors_of(self, sample: Sample) -> _SampleErrors[ErrorTable]:
        """The statistics of one sample, and its final outputs."""
        errors = ErrorTable(len(self.rows))

        def add(segment: Segment, state: Mapping[Key, NDArray[Any]]) -> None:
            for name in segment.observed:
                true = state[Flow.REFERENCE, name]
                errors.add(self.rows[Flow.VARIANT, name], true, state.get((Flow.VARIANT, name), true))
                if (Flow.ALONE, name) in state:
                    errors.add(self.rows[Flow.ALONE, name], true, state[Flow.ALONE, name])

        return self._sample(sample, errors, add)

    def nonfinite_of(self, sample: Sample) -> _SampleErrors[NDArray[np.int64]]:
        """How many values of each tensor of the variant are not finite, and the sample's final outputs."""
        from precisionlab.compare.kernel import largest_magnitude

        counts = np.zeros(len(self.rows), np.int64)

        def add(segment: Segment, state: Mapping[Key, NDArray[Any]]) -> None:
            for name in segment.observed:
                if (Flow.VARIANT, name) in state:
                    counts[self.rows[Flow.VARIANT, name]] = largest_magnitude(state[Flow.VARIANT, name])[1]

        return self._sample(sample, counts, add)

    def _sample(
        self, sample: Sample, found: T, add: Callable[[Segment, Mapping[Key, NDArray[Any]]], None]
    ) -> _SampleErrors[T]:
        """Run one sample, hand each segment's values to `add`, and keep the final outputs."""
        reference: dict[str, NDArray[Any]] = dict(self._constants)
        variant: dict[str, NDArray[Any]] = dict(self._constants)
        for segment, state in self.run(sample):
            add(segment, state)
            for name in self._outputs:
                if (Flow.REFERENCE, name) in state:
                    reference[name] = state[Flow.REFERENCE, name]
                    variant[name] = state.get((Flow.VARIANT, name), reference[name])
        # In the model's order, whatever the order in which the segments gave them.
        reference, variant = ({name: values[name] for name in self._outputs} for values in (reference, variant))
        return _SampleErrors(found, reference, variant, sample.label)


def _output_errors(reference: NDArray[Any], variant: NDArray[Any]) -> OutputErrors:
    errors = error_sums(reference, variant) if reference.dtype == np.float32 else None
    return OutputErrors(errors, agreement(reference, variant))
