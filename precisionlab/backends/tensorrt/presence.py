"""What of TensorRT, CUDA and a GPU is here, seen without loading any of it into this process."""

from __future__ import annotations

import ctypes
import importlib
import importlib.metadata
import importlib.util
import json
import subprocess
import sys
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from precisionlab.backends.tensorrt.builds import Build, installed_builds
from precisionlab.backends.tensorrt.cuda import NotInstalledError, runtime_module
from precisionlab.backends.tensorrt.process import how_it_died
from precisionlab.errors import EngineError
from precisionlab.system.wording import one_line

_PATIENCE = 60.0  # seconds
_MARK = "precisionlab saw "
_LONGEST = 300  # letters of what went wrong


@dataclass(frozen=True)
class Presence:
    """What was seen of one TensorRT's surroundings.

    `version` is TensorRT's own, `broken` why one that is installed cannot be loaded. `cuda_python` is the CUDA that
    cuda-python was made for and `driver` the newest that the driver can do, as CUDA writes it (12080 for 12.8), None
    where there is none; `cuda_broken` is why a cuda-python that is there cannot be used. `gpus` can be seen.
    """

    module: str
    version: str | None = None
    broken: str = ""
    cuda_python: int | None = None
    cuda_broken: str = ""
    driver: int | None = None
    gpus: int = 0
    builds: tuple[Build, ...] = ()

    @property
    def is_installed(self) -> bool:
        """Whether TensorRT is there, be it broken."""
        return self.version is not None or bool(self.broken)

    @property
    def has_cuda_python(self) -> bool:
        """Whether cuda-python is there, be it broken."""
        return self.cuda_python is not None or bool(self.cuda_broken)


def look(module: str) -> Presence:
    """What is here of `tensorrt` or `tensorrt_rtx`. Another process looks: a broken driver can take it down."""
    builds = installed_builds(module)
    script = f"import sys; sys.path[:] = {sys.path!r}; from {__name__} import tell; tell({module!r})"
    try:
        done = subprocess.run(
            [sys.executable, "-c", script], capture_output=True, text=True, errors="replace", check=False,
            timeout=_PATIENCE,
        )  # fmt: skip
        # Libraries may print as well, before it and as the process ends.
        seen = json.loads(next(line for line in done.stdout.splitlines() if line.startswith(_MARK))[len(_MARK) :])
    except subprocess.TimeoutExpired:
        return _hung(module, builds, f"the process that looked gave no answer within {_PATIENCE:.0f} s")
    except (OSError, ValueError, StopIteration) as error:
        why = str(error) if isinstance(error, OSError) else f"the process that looked {how_it_died(done.returncode)}"
        return _hung(module, builds, why)
    return Presence(module, **seen, builds=builds)


def tell(module: str) -> None:
    """Print what this process sees, as JSON, for `look`. Whatever is loaded here may end the process."""
    seen: dict[str, Any] = {}
    if importlib.util.find_spec(module) is not None:
        try:
            seen["version"] = str(importlib.import_module(module).__version__)
        except Exception as error:  # of a foreign package: anything
            seen["broken"] = _said(error)
    cudart = None
    try:
        cudart = runtime_module()
    except NotInstalledError:
        pass
    except EngineError as error:
        seen["cuda_broken"] = str(error)
    seen["driver"] = _driver(cudart)
    if cudart is not None:
        seen.update(_seen_by(cudart))
    print(f"\n{_MARK}{json.dumps(seen)}", flush=True)


def _hung(module: str, builds: tuple[Build, ...], why: str) -> Presence:
    """Where the process that looked gave no answer."""
    is_there = importlib.util.find_spec(module) is not None
    return Presence(module, broken=why if is_there else "", cuda_broken="" if is_there else why, builds=builds)


def _seen_by(cudart: Any) -> dict[str, Any]:
    try:
        (error, runtime), (failed, gpus) = cudart.cudaRuntimeGetVersion(), cudart.cudaGetDeviceCount()
    except RuntimeError as problem:  # an older cuda-python that finds no driver
        return {"cuda_python": _packaged(), "cuda_broken": "" if _packaged() else _said(problem)}
    return {"cuda_python": _packaged() if int(error) else int(runtime), "gpus": 0 if int(failed) else int(gpus)}


def _packaged() -> int | None:
    """The CUDA that cuda-python's package is for, as CUDA writes it; None where there is no such package."""
    for name in ("cuda-bindings", "cuda-python"):
        with suppress(importlib.metadata.PackageNotFoundError, ValueError, IndexError):
            major, minor = importlib.metadata.version(name).split(".")[:2]
            return int(major) * 1000 + int(minor) * 10
    return None


def _driver(cudart: Any) -> int | None:
    """The newest CUDA that the driver can do, by the driver itself, which needs no cuda-python for it."""
    version = ctypes.c_int(0)
    for library in ("nvcuda.dll",) if sys.platform == "win32" else ("libcuda.so.1", "libcuda.so"):
        with suppress(OSError, AttributeError):
            if ctypes.CDLL(library).cuDriverGetVersion(ctypes.byref(version)) == 0 and version.value:
                return version.value
    with suppress(RuntimeError):
        error, number = (1, 0) if cudart is None else cudart.cudaDriverGetVersion()
        return int(number) if not int(error) and number else None
    return None


def _said(error: BaseException) -> str:
    return one_line(str(error).strip().split("\n", 1)[0] or type(error).__name__, _LONGEST)
