"""Memory for an engine's inputs and outputs, and the data types that they have in NumPy."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from types import TracebackType
from typing import Any, Protocol

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from precisionlab.backends.tensorrt.cuda import Cuda, address_of
from precisionlab.backends.tensorrt.jobs import Shape
from precisionlab.backends.tensorrt.listener import Take
from precisionlab.errors import DataError, EngineError

# `trt.nptype` raises TypeError for BF16, FP8, INT4; and 8.6 has no BF16 and no INT64 to be asked for.
_DTYPES: dict[str, np.dtype[Any]] = {
    "FLOAT": np.dtype(np.float32),
    "HALF": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "INT8": np.dtype(np.int8),
    "INT32": np.dtype(np.int32),
    "INT64": np.dtype(np.int64),
    "UINT8": np.dtype(np.uint8),
    "BOOL": np.dtype(np.bool_),
}
_ALIGNMENT = 256
"""What TensorRT asks of the addresses that it is given; cudaMalloc's are so aligned by themselves."""


def numpy_dtype(name: str, tensor: str) -> np.dtype[Any]:
    """The NumPy type of TensorRT's data type of this name (FLOAT, HALF, …).

    Raises EngineError, naming the tensor, for those that NumPy has nothing for: FP8, INT4, FP4, ….
    """
    if name not in _DTYPES:
        raise EngineError(
            f"tensor {tensor!r} of the engine is {name}, which cannot be read or written here: "
            "let the model's own inputs and outputs be float, half, bfloat16, integer or bool"
        )
    return _DTYPES[name]


def widened(array: NDArray[Any]) -> NDArray[Any]:
    """Half and bfloat16 as float32, which holds all their values; others as they are."""
    return array.astype(np.float32) if array.dtype.itemsize == 2 and array.dtype.kind in "fV" else array


def as_dtype(array: NDArray[Any], dtype: np.dtype[Any], what: str) -> NDArray[Any]:
    """The array as C-contiguous values of another type of the same kind (float, integer, bool), if none is changed.

    TensorRT 8.6 takes int32 where the ONNX model says int64, and every version float where it says double.
    Raises DataError, beginning with `what`, where the kind differs, or a value does not fit.
    """
    array = np.asarray(array)
    if array.dtype == dtype:
        return np.asarray(array, order="C")
    if _kind(array.dtype) != _kind(dtype):
        raise DataError(f"{what} is {array.dtype}; the engine takes {dtype}: convert it")
    with np.errstate(over="ignore", invalid="ignore"):
        converted = array.astype(dtype, order="C")
        back = converted.astype(array.dtype)
    wrong = (back != array) & ~((back != back) & (array != array))  # a NaN stays a NaN
    if _kind(dtype) == "integer":
        wrong |= (converted < 0) != (array < 0)  # uint64 and int64 turn into each other and back unharmed
    if wrong.any():
        raise DataError(
            f"{what} has {array[wrong].flat[0]}, which is no {dtype} that the engine could take: "
            f"give values that {dtype} holds exactly"
        )
    return converted


def _kind(dtype: np.dtype[Any]) -> str:
    if dtype == ml_dtypes.bfloat16 or dtype.kind == "f":
        return "float"
    return {"i": "integer", "u": "integer", "b": "bool"}.get(dtype.kind, str(dtype))


class Memory(Protocol):
    """Memory for tensors, by name: the GPU's or the host's.

    A name keeps its memory, and its address, until more is wanted; what was there is lost then.
    """

    def reserve(self, name: str, nbytes: int) -> int:
        """The address of at least so many bytes; never 0, though nothing were wanted."""
        ...

    def upload(self, name: str, array: NDArray[Any]) -> int:
        """Copy an array there, of any memory layout; its address."""
        ...

    def download(self, name: str, dtype: np.dtype[Any], shape: Sequence[int]) -> NDArray[Any]:
        """A new array of what is there."""
        ...


class Buffers:
    """The GPU's memory for tensors (see `Memory`); a context manager, which gives all of it back.

    Every copy is done when its call returns. Raises EngineError where the GPU has no room.
    """

    def __init__(self, cuda: Cuda) -> None:
        self._cuda = cuda
        self._held: dict[str, tuple[int, int]] = {}

    def reserve(self, name: str, nbytes: int) -> int:
        """See `Memory`."""
        address, size = self._held.get(name, (0, 0))
        if size < max(nbytes, 1):
            if self._held.pop(name, None) is not None:
                self._cuda.free(address)  # first, as both may not fit
            size = max(nbytes, _ALIGNMENT)
            address = self._cuda.allocate(size)
            self._held[name] = (address, size)
        return address

    def upload(self, name: str, array: NDArray[Any]) -> int:
        """See `Memory`."""
        content = np.asarray(array, order="C")
        address = self.reserve(name, content.nbytes)
        self._cuda.upload(address, content)
        return address

    def download(self, name: str, dtype: np.dtype[Any], shape: Sequence[int]) -> NDArray[Any]:
        """See `Memory`."""
        array = np.empty(tuple(shape), dtype)
        address, held = self._held.get(name, (0, 0))
        _check_room(name, array.nbytes, held)
        self._cuda.download(address, array)
        return array

    def close(self) -> None:
        """Give all memory back."""
        while self._held:
            _, (address, _) = self._held.popitem()
            self._cuda.free(address)

    def __enter__(self) -> Buffers:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class HostBuffers:
    """The host's memory for tensors (see `Memory`): TensorRT wants those there that hold shapes."""

    def __init__(self) -> None:
        self._held: dict[str, NDArray[np.uint8]] = {}

    def reserve(self, name: str, nbytes: int) -> int:
        """See `Memory`."""
        held = self._held.get(name)
        if held is None or held.nbytes < nbytes:
            room = np.zeros(max(nbytes, 1) + _ALIGNMENT, np.uint8)
            start = -address_of(room) % _ALIGNMENT
            held = self._held[name] = room[start : start + max(nbytes, 1)]
        return address_of(held)

    def upload(self, name: str, array: NDArray[Any]) -> int:
        """See `Memory`."""
        content = array.tobytes()
        address = self.reserve(name, len(content))
        self._held[name][: len(content)] = np.frombuffer(content, np.uint8)
        return address

    def download(self, name: str, dtype: np.dtype[Any], shape: Sequence[int]) -> NDArray[Any]:
        """See `Memory`."""
        nbytes = math.prod(shape) * dtype.itemsize
        held = self._held.get(name, np.empty(0, np.uint8))
        _check_room(name, nbytes, held.nbytes)
        array = np.empty(tuple(shape), dtype)
        array.reshape(-1).view(np.uint8)[:] = held[:nbytes]
        return array


def take_into(cuda: Cuda, values: dict[str, NDArray[Any]], only: Collection[str] = ()) -> Take:
    """What a debug listener hands its tensors to: it copies each into `values`, or `only` these where there are some.

    Raises EngineError for a type that NumPy has nothing for.
    """

    def take(name: str, address: int, dtype: str, shape: Shape, stream: Any) -> None:
        if only and name not in only:
            return
        array = np.empty(shape, numpy_dtype(dtype, name))
        cuda.fetch(address, array, stream)
        values[name] = array

    return take


def _check_room(name: str, wanted: int, held: int) -> None:
    """Never read what is not there: an engine that says a larger shape than it had memory for is wrong."""
    if wanted > held:
        raise EngineError(f"the engine says that {name!r} has {wanted} bytes, and had memory for {held}")
