"""Histograms of the emulation's reference, counted over whatever samples are given."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from copy import copy
from typing import Any

from precisionlab.backends.base import Progress
from precisionlab.backends.batching import Batching
from precisionlab.backends.device import CPU, Device
from precisionlab.backends.memory import Share
from precisionlab.backends.runner import Runner, State
from precisionlab.backends.session import as_float32
from precisionlab.calibration.histogram import Histogram
from precisionlab.data import Sample
from precisionlab.model import Model
from precisionlab.model.layers import one_node_a_layer
from precisionlab.plan.plan import PrecisionPlan
from precisionlab.precision import Precision
from precisionlab.rewrite.flow import LayerCopier
from precisionlab.rewrite.observe import Flow, Segment

_CACHED = 4 * 1024**2
"""As much as a segment may show for a core's cache to hold it still when its values are counted: calibration reads
every value that was just written, and does little else (orient: 12.8 ms a sample in one segment, 8.7 in eighteen).
Comparing does more with each value, and gains nothing by it."""


class Collector:
    """Histograms of tensors in the reference, one pass over whatever samples it is given.

    A tensor inside a fused layer can be asked for too; then nothing is fused in that pass.
    """

    def __init__(
        self,
        model: Model,
        tensors: Sequence[str],
        threads: int,
        budget: int,
        share: Share,
        device: Device,
        batching: Batching,
    ) -> None:
        shown = {name for layer in model.layers for name in (*layer.inputs, *layer.outputs)}
        if not shown.issuperset(tensors):
            model = one_node_a_layer(model)
        flows = (Flow.REFERENCE,)
        plan = PrecisionPlan(model.sha256, Precision.FP32)
        self._threads = threads if device is CPU else 1  # a GPU's bins are for one at a time
        budget = min(budget, _CACHED) if device is CPU else budget
        self._device = device
        how = budget, share, device, LayerCopier, None, batching
        self._runner = Runner(model, plan, None, flows, flows, *how)
        self._tensors = tuple(tensors)
        # One set for all threads, as it is what grows with the number of tensors.
        self._counted = device.histograms(tensors)
        self._wanted = frozenset(tensors)

    def emptied(self) -> Collector:
        """Another with nothing counted yet, that shares the sessions."""
        fresh = copy(self)
        fresh._counted = self._device.histograms(self._tensors)
        return fresh

    def add(self, samples: Iterable[Sample], progress: Progress) -> None:
        """Count the values of these samples."""

        def visit(sample: Sample) -> Counting:
            self._count((name, as_float32(array)) for name, array in sample.inputs.items())
            return Counting(self._count, self._counted.settle)

        for done, _ in enumerate(self._runner.each(samples, visit, self._threads), 1):
            progress(done)

    def _count(self, tensors: Iterable[tuple[str, Any]]) -> None:
        self._counted.add_all((name, array) for name, array in tensors if name in self._wanted)

    def restore(self, histograms: Mapping[str, Histogram]) -> None:
        """Add what an earlier run has counted."""
        for name in self._tensors:
            self._counted.merge(name, histograms[name])

    def histograms(self) -> dict[str, Histogram]:
        """What has been counted so far."""
        return {name: self.histogram(name) for name in self._tensors}

    def histogram(self, tensor: str) -> Histogram:
        """The same of one tensor."""
        return self._counted[tensor]


class Counting:
    """Counts the values of one sample in the reference."""

    def __init__(
        self, count: Callable[[Iterable[tuple[str, Any]]], None], settle: Callable[[], None] = lambda: None
    ) -> None:
        """`count` is given names and values, `settle` called behind each segment."""
        self._count = count
        self._settle = settle

    def observer(self, segment: Segment, state: State) -> None:
        """Count what the segment shows."""
        self._count((name, state[Flow.REFERENCE, name]) for name in segment.observed)
        self._settle()

    def result(self) -> None:
        """Nothing: it is counted where all samples are."""
