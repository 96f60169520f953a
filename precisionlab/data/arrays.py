"""`.npy` and `.npz` files: whole, or row by row where one file holds many samples. Pickles are never read."""

from __future__ import annotations

import zipfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO, Any, Protocol

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from precisionlab.data.batches import rows_of
from precisionlab.data.conform import check_shape, match_names
from precisionlab.data.sample import Arrays
from precisionlab.errors import DataError
from precisionlab.model import TensorInfo
from precisionlab.system.npyfile import DAMAGED, Header, OddFileError, read_header, why_damaged

ARRAY_SUFFIXES = frozenset({".npz", ".npy"})
MOST_BYTES = 4 * 1024**3
"""The largest array that is read at once: more is no sample, but a mistake or a zip bomb."""
MOST_ROWS = 1_000_000
"""The most samples that one file may hold."""


def read_npy(file: Path, info: TensorInfo) -> NDArray[Any]:
    """The array of an .npy file. Raises DataError, before its values are read where their shape does not fit."""
    with _readable(file), file.open("rb") as stream:
        if stream.read(2) == b"PK":
            raise OddFileError("it is an archive; call it .npz")
        stream.seek(0)
        header = read_header(stream)
        _check_size(header, file, file.name)
        if header.bytes > file.stat().st_size:  # NumPy would first take the memory, and then find out
            raise OddFileError(f"cut off: its header promises {header.bytes:,} bytes")
        check_shape(header.shape, info, f"{file}: input {info.name!r}")
        stream.seek(0)
        array: NDArray[Any] = npy.read_array(stream, allow_pickle=False)
        return array


def read_npz(file: Path, inputs: Sequence[TensorInfo]) -> Arrays:
    """The arrays of an .npz file, by name. Raises DataError, before anything is read that the model does not take."""
    with _readable(file), zipfile.ZipFile(file) as archive:
        members = _members(archive)
        keys = match_names(members, inputs, str(file))
        return {key: _read_member(archive, members[key], file, info) for info in inputs if (key := keys[info.name])}


def _read_member(archive: zipfile.ZipFile, member: zipfile.ZipInfo, file: Path, info: TensorInfo) -> NDArray[Any]:
    try:
        with archive.open(member) as stream:
            header = read_header(stream)
            _check_size(header, file, info.name)
            # zipfile gives no byte beyond the declared size, so that what it declares is what it can cost.
            if header.bytes > member.file_size:
                raise OddFileError(f"cut off: its header promises {header.bytes:,} bytes")
            check_shape(header.shape, info, f"{file}: input {info.name!r}")
        with archive.open(member) as stream:
            array: NDArray[Any] = npy.read_array(stream, allow_pickle=False)
            return array
    except DAMAGED as error:
        raise OddFileError(f"{info.name!r} in it: {why_damaged(error)}") from None


class Stack(Protocol):
    """A file that holds many samples along the first axis. Opened when the first row is asked for."""

    def row(self, index: int) -> Arrays:
        """One sample, 1×… for each input. Raises DataError."""

    def close(self) -> None:
        """Let the file go."""


def rows_in(file: Path, inputs: Sequence[TensorInfo]) -> int | None:
    """How many rows a file holds for a model with a fixed batch, by its headers; None where that cannot be told.

    Of what cannot be read, reading it will say why. Raises DataError where there are too many.
    """
    if not file.is_file():  # opening a pipe would wait for ever
        return None
    try:
        headers = _headers(file, inputs)
    except DAMAGED:
        return None
    if any(0 in header.shape for header in headers.values()):
        return None
    count = rows_of({name: header.shape for name, header in headers.items()}, inputs)
    if count is not None and count > MOST_ROWS:
        raise DataError(f"{file}: holds {count:,} samples; split it into files of at most {MOST_ROWS:,}")
    return count


def open_stack(file: Path, inputs: Sequence[TensorInfo]) -> Stack:
    """The rows of a file that `rows_in` has found to hold many samples."""
    return NpzStack(file) if file.suffix.lower() == ".npz" else NpyStack(file, inputs[0].name)


class NpyStack:
    """Rows of an .npy file, mapped into memory: only the row that is asked for is read."""

    def __init__(self, file: Path, name: str) -> None:
        self._file, self._name = file, name
        self._mapped: NDArray[Any] | None = None

    def row(self, index: int) -> Arrays:
        """The arrays of one row, with a batch of 1. Raises DataError where they cannot be read."""
        with _readable(self._file):
            if self._mapped is None:
                self._mapped = np.load(self._file, mmap_mode="r", allow_pickle=False)
            row = self._mapped[index : index + 1]
            if row.nbytes > MOST_BYTES:
                raise _too_large(self._file, self._name, row.nbytes)
            return {self._name: np.array(row, order="C")}

    def close(self) -> None:
        """Let go of the file."""
        self._mapped = None


class NpzStack:
    """Rows of an .npz file, read in a stream: in order costs one pass, even where it is compressed."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._held = ExitStack()
        self._members: dict[str, tuple[IO[bytes], Header, int]] = {}

    def row(self, index: int) -> Arrays:
        """The arrays of one row, with a batch of 1. Raises DataError where they cannot be read."""
        with _readable(self._file):
            if not self._members:
                self._open()
            return {name: self._read(index, *member) for name, member in self._members.items()}

    def close(self) -> None:
        """Let go of the file."""
        self._members = {}
        self._held.close()

    def _open(self) -> None:
        archive = self._held.enter_context(zipfile.ZipFile(self._file))
        for name, member in _members(archive).items():
            stream = self._held.enter_context(archive.open(member))
            header = read_header(stream)
            if header.fortran:
                raise OddFileError(
                    f"{name!r} in it is in Fortran order, which cannot be read row by row; save it as .npy"
                )
            if header.row_bytes > MOST_BYTES:
                raise _too_large(self._file, name, header.row_bytes)
            self._members[name] = stream, header, stream.tell()

    def _read(self, index: int, stream: IO[bytes], header: Header, start: int) -> NDArray[Any]:
        if stream.tell() != (place := start + index * header.row_bytes):
            stream.seek(place)
        content = stream.read(header.row_bytes)
        if len(content) < header.row_bytes:
            raise OddFileError("cut off")
        return np.frombuffer(bytearray(content), header.dtype).reshape(1, *header.shape[1:])


def _headers(file: Path, inputs: Sequence[TensorInfo]) -> Mapping[str, Header]:
    """The headers of the arrays in a file; those that promise more than is there are left out."""
    found: dict[str, tuple[Header, int]] = {}
    if file.suffix.lower() == ".npz":
        with zipfile.ZipFile(file) as archive:
            for name, member in _members(archive).items():
                with archive.open(member) as stream:
                    found[name] = read_header(stream), member.file_size
    elif len(inputs) == 1:
        with file.open("rb") as plain:
            found[inputs[0].name] = read_header(plain), file.stat().st_size
    return {name: header for name, (header, size) in found.items() if header.bytes <= size}


def _members(archive: zipfile.ZipFile) -> dict[str, zipfile.ZipInfo]:
    found: dict[str, zipfile.ZipInfo] = {}
    for member in archive.infolist():
        name = member.filename.removesuffix(".npy")
        if name in found:
            raise OddFileError(f"{name!r} stands in it twice")
        found[name] = member
    return found


def _check_size(header: Header, file: Path, name: str) -> None:
    if header.bytes > MOST_BYTES:
        raise _too_large(file, name, header.bytes)


def _too_large(file: Path, name: str, size: int) -> DataError:
    return DataError(
        f"{file}: array {name!r} would take {size / 1024**3:,.1f} GiB, and at most {MOST_BYTES // 1024**3} GiB "
        "are read at once; save each sample in a file of its own"
    )


@contextmanager
def _readable(file: Path) -> Iterator[None]:
    """What goes wrong inside is told as a DataError of the file."""
    try:
        yield
    except DAMAGED as error:
        raise DataError(f"{file}: not a readable {file.suffix.lower()} file: {why_damaged(error)}") from None
