"""What builds a variant and runs it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from precisionlab.errors import OptionError

if TYPE_CHECKING:
    from precisionlab.backends.base import Backend
    from precisionlab.data import Sample
    from precisionlab.model import Model

BACKENDS = ("auto", "onnxruntime")


def choose_backend(name: str, model: Model, first: Sample, threads: int | None) -> Backend:
    """The backend of this name, ready for the model at the shapes of the first sample.

    Raises OptionError for an unknown name, ModelError where the model does not run.
    """
    if name not in BACKENDS:
        raise OptionError(f"unknown backend {name!r}; use one of {', '.join(BACKENDS)}")
    from precisionlab.backends.onnxruntime import OnnxRuntimeBackend

    return OnnxRuntimeBackend(model, first, threads)
