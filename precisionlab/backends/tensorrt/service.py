"""What TensorRT's process can be asked for: the handlers that `process.EngineProcess` calls by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from precisionlab.backends.tensorrt.api import Features, features_of, load_tensorrt
from precisionlab.backends.tensorrt.buffers import Buffers, as_dtype, take_into
from precisionlab.backends.tensorrt.build import build, network_layers
from precisionlab.backends.tensorrt.cuda import Cuda
from precisionlab.backends.tensorrt.execution import Engine
from precisionlab.backends.tensorrt.jobs import Arrays, BuildJob, Built, Latency, Watch
from precisionlab.backends.tensorrt.latency import measure, measure_layers
from precisionlab.backends.tensorrt.listener import make_listener
from precisionlab.backends.tensorrt.network import NetworkLayer
from precisionlab.backends.tensorrt.outputlog import keeper_for, logger_for
from precisionlab.backends.tensorrt.plugins import Plugins, register_plugins
from precisionlab.backends.tensorrt.tuning import check_tuning
from precisionlab.backends.tensorrt.worker import Link
from precisionlab.backends.tuning import UNTUNED, Tuning
from precisionlab.errors import EngineError


@dataclass(frozen=True)
class Facts:
    """The TensorRT and the GPU of a process.

    `device` is the GPU's name, compute capability and driver; None where there is none that it can use,
    for the reason in `no_gpu`. `notes` are on libraries of plugins.
    """

    features: Features
    device: str | None
    no_gpu: str = ""
    notes: tuple[str, ...] = ()


def service(
    link: Link, module: str, log: Path, plugins: tuple[Plugins, ...] = (), tuning: Tuning = UNTUNED
) -> Mapping[str, Callable[..., Any]]:
    """The handlers of one process, in which these plugins are loaded; its engines are built with `tuning`.

    Raises EngineError where TensorRT cannot be used, OptionError where a library cannot be loaded, or this TensorRT has
    not what is asked for.

    Without a GPU, all but `load`, `run` and `latency` are there: TensorRT-RTX compiles without one.
    """
    return _Service(link, module, log, plugins, tuning).handlers()


class _Service:
    def __init__(self, link: Link, module: str, log: Path, plugins: tuple[Plugins, ...], tuning: Tuning) -> None:
        self._link = link
        self._trt = load_tensorrt(module)
        self._cuda, self._no_gpu = _cuda()
        self._keeper = keeper_for(self._trt, log)
        self._logger = logger_for(self._trt, self._keeper)
        self._notes = register_plugins(self._trt, self._logger, plugins, self._keeper)
        check_tuning(self._trt, tuning, features_of(self._trt), self._logger)
        self._tuning = tuning
        self._engine: Engine | None = None

    def handlers(self) -> Mapping[str, Callable[..., Any]]:
        return {
            "facts": self.facts,
            "describe": self.describe,
            "build": self.build,
            "load": self.load,
            "run": self.run,
            "latency": self.latency,
        }

    def facts(self) -> Facts:
        device = None if self._cuda is None else str(self._cuda.device())
        return Facts(features_of(self._trt), device, self._no_gpu, self._notes)

    def describe(self, model: Path, typed: bool = False) -> tuple[NetworkLayer, ...]:
        return network_layers(self._trt, model, self._keeper, typed)

    def build(self, job: BuildJob) -> Built:
        self._unload()
        if not job.calibrates:
            return build(self._trt, job, self._keeper, None, self._progress)
        with Buffers(self._gpu()) as buffers:
            return build(self._trt, job, self._keeper, self._feed(buffers), self._progress)

    def load(self, engine: Path) -> None:
        self._unload()
        self._engine = Engine(self._trt, self._gpu(), self._logger, engine, self._keeper, self._tuning)

    def run(self, inputs: Arrays, watch: Watch) -> Arrays:
        """All outputs, and the debug tensors that are watched, which a listener copies as they come."""
        if not (watch.marked or watch.unfused):
            return self._loaded().run(inputs)
        seen: dict[str, NDArray[Any]] = {}
        listener = make_listener(self._trt, take_into(self._gpu(), seen, watch.tensors))
        if listener is None:
            raise EngineError("this TensorRT has no debug tensors; 10.0 and later do")
        outputs = self._loaded().run(inputs, listener, watch)
        return {**seen, **outputs}

    def latency(self, inputs: Arrays) -> tuple[Latency, Mapping[str, float]]:
        """The whole engine's time first: a profiler slows it down."""
        engine = self._loaded()
        return measure(engine, inputs), measure_layers(engine, inputs)

    def _gpu(self) -> Cuda:
        if self._cuda is None:
            raise EngineError(self._no_gpu)
        return self._cuda

    def _loaded(self) -> Engine:
        if self._engine is None:
            raise EngineError("no engine is loaded")
        return self._engine

    def _unload(self) -> None:
        engine, self._engine = self._engine, None
        if engine is not None:
            engine.close()

    def _progress(self, title: str, done: int, total: int) -> None:
        self._link.tell("progress", title, done, total)

    def _feed(self, buffers: Buffers) -> Callable[[Sequence[str]], Sequence[int] | None]:
        """Asks the parent for one sample after the other, and puts each into the GPU's memory."""

        def feed(names: Sequence[str]) -> Sequence[int] | None:
            inputs: Arrays | None = self._link.ask("sample")
            return (
                None
                if inputs is None
                else [buffers.upload(name, as_network_takes(self._trt, name, inputs[name])) for name in names]
            )

        return feed


def _cuda() -> tuple[Cuda | None, str]:
    """CUDA with a GPU; else nothing, and why."""
    try:
        cuda = Cuda.load()
        cuda.need_gpu()
    except EngineError as error:
        return None, str(error)
    return cuda, ""


def as_network_takes(trt: Any, name: str, array: NDArray[Any]) -> NDArray[Any]:
    """A calibration input in the network's type: 8.6 has no int64, and its parser makes int32 of such an input."""
    if array.dtype == np.int64 and not hasattr(trt.DataType, "INT64"):
        return as_dtype(array, np.dtype(np.int32), f"input {name!r}")
    return array
