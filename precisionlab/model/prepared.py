"""The file that engines and other tools are given for a model: its own, or where names differ a copy as it was read."""

from __future__ import annotations

import hashlib
from pathlib import Path

import onnx
import onnx_ir as ir
from google.protobuf.message import DecodeError

from precisionlab.errors import ModelError
from precisionlab.model.graph import Model
from precisionlab.model.save import embedded, save_model

_SUFFIX = ".prepared.onnx"


def file_for(model: Model, folder: Path) -> Path:
    """The file that our own engines are built of: its nodes, tensors and outputs are called as the model's, absolute.

    The model's own file, but where functions were inlined, half was lifted or the end was cut off a copy, written to
    `folder` (made where it is missing) as `<model>.prepared.onnx`. Raises ModelError where that cannot be written.
    """
    return _written(model, model.prepared, folder)


def exported_file(model: Model, folder: Path) -> Path:
    """The same for other tools: with the end that was cut off."""
    return _written(model, model.exported, folder)


def _written(model: Model, prepared: ir.Model | None, folder: Path) -> Path:
    if prepared is None:
        return model.path.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / prepared_name(model)
    save_model(prepared, path, model.data_files)
    return path.resolve()


def content_of(model: Model) -> str:
    """A digest of what that file holds: the model's own, and how it was changed."""
    if model.repairs:
        return model.content
    return model.sha256 if model.prepared is None else hashlib.sha256(f"{model.sha256} inlined".encode()).hexdigest()


def prepared_name(model: Model) -> str:
    """What the copy is called; with repairs by a name for these alone, as each precision has its own."""
    if model.repairs:
        return f"{model.name}.repaired-{model.content[:6]}.onnx"
    return f"{model.name}{_SUFFIX}"


def prepared_proto(prepared: ir.Model) -> onnx.ModelProto:
    """The content of the copy, weights of other files inside it."""
    return ir.to_proto(embedded(prepared))


def read_again(model: Model, *, weights: bool) -> onnx.ModelProto:
    """The model's own file; without `weights` those beside it are left there. Raises ModelError where it is gone."""
    try:
        return onnx.load_model(model.path, format="protobuf", load_external_data=weights)
    except (OSError, DecodeError, ValueError, onnx.checker.ValidationError) as error:  # the last of external data
        why = (error.strerror if isinstance(error, OSError) else "") or "it can no longer be read"
        raise ModelError(
            f"{model.path}: gone or changed since the run began: {why}; put it back, or sweep again"
        ) from None
