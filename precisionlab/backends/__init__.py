"""What builds a variant and runs it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from precisionlab.errors import OptionError

if TYPE_CHECKING:
    from precisionlab.backends.base import Backend
    from precisionlab.data import Dataset
    from precisionlab.executors import Executor
    from precisionlab.model import Model

BACKENDS = ("auto", "onnxruntime")


def choose_backend(
    name: str, model: Model, dataset: Dataset, threads: int | None, executor: Executor | None = None
) -> Backend:
    """The backend of this name, ready for the model at the shapes of the dataset's first sample.

    With an executor its work is spread over that one's workers, to the same bits. Raises OptionError for an unknown
    name, ModelError where the model does not run.
    """
    if name not in BACKENDS:
        raise OptionError(f"unknown backend {name!r}; use one of {', '.join(BACKENDS)}")
    from precisionlab.backends.onnxruntime import OnnxRuntimeBackend

    ready = OnnxRuntimeBackend(model, next(iter(dataset)), threads)
    if executor is None:
        return ready
    from precisionlab.backends.spread import SpreadBackend, source_of

    return SpreadBackend(ready, source_of(ready, dataset), executor)
