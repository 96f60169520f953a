"""Writes a typed model, whole or not at all."""

from __future__ import annotations

from pathlib import Path

from precisionlab.model.save import EMBEDDED_LIMIT, save_model
from precisionlab.rewrite.typed.model import TypedModel


def save_typed(typed: TypedModel, path: Path, embedded_limit: int = EMBEDDED_LIMIT) -> None:
    """Write the model and, where its constants are too large for one file, `<name>.data` beside it; see `save_model`.

    Raises ModelError.
    """
    save_model(typed.onnx, path, typed.sources, embedded_limit)
