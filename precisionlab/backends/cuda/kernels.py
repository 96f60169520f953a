"""The kernels of `kernels.cu` and `sums.cu`, compiled for the GPU at hand by NVRTC and launched through cuda-python."""

from __future__ import annotations

import ctypes
import importlib
import threading
from collections.abc import Sequence
from importlib import resources
from typing import Any

from precisionlab.backends.tensorrt.cuda import Cuda, GpuFacts
from precisionlab.errors import EngineError

THREADS = 256
_SOURCES = ("kernels.cu", "sums.cu")
_current = threading.local()  # which GPU this thread works on
_INSTALL = 'install it with `pip install "precisionlab[cuda]"`'


class Kernels:
    """The compiled kernels on one GPU. Raises EngineError where NVRTC is missing or refuses."""

    def __init__(self, cuda: Cuda, number: int) -> None:
        self._cuda, self._number = cuda, number
        self._driver = _module("driver", "cuda.cuda")
        self.bind()
        image = compiled(cuda.device())
        (self._module,) = self._check(self._driver.cuModuleLoadData(image), "the kernels were loaded")
        self._functions: dict[str, Any] = {}

    def bind(self) -> None:
        """Make the GPU the current one of this thread, as every thread that uses it must."""
        if getattr(_current, "number", None) == self._number:
            return
        self._cuda.check(self._cuda.cudart.cudaSetDevice(self._number), f"GPU {self._number} was taken")
        self._cuda.check(self._cuda.cudart.cudaFree(0), f"GPU {self._number} was taken")
        _current.number = self._number

    def launch(self, name: str, grid: tuple[int, int, int], threads: int, values: Sequence[tuple[int, Any]]) -> None:
        """Queue a kernel in the default stream; `values` are its arguments with their ctypes (addresses: c_void_p)."""
        if name not in self._functions:
            found = self._driver.cuModuleGetFunction(self._module, name.encode())
            (self._functions[name],) = self._check(found, f"kernel {name} was looked for")
        arguments = (tuple(value for value, _ in values), tuple(kind for _, kind in values))
        done = self._driver.cuLaunchKernel(self._functions[name], *grid, threads, 1, 1, 0, 0, arguments, 0)
        self._check(done, f"kernel {name} was started")

    def _check(self, result: Sequence[Any], doing: str) -> tuple[Any, ...]:
        code, *values = result
        if code != self._driver.CUresult.CUDA_SUCCESS:
            raise EngineError(f"the GPU failed while {doing}: {code.name}")
        return tuple(values)


def compiled(device: GpuFacts) -> bytes:
    """The kernels as PTX for the device's compute capability. Raises EngineError."""
    nvrtc = _module("nvrtc", "cuda.nvrtc")
    files = resources.files(__package__)
    source = b"\n".join(files.joinpath(name).read_bytes() for name in _SOURCES)
    major, minor = device.compute_capability
    options = [f"--gpu-architecture=compute_{major}{minor}".encode(), b"--std=c++17"]
    code, program = nvrtc.nvrtcCreateProgram(source, b"kernels.cu", 0, [], [])
    _nvrtc(code, "it was given the kernels")
    try:
        (code,) = nvrtc.nvrtcCompileProgram(program, len(options), options)
        if code != nvrtc.nvrtcResult.NVRTC_SUCCESS:
            raise EngineError(f"NVRTC cannot compile the kernels for {device.name}: {_log(nvrtc, program)}")
        code, size = nvrtc.nvrtcGetPTXSize(program)
        _nvrtc(code, "it was asked for the kernels")
        image: bytes = b" " * size
        (code,) = nvrtc.nvrtcGetPTX(program, image)
        _nvrtc(code, "it was asked for the kernels")
        return image
    finally:
        nvrtc.nvrtcDestroyProgram(program)


def address(value: int) -> tuple[int, Any]:
    """An address as a kernel's argument."""
    return value, ctypes.c_void_p


def number(value: int) -> tuple[int, Any]:
    """A whole number (C's int) as a kernel's argument."""
    return value, ctypes.c_int


def _nvrtc(code: Any, doing: str) -> None:
    if code.value != 0:
        raise EngineError(f"NVRTC failed while {doing}: {code.name}")


def _log(nvrtc: Any, program: Any) -> str:
    _, size = nvrtc.nvrtcGetProgramLogSize(program)
    text = b" " * size
    nvrtc.nvrtcGetProgramLog(program, text)
    return str(text.decode(errors="replace")).strip("\0 \n")[:400]


def _module(name: str, older: str) -> Any:
    """A module of cuda-python, by its name from 12.6 on or before. Raises EngineError."""
    for path in (f"cuda.bindings.{name}", older):
        try:
            return importlib.import_module(path)
        except ImportError:
            continue
    raise EngineError(f"the Python package cuda-python has no {name} here; {_INSTALL}")
