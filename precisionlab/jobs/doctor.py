"""What this machine can do: each backend, whether it is ready here, and what makes it so."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import platform
import sys
from collections.abc import Iterator
from dataclasses import dataclass

from precisionlab import __version__
from precisionlab.backends.registry import KINDS, TENSORRT, Kind
from precisionlab.errors import EngineError
from precisionlab.system.disk import temporary_folder


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
    for kind in KINDS.values():
        if kind.open is not None:
            yield _engines(kind)
    yield _package("Dask (--dask)", "distributed", "pip install 'precisionlab[dask]'")


def _onnxruntime() -> Finding:
    import onnxruntime

    providers = ", ".join(name.removesuffix("ExecutionProvider") for name in onnxruntime.get_available_providers())
    return Finding("backend onnxruntime", True, f"emulation, ONNX Runtime {onnxruntime.__version__} ({providers})")


def _engines(kind: Kind) -> Finding:
    """Whether this TensorRT starts, and finds a GPU."""
    name, module, install = f"backend {kind.name}", kind.package, kind.remedy
    if importlib.util.find_spec(module) is None:
        return Finding(name, False, f"the Python package {module} is not installed", install)
    from precisionlab.backends.tensorrt.process import EngineProcess
    from precisionlab.backends.tensorrt.service import Facts, service

    with temporary_folder() as folder:
        log = folder / "log"
        try:
            with EngineProcess(service, module, log, log=log) as process:
                facts: Facts = process.call("facts", what=f"starting {module}")
        except EngineError as error:
            return Finding(name, False, str(error), install)
    version = f"TensorRT {facts.features.version}" + ("" if kind.name == TENSORRT else " (RTX)")
    how = "precision flags and pins" if facts.features.pins else "typed models"
    if facts.device is not None:
        return Finding(name, True, f"{version}, {how}; {facts.device}")
    why = facts.no_gpu or "no GPU"
    if kind.needs_gpu:
        return Finding(name, False, f"{version}, but {why}", "nvidia-smi")
    return Finding(name, True, f"{version}, {how}; compiles without a GPU, and runs nothing here: {why}")


def _package(name: str, module: str, install: str) -> Finding:
    if importlib.util.find_spec(module) is None:
        return Finding(name, False, "not installed", install)
    return Finding(name, True, importlib.metadata.version(module))


def python_facts() -> str:
    """The interpreter, for a file that is attached to an issue."""
    return f"{sys.version.split()[0]} {platform.platform()}"
