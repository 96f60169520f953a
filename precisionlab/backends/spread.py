"""A backend whose samples are spread over the workers of an executor, to the same bits as in one process.

Each sample's statistics are those of the inner backend, and are merged here in the samples' order; the counts of
histograms are integers, which have none. How the samples are cut into tasks depends on their number alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path

from precisionlab.backends import worker
from precisionlab.backends.base import Backend, Evaluation, Progress, SensitivityRequest
from precisionlab.backends.onnxruntime import OnnxRuntimeBackend
from precisionlab.backends.ranking import pays
from precisionlab.backends.worker import Chunk, Source, Wanted
from precisionlab.calibration.histogram import Histogram, Histograms
from precisionlab.compare.gather import SampleResult
from precisionlab.compare.sensitivity import Toggled
from precisionlab.data import Dataset, Sample
from precisionlab.data.sample import digest
from precisionlab.data.saved import is_raw
from precisionlab.rewrite.toggle import stage_ends
from precisionlab.system.executors import Executor
from precisionlab.system.versions import versions

_CHUNKS = 32
"""As many tasks as there should be, so that some tens of workers have something to do to the end."""

_LARGEST = 8
"""Samples of a task: it should end soon, as it begins again when its worker dies."""


def source_of(backend: OnnxRuntimeBackend, dataset: Dataset) -> Source:
    """What workers open to work on the backend's model and on samples of this dataset, or of parts of it."""
    model, data = backend.model, dataset.folder
    return Source(
        model=str(model.path.resolve()),
        model_sha256=model.sha256,
        repairs=model.repairs,
        data=None if dataset.is_random else str(data.resolve()) if data else _anywhere(dataset.origin),
        shapes=tuple(dataset.random_shapes.items()),
        seed=dataset.seed,
        first=_wanted(dataset.only(dataset.names[:1]))[0],
        budget=backend.budget,
        memory=backend.memory,
        device=backend.runs_on.name,
        batching=backend.batching,
        versions=tuple(versions().items()),
    )


class SpreadBackend(Backend):
    """The inner backend's work, done by workers. Samples must be of the dataset that `source` names.

    A checked Dataset is not read here; of other samples the inputs are hashed.
    """

    def __init__(self, inner: OnnxRuntimeBackend, source: Source, executor: Executor) -> None:
        self.name = inner.name
        self.figures = inner.figures
        self.model = inner.model
        self.threads = 1
        self.cuts = inner.cuts
        self.workers = executor.workers
        self._budget = inner.budget
        self._is_parted = inner.share.is_parted
        self._can_toggle = inner.can_toggle
        self._pays = partial(pays, inner.model, budget=inner.budget, share=inner.share, device=inner.runs_on)
        self._source = source
        self._executor = executor

    def collector(self, tensors: Sequence[str]) -> SpreadCollector:
        """Takes the histograms of |x| of these float32 tensors from reference passes."""
        return SpreadCollector(self._source, self._executor, tensors)

    def results(self, evaluation: Evaluation, samples: Iterable[Sample]) -> Iterator[SampleResult]:
        """Reference and variant, a few samples in each task."""
        function = partial(worker.evaluate, self._source, evaluation)
        for found in self._executor.map(function, _chunks(_wanted(samples), self._source.batching.size)):
            yield from found

    def toggled(self, request: SensitivityRequest, samples: Iterable[Sample]) -> Iterator[Toggled]:
        """Stage after stage. A task is a stage with many samples: its sessions cost about as much as its runs.

        Or sample after sample, where sessions live on from one to the next; of fewer samples than there are workers
        each has some of the layers.
        """
        wanted = _wanted(samples)
        if self._can_toggle(request):
            shares = max(1, self.workers // len(wanted))
            layers = [request.layers[start::shares] for start in range(min(shares, len(request.layers)))]
            tasks = [Chunk((each,), layers=some) for each in wanted for some in layers]
        elif self._is_parted or self._pays(request):
            tasks = [Chunk((each,)) for each in wanted]
        else:
            tasks = self._stages(request, wanted)
        function = partial(worker.toggled, self._source, request, len(wanted))
        for found in self._executor.map(function, tasks):
            yield from found

    def _stages(self, request: SensitivityRequest, wanted: tuple[Wanted, ...]) -> list[Chunk]:
        stages = len(stage_ends(self.model, frozenset(request.layers), len(wanted), self._budget))
        parts = [wanted[start : start + _LARGEST] for start in range(0, len(wanted), _LARGEST)]
        return [Chunk(part, stage) for stage in range(stages) for part in parts]


class SpreadCollector:
    """Histograms of tensors in the reference, counted by workers."""

    def __init__(self, source: Source, executor: Executor, tensors: Sequence[str]) -> None:
        self._source = source
        self._executor = executor
        self._tensors = tuple(tensors)
        self._total = Histograms(tensors)

    def add(self, samples: Iterable[Sample], progress: Progress) -> None:
        """Count the values of these samples. At each call of `progress` exactly so many are counted."""
        tasks = _chunks(_wanted(samples), self._source.batching.size)
        function = partial(worker.histograms, self._source, self._tensors)
        done = 0
        for chunk, found in zip(tasks, self._executor.map(function, tasks), strict=True):
            self.restore(found)
            done += len(chunk.samples)
            progress(done)

    def restore(self, histograms: Mapping[str, Histogram]) -> None:
        """Add what an earlier run has counted."""
        for name in self._tensors:
            self._total.merge(name, histograms[name])

    def histograms(self) -> dict[str, Histogram]:
        """What has been counted so far."""
        return {name: self.histogram(name) for name in self._tensors}

    def histogram(self, tensor: str) -> Histogram:
        """The same of one tensor."""
        return self._total[tensor]


def _wanted(samples: Iterable[Sample]) -> tuple[Wanted, ...]:
    """What workers are told of these samples; read only where nobody has done so yet."""
    if isinstance(samples, Dataset) and samples.digests:
        return tuple(Wanted(name, samples.digests[name], samples.labels.get(name)) for name in samples.names)
    return tuple(Wanted(sample.name, digest(sample.inputs), sample.label) for sample in samples)


def _chunks(wanted: Sequence[Wanted], together: int) -> list[Chunk]:
    """Tasks of whole batches, so that those which run together are the same as in one process."""
    size = max(1, min(_LARGEST, len(wanted) // _CHUNKS) // together) * together
    return [Chunk(tuple(wanted[start : start + size])) for start in range(0, len(wanted), size)]


def _anywhere(origin: str) -> str:
    """The hook or the saved inputs with whole paths, if these have one: workers may run in another folder."""
    module, _, function = origin.rpartition(":")
    if module.endswith(".py"):
        return f"{Path(module).resolve()}:{function}"
    return origin if is_raw(origin) or (module and not origin.endswith(".py")) else str(Path(origin).resolve())
