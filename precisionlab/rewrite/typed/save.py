"""Writes a typed model, whole or not at all."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import onnx_ir as ir

from precisionlab.disk import draft_prefix, why_not_written
from precisionlab.errors import ModelError
from precisionlab.rewrite.typed.model import TypedModel

EMBEDDED_LIMIT = 1_900_000_000
"""Bytes of constants that one file holds: protobuf ends at 2 GiB, and the graph needs room too."""


def save_typed(typed: TypedModel, path: Path, embedded_limit: int = EMBEDDED_LIMIT) -> None:
    """Write the model; constants of more than `embedded_limit` bytes in all go to `<name>.data` beside it.

    Either is there whole or not at all, the data first. Raises ModelError where that cannot be written, or where the
    file of data is one that the model's constants are still read from.
    """
    data = path.with_name(f"{path.name}.data")
    tensors = [value.const_value for graph in typed.onnx.graphs() for value in graph.initializers.values()]
    size = sum(tensor.nbytes for tensor in tensors if tensor is not None)
    if data.resolve() in typed.sources:
        raise ModelError(f"{path}: the model's own constants are in {data.name}; choose another name or folder")
    model = _in_memory_form(typed.onnx)
    try:
        with tempfile.TemporaryDirectory(dir=path.parent, prefix=draft_prefix(path), suffix=".part") as folder:
            draft = Path(folder) / path.name
            if size > embedded_limit:
                ir.save(model, draft, external_data=data.name)
                path.unlink(missing_ok=True)  # an earlier model must not be read with these constants
                _move(Path(folder) / data.name, data)
            else:
                ir.save(model, draft)
            _move(draft, path)
    except OSError as error:
        raise ModelError(why_not_written(path, error, "choose another place")) from None


def _in_memory_form(model: ir.Model) -> ir.Model:
    """The model with constants that name no other file: each is read when it is written."""
    copy = model.clone()
    for graph in copy.graphs():
        for value in graph.initializers.values():
            if isinstance(tensor := value.const_value, ir.ExternalTensor):
                value.const_value = _reading(tensor, str(value.name))
    return copy


def _reading(tensor: ir.ExternalTensor, name: str) -> ir.LazyTensor:
    shape = ir.Shape(tuple(tensor.shape.numpy()))
    return ir.LazyTensor(lambda: ir.tensor(tensor.numpy(), dtype=tensor.dtype), tensor.dtype, shape, name=name)


def _move(draft: Path, path: Path) -> None:
    with draft.open("rb") as stream:
        os.fsync(stream.fileno())
    draft.replace(path)
