"""One GPU as the device that the emulation runs on."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext, suppress
from functools import cache
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
from numpy.typing import NDArray

from precisionlab.backends.cuda.arrays import DeviceArray
from precisionlab.backends.cuda.kernels import Kernels
from precisionlab.backends.cuda.replay import Replays
from precisionlab.backends.cuda.replayable import is_replayable
from precisionlab.backends.cuda.session import CAPTURED, PROVIDER, CudaSession, load_libraries
from precisionlab.backends.cuda.statistics import DeviceErrorTable, DeviceHistograms, Launcher
from precisionlab.backends.cuda.sums import DeviceProducts
from precisionlab.backends.cuda.weights import DeviceWeights
from precisionlab.backends.device import Running
from precisionlab.backends.handed import LOOKUPS, PRODUCTS, to_hand
from precisionlab.backends.refusals import check_memory, why_not_run
from precisionlab.backends.session import keep_what_is_freed
from precisionlab.backends.sums.session import HalfSumsSession, has_products
from precisionlab.backends.tensorrt.cuda import Cuda, GpuFacts
from precisionlab.errors import EngineError, ModelError, OptionError
from precisionlab.model.expression import RAISED
from precisionlab.precision import Format

_AT_ONCE = 4
"""Samples side by side at most: more only wait for Python, which hands them their values."""

_WEIGHTS = 4
"""One part in so many of the GPU's memory is for weights that sessions to come may share."""

_SHARED = {**LOOKUPS, **PRODUCTS}


class Gpu:
    """One GPU: graphs run there, and only sums and counts leave its memory."""

    def __init__(self, number: int) -> None:
        """Raises EngineError where ONNX Runtime has no CUDA provider, or CUDA, NVRTC or the GPU is missing."""
        if PROVIDER not in ort.get_available_providers():
            raise EngineError(
                "this ONNX Runtime has no CUDA provider; put onnxruntime-gpu in its place "
                '(`pip uninstall onnxruntime && pip install "precisionlab[cuda]"`), or leave --device'
            )
        load_libraries()
        keep_what_is_freed()
        self._number = number
        self.name = f"cuda:{number}"
        cuda = Cuda.load()
        if number >= (count := count_of_gpus()):
            raise OptionError(f"device cuda:{number}: this machine has {count} GPU(s), counted from cuda:0")
        kernels = Kernels(cuda, number)
        self.facts: GpuFacts = cuda.device()
        self.title = f"a GPU ({self.facts.name})"
        self._cuda, self._pool = cuda, ThreadPoolExecutor(_AT_ONCE)
        self._launcher = Launcher(cuda, kernels)
        _, memory = cuda.memory()
        self._weights = DeviceWeights(self._sent, memory // _WEIGHTS)
        self._products = DeviceProducts(self._launcher, number, self.facts.compute_capability)

    def threads(self, asked: int, each: int) -> int:
        """A few, as many as fit: the kernels of most samples are done sooner than one thread has started the next."""
        free, _ = self._cuda.memory()
        return max(1, min(asked, _AT_ONCE, free // 2 // max(1, each)))

    def pool(self, threads: int) -> AbstractContextManager[Executor]:
        """The same for all: the first time that a thread runs a session CUDA's libraries are set up for it."""
        return nullcontext(self._pool)

    def session(self, graph: ir.Model) -> Running:
        """A graph ready to run."""
        if has_products(graph):
            return HalfSumsSession(graph, self._plain, self._products.of, self._launcher.settle)
        return self._plain(graph)

    def repeated(self, graph: ir.Model) -> Running:
        """A graph ready to run; where CUDA can, its runs are captured."""
        if is_replayable(graph):
            with suppress(ModelError):  # some node runs on the CPU
                handed = self._weights.of(to_hand(graph, _SHARED))
                return Repeated(CudaSession(graph, self._number, handed, CAPTURED), self)
        return self.session(graph)

    def replayed(self, session: Running, switches: Mapping[str, bool]) -> Running | None:
        """What runs a session that is `repeated`, one sample after the other, as it was captured."""
        return Replayed(session.replays, switches) if isinstance(session, Repeated) else None

    def _plain(self, graph: ir.Model) -> CudaSession:
        return CudaSession(graph, self._number, self._weights.of(to_hand(graph, _SHARED)))

    def _sent(self, array: NDArray[Any]) -> DeviceArray:
        """A weight in the GPU's memory. Raises MemoryError where there is no room, EngineError for what else fails."""
        try:
            return self.value(array)
        except RAISED as error:
            check_memory(error)
            raise EngineError(f"a weight cannot be copied to GPU {self._number}: {why_not_run(error)}") from None

    def errors(self, formats: Sequence[Format]) -> DeviceErrorTable:
        """An empty error table."""
        return DeviceErrorTable(self._launcher, formats)

    def histograms(self, names: Iterable[str]) -> DeviceHistograms:
        """Empty histograms."""
        return DeviceHistograms(self._launcher, names)

    def host(self, value: DeviceArray | NDArray[Any]) -> NDArray[Any]:
        """A copy of a value in the host's memory."""
        return value.host() if isinstance(value, DeviceArray) else value

    def value(self, array: NDArray[Any]) -> DeviceArray:
        """A copy of an array in the GPU's memory."""
        return DeviceArray(ort.OrtValue.ortvalue_from_numpy(array, "cuda", self._number))

    def empty(self, shape: tuple[int, ...]) -> DeviceArray:
        """Room for a float32 tensor."""
        return DeviceArray(ort.OrtValue.ortvalue_from_shape_and_type(list(shape), np.float32, "cuda", self._number))

    def fill(self, place: DeviceArray, value: DeviceArray | NDArray[Any]) -> None:
        """Copy a value of the same shape and type to a place in the GPU's memory."""
        if isinstance(value, DeviceArray):
            self._cuda.copy(place.address, value.address, 4 * value.size)
        else:
            self._cuda.upload(place.address, np.ascontiguousarray(value))

    def free(self) -> int:
        """Bytes of its memory that are free."""
        return self._cuda.memory()[0]


class Repeated:
    """A session whose runs can be captured."""

    def __init__(self, session: CudaSession, memory: Gpu) -> None:
        self.run = session.run
        self.replays = Replays(session, memory)
        self._session = session

    def close(self) -> None:
        """Let go of it, and of what was captured."""
        self.replays.close()
        self._session.close()


class Replayed:
    """A repeated session with its switches set."""

    def __init__(self, replays: Replays, switches: Mapping[str, bool]) -> None:
        self._replays, self._switches = replays, switches

    def run(self, feeds: Mapping[str, Any]) -> dict[str, Any]:
        """All outputs by name; they hold until the next run."""
        return self._replays.run(feeds, self._switches)

    def close(self) -> None:
        """Others use the session: it stays."""


def count_of_gpus() -> int:
    """How many GPUs this process can see."""
    cuda = Cuda.load()
    (count,) = cuda.check(cuda.cudart.cudaGetDeviceCount(), "GPUs were counted")
    return int(count)


@cache
def gpu(number: int) -> Gpu:
    """The GPU of this number: one for the process, as its kernels are compiled once. Raises as `Gpu`."""
    # Its CUDA packages warn at every session of a plugin that nobody asked for; what fails is told by exceptions.
    ort.set_default_logger_severity(3)
    return Gpu(number)
