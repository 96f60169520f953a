"""What this machine can do: each backend, whether it is ready here, and what makes it so."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import platform
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from precisionlab import __version__
from precisionlab.backends.registry import KINDS, TENSORRT, Kind
from precisionlab.backends.tensorrt.api import RTX as RTX_MODULE
from precisionlab.backends.tensorrt.api import TENSORRT as TENSORRT_MODULE
from precisionlab.backends.tensorrt.obstacle import install_command, obstacle_of, words
from precisionlab.backends.tensorrt.presence import Presence, look
from precisionlab.errors import EngineError
from precisionlab.system.disk import temporary_folder

if TYPE_CHECKING:
    from precisionlab.backends.tensorrt.service import Facts


_LOOK = "nvidia-smi"


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at. `ready` is None where it is a fact and no question. `remedy` is a command."""

    name: str
    ready: bool | None
    seen: str
    remedy: str = ""


def examine() -> Iterator[Finding]:
    """Look at this machine. TensorRT and CUDA are loaded in processes of their own: a broken driver may crash them."""
    yield Finding("Python", None, f"{platform.python_version()} on {platform.system()} {platform.machine()}")
    yield Finding("precisionlab", None, __version__)
    yield _onnxruntime()
    seen = look(TENSORRT_MODULE)
    yield _cuda(seen)
    for kind in KINDS.values():
        if kind.open is not None:
            yield _engines(kind, seen)
    yield _package("Dask (--dask)", "distributed", 'pip install "precisionlab[dask]"')


def _onnxruntime() -> Finding:
    import onnxruntime

    providers = ", ".join(name.removesuffix("ExecutionProvider") for name in onnxruntime.get_available_providers())
    return Finding("backend onnxruntime", True, f"emulation, ONNX Runtime {onnxruntime.__version__} ({providers})")


def _cuda(seen: Presence) -> Finding:
    """The CUDA of driver, cuda-python and TensorRT, beside each other.

    What keeps engines from running is told with the backend; here what does not, and should be mended all the same.
    """
    builds = " and ".join(str(build.cuda) for build in seen.builds) or "that its packages do not name"
    python = "a broken cuda-python" if seen.cuda_broken else "no cuda-python"
    parts = [
        "no NVIDIA driver" if seen.driver is None else f"driver for CUDA {words(seen.driver)}",
        python if seen.cuda_python is None else f"cuda-python for CUDA {words(seen.cuda_python)}",
        f"TensorRT for CUDA {builds}" if seen.is_installed else "no TensorRT",
    ]
    found = obstacle_of(seen) if seen.is_installed else None
    if found is not None and found.is_harmless:
        return Finding("CUDA", False, f"{', '.join(parts)}: {found.why}", found.remedy)
    return Finding("CUDA", True if seen.is_installed and found is None else None, ", ".join(parts))


def _engines(kind: Kind, cuda: Presence) -> Finding:
    """Whether this TensorRT starts, and finds a GPU. `cuda` is what was seen of TensorRT itself."""
    name, module = f"backend {kind.name}", kind.package
    is_known = module in (TENSORRT_MODULE, RTX_MODULE)
    install = install_command(module, cuda.driver) if is_known else kind.remedy
    if importlib.util.find_spec(module) is None:
        return Finding(name, False, f"the Python package {module} is not installed", install)
    seen = cuda if module == cuda.module else look(module)
    obstacle = obstacle_of(seen, serious=True) if is_known else None
    try:
        facts = _facts(module)
    except EngineError as error:
        why, mend = (obstacle.why, obstacle.remedy) if obstacle is not None and seen.broken else (str(error), install)
        return Finding(name, False, why, mend)
    version = f"TensorRT {facts.features.version}" + ("" if kind.name == TENSORRT else " (RTX)")
    how = f"{version}, " + ("precision flags and pins" if facts.features.pins else "typed models")
    if obstacle is None and facts.device is not None:
        return Finding(name, True, f"{how}; {facts.device}")
    why, remedy = (facts.no_gpu or "no GPU", _LOOK) if obstacle is None else (obstacle.why, obstacle.remedy)
    if kind.needs_gpu:
        return Finding(name, False, f"{version}, but {why}", remedy)
    if seen.driver is None:  # nothing is amiss on a machine that has no GPU
        why, remedy = "no NVIDIA driver is here", ""
    return Finding(name, True, f"{how}; compiles without a GPU, and runs nothing here: {why}", remedy)


def _facts(module: str) -> Facts:
    """What TensorRT says of itself in a process of its own. Raises EngineError."""
    from precisionlab.backends.tensorrt.process import EngineProcess
    from precisionlab.backends.tensorrt.service import service

    with temporary_folder() as folder:
        log = folder / "log"
        with EngineProcess(service, module, log, log=log) as process:
            facts: Facts = process.call("facts", what=f"starting {module}")
    return facts


def _package(name: str, module: str, install: str) -> Finding:
    if importlib.util.find_spec(module) is None:
        return Finding(name, False, "not installed", install)
    try:
        return Finding(name, True, importlib.metadata.version(module))
    except importlib.metadata.PackageNotFoundError:  # a source tree that was never installed
        return Finding(name, True, "of unknown version")


def python_facts() -> str:
    """The interpreter, for a file that is attached to an issue."""
    return f"{sys.version.split()[0]} {platform.platform()}"
