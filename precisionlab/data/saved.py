"""Inputs as the neighbours save them: Polygraphy's JSON (`--save-inputs`), and trtexec's raw files (`--loadInputs`).

Either may come from a stranger. Arrays in the JSON are `.npy` files in base64, of which plain numbers alone are read;
a torch tensor there is a pickle in a zip archive, and is refused. Source: Polygraphy 0.53, `polygraphy/json/serde.py`.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import io
import os
import re
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from precisionlab.data.conform import dims, fit
from precisionlab.data.sample import Arrays, Entry, Remark, Sample
from precisionlab.errors import DataError
from precisionlab.model import Model, TensorInfo
from precisionlab.system.npyfile import DAMAGED, read_header, why_damaged
from precisionlab.system.reading import UnreadableError, file_size, parse_json, read_bytes

TYPE, ARRAY = "polygraphy_class", "ndarray"
RAW = "loadInputs="
"""How raw files are named, as trtexec does: `loadInputs=x:x.bin,mask:mask.bin`; two dashes in front are taken too."""

_LEGACY = "__polygraphy_encoded_ndarray"
_TENSORS = frozenset({"Tensor", "torch.Tensor"})
_MOST_JSON = 1 << 30
_MOST_RAW = 1 << 32
_NUMBERED = re.compile(r"\d{10}\.json")
_SHAPED = re.compile(r"(.+)@([0-9]{1,9}(?:x[0-9]{1,9})*)")


@dataclass(frozen=True)
class SavedInputs:
    """The source that Polygraphy's saved inputs are: iterations of one file, or of a folder with a file each."""

    path: Path
    inputs: tuple[TensorInfo, ...]
    places: Mapping[str, tuple[Path, int]]

    repeatable = True
    remarks = ()

    @property
    def origin(self) -> str:
        """Where the samples come from: the file, or the folder."""
        return str(self.path)

    @property
    def names(self) -> tuple[str, ...]:
        """The names of all samples: of the file, and where it holds several, with the place in it."""
        return tuple(self.places)

    def entries(self) -> Generator[Entry, None, None]:
        """All samples; a file is parsed when the first of its samples is read."""
        held = _Held()
        for name, (file, index) in self.places.items():
            yield Entry(name, partial(self._sample, name, file, index, held))

    def sha256(self, names: Sequence[str], digests: Mapping[str, str], labels: Mapping[str, str]) -> str:
        """Covers the files' bytes and the samples' places in them."""
        files = {self.places[name][0]: None for name in names}
        known = {file: hashlib.sha256(_content(file)).hexdigest() for file in files}
        found = hashlib.sha256()
        for name in names:
            file, index = self.places[name]
            found.update(f"{index}\0{known[file]}\n".encode())
        return found.hexdigest()

    def _sample(self, name: str, file: Path, index: int, held: _Held) -> Sample:
        where = f"{file}[{index}]"
        arrays = {key: _array(value, f"{where}: {key!r}") for key, value in held.iterations(file)[index].items()}
        fitted, remarks = fit(arrays, self.inputs, None, where)
        return Sample(name, fitted, None, remarks)


class _Held:
    """The file that was parsed last."""

    def __init__(self) -> None:
        self._file: Path | None = None
        self._found: list[Mapping[str, Any]] = []

    def iterations(self, file: Path) -> list[Mapping[str, Any]]:
        if file != self._file:
            self._file, self._found = file, _iterations(file)
        return self._found


@dataclass(frozen=True)
class RawInputs:
    """The source that trtexec's raw files are: one sample, a file of plain values for each input.

    `spec` names them with absolute paths.
    """

    spec: str
    inputs: tuple[TensorInfo, ...]
    files: Mapping[str, tuple[Path, tuple[int, ...] | None]]

    repeatable = True
    remarks = ()
    names = ("loadInputs",)

    @property
    def origin(self) -> str:
        """What the user has named."""
        return self.spec

    def entries(self) -> Generator[Entry, None, None]:
        """The one sample."""
        yield Entry(self.names[0], self._sample)

    def sha256(self, names: Sequence[str], digests: Mapping[str, str], labels: Mapping[str, str]) -> str:
        """Covers names, types, shapes and values."""
        return hashlib.sha256("".join(digests[name] for name in names).encode()).hexdigest() if digests else self._hash

    @cached_property
    def _hash(self) -> str:
        contents = (f"{name}\0{hashlib.sha256(_raw(path)).hexdigest()}\n" for name, (path, _) in self.files.items())
        return hashlib.sha256("".join(contents).encode()).hexdigest()

    def _sample(self) -> Sample:
        said: list[Remark] = []
        arrays: dict[str, NDArray[Any]] = {}
        for info in self.inputs:
            if info.name in self.files:
                path, shape = self.files[info.name]
                arrays[info.name], remark = _shaped(_raw(path), info, shape, path)
                said += [Remark(info.name, remark)] if remark else []
        fitted, remarks = fit(arrays, self.inputs, None, self.spec)
        return Sample(self.names[0], fitted, None, (*said, *remarks))


def is_raw(text: str) -> bool:
    """Whether this names raw files, as trtexec's option does."""
    return text.removeprefix("--").startswith(RAW)


def is_saved(path: Path) -> bool:
    """Whether this is a JSON file, or a folder of nothing but what `--save-inputs FOLDER` writes."""
    if os.path.isdir(path):  # noqa: PTH112 - pathlib's raises where the name is too long
        try:
            names = [file.name for file in path.iterdir()]
        except OSError:
            return False
        return bool(names) and all(_NUMBERED.fullmatch(name) for name in names)
    return path.suffix.lower() == ".json"


def open_saved(path: Path, model: Model) -> SavedInputs:
    """Polygraphy's saved inputs. Raises DataError where a file is none of them."""
    files = sorted(path.iterdir()) if path.is_dir() else [path]
    if path.is_dir() and any(file.is_symlink() for file in files):
        raise DataError(f"{path}: holds links, which are not followed; copy the files")
    places: dict[str, tuple[Path, int]] = {}
    for file in files:
        count = len(_iterations(file))
        for index in range(count):
            places[file.name if count == 1 else f"{file.name}[{index}]"] = file, index
    if not places:
        raise DataError(f"{path}: holds no inputs; save some with polygraphy run --save-inputs")
    return SavedInputs(path, model.inputs, places)


def open_raw(text: str, model: Model) -> RawInputs:
    """Raw files, named as `loadInputs=x:x.bin`; `x:x.bin@1x3x224x224` says the shape of what has open dimensions.

    Raises DataError for text that names none, and inputs that are not the model's, or missing.
    """
    files: dict[str, tuple[Path, tuple[int, ...] | None]] = {}
    for part in text.removeprefix("--").removeprefix(RAW).split(","):
        name, sign, file = part.strip().rpartition(":")
        name = name.strip("'\"")
        if not sign or not name or not file:
            raise DataError(f"{text}: write {RAW}NAME:FILE, and a comma between inputs")
        shape = _SHAPED.fullmatch(file)
        dims_of = None if shape is None else tuple(map(int, shape[2].split("x")))
        if name in files:
            raise DataError(f"{text}: input {name!r} stands there twice")
        files[name] = Path(file if shape is None else shape[1]).absolute(), dims_of
    known = [info.name for info in model.inputs]
    if unknown := [name for name in files if name not in known]:
        raise DataError(f"{text}: the model has no input {unknown[0]!r}; its inputs are {', '.join(known)}")
    if missing := [name for name in known if name not in files]:
        raise DataError(f"{text}: lacks {', '.join(missing)}; the model's inputs are {', '.join(known)}")
    parts = (f"{name}:{path}{'' if d is None else '@' + 'x'.join(map(str, d))}" for name, (path, d) in files.items())
    return RawInputs(RAW + ",".join(parts), model.inputs, files)


def _iterations(file: Path) -> list[Mapping[str, Any]]:
    """The iterations of a file: a list of dicts, or one dict."""
    try:
        found = parse_json(_content(file))
    except ValueError as error:
        raise DataError(f"{file}: no JSON: {error}") from None
    iterations = found if isinstance(found, list) else [found]
    if isinstance(found, dict) and (kind := found.get(TYPE)) is not None:
        raise DataError(f"{file}: holds {str(kind)[:60]!r}, not inputs; give what polygraphy run --save-inputs wrote")
    for index, each in enumerate(iterations):
        if not isinstance(each, dict) or not all(_is_array(value) for value in each.values()):
            tensors = isinstance(each, dict) and any(_is_tensor(value) for value in each.values())
            why = (
                "has torch tensors, which are pickles; save NumPy arrays (tensor.numpy())"
                if tensors
                else "is no dict from input name to array, as polygraphy run --save-inputs writes it"
            )
            raise DataError(f"{file}: entry {index} {why}")
    return iterations


def _is_array(value: Any) -> bool:
    is_told = isinstance(value, dict) and (value.get(TYPE) == ARRAY or _LEGACY in value)
    return is_told and isinstance(value.get("array"), str)


def _is_tensor(value: Any) -> bool:
    return isinstance(value, dict) and (value.get(TYPE) in _TENSORS or "tensor" in value)


def _array(value: Mapping[str, Any], where: str) -> NDArray[Any]:
    """The array that stands in JSON. Raises DataError."""
    try:
        content = base64.b64decode(value["array"].encode("ascii"), validate=True)
    except (UnicodeEncodeError, binascii.Error):
        try:
            content = value["array"].encode("latin-1")  # as Polygraphy before 0.30 wrote it
        except UnicodeEncodeError:
            raise DataError(f"{where} is neither base64 nor bytes; save the inputs again") from None
    try:
        stream = io.BytesIO(content)
        header = read_header(stream)
        if header.bytes > len(content) - stream.tell():
            raise DataError(f"{where} is cut off: its header promises {header.bytes:,} bytes")
        stream.seek(0)
        array: NDArray[Any] = npy.read_array(stream, allow_pickle=False)
    except DAMAGED as error:
        raise DataError(f"{where} is no readable array: {why_damaged(error)}") from None
    return array


def _content(file: Path) -> bytes:
    try:
        return read_bytes(file, _MOST_JSON)
    except UnreadableError as error:
        advice = "; save a folder with a file for each iteration (--save-inputs FOLDER)" if "MiB" in str(error) else ""
        raise DataError(f"{file}: {error}{advice}") from None


def _raw(path: Path) -> bytes:
    try:
        file_size(path)
        return read_bytes(path, _MOST_RAW)
    except UnreadableError as error:
        raise DataError(f"{path}: {error}") from None


def _shaped(content: bytes, info: TensorInfo, shape: tuple[int, ...] | None, path: Path) -> tuple[NDArray[Any], str]:
    """Raw values as an array, and what a user should know of that. Raises DataError where their number does not fit."""
    dtype = np.dtype(np.float32) if info.dtype is None else info.dtype.numpy()
    wanted = shape if shape is not None else info.shape
    narrow = np.dtype(np.int32) if dtype == np.int64 else np.dtype(np.float32) if dtype == np.float64 else None
    for kind in (dtype, *([narrow] if narrow is not None else [])):
        values = len(content) // kind.itemsize
        if len(content) % kind.itemsize == 0 and (found := _dims(values, wanted)) is not None:
            said = "" if kind == dtype else f"{kind} in the file, as TensorRT before 10 has it"
            return np.frombuffer(content, kind).reshape(found), said
    size = f"{len(content):,} bytes"
    open_dims = wanted is None or sum(not isinstance(dim, int) for dim in wanted) > 1
    advice = f"say its shape: {info.name}:{path}@1x3x224x224" if open_dims else "write the values in that type"
    raise DataError(f"{path}: {size} are no {dtype} of {dims(info)}, which input {info.name!r} takes; {advice}")


def _dims(values: int, shape: Sequence[int | str | None] | None) -> tuple[int, ...] | None:
    """The shape with its one open dimension told by the number of values; None where that does not work."""
    if shape is None:
        return None
    known = [dim for dim in shape if isinstance(dim, int)]
    size = int(np.prod(known, dtype=np.int64)) if known else 1
    if len(known) == len(shape):
        return tuple(known) if size == values else None
    if len(known) < len(shape) - 1 or size == 0 or values == 0 or values % size:
        return None
    return tuple(dim if isinstance(dim, int) else values // size for dim in shape)


def encoded(array: NDArray[Any]) -> dict[str, str]:
    """An array as Polygraphy's JSON has it: `.npy` in base64. Raises ValueError for one that holds objects."""
    stream = io.BytesIO()
    npy.write_array(stream, array, allow_pickle=False)
    return {"array": base64.b64encode(stream.getvalue()).decode(), TYPE: ARRAY}


def feeds_of(inputs: Arrays) -> dict[str, dict[str, str]]:
    """One iteration's inputs as Polygraphy's JSON has them."""
    return {name: encoded(array) for name, array in inputs.items()}
