"""What runs in a worker: it opens model, data and backend once, and works on a few samples at a time.

Workers share nothing with the main process but the paths: each reads the samples itself, and makes sure that model,
samples and versions are those that the run began with.
"""

from __future__ import annotations

import multiprocessing
import platform
import threading
from collections.abc import Callable, Generator, Hashable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

from precisionlab.backends import device_of
from precisionlab.backends.base import Evaluation, SensitivityRequest
from precisionlab.backends.batching import Batching
from precisionlab.backends.device import CPU, Device
from precisionlab.backends.onnxruntime import OnnxRuntimeBackend
from precisionlab.backends.sensitivity import SensitivityStages
from precisionlab.calibration.histogram import Histogram
from precisionlab.calibration.table import CalibrationTable
from precisionlab.compare.gather import SampleResult
from precisionlab.compare.sensitivity import Toggled
from precisionlab.data import Dataset, Sample, open_dataset, random_dataset
from precisionlab.data.sample import Entry, digest
from precisionlab.errors import DataError, ModelError, OptionError, PrecisionLabError
from precisionlab.model import load_model
from precisionlab.model.repair import Repair
from precisionlab.rewrite.repairs import repaired_model
from precisionlab.system.versions import PROCESSOR, versions

T = TypeVar("T")


@dataclass(frozen=True)
class Wanted:
    """One sample by its name, with the hash of its inputs and its label as the main process knows them."""

    name: str
    digest: str
    label: str | None


@dataclass(frozen=True)
class Chunk:
    """One task: a few samples; of sensitivities, through one of their stages, or to some of the layers."""

    samples: tuple[Wanted, ...]
    stage: int | None = None
    layers: tuple[str, ...] | None = None

    def __str__(self) -> str:
        first, last = self.samples[0].name, self.samples[-1].name
        names = f"sample {first}" if first == last else f"samples {first} to {last}"
        return names if self.stage is None else f"stage {self.stage} of the single layers, {names}"


@dataclass(frozen=True)
class Source:
    """What a worker opens: the model, the data and the versions of the packages that figures depend on.

    `data` is a folder or a hook; None for random inputs, which `shapes` and `seed` tell. `first` is the sample that
    says the model's shapes, `budget`, `memory`, `device` and `batching` those of the backend. `repairs` are made to the
    model.
    """

    model: str
    model_sha256: str
    repairs: tuple[Repair, ...]
    data: str | None
    shapes: tuple[tuple[str, tuple[int, ...]], ...]
    seed: int
    first: Wanted
    budget: int
    memory: int | None
    device: str
    batching: Batching
    versions: tuple[tuple[str, str], ...]


def evaluate(source: Source, evaluation: Evaluation, chunk: Chunk) -> list[SampleResult]:
    """Reference and variant for each sample of the chunk."""
    opened = _open(source)
    key = (replace(evaluation, table=None), _digest(evaluation.table))  # a table cannot be hashed
    results_of = opened.kept(key, lambda: opened.backend.watch(evaluation))
    return list(results_of(opened.read(chunk.samples)))


def toggled(source: Source, request: SensitivityRequest, count: int, chunk: Chunk) -> list[Toggled]:
    """What each layer of one stage, or of all, does to each sample. The chunk's samples are some of `count`."""
    opened = _open(source)
    if chunk.layers is not None:
        request = replace(request, layers=chunk.layers)
    if chunk.stage is None:  # all stages: their sessions are not made for each
        return list(opened.backend.toggled(request, opened.read(chunk.samples)))
    key = (replace(request, table=None), _digest(request.table), count)
    backend = opened.backend
    reference = backend.kept_reference(request.judging)
    stages = opened.kept(
        key,
        lambda: SensitivityStages(backend.model, request, count, backend.budget, backend.runs_on, reference),
    )
    toggled_of = stages.stage(chunk.stage)
    return [toggled_of(sample) for sample in opened.read(chunk.samples)]


def histograms(source: Source, tensors: tuple[str, ...], chunk: Chunk) -> dict[str, Histogram]:
    """The histograms of these tensors over the samples of the chunk."""
    opened = _open(source)
    collector = opened.kept(("histograms", tensors), lambda: opened.backend.collector(tensors)).emptied()
    collector.add(opened.read(chunk.samples), lambda done: None)
    return collector.histograms()


def _device(name: str) -> Device:
    """Where this worker's graphs run. On a machine with several GPUs its processes take them in turn."""
    device = device_of(name)
    if device is CPU:
        return device
    from precisionlab.backends.cuda.device import count_of_gpus

    ordinal = (multiprocessing.current_process()._identity or (1,))[0] - 1
    return device_of(f"cuda:{ordinal % count_of_gpus()}")


def _digest(table: CalibrationTable | None) -> str | None:
    return None if table is None else table.digest


class _Opened:
    """Model, data and backend of one source, and the sessions of the last thing that was asked for.

    The threads of a Dask worker share it.
    """

    def __init__(self, source: Source) -> None:
        self.source = source
        self._lock = threading.Lock()
        self._kept: tuple[Hashable, object] | None = None
        with _told():
            _check_versions(source)
            model = load_model(Path(source.model))
            if model.sha256 != source.model_sha256:
                raise ModelError(f"{source.model}: not the model that the run began with; give every worker the same")
            model = repaired_model(model, source.repairs)
            if source.data is None:
                dataset = random_dataset(model, dict(source.shapes), source.seed)
            else:
                dataset = open_dataset(source.data, model, None, source.seed)
            self._reader = _Reader(dataset)
            first = self._reader.read(source.first)
        self.backend = OnnxRuntimeBackend(model, first, 1, source.budget, source.memory, _device(source.device))
        self.backend.run_together(source.batching)

    def read(self, samples: Sequence[Wanted]) -> list[Sample]:
        """These samples, each as the main process has seen it. Raises DataError otherwise."""
        with self._lock, _told():
            return [self._reader.read(wanted) for wanted in samples]

    def kept(self, key: Hashable, make: Callable[[], T]) -> T:
        """What was made last if it has this key; otherwise it is let go, and made anew."""
        with self._lock:
            if self._kept is None or self._kept[0] != key:
                self._kept = None  # not two at a time: sessions take memory
                self._kept = (key, make())
            found: T = self._kept[1]  # type: ignore[assignment]  # the key tells its type
            return found


_opened: list[_Opened] = []
_opening = threading.Lock()


def _open(source: Source) -> _Opened:
    """What this process has open; another source takes the place of the one before."""
    with _opening:
        if not _opened or _opened[0].source != source:
            _opened.clear()
            _opened.append(_Opened(source))
        return _opened[0]


class _Reader:
    """Reads samples by name. One pass stays open: a hook is not called anew for samples that lie further on."""

    def __init__(self, dataset: Dataset) -> None:
        self._dataset = dataset
        self._restart()

    def read(self, wanted: Wanted) -> Sample:
        """The sample, with the main process's label. Raises DataError where it is gone, or another."""
        if wanted.name in self._passed:
            self._restart()
        try:
            sample = self._entry(wanted.name).read()
        except BaseException:
            self._restart()
            raise
        if digest(sample.inputs) != wanted.digest:
            raise DataError(
                f"{self._dataset.origin}: {wanted.name} is not what it was when the run began; "
                "every worker must see the same data, unchanged"
            )
        return replace(sample, label=wanted.label)

    def _entry(self, name: str) -> Entry:
        for entry in self._pass:
            self._passed.add(entry.name)
            if entry.name == name:
                return entry
        raise DataError(f"{self._dataset.origin}: has no sample {name}; every worker must see the same data")

    def _restart(self) -> None:
        self._pass: Generator[Entry, None, None] = self._dataset.source.entries()
        self._passed: set[str] = set()


def _check_versions(source: Source) -> None:
    here = versions()
    for package, version in source.versions:
        if here[package] != version and package == PROCESSOR:
            raise OptionError(
                f"runs on {here[package]}, the run began on {version}; take workers of one kind, as kernels for "
                "another give other bits"
            )
        if here[package] != version:
            raise OptionError(
                f"has {package} {here[package]}, the run began with {version}; "
                "install the same there, as other versions give other bits"
            )


@contextmanager
def _told() -> Iterator[None]:
    """What is wrong with a worker's view of model and data is told with its machine's name."""
    try:
        yield
    except PrecisionLabError as error:
        raise type(error)(f"worker on {platform.node()}: {error}") from None
