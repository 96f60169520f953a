"""The emulation: every precision as rounding gates in float32 graphs, on any machine's CPU."""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from precisionlab.backends.base import Progress
from precisionlab.backends.session import Session
from precisionlab.calibration.table import CalibrationTable, Range
from precisionlab.compare.comparison import Comparison, OutputErrors
from precisionlab.compare.errors import ErrorTable, agreement, error_sums
from precisionlab.compare.task import TaskMetric
from precisionlab.data import Sample
from precisionlab.model import Model
from precisionlab.model.load import at_shapes
from precisionlab.precision import Precision, PrecisionPlan
from precisionlab.rewrite.gates import check_opset
from precisionlab.rewrite.observe import Flow, Key, Segment, cut, segments, shape_probe

DEFAULT_BUDGET = 256 * 1024**2
"""Bytes of activations that one segment may show for one sample."""


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

    def collect_ranges(self, samples: Iterable[Sample], tensors: Sequence[str], progress: Progress) -> CalibrationTable:
        """The largest magnitude of each tensor over the samples, from reference runs."""
        from precisionlab.compare.kernel import largest_magnitude

        runner = _Runner(self, PrecisionPlan(self.model.sha256, Precision.FP32), None, (Flow.REFERENCE,))
        wanted = frozenset(tensors)

        def ranges_of(sample: Sample) -> dict[str, Range]:
            found = {n: Range(*largest_magnitude(a)) for n, a in sample.inputs.items() if n in wanted}
            for segment, state in runner.run(sample):
                for name in wanted.intersection(segment.observed):
                    found[name] = Range(*largest_magnitude(state[Flow.REFERENCE, name]))
            return found

        ranges: dict[str, Range] = {}
        count = 0
        for count, found in enumerate(_side_by_side(ranges_of, samples, self.threads), 1):
            ranges = {name: r.merge(ranges[name]) if name in ranges else r for name, r in found.items()}
            progress(count)
        return CalibrationTable(ranges, count)

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
        runner = _Runner(self, plan, table, flows)
        rows = runner.rows
        errors = ErrorTable(len(rows))
        outputs: dict[str, OutputErrors] = {}
        variant_metric, reference_metric = (metric(), metric()) if metric else (None, None)
        count = 0
        for count, result in enumerate(_side_by_side(runner.errors_of, samples, self.threads), 1):
            errors.merge(result.errors)
            for name, reference in result.reference.items():
                found = _output_errors(reference, result.variant[name])
                outputs[name] = outputs[name] + found if name in outputs else found
            if variant_metric and reference_metric and result.label is not None:
                variant_metric.update(result.variant, result.label)
                reference_metric.update(result.reference, result.label)
            progress(count)
        return Comparison(
            samples=count,
            inherited={name: errors.row(i) for (flow, name), i in rows.items() if flow is Flow.VARIANT},
            introduced={name: errors.row(i) for (flow, name), i in rows.items() if flow is Flow.ALONE},
            outputs=outputs,
            metric=variant_metric.compute() if variant_metric else None,
            reference_metric=reference_metric.compute() if reference_metric else None,
            metric_name=variant_metric.name if variant_metric else None,
            higher_is_better=variant_metric.higher_is_better if variant_metric else True,
            seconds=time.perf_counter() - started,
        )


T = TypeVar("T")


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
class _SampleErrors:
    errors: ErrorTable
    reference: dict[str, NDArray[Any]]
    variant: dict[str, NDArray[Any]]
    label: str | None


class _Runner:
    """The sessions of one plan's segments, run one after the other for a sample."""

    def __init__(
        self, backend: OnnxRuntimeBackend, plan: PrecisionPlan, table: CalibrationTable | None, flows: tuple[Flow, ...]
    ) -> None:
        model = backend.model
        check_opset(model.onnx, plan)
        # The samples that run side by side share the budget.
        parts = cut(model, len(flows), backend.budget // backend.threads)
        self._segments = segments(model, plan, table, parts, flows)
        self._sessions = [Session(segment.graph, 1) for segment in self._segments]
        self._outputs = [info.name for info in model.outputs]
        constants = {str(v.name): v.const_value for v in model.onnx.graph.outputs if v.is_initializer()}
        self._constants = {name: value.numpy() for name, value in constants.items() if value is not None}
        self._last: dict[Key, int] = {}
        for index, segment in enumerate(self._segments):
            self._last.update((key, index) for key in segment.feeds.values())
        shown = [(s, name) for s in self._segments for name in s.observed]
        keys = [(Flow.VARIANT, name) for _, name in shown]
        keys += [(Flow.ALONE, name) for s, name in shown if (Flow.ALONE, name) in s.fetches.values()]
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

    def errors_of(self, sample: Sample) -> _SampleErrors:
        """The statistics of one sample, and its final outputs."""
        errors = ErrorTable(len(self.rows))
        reference: dict[str, NDArray[Any]] = dict(self._constants)
        variant: dict[str, NDArray[Any]] = dict(self._constants)
        for segment, state in self.run(sample):
            for name in segment.observed:
                true = state[Flow.REFERENCE, name]
                errors.add(self.rows[Flow.VARIANT, name], true, state.get((Flow.VARIANT, name), true))
                if (Flow.ALONE, name) in state:
                    errors.add(self.rows[Flow.ALONE, name], true, state[Flow.ALONE, name])
            for name in self._outputs:
                if (Flow.REFERENCE, name) in state:
                    reference[name] = state[Flow.REFERENCE, name]
                    variant[name] = state.get((Flow.VARIANT, name), reference[name])
        # In the model's order, whatever the order in which the segments gave them.
        reference, variant = ({name: values[name] for name in self._outputs} for values in (reference, variant))
        return _SampleErrors(errors, reference, variant, sample.label)


def _output_errors(reference: NDArray[Any], variant: NDArray[Any]) -> OutputErrors:
    errors = error_sums(reference, variant) if reference.dtype == np.float32 else None
    return OutputErrors(errors, agreement(reference, variant))
