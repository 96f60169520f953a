"""Values in the GPU's memory: what a session gives, and buffers of our own."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from precisionlab.backends.tensorrt.cuda import Cuda

_ALIGNED = 256


class DeviceArray:
    """A tensor that ONNX Runtime holds in the GPU's memory; freed with the last reference."""

    def __init__(self, value: Any) -> None:
        """`value` is an onnxruntime.OrtValue."""
        self.value = value
        self.shape: tuple[int, ...] = tuple(value.shape())
        self.size = math.prod(self.shape)

    @cached_property
    def address(self) -> int:
        """Where the values begin."""
        return int(self.value.data_ptr())

    def host(self) -> NDArray[Any]:
        """A copy in the host's memory."""
        copy: NDArray[Any] = self.value.numpy()
        return copy

    def __getitem__(self, rows: slice) -> DeviceRows:
        """Some of it along the first axis, where it is."""
        return DeviceRows(self, rows)


class DeviceRows(DeviceArray):
    """Rows of a float32 tensor in the GPU's memory, which lives as long as they do."""

    def __init__(self, of: DeviceArray, rows: slice) -> None:
        super().__init__(of.value)
        self._of, self._rows = of, rows
        start, stop, _ = rows.indices(of.shape[0])
        self.shape = (stop - start, *of.shape[1:])
        self.size = math.prod(self.shape)
        self.address = of.address + 4 * start * math.prod(of.shape[1:])

    def host(self) -> NDArray[Any]:
        """A copy in the host's memory."""
        return self._of.host()[self._rows]


class Buffer:
    """GPU memory of our own, for an array of this shape and type; zero at first. Freed by `close`, or with it."""

    def __init__(self, cuda: Cuda, shape: tuple[int, ...], dtype: DTypeLike) -> None:
        self._cuda = cuda
        self.shape, self.dtype = shape, np.dtype(dtype)
        self.address = cuda.allocate(max(1, int(np.prod(shape)) * self.dtype.itemsize))
        self.write(np.zeros(shape, dtype))

    def write(self, array: NDArray[Any] | Sequence[float]) -> None:
        """Fill it from an array of its shape."""
        self._cuda.upload(self.address, np.ascontiguousarray(array, self.dtype).reshape(self.shape))

    def read(self) -> NDArray[Any]:
        """A copy of what it holds, once all queued work is done."""
        array = np.empty(self.shape, self.dtype)
        self._cuda.download(self.address, array)
        return array

    def close(self) -> None:
        """Give the memory back."""
        if self.address:
            self._cuda.free(self.address)
            self.address = 0

    def __del__(self) -> None:
        self.close()


@dataclass(frozen=True)
class Place:
    """A place in GPU memory that others own."""

    address: int


class Scratch:
    """GPU memory for what a launch needs and no later one: it grows to the most that was asked for, and stays.

    Taking and freeing memory for each launch costs more than the launch, as the GPU has to come to an end for it. What
    is asked for first is used up before the next may ask: whoever launches waits for the end.
    """

    def __init__(self, cuda: Cuda) -> None:
        self._cuda = cuda
        self._given: Buffer | None = None
        self._empty: Buffer | None = None

    def given(self, *arrays: NDArray[Any]) -> list[Place]:
        """Where these arrays are now; they are copied at once."""
        starts = self._starts(array.nbytes for array in arrays)
        packed = np.zeros(starts[-1], np.uint8)
        for start, array in zip(starts, arrays, strict=False):
            packed[start : start + array.nbytes] = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
        self._given = self._at_least(self._given, packed.nbytes)
        self._cuda.upload(self._given.address, packed)
        return [Place(self._given.address + start) for start in starts[:-1]]

    def empty(self, *sizes: int) -> list[Place]:
        """Room for so many bytes each, with whatever was in it."""
        starts = self._starts(sizes)
        self._empty = self._at_least(self._empty, starts[-1])
        return [Place(self._empty.address + start) for start in starts[:-1]]

    def _at_least(self, known: Buffer | None, size: int) -> Buffer:
        if known is not None and known.shape[0] >= size:
            return known
        if known is not None:
            known.close()
        return Buffer(self._cuda, (max(1 << 16, 2 * size),), np.uint8)

    @staticmethod
    def _starts(sizes: Iterable[int]) -> list[int]:
        """Where each begins, at multiples of what any type wants, and where the last ends."""
        return [0, *accumulate(-(-size // _ALIGNED) * _ALIGNED for size in sizes)]
