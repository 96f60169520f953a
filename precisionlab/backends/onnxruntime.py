"""The emulation: every precision as rounding gates in float32 graphs, on any machine's CPU."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from copy import copy
from queue import SimpleQueue
from typing import Any, TypeVar

from numpy.typing import NDArray

from precisionlab.backends.base import Backend, Detail, Evaluation, Progress, Toggling
from precisionlab.backends.session import Session
from precisionlab.backends.toggles import toggle_stages
from precisionlab.calibration.histogram import Histogram, Histograms
from precisionlab.calibration.table import CalibrationTable
from precisionlab.compare.effects import SampleEffects
from precisionlab.compare.errors import ErrorTable
from precisionlab.compare.gather import SampleResult, output_errors
from precisionlab.data import Sample
from precisionlab.model import Model
from precisionlab.model.layers import one_node_a_layer
from precisionlab.model.load import at_shapes
from precisionlab.precision import Precision, PrecisionPlan
from precisionlab.rewrite.gates import check_opset
from precisionlab.rewrite.observe import Flow, Key, Segment, cut, observed_rows, segments, shape_probe

T = TypeVar("T")

DEFAULT_BUDGET = 128 * 1024**2
"""Bytes of activations that one segment may show for one sample; each thread holds one sample."""

_CACHED = 4 * 1024**2
"""As much as a segment may show for a core's cache to hold it still when its values are counted: calibration reads
every value that was just written, and does little else (orient: 12.8 ms a sample in one segment, 8.7 in eighteen).
Comparing does more with each value, and gains nothing by it."""


class OnnxRuntimeBackend(Backend):
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

    def results(self, evaluation: Evaluation, samples: Iterable[Sample]) -> Iterator[SampleResult]:
        """Reference and variant, and where it is asked for each layer alone, in one graph."""
        return _side_by_side(self.watch(evaluation), samples, self.threads)

    def reference(self, names: Collection[str]) -> Callable[[Sample], dict[str, NDArray[Any]]]:
        """The function that gives the reference's values of these final or layer outputs, for one sample."""
        flows = (Flow.REFERENCE,)
        runner = _Runner(self.model, PrecisionPlan(self.model.sha256, Precision.FP32), None, flows, flows, self.budget)
        constants = _constant_outputs(self.model)

        def values(sample: Sample) -> dict[str, NDArray[Any]]:
            given = {**constants, **sample.inputs}
            found = {name: given[name] for name in names if name in given}
            for _, state in runner.run(sample):
                found.update((name, state[Flow.REFERENCE, name]) for name in names if (Flow.REFERENCE, name) in state)
            return found

        return values

    def watch(self, evaluation: Evaluation) -> Callable[[Sample], SampleResult]:
        """The function that gives `results` for one sample; its sessions live as long as it does."""
        flows = tuple(dict.fromkeys((Flow.REFERENCE, *evaluation.flows)))
        runner = _Runner(self.model, evaluation.plan, evaluation.table, flows, evaluation.flows, self.budget)
        return _Watch(runner, self.model, evaluation).result

    def effects(self, toggling: Toggling, samples: Iterable[Sample]) -> Iterator[SampleEffects]:
        """Each layer toggled in a branch that goes on from the others' values, so that only what follows is run."""
        every = list(samples)
        for effects_of in toggle_stages(self.model, toggling, len(every), self.budget):
            yield from _side_by_side(effects_of, every, self.threads)


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

    def emptied(self) -> OnnxRuntimeCollector:
        """Another with nothing counted yet, that shares the sessions."""
        fresh = copy(self)
        fresh._every = [Histograms(self._tensors) for _ in self._every]
        return fresh

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
        self._last: dict[Key, int] = {}
        for index, segment in enumerate(self._segments):
            self._last.update((key, index) for key in segment.feeds.values())

    def run(self, sample: Sample) -> Iterator[tuple[Segment, Mapping[Key, NDArray[Any]]]]:
        """Each segment with the values that stand after it: its own, and those still needed later."""
        state: dict[Key, NDArray[Any]] = {(Flow.REFERENCE, name): array for name, array in sample.inputs.items()}
        for index, (segment, session) in enumerate(zip(self._segments, self._sessions, strict=True)):
            values = session.run({name: state[key] for name, key in segment.feeds.items()})
            state.update((segment.fetches[name], value) for name, value in values.items())
            values.clear()
            yield segment, state
            state = {key: value for key, value in state.items() if self._last.get(key, -1) > index}


class _Watch:
    """Looks at the values of an evaluation while a sample goes through, and keeps their statistics alone."""

    def __init__(self, runner: _Runner, model: Model, evaluation: Evaluation) -> None:
        self._runner = runner
        self._evaluation = evaluation
        self._rows = observed_rows(model, evaluation.plan, evaluation.flows)
        self._outputs = [info.name for info in model.outputs]
        self._constants = _constant_outputs(model)

    def result(self, sample: Sample) -> SampleResult:
        """Run one sample."""
        layers = ErrorTable(len(self._rows))
        look = self._count if self._evaluation.detail is Detail.NONFINITE else self._compare
        reference: dict[str, NDArray[Any]] = dict(self._constants)
        variant: dict[str, NDArray[Any]] = dict(self._constants)
        for segment, state in self._runner.run(sample):
            look(layers, segment, state)
            for name in self._outputs:
                if (Flow.REFERENCE, name) in state:
                    reference[name] = state[Flow.REFERENCE, name]
                    variant[name] = state.get((Flow.VARIANT, name), reference[name])
        # In the model's order, whatever the order in which the segments gave them.
        errors = {name: output_errors(reference[name], variant[name]) for name in self._outputs}
        values = None
        if self._evaluation.values:
            values = (_picked(reference, self._outputs), _picked(variant, self._outputs))
        return SampleResult(layers, errors, values, sample.label)

    def _compare(self, layers: ErrorTable, segment: Segment, state: Mapping[Key, NDArray[Any]]) -> None:
        for name in segment.observed:
            true = state[Flow.REFERENCE, name]
            layers.add(self._rows[Flow.VARIANT, name], true, state.get((Flow.VARIANT, name), true))
            if (Flow.ALONE, name) in self._rows:
                layers.add(self._rows[Flow.ALONE, name], true, state[Flow.ALONE, name])

    def _count(self, layers: ErrorTable, segment: Segment, state: Mapping[Key, NDArray[Any]]) -> None:
        for name in segment.observed:
            if (Flow.VARIANT, name) in state:
                layers.count_nonfinite(self._rows[Flow.VARIANT, name], state[Flow.VARIANT, name])


def _constant_outputs(model: Model) -> dict[str, NDArray[Any]]:
    """The final outputs that are constants."""
    constants = {str(v.name): v.const_value for v in model.onnx.graph.outputs if v.is_initializer()}
    return {name: value.numpy() for name, value in constants.items() if value is not None}


def _picked(values: Mapping[str, NDArray[Any]], names: Iterable[str]) -> dict[str, NDArray[Any]]:
    return {name: values[name] for name in names}
