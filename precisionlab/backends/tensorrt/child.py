"""TensorRT's process as the backend sees it: engines are built once, kept on disk, and run there."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from precisionlab.backends.tensorrt.api import Features
from precisionlab.backends.tensorrt.jobs import NOTHING, Arrays, BuildJob, Built, Latency, Watch
from precisionlab.backends.tensorrt.network import NetworkLayer
from precisionlab.backends.tensorrt.plugins import Plugins
from precisionlab.backends.tensorrt.process import EngineProcess
from precisionlab.backends.tensorrt.service import Facts, service
from precisionlab.backends.tensorrt.store import EngineStore, key_of
from precisionlab.backends.tuning import UNTUNED, Tuning
from precisionlab.data import Dataset
from precisionlab.model import Model
from precisionlab.system.observer import Observer

_SILENCE = 3600.0
"""Seconds without a word after which a build counts as hanging; TensorRT tells of its progress from 10.0 on."""


class ChildEngines:
    """Builds and runs engines in a process of its own, which is started anew where it has died."""

    def __init__(
        self,
        module: str,
        model: Model,
        samples: Dataset,
        store: EngineStore,
        log: Path,
        observer: Observer,
        plugins: tuple[Plugins, ...] = (),
        tuning: Tuning = UNTUNED,
    ) -> None:
        """`module` is TensorRT's; `samples` are those that it calibrates on, where it does that by itself.

        `plugins` are loaded before anything else, `tuning` is what the user asks of engines. Raises EngineError where
        TensorRT cannot be used, OptionError where a library of plugins cannot be loaded, or this TensorRT has not what
        is asked for.
        """
        self._module = module
        self._model = model
        self._samples = samples
        self._store = store
        self._observer = observer
        self._process = EngineProcess(service, module, log, plugins, tuning, log=log)
        self._loaded: tuple[Path, int] | None = None
        facts: Facts = self._process.call("facts", what="looking for the GPU")
        self.features: Features = facts.features
        self.device: str | None = facts.device
        self.no_gpu = facts.no_gpu
        self.notes: tuple[str, ...] = facts.notes

    def __enter__(self) -> ChildEngines:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.close()

    def describe(self, model: Path, typed: bool = False) -> tuple[NetworkLayer, ...]:
        """The network that the parser makes of an ONNX file. Raises BuildError where it refuses it."""
        found: tuple[NetworkLayer, ...] = self._process.call("describe", model, typed, what=f"parsing {model.name}")
        return found

    def build(self, job: BuildJob) -> Built:
        """Build an engine, or take it from the store. `job.engine` is the folder to build it in.

        Raises BuildError where TensorRT refuses, EngineError where its process dies.
        """
        samples = self._samples.sha256 if job.calibrates else None
        key = key_of(
            job,
            job.content,
            samples,
            module=self._module,
            version=self.features.version,
            device=self.device or "no GPU",
        )
        known = self._store.get(key)
        if known is not None:
            return known
        self._loaded = None  # a build has the GPU's memory to itself
        title = f"building {job.title}"
        self._observer.stage(title, 1000, "part")
        built: Built = self._process.call(
            "build",
            job.into(job.engine / f".{key.digest}.building"),
            what=title,
            silence=_SILENCE,
            callbacks={"progress": self._progress, "sample": self._next_sample(job)},
        )
        return self._store.put(key, built)

    def run(self, engine: Path, inputs: Arrays, watch: Watch = NOTHING) -> Arrays:
        """All outputs of an engine, marked tensors among them, for one sample, and what is watched.

        Raises EngineError.
        """
        self._load(engine)
        outputs: Arrays = self._process.call("run", dict(inputs), watch, what=f"running {engine.name}")
        return outputs

    def latency(self, engine: Path, inputs: Arrays) -> tuple[Latency, Mapping[str, float]]:
        """The time of one run, and of each of the engine's layers in it, in milliseconds."""
        self._load(engine)
        found: tuple[Latency, Mapping[str, float]] = self._process.call(
            "latency", dict(inputs), what=f"timing {engine.name}"
        )
        return found

    def _load(self, engine: Path) -> None:
        # A process that was started anew has loaded nothing.
        if self._loaded != (engine, self._process.started):
            self._process.call("load", engine, what=f"loading {engine.name}")
            self._loaded = (engine, self._process.started)

    def _progress(self, title: str, done: int, total: int) -> None:
        self._observer.advance(round(1000 * done / max(1, total)))

    def _next_sample(self, job: BuildJob) -> Any:
        """Hands out one sample's inputs after the other, then None."""
        left: Iterator[Arrays] = self._calibration(job) if job.calibrates else iter(())
        return lambda: next(left, None)

    def _calibration(self, job: BuildJob) -> Iterator[Arrays]:
        from precisionlab.backends.tensorrt.calibrator import check_calibration_inputs

        for sample in self._samples:
            check_calibration_inputs(sample.name, sample.inputs, self._model.inputs, job.profiles)
            yield sample.inputs
