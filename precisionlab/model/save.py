"""Writes a model that was made from another, whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Collection
from pathlib import Path

import onnx_ir as ir

from precisionlab.errors import ModelError
from precisionlab.system.disk import drafted, why_not_written

EMBEDDED_LIMIT = 1_900_000_000
"""Bytes of constants that one file holds: protobuf ends at 2 GiB, and the graph needs room too."""


def save_model(
    model: ir.Model, path: Path, sources: Collection[Path], embedded_limit: int = EMBEDDED_LIMIT
) -> tuple[Path, ...]:
    """Write the model; constants of more than `embedded_limit` bytes in all go to `<name>.data` beside it.

    Either is there whole or not at all, the data first; returns them, the model's first. `sources` are the files that
    constants are still read from, or computed from what stands there.
    Raises ModelError where that cannot be written, or where either file is one of the sources.
    """
    data = path.with_name(f"{path.name}.data")
    tensors = [value.const_value for graph in model.graphs() for value in graph.initializers.values()]
    size = sum(tensor.nbytes for tensor in tensors if tensor is not None)
    for file in (path, data):
        if file.resolve() in sources:
            raise ModelError(f"{path}: the model's own constants are in {file.name}; choose another name or folder")
    copy, is_apart = embedded(model), size > embedded_limit
    try:
        with drafted(path.parent, path.name, of=path) as folder:
            ir.save(copy, folder / path.name, external_data=data.name if is_apart else None)
            for draft in folder.iterdir():
                with draft.open("rb") as stream:
                    os.fsync(stream.fileno())
    except OSError as error:
        raise ModelError(why_not_written(path, error, "choose another place")) from None
    return (path, data) if is_apart else (path,)


def embedded(model: ir.Model) -> ir.Model:
    """A copy of the model with constants that name no other file: each is read when it is written."""
    copy = model.clone()
    for graph in copy.graphs():
        for value in graph.initializers.values():
            if isinstance(tensor := value.const_value, ir.ExternalTensor):
                value.const_value = _reading(tensor, str(value.name))
    return copy


def _reading(tensor: ir.ExternalTensor, name: str) -> ir.LazyTensor:
    shape = ir.Shape(tuple(tensor.shape.numpy()))
    return ir.LazyTensor(lambda: ir.tensor(tensor.numpy(), dtype=tensor.dtype), tensor.dtype, shape, name=name)
