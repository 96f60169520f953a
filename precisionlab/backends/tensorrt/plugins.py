"""Plugins: TensorRT's own, which a model may need without knowing it, and those of libraries that the user names.

TensorRT makes RoiAlign and ScatterElements (10.x) and InstanceNormalization (8.6) of ONNX into plugins of its own. They
are there once `init_libnvinfer_plugins` has registered them, before a model is parsed and before an engine is loaded.

A library of plugins registers them itself when it is opened (REGISTER_TENSORRT_PLUGIN: what trtexec calls a static one,
and Polygraphy's `--plugins`), or it has a function `getCreators` or `getPluginCreators`, for TensorRT's registry to ask
(a dynamic one; NvInferRuntime.h, `IPluginRegistry::loadLibrary`, from 8.6 on).
"""

from __future__ import annotations

import ctypes
import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from precisionlab.backends.tensorrt.logger import LogKeeper
from precisionlab.errors import EngineError, OptionError

_PIECE = 1024 * 1024
_ASKED_FOR = ("getCreators", "getPluginCreators")


@dataclass(frozen=True)
class Plugins:
    """A library of plugins: where it lies, absolute, and the SHA-256 of what it holds."""

    path: Path
    sha256: str

    def __str__(self) -> str:
        return f"{self.path.name} ({self.sha256[:12]})"


def libraries_of(paths: Iterable[str]) -> tuple[Plugins, ...]:
    """The libraries at these paths, each once, in their order. Raises OptionError where one cannot be read."""
    return tuple({library.path: library for library in map(_library, paths)}.values())


def register_plugins(trt: Any, logger: Any, libraries: Sequence[Plugins], keeper: LogKeeper) -> tuple[str, ...]:
    """Register TensorRT's own plugins with it, and then those of the libraries; what is to be said of these.

    To be called in TensorRT's process before anything is parsed or loaded. Raises EngineError where TensorRT's own
    cannot be registered, OptionError where a library cannot be loaded, or has been changed meanwhile.
    """
    if not trt.init_libnvinfer_plugins(logger, ""):
        raise EngineError(f"TensorRT {trt.__version__} cannot register its own plugins{_why(keeper)}; install it anew")
    return tuple(note for library in libraries for note in _load(trt, library, keeper))


def _load(trt: Any, library: Plugins, keeper: LogKeeper) -> tuple[str, ...]:
    if _library(str(library.path)).sha256 != library.sha256:
        raise OptionError(f"--plugins {library.path}: has been changed since this run began; start it anew")
    before = _registered(trt)
    try:
        opened = ctypes.CDLL(str(library.path))
    except OSError as error:
        first = str(error).strip().splitlines()[0].removeprefix(f"{library.path}: ")
        raise OptionError(
            f"--plugins {library.path}: cannot be loaded ({first}); give a library of plugins that was built for this "
            f"machine and for TensorRT {trt.__version__}, and that finds what it is linked to"
        ) from None
    if _registered(trt) > before:
        return ()
    if any(hasattr(opened, name) for name in _ASKED_FOR):
        registry = trt.get_plugin_registry()
        if registry is None or registry.load_library(str(library.path)) is None:
            raise OptionError(
                f"--plugins {library.path}: TensorRT {trt.__version__} does not take its plugins{_why(keeper)}; give a "
                "library that was built for it, whose plugins have names of their own"
            )
        return ()
    return (f"--plugins {library.path}: registers no plugin with TensorRT that was not there before",)


def _library(path: str) -> Plugins:
    digest = hashlib.sha256()
    try:
        whole = Path(path).resolve()
        with whole.open("rb") as stream:
            while piece := stream.read(_PIECE):
                digest.update(piece)
    except (
        OSError,
        RuntimeError,
        ValueError,
    ) as error:  # ValueError: a zero in the path; RuntimeError: links in a ring
        why = getattr(error, "strerror", None) or str(error)
        raise OptionError(f"--plugins {path}: cannot be read ({why}); name a library of TensorRT plugins") from None
    return Plugins(whole, digest.hexdigest())


def _registered(trt: Any) -> int:
    """How many plugins TensorRT's registry has."""
    registry = trt.get_plugin_registry()
    if registry is None:
        return 0
    # 8.6 has the one list, 11 the other.
    creators = registry.all_creators if hasattr(registry, "all_creators") else registry.plugin_creator_list
    return len(creators)


def _why(keeper: LogKeeper) -> str:
    """What TensorRT has said last, as ` (…)`."""
    return f" ({keeper.errors[-1]})" if keeper.errors else ""
