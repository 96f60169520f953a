"""What builds a variant and runs it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from precisionlab.errors import OptionError

if TYPE_CHECKING:
    from precisionlab.backends.base import Backend
    from precisionlab.backends.onnxruntime import OnnxRuntimeBackend
    from precisionlab.data import Dataset
    from precisionlab.executors import Executor
    from precisionlab.model import Model

EMULATION, TENSORRT, RTX = "onnxruntime", "tensorrt", "tensorrt-rtx"
AUTO = "auto"
BACKENDS = (AUTO, EMULATION, TENSORRT, RTX)


def which_backend(name: str) -> str:
    """The backend of this name; for `auto`, TensorRT where it is installed and there is a GPU, else the emulation.

    Raises OptionError for an unknown name.
    """
    if name not in BACKENDS:
        raise OptionError(f"unknown backend {name!r}; use one of {', '.join(BACKENDS)}")
    if name != AUTO:
        return name
    from precisionlab.backends.tensorrt.presence import is_usable

    return TENSORRT if is_usable() else EMULATION


def emulation(model: Model, dataset: Dataset, threads: int | None) -> OnnxRuntimeBackend:
    """The emulation, ready for the model at the shapes of the dataset's first sample.

    Raises ModelError where the model does not run.
    """
    from precisionlab.backends.onnxruntime import OnnxRuntimeBackend

    return OnnxRuntimeBackend(model, next(iter(dataset)), threads)


def spread(backend: OnnxRuntimeBackend, dataset: Dataset, executor: Executor | None) -> Backend:
    """The same with its work spread over the executor's workers, to the same bits; itself without one."""
    if executor is None:
        return backend
    from precisionlab.backends.spread import SpreadBackend, source_of

    return SpreadBackend(backend, source_of(backend, dataset), executor)
