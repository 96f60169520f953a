"""Whether a model's file says one thing: checks before libraries that would crash, guess, or read elsewhere."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import onnx
import onnx_ir as ir
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

from precisionlab.errors import ModelError
from precisionlab.system.reading import UnreadableError, file_size

_DEEPEST = 40  # calls in calls; subgraphs in subgraphs end at protobuf's own 100 messages
_WIDE = {ir.DataType.INT64: "int64_data", ir.DataType.DOUBLE: "double_data", ir.DataType.COMPLEX128: "double_data"}
_FIELDS: Mapping[ir.DataType, str] = {
    **_WIDE,
    ir.DataType.FLOAT: "float_data",
    ir.DataType.COMPLEX64: "float_data",
    ir.DataType.STRING: "string_data",
    ir.DataType.UINT32: "uint64_data",
    ir.DataType.UINT64: "uint64_data",
}  # all others stand in int32_data
_COMPLEX = (ir.DataType.COMPLEX64, ir.DataType.COMPLEX128)


def check_sound(proto: onnx.ModelProto, path: Path) -> tuple[Path, ...]:
    """The files of external data, each once, by name.

    Raises ModelError where a tensor holds more or less than its shape and type need, or external data lies outside the
    model's folder or is too short; for sparse initialisers; for names that are no UTF-8; and where functions call each
    other without end.
    """
    _check_text(proto, path)
    folder = path.parent.resolve()
    bodies = (proto.graph, *proto.functions)
    _check_calls(proto, path)
    files = set()
    for graph in (graph for body in bodies for graph in _graphs(body)):
        if isinstance(graph, onnx.GraphProto) and graph.sparse_initializer:
            name = graph.sparse_initializer[0].values.name
            raise ModelError(
                f"{path}: initialiser {name!r} is sparse, which is not read; save the model with dense ones"
            )
        for tensor in _tensors(graph):
            if onnx.external_data_helper.uses_external_data(tensor):
                files.add(_external_file(tensor, path, folder))
            else:
                _check_content(tensor, path)
    return tuple(sorted(files))


def _check_text(message: Message, path: Path) -> None:
    """Protobuf gives text that is no UTF-8 as bytes, and everything behind takes it for text."""
    for field, value in message.ListFields():
        if field.type == FieldDescriptor.TYPE_STRING:
            for text in value if field.is_repeated else (value,):
                if not isinstance(text, str):
                    raise ModelError(
                        f"{path}: {field.name} {text[:60]!r} is not UTF-8; the file is damaged, or give it other names"
                    )
        elif field.type == FieldDescriptor.TYPE_MESSAGE:
            for inner in value if field.is_repeated else (value,):
                _check_text(inner, path)


def _graphs(body: onnx.GraphProto | onnx.FunctionProto) -> Iterator[onnx.GraphProto | onnx.FunctionProto]:
    """The graph or function, and all graphs within."""
    yield body
    for node in body.node:
        for inner in _inner(node):
            yield from _graphs(inner)


def _inner(node: onnx.NodeProto) -> Iterator[onnx.GraphProto]:
    for attribute in node.attribute:
        if attribute.HasField("g"):
            yield attribute.g
        yield from attribute.graphs


def _tensors(graph: onnx.GraphProto | onnx.FunctionProto) -> Iterator[onnx.TensorProto]:
    if isinstance(graph, onnx.GraphProto):
        yield from graph.initializer
    for holder in (graph, *graph.node):
        attributes: Iterable[onnx.AttributeProto] = getattr(holder, "attribute_proto", ())
        for attribute in holder.attribute if isinstance(holder, onnx.NodeProto) else attributes:
            if attribute.HasField("t"):
                yield attribute.t
            yield from attribute.tensors


def _check_calls(proto: onnx.ModelProto, path: Path) -> None:
    functions = {(f.domain, f.name): f for f in proto.functions}
    calls = {
        key: {(n.domain, n.op_type) for graph in _graphs(function) for n in graph.node} & functions.keys()
        for key, function in functions.items()
    }
    left = dict(calls)
    for _ in range(_DEEPEST):  # those that call nothing, then those that call only these, …
        done = {key for key, called in left.items() if not called & left.keys()}
        left = {key: called for key, called in left.items() if key not in done}
        if not done or not left:
            break
    if left:
        domain, name = min(left)
        raise ModelError(
            f"{path}: function {name!r} of {domain!r} calls itself, or others more than {_DEEPEST} deep; inline it"
        )


def _check_content(tensor: onnx.TensorProto, path: Path) -> None:
    dtype, count = _dtype_of(tensor, path), _elements(tensor, path)
    if tensor.HasField("raw_data") and dtype != ir.DataType.STRING:
        found, needed, unit = len(tensor.raw_data), (count * dtype.bitwidth + 7) // 8, "bytes"
    else:
        field = _FIELDS.get(dtype, "int32_data")
        found, unit = len(getattr(tensor, field)), "values"
        needed = count * 2 if dtype in _COMPLEX else count
        if field == "int32_data" and dtype.bitwidth < 8 and found != needed:
            needed = (count * dtype.bitwidth + 7) // 8  # several stand in one
    if found != needed:
        raise ModelError(
            f"{path}: tensor {tensor.name!r} holds {found} {unit}, its shape {list(tensor.dims)} and type "
            f"{dtype.name} need {needed}; export the model again"
        )


def _external_file(tensor: onnx.TensorProto, path: Path, folder: Path) -> Path:
    """The file, which lies in the model's folder and is long enough."""
    entry = {e.key: e.value for e in tensor.external_data}
    location = entry.get("location", "")
    where = f"{path}: tensor {tensor.name!r}: external data {location!r}"
    dtype, count = _dtype_of(tensor, path), _elements(tensor, path)
    try:
        file = (folder / location).resolve()
    except (OSError, RuntimeError, ValueError) as error:  # a loop of links, a null byte
        raise ModelError(f"{where} is no usable path: {error}") from None
    if not location or Path(location).is_absolute() or not file.is_relative_to(folder):
        raise ModelError(f"{where} lies outside the model's folder; move it beside the model")
    if not file.exists():
        raise ModelError(f"{where} is missing; put it beside the model")
    try:
        size = file_size(file)
    except UnreadableError as error:
        raise ModelError(f"{where}: {error}") from None
    try:
        offset, length = int(entry.get("offset", 0)), int(entry.get("length", 0))
    except ValueError:
        raise ModelError(f"{where}: offset or length is not a number") from None
    if dtype == ir.DataType.STRING:
        raise ModelError(f"{where} holds strings, which external data cannot; save them in the model")
    needed = (count * dtype.bitwidth + 7) // 8
    if "length" in entry and length != needed:
        raise ModelError(f"{where} holds {length} bytes, the tensor's shape and type need {needed} bytes")
    if offset < 0 or offset + needed > size:
        raise ModelError(f"{where} ends at byte {offset + needed}, the file is shorter; it is cut or stale")
    return Path(file)


def _dtype_of(tensor: onnx.TensorProto, path: Path) -> ir.DataType:
    try:
        dtype = ir.DataType(tensor.data_type)
    except ValueError:
        dtype = ir.DataType.UNDEFINED
    if dtype == ir.DataType.UNDEFINED:
        raise ModelError(f"{path}: tensor {tensor.name!r} has the type {tensor.data_type}, which ONNX does not know")
    return dtype


def _elements(tensor: onnx.TensorProto, path: Path) -> int:
    count = 1
    for dim in tensor.dims:
        if dim < 0:
            raise ModelError(f"{path}: tensor {tensor.name!r} has the negative dimension {dim}; export the model again")
        count *= dim
    return count
