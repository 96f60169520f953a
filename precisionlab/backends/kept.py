"""The reference's final outputs, computed once for each sample: in memory as far as they fit, behind that in a file."""

from __future__ import annotations

import tempfile
import weakref
import zlib
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from threading import Lock
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from precisionlab.data import Sample

_IN_MEMORY = 256 * 1024**2
"""Bytes that are kept in memory at most; a share of what the process may take where that is less."""
_SHARE = 16

Computed = Callable[[Sample], Mapping[str, Any]]
"""The reference's values of a sample."""


@dataclass(frozen=True)
class _Stored:
    """An array in the file."""

    offset: int
    dtype: np.dtype[Any]
    shape: tuple[int, ...]


class KeptOutputs:
    """Values of the reference by sample and tensor. Threads may share it.

    A sample is known by its name and a checksum of its inputs, so that one of another content is not taken for it.
    """

    def __init__(self, memory: int | None = None) -> None:
        """`memory` is what the process may take, in bytes."""
        self._room = _IN_MEMORY if memory is None else min(_IN_MEMORY, memory // _SHARE)
        self._values: dict[tuple[str, int], dict[str, Any]] = {}
        self._file: IO[bytes] | None = None
        self._lock = Lock()

    def of(self, sample: Sample, names: Collection[str], computed: Computed) -> dict[str, Any]:
        """The values of these tensors: as they are kept, or computed, and kept from then on."""
        key = (sample.name, _checksum(sample))
        with self._lock:
            known = self._values.get(key, {})
            if all(name in known for name in names):
                return {name: self._read(known[name]) for name in names}
        found = {name: value for name, value in computed(sample).items() if name in names}
        self._keep(key, found)
        return found

    def has(self, sample: Sample, names: Collection[str]) -> bool:
        """Whether the values of all these tensors are kept."""
        key = (sample.name, _checksum(sample))
        with self._lock:
            known = self._values.get(key, {})
            return all(name in known for name in names)

    def keep(self, sample: Sample, values: Mapping[str, Any]) -> None:
        """Keep what was computed anyway."""
        self._keep((sample.name, _checksum(sample)), values)

    def _keep(self, key: tuple[str, int], values: Mapping[str, Any]) -> None:
        with self._lock:
            known = self._values.setdefault(key, {})
            for name, value in values.items():
                if name not in known and (stored := self._stored(value)) is not None:
                    known[name] = stored

    def _stored(self, value: Any) -> Any:
        """The value, or where it stands in the file; None where it is not kept."""
        if not isinstance(value, np.ndarray):
            return value
        if value.nbytes <= self._room or value.dtype.hasobject:
            self._room -= value.nbytes
            return value.copy()  # what a session gave may be used again
        try:
            if self._file is None:
                self._file = tempfile.TemporaryFile()  # noqa: SIM115 - it lives as long as this does
                weakref.finalize(self, self._file.close)
            offset = self._file.seek(0, 2)
            self._file.write(np.ascontiguousarray(value).tobytes())
        except OSError:  # no room there either: it is computed again
            return None
        return _Stored(offset, value.dtype, value.shape)

    def _read(self, value: Any) -> Any:
        if not isinstance(value, _Stored) or self._file is None:
            return value
        self._file.seek(value.offset)
        count = int(np.prod(value.shape))
        content = self._file.read(count * value.dtype.itemsize)
        found: NDArray[Any] = np.frombuffer(content, value.dtype, count).reshape(value.shape)
        return found


def _checksum(sample: Sample) -> int:
    found = 0
    for name, array in sample.inputs.items():
        found = zlib.crc32(f"{name} {array.dtype} {array.shape}".encode(), found)
        if array.dtype.hasobject:
            found = zlib.crc32(repr(array.tolist()).encode(), found)
        else:
            found = zlib.crc32(np.ascontiguousarray(array).tobytes(), found)
    return found
