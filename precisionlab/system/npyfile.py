"""The header of an .npy file, or of a member of an .npz: what it promises, before a byte of it is believed."""

from __future__ import annotations

import lzma
import math
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from precisionlab.system.quoting import cause

DAMAGED = (
    ValueError,
    OSError,
    EOFError,
    zipfile.BadZipFile,
    zlib.error,
    lzma.LZMAError,
    NotImplementedError,  # a compression, or a version of the format, that zipfile does not know
    RuntimeError,  # an archive with a password
)
"""What numpy and zipfile raise for a file that is damaged, or none of theirs; not what a fault of ours would be."""


class OddFileError(ValueError):
    """What is wrong with a file, in words of ours."""


def why_damaged(error: Exception) -> str:
    """What an error of these says of a file: in our words, or quoted from the library that read it."""
    if isinstance(error, OddFileError):
        return str(error)
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return cause("NumPy" if isinstance(error, (ValueError, EOFError)) else "Python's zipfile", error)


_LONGEST_HEADER = 1 << 16  # NumPy reads as many bytes as the file says, 4 GiB of a zip bomb too


@dataclass(frozen=True)
class Header:
    """What the header says."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    fortran: bool

    @property
    def row_bytes(self) -> int:
        """Bytes of one entry of the first axis."""
        return math.prod(self.shape[1:]) * self.dtype.itemsize

    @property
    def bytes(self) -> int:
        """Bytes of all values."""
        return math.prod(self.shape) * self.dtype.itemsize


def read_header(stream: IO[bytes]) -> Header:
    """The header at the stream's place, which then stands at the values.

    Raises OddFileError where there is none, where it makes no sense, or where it promises objects, which are pickles.
    """
    version = npy.read_magic(stream)
    if version not in ((1, 0), (2, 0)):
        raise OddFileError(f"version {version[0]} of the format, which no plain array needs; save it with numpy.save")
    start = stream.tell()
    length = int.from_bytes(stream.read(2 if version == (1, 0) else 4), "little")
    if length > _LONGEST_HEADER:
        raise OddFileError(f"its header claims to be {length:,} bytes long")
    stream.seek(start)
    read = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
    try:
        shape, fortran, dtype = read(stream)
    except Exception as error:  # NumPy has Python's parser read it, and makes a type of what that gives
        raise OddFileError(f"its header cannot be read: {type(error).__name__}") from None
    if dtype.hasobject:
        raise OddFileError("it holds Python objects (a pickle), which are never read; save plain arrays")
    if dtype.itemsize == 0 or any(dim < 0 for dim in shape):
        raise OddFileError(f"its header makes no sense: shape {shape}, type {dtype}")
    return Header(shape, dtype, fortran)


def read_member(archive: zipfile.ZipFile, name: str, most: int) -> NDArray[Any]:
    """An array of an .npz archive.

    Raises OddFileError where it is missing, would take more bytes than that or is cut off, and what zipfile and zlib
    raise of a damaged one.
    """
    try:
        member = archive.getinfo(f"{name}.npy")
    except KeyError:
        raise OddFileError(f"{name!r} is not in it") from None
    with archive.open(member) as stream:
        header = read_header(stream)
        if header.bytes > most:
            raise OddFileError(f"{name!r} in it would take {header.bytes:,} bytes, and at most {most:,} make sense")
        if header.bytes > member.file_size:
            raise OddFileError(f"{name!r} in it is cut off: its header promises {header.bytes:,} bytes")
    with archive.open(member) as stream:
        array: NDArray[Any] = npy.read_array(stream, allow_pickle=False)
        return array


def write_npz(path: Path, arrays: Mapping[str, NDArray[Any]]) -> None:
    """Write arrays by name, whatever the names are: `numpy.savez` takes no array that is called `file`.

    The same arrays give the same bytes. Raises ValueError for Python objects, which would be pickles.
    """
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for name, array in arrays.items():
            with archive.open(zipfile.ZipInfo(f"{name}.npy"), "w", force_zip64=True) as stream:
                npy.write_array(stream, np.asanyarray(array), allow_pickle=False)
