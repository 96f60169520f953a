"""Values in the GPU's memory: what a session gives, and buffers of our own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from precisionlab.backends.tensorrt.cuda import Cuda


class DeviceArray:
    """A tensor that ONNX Runtime holds in the GPU's memory; freed with the last reference."""

    def __init__(self, value: Any) -> None:
        """`value` is an onnxruntime.OrtValue."""
        self.value = value
        self.shape: tuple[int, ...] = tuple(value.shape())
        self.size = int(np.prod(self.shape, dtype=np.int64))

    @property
    def address(self) -> int:
        """Where the values begin."""
        return int(self.value.data_ptr())

    def host(self) -> NDArray[Any]:
        """A copy in the host's memory."""
        copy: NDArray[Any] = self.value.numpy()
        return copy


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
