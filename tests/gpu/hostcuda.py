"""A CUDA whose memory is the host's, in the place of cuda-python's runtime where no GPU is."""

from __future__ import annotations

import ctypes
from enum import IntEnum
from typing import Any


class CudaError(IntEnum):
    cudaSuccess = 0  # noqa: N815
    cudaErrorInvalidValue = 1  # noqa: N815
    cudaErrorMemoryAllocation = 2  # noqa: N815
    cudaErrorInsufficientDriver = 35  # noqa: N815
    cudaErrorNoDevice = 100  # noqa: N815
    cudaErrorIllegalAddress = 700  # noqa: N815


class CudaMemcpyKind(IntEnum):
    cudaMemcpyHostToDevice = 1  # noqa: N815
    cudaMemcpyDeviceToHost = 2  # noqa: N815
    cudaMemcpyDeviceToDevice = 3  # noqa: N815
    cudaMemcpyDefault = 4  # noqa: N815


class CudaDeviceAttr(IntEnum):
    cudaDevAttrComputeCapabilityMajor = 75  # noqa: N815
    cudaDevAttrComputeCapabilityMinor = 76  # noqa: N815


class Properties:
    name = b"Test GPU\0\0"
    totalGlobalMem = 1 << 30  # noqa: N815


class FakeCudart:
    """The functions of cuda-python's runtime; copies outside of what was allocated are refused as CUDA does.

    `clock` is the GPU's, in milliseconds. `open` counts streams and events that were not destroyed. `broken` is the
    error that every wait reports.
    """

    cudaError_t = CudaError  # noqa: N815
    cudaMemcpyKind = CudaMemcpyKind  # noqa: N815
    cudaDeviceAttr = CudaDeviceAttr  # noqa: N815

    def __init__(self, room: int = 1 << 30, devices: int = 1, error: CudaError = CudaError.cudaSuccess) -> None:
        self.room, self.devices, self.error = room, devices, error
        self.driver, self.runtime = 12080, 12090
        self.blocks: dict[int, Any] = {}
        self.clock = 0.0
        self.open = 0
        self.allocations = 0
        self.broken = CudaError.cudaSuccess
        self._last = CudaError.cudaSuccess
        self._stamps: dict[int, float] = {}

    def _answer(self, code: CudaError, *values: Any) -> tuple[Any, ...]:
        self._last = code or self._last
        return (code, *(values if code == 0 else (None,) * len(values)))

    def cudaGetErrorName(self, error: CudaError) -> tuple[Any, ...]:  # noqa: N802
        return CudaError.cudaSuccess, error.name.encode()

    def cudaGetErrorString(self, error: CudaError) -> tuple[Any, ...]:  # noqa: N802
        words = {CudaError.cudaErrorMemoryAllocation: b"out of memory"}
        return CudaError.cudaSuccess, words.get(error, b"something went wrong")

    def cudaGetLastError(self) -> tuple[Any, ...]:  # noqa: N802
        last, self._last = self._last, CudaError.cudaSuccess
        return (last,)

    def cudaGetDeviceCount(self) -> tuple[Any, ...]:  # noqa: N802
        return self._answer(self.error, self.devices)

    def cudaGetDevice(self) -> tuple[Any, ...]:  # noqa: N802
        return self._answer(CudaError.cudaSuccess, 0)

    def cudaGetDeviceProperties(self, device: int) -> tuple[Any, ...]:  # noqa: N802
        return self._answer(CudaError.cudaSuccess, Properties())

    def cudaDeviceGetAttribute(self, attr: CudaDeviceAttr, device: int) -> tuple[Any, ...]:  # noqa: N802
        return self._answer(CudaError.cudaSuccess, {75: 8, 76: 9}[attr])

    def cudaDriverGetVersion(self) -> tuple[Any, ...]:  # noqa: N802
        return CudaError.cudaSuccess, self.driver

    def cudaRuntimeGetVersion(self) -> tuple[Any, ...]:  # noqa: N802
        return CudaError.cudaSuccess, self.runtime

    def cudaMemGetInfo(self) -> tuple[Any, ...]:  # noqa: N802
        return self._answer(CudaError.cudaSuccess, self.room - self.held, self.room)

    @property
    def held(self) -> int:
        return sum(len(block) - 256 for block in self.blocks.values())

    def cudaMalloc(self, size: int) -> tuple[Any, ...]:  # noqa: N802
        if size + self.held > self.room:
            return self._answer(CudaError.cudaErrorMemoryAllocation, 0)
        assert size > 0
        self.allocations += 1
        block = (ctypes.c_uint8 * (size + 256))()
        address = ctypes.addressof(block)
        address += -address % 256
        self.blocks[address] = block
        return self._answer(CudaError.cudaSuccess, address)

    def cudaFree(self, devPtr: int) -> tuple[Any, ...]:  # noqa: N802, N803
        del self.blocks[devPtr]
        return self._answer(CudaError.cudaSuccess)

    def _is_ours(self, address: int, count: int) -> bool:
        return any(start <= address and address + count <= start + len(b) - 256 for start, b in self.blocks.items())

    def cudaMemcpy(self, dst: int, src: int, count: int, kind: CudaMemcpyKind) -> tuple[Any, ...]:  # noqa: N802
        to, of = self._is_ours(dst, count), self._is_ours(src, count)
        if kind != CudaMemcpyKind.cudaMemcpyDefault and (to, of) != {1: (True, False), 2: (False, True)}.get(
            int(kind), (True, True)
        ):
            return self._answer(CudaError.cudaErrorInvalidValue)
        ctypes.memmove(dst, src, count)
        return self._answer(CudaError.cudaSuccess)

    def cudaMemcpyAsync(self, dst: int, src: int, count: int, kind: CudaMemcpyKind, stream: Any) -> Any:  # noqa: N802
        return self.cudaMemcpy(dst, src, count, kind)

    def cudaStreamCreate(self) -> tuple[Any, ...]:  # noqa: N802
        self.open += 1
        return self._answer(CudaError.cudaSuccess, 0x5000)

    def cudaStreamDestroy(self, stream: Any) -> tuple[Any, ...]:  # noqa: N802
        self.open -= 1
        return (CudaError.cudaSuccess,)

    def cudaStreamSynchronize(self, stream: Any) -> tuple[Any, ...]:  # noqa: N802
        return self._answer(self.broken)

    def cudaEventCreate(self) -> tuple[Any, ...]:  # noqa: N802
        self.open += 1
        return self._answer(CudaError.cudaSuccess, 0x6000 + self.open)

    def cudaEventDestroy(self, event: int) -> tuple[Any, ...]:  # noqa: N802
        self.open -= 1
        return (CudaError.cudaSuccess,)

    def cudaEventRecord(self, event: int, stream: Any) -> tuple[Any, ...]:  # noqa: N802
        self._stamps[event] = self.clock
        return self._answer(CudaError.cudaSuccess)

    def cudaEventSynchronize(self, event: int) -> tuple[Any, ...]:  # noqa: N802
        return self._answer(self.broken)

    def cudaEventElapsedTime(self, start: int, end: int) -> tuple[Any, ...]:  # noqa: N802
        return self._answer(CudaError.cudaSuccess, self._stamps[end] - self._stamps[start])
