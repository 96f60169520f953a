"""NVIDIA's CUDA runtime, by cuda-python: the GPU's facts and memory, streams and events.

cuda-python has its functions in `cuda.bindings.runtime` (from 12.6 on, 13 has nothing else) or in `cuda.cudart`
(before). Both are the same functions: each gives a tuple, the error first. Those up to 12.6 give no error where there
is no driver, but raise RuntimeError.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterable
from dataclasses import dataclass
from types import TracebackType
from typing import Any

from numpy.typing import NDArray

from precisionlab.errors import EngineError

_INSTALL = 'install the one that `precisionlab doctor` names here, such as `pip install "cuda-python>=13,<14"`'
_OTHERWISE = "or take `--backend onnxruntime`, which needs no GPU"


class NotInstalledError(EngineError):
    """cuda-python is not installed."""


@dataclass(frozen=True)
class GpuFacts:
    """The GPU that this process uses. `memory` is in bytes, `driver` and `runtime` are CUDA versions as `12.8`.

    `driver` is the newest CUDA that the driver can do, `runtime` the one that cuda-python was made for.
    """

    name: str
    compute_capability: tuple[int, int]
    memory: int
    driver: str
    runtime: str

    def __str__(self) -> str:
        """`NVIDIA L4, compute capability 8.9, driver for CUDA 12.8`; the same whatever else runs on the GPU."""
        major, minor = self.compute_capability
        return f"{self.name}, compute capability {major}.{minor}, driver for CUDA {self.driver}"


class Cuda:
    """The CUDA runtime on the process's GPU: the first that CUDA_VISIBLE_DEVICES leaves.

    Addresses are of GPU memory, sizes in bytes. Every method raises EngineError where CUDA reports an error.
    """

    def __init__(self, cudart: Any) -> None:
        """`cudart` is the module that has the CUDA runtime's functions; `Cuda.load()` finds it."""
        self.cudart = cudart

    @classmethod
    def load(cls) -> Cuda:
        """The installed CUDA runtime. Raises EngineError where it or a GPU is missing."""
        cuda = cls(runtime_module())
        cuda.need_gpu()
        return cuda

    def check(self, result: Iterable[Any], doing: str) -> tuple[Any, ...]:
        """What a call of the runtime has given behind its error. `doing` says in an EngineError what was being done."""
        code, *values = result
        if code != self.cudart.cudaError_t.cudaSuccess:
            self.cudart.cudaGetLastError()  # or TensorRT finds this error later, and takes it for its own
            raise EngineError(f"the GPU failed while {doing}: {self._words(code)}{self._advice(code)}")
        return tuple(values)

    def need_gpu(self) -> None:
        """Raise EngineError, with what to do, where there is no GPU that can be used."""
        try:
            code, count = self.cudart.cudaGetDeviceCount()
            _, driver = self.cudart.cudaDriverGetVersion()
        except RuntimeError as failure:  # an older cuda-python that finds no libcuda
            raise EngineError(
                f"no NVIDIA driver is here ({failure}); install it, check it with `nvidia-smi`, {_OTHERWISE}"
            ) from None
        errors = self.cudart.cudaError_t
        if code == errors.cudaErrorInsufficientDriver and driver:
            (runtime,) = self.check(self.cudart.cudaRuntimeGetVersion(), "its version was asked for")
            raise EngineError(
                f"the NVIDIA driver can do CUDA {_version(driver)}, the installed cuda-python needs "
                f'{_version(runtime)}: update the driver, or `pip install "cuda-python<{runtime // 1000}"`'
            )
        if code == errors.cudaErrorInsufficientDriver:
            raise EngineError(f"no NVIDIA driver is here; install it, check it with `nvidia-smi`, {_OTHERWISE}")
        if code == errors.cudaErrorNoDevice or (code == errors.cudaSuccess and count == 0):
            raise EngineError(
                "no NVIDIA GPU can be seen; check it with `nvidia-smi` and look at CUDA_VISIBLE_DEVICES, "
                f"in a container give it the GPU (`docker run --gpus all`), {_OTHERWISE}"
            )
        self.check((code,), "it was looked for")

    # Facts

    def device(self) -> GpuFacts:
        """The GPU that this process uses."""
        cudart = self.cudart
        doing = "its properties were asked for"
        (number,) = self.check(cudart.cudaGetDevice(), doing)
        (properties,) = self.check(cudart.cudaGetDeviceProperties(number), doing)
        kinds = cudart.cudaDeviceAttr
        (major,) = self.check(cudart.cudaDeviceGetAttribute(kinds.cudaDevAttrComputeCapabilityMajor, number), doing)
        (minor,) = self.check(cudart.cudaDeviceGetAttribute(kinds.cudaDevAttrComputeCapabilityMinor, number), doing)
        (driver,) = self.check(cudart.cudaDriverGetVersion(), doing)
        (runtime,) = self.check(cudart.cudaRuntimeGetVersion(), doing)
        name = properties.name
        return GpuFacts(
            name=(name.decode(errors="replace") if isinstance(name, bytes) else str(name)).rstrip("\0"),
            compute_capability=(int(major), int(minor)),
            memory=int(properties.totalGlobalMem),
            driver=_version(driver),
            runtime=_version(runtime),
        )

    def memory(self) -> tuple[int, int]:
        """How many bytes of the GPU's memory are free now, and how many it has."""
        free, total = self.check(self.cudart.cudaMemGetInfo(), "its memory was asked for")
        return int(free), int(total)

    # Memory

    def allocate(self, nbytes: int) -> int:
        """The address of so much new memory, a multiple of 256; `nbytes` must not be 0."""
        (address,) = self.check(self.cudart.cudaMalloc(nbytes), f"{_size(nbytes)} of its memory were taken")
        return int(address)

    def free(self, address: int) -> None:
        """Give memory back, once all that runs on the GPU is done."""
        # The result is left alone: after an error that breaks the context all calls fail alike, and the memory goes
        # with the process. What is to be heard of is the error, not this.
        self.cudart.cudaFree(address)

    def upload(self, address: int, array: NDArray[Any]) -> None:
        """Copy a contiguous array into the GPU's memory; all of it is there when this returns."""
        if array.nbytes:
            kind = self.cudart.cudaMemcpyKind.cudaMemcpyHostToDevice
            doing = f"{_size(array.nbytes)} were copied to it"
            self.check(self.cudart.cudaMemcpy(address, address_of(array), array.nbytes, kind), doing)
            # cudaMemcpy may return while the last bytes are still on their way, and other streams do not wait for them.
            self.wait(0)

    def download(self, address: int, array: NDArray[Any]) -> None:
        """Fill a contiguous array from the GPU's memory, after all work that is queued in ordinary streams."""
        if array.nbytes:
            kind = self.cudart.cudaMemcpyKind.cudaMemcpyDeviceToHost
            doing = f"{_size(array.nbytes)} were copied from it"
            self.check(self.cudart.cudaMemcpy(address_of(array), address, array.nbytes, kind), doing)

    def copy(self, address: int, source: int, nbytes: int) -> None:
        """Copy from one place in the GPU's memory to another; all of it is there when this returns."""
        if nbytes:
            kind = self.cudart.cudaMemcpyKind.cudaMemcpyDeviceToDevice
            self.check(self.cudart.cudaMemcpy(address, source, nbytes, kind), f"{_size(nbytes)} were copied in it")
            self.wait(0)

    def fetch(self, address: int, array: NDArray[Any], stream: Any) -> None:
        """Fill a contiguous array from an address of GPU or host memory, once the work queued in `stream` is done."""
        self.wait(stream)
        if array.nbytes:
            kind = self.cudart.cudaMemcpyKind.cudaMemcpyDefault
            doing = f"{_size(array.nbytes)} were copied from it"
            self.check(self.cudart.cudaMemcpy(address_of(array), address, array.nbytes, kind), doing)

    def wait(self, stream: Any) -> None:
        """Wait until the work queued in this stream is done (0: the default stream); its errors come up here."""
        self.check(self.cudart.cudaStreamSynchronize(stream), "it worked")

    def _words(self, code: Any) -> str:
        """`cudaErrorMemoryAllocation (out of memory)`."""
        try:
            (_, name), (_, text) = self.cudart.cudaGetErrorName(code), self.cudart.cudaGetErrorString(code)
        except RuntimeError:  # an older cuda-python asks the driver for the text, and there is none
            return str(code.name)
        return f"{_text(name)} ({_text(text)})"

    def _advice(self, code: Any) -> str:
        if code != self.cudart.cudaError_t.cudaErrorMemoryAllocation:
            return ""
        failed, free, total = self.cudart.cudaMemGetInfo()
        left = f"{_size(free)} of {_size(total)} are free; " if failed == self.cudart.cudaError_t.cudaSuccess else ""
        return f": {left}end other programs that use the GPU, or give smaller samples"


class Stream:
    """A queue of work for the GPU; a context manager. `address` is what TensorRT calls its handle."""

    def __init__(self, cuda: Cuda) -> None:
        """Raises EngineError."""
        self._cuda = cuda
        (self.handle,) = cuda.check(cuda.cudart.cudaStreamCreate(), "a stream was made")
        self.address = int(self.handle)

    def wait(self) -> None:
        """Wait until all of its work is done. Raises EngineError where that went wrong."""
        self._cuda.wait(self.handle)

    def close(self) -> None:
        """Give it up, with no look at the result: see `Cuda.free`."""
        self._cuda.cudart.cudaStreamDestroy(self.handle)

    def __enter__(self) -> Stream:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class Event:
    """A point in a stream's work, whose time the GPU takes; a context manager."""

    def __init__(self, cuda: Cuda) -> None:
        """Raises EngineError."""
        self._cuda = cuda
        (self.handle,) = cuda.check(cuda.cudart.cudaEventCreate(), "an event was made")

    def record(self, stream: Stream) -> None:
        """Stand behind all that is queued in the stream by now."""
        self._cuda.check(self._cuda.cudart.cudaEventRecord(self.handle, stream.handle), "an event was queued")

    def wait(self) -> None:
        """Wait until the work before it is done. Raises EngineError where that went wrong."""
        self._cuda.check(self._cuda.cudart.cudaEventSynchronize(self.handle), "it worked")

    def since(self, start: Event) -> float:
        """Milliseconds from another event to this one; both have come to pass."""
        elapsed = self._cuda.cudart.cudaEventElapsedTime(start.handle, self.handle)
        (milliseconds,) = self._cuda.check(elapsed, "a time was taken")
        return float(milliseconds)

    def close(self) -> None:
        """Give it up, with no look at the result: see `Cuda.free`."""
        self._cuda.cudart.cudaEventDestroy(self.handle)

    def __enter__(self) -> Event:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def address_of(array: NDArray[Any]) -> int:
    """Where an array's values begin, in the host's memory."""
    address: int = array.__array_interface__["data"][0]
    return address


def runtime_module() -> Any:
    """The module of cuda-python that has the CUDA runtime's functions.

    Raises NotInstalledError where there is none, EngineError where it cannot be loaded.
    """
    failed: ImportError | None = None
    for name in ("cuda.bindings.runtime", "cuda.cudart"):
        try:
            return importlib.import_module(name)
        except ImportError as error:
            # What is there, and cannot be loaded, is the reason to tell.
            missing = isinstance(error, ModuleNotFoundError) and error.name is not None and name.startswith(error.name)
            failed = failed if missing else failed or error
    if failed is not None:
        raise EngineError(f"the Python package cuda-python is installed, but cannot be loaded: {failed}")
    raise NotInstalledError(f"the Python package cuda-python is not installed; {_INSTALL}")


def _version(number: int) -> str:
    """`12.8` of 12080."""
    return f"{number // 1000}.{number % 1000 // 10}"


def _size(nbytes: int) -> str:
    for unit, name in ((1024**3, "GiB"), (1024**2, "MiB"), (1024, "KiB")):
        if nbytes >= unit:
            return f"{nbytes / unit:.1f} {name}"
    return f"{nbytes} bytes"


def _text(value: Any) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes) else str(value)
