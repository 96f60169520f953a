"""A stand-in for TensorRT's runtime: an "engine" is a Python function between named tensors.

It has the names and the manners of the documented API, as far as running an engine goes: what TensorRT answers with
False or None is False or None here, what it leaves at -1 stays at -1. Its memory is that of the CUDA runtime it is
given, the real one or the tests' own. What a real TensorRT does beyond that, it cannot know.
"""

from __future__ import annotations

import ctypes
import enum
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
Shape = tuple[int, ...]
Values = Mapping[str, Array]


class DataType(enum.Enum):
    FLOAT = enum.auto()
    HALF = enum.auto()
    BF16 = enum.auto()
    INT8 = enum.auto()
    INT32 = enum.auto()
    INT64 = enum.auto()
    BOOL = enum.auto()
    UINT8 = enum.auto()
    FP8 = enum.auto()


NUMPY = {
    DataType.FLOAT: np.dtype(np.float32),
    DataType.HALF: np.dtype(np.float16),
    DataType.BF16: np.dtype(ml_dtypes.bfloat16),
    DataType.INT8: np.dtype(np.int8),
    DataType.INT32: np.dtype(np.int32),
    DataType.INT64: np.dtype(np.int64),
    DataType.BOOL: np.dtype(np.bool_),
    DataType.UINT8: np.dtype(np.uint8),
    DataType.FP8: np.dtype(ml_dtypes.float8_e4m3fn),
}


class TensorIOMode(enum.Enum):
    INPUT = enum.auto()
    OUTPUT = enum.auto()


class TensorLocation(enum.Enum):
    DEVICE = enum.auto()
    HOST = enum.auto()


class TensorFormat(enum.IntEnum):
    LINEAR = 0
    CHW4 = 3
    HWC = 8
    HWC8 = 2


LANES = {TensorFormat.LINEAR: 1, TensorFormat.CHW4: 4, TensorFormat.HWC: 1, TensorFormat.HWC8: 8}
"""How many channels are one element."""


def stored(array: Array, form: TensorFormat) -> Array:
    """An array of batch, channels, rows and columns as TensorRT's documentation says that it is stored."""
    if form is TensorFormat.LINEAR:
        return array
    lanes = LANES[form]
    batch, channels, rows, columns = array.shape
    groups = -(-channels // lanes)
    padded = np.zeros((batch, groups * lanes, rows, columns), array.dtype)
    padded[:, :channels] = array
    if form is TensorFormat.CHW4:  # [N][(C+3)/4][H][W][4]
        return padded.reshape(batch, groups, lanes, rows, columns).transpose(0, 1, 3, 4, 2)
    return padded.transpose(0, 2, 3, 1)  # [N][H][W][C], HWC8: C padded to a multiple of 8


def read_back(memory: Array, shape: Shape, form: TensorFormat) -> Array:
    """The array that is stored so."""
    if form is TensorFormat.LINEAR:
        return memory.reshape(shape)
    lanes = LANES[form]
    batch, channels, rows, columns = shape
    groups = -(-channels // lanes)
    if form is TensorFormat.CHW4:
        whole = memory.reshape(batch, groups, rows, columns, lanes).transpose(0, 1, 4, 2, 3)
        return whole.reshape(batch, groups * lanes, rows, columns)[:, :channels]
    return memory.reshape(batch, rows, columns, groups * lanes).transpose(0, 3, 1, 2)[:, :channels]


class IOutputAllocator:
    pass


class IDebugListener:
    pass


class IProfiler:
    pass


@dataclass
class Tensor:
    """An input or output; `profile` is (min, opt, max) of a dynamic input, `more` the same for further profiles."""

    name: str
    shape: Shape
    dtype: DataType = DataType.FLOAT
    location: TensorLocation = TensorLocation.DEVICE
    profile: tuple[Shape, Shape, Shape] | None = None
    format: TensorFormat = TensorFormat.LINEAR
    more: tuple[tuple[Shape, Shape, Shape], ...] = ()

    @property
    def profiles(self) -> tuple[tuple[Shape, Shape, Shape], ...]:
        return () if self.profile is None else (self.profile, *self.more)


@dataclass
class Spec:
    """An engine.

    `compute` gives outputs for inputs, `shapes` the outputs' shapes as far as inputs' shapes tell (and the values of
    inputs in host memory); `debug` and `unfused` tensors are shown to a listener, `layers` to a profiler, in ms.
    """

    inputs: Sequence[Tensor]
    outputs: Sequence[Tensor]
    compute: Callable[[Values], Values]
    shapes: Callable[[Mapping[str, Shape], Values], Mapping[str, Shape]] | None = None
    debug: Callable[[Values], Values] | None = None
    unfused: Callable[[Values], Values] | None = None
    layers: Mapping[str, float] = field(default_factory=dict)
    copies: Mapping[str, str] = field(default_factory=dict)
    aliases: Mapping[str, str] = field(default_factory=dict)
    on_run: Callable[[], None] = lambda: None
    fails: bool = False
    has_room: bool = True


class StubTensorRT:
    """The module: `engines` has each engine by the content of its file. `alive` are the objects not yet released."""

    __version__ = "10.13.3"

    def __init__(self, cudart: Any, engines: Mapping[bytes, Spec]) -> None:
        self.alive: list[str] = []
        self.released: list[str] = []
        self.DataType, self.TensorIOMode, self.TensorLocation = DataType, TensorIOMode, TensorLocation
        self.TensorFormat = TensorFormat
        self.IOutputAllocator, self.IDebugListener, self.IProfiler = IOutputAllocator, IDebugListener, IProfiler
        self._cudart, self._engines = cudart, engines

    def Runtime(self, logger: Any) -> Runtime:  # noqa: N802
        return Runtime(self, logger)


class _Counted:
    def __init__(self, stub: StubTensorRT) -> None:
        self._stub = stub
        stub.alive.append(type(self).__name__)

    def __del__(self) -> None:
        name = type(self).__name__
        self._stub.alive.remove(name)
        self._stub.released.append(name)


class Runtime(_Counted):
    def __init__(self, stub: StubTensorRT, logger: Any) -> None:
        super().__init__(stub)
        self.logger = logger

    def deserialize_cuda_engine(self, serialized_engine: bytes) -> ICudaEngine | None:
        spec = self._stub._engines.get(serialized_engine)
        if spec is None:
            self.logger.log("ERROR", "Serialization (Version tag does not match)")
            return None
        return ICudaEngine(self._stub, self.logger, spec)


class ICudaEngine(_Counted):
    def __init__(self, stub: StubTensorRT, logger: Any, spec: Spec) -> None:
        super().__init__(stub)
        self._logger, self._spec = logger, spec
        self._tensors = {tensor.name: tensor for tensor in (*spec.inputs, *spec.outputs)}

    @property
    def num_io_tensors(self) -> int:
        return len(self._tensors)

    def get_tensor_name(self, index: int) -> str:
        return list(self._tensors)[index]

    def get_tensor_mode(self, name: str) -> TensorIOMode:
        return TensorIOMode.INPUT if name in [t.name for t in self._spec.inputs] else TensorIOMode.OUTPUT

    def get_tensor_dtype(self, name: str) -> DataType:
        return self._tensors[name].dtype

    def get_tensor_shape(self, name: str) -> Shape:
        return self._tensors[name].shape

    def get_tensor_location(self, name: str) -> TensorLocation:
        return self._tensors[name].location

    def is_shape_inference_io(self, name: str) -> bool:
        return self._tensors[name].location is TensorLocation.HOST

    def get_tensor_format(self, name: str) -> TensorFormat:
        return self._tensors[name].format

    def get_tensor_profile_shape(self, name: str, profile_index: int) -> list[Shape]:
        tensor = self._tensors[name]
        return list(tensor.profiles[profile_index] if tensor.profiles else [tensor.shape] * 3)

    @property
    def num_optimization_profiles(self) -> int:
        return max((len(tensor.profiles) for tensor in self._spec.inputs), default=0) or 1

    def get_tensor_vectorized_dim(self, name: str) -> int:
        return 1 if LANES[self._tensors[name].format] > 1 else -1

    def get_tensor_components_per_element(self, name: str) -> int:
        return LANES[self._tensors[name].format] if LANES[self._tensors[name].format] > 1 else -1

    def get_aliased_input_tensor(self, name: str) -> str | None:
        return self._spec.aliases.get(name)

    def create_execution_context(self) -> IExecutionContext | None:
        if not self._spec.has_room or "IExecutionContext" in self._stub.alive:  # there is room for one
            self._logger.log("ERROR", "Requested amount of GPU memory could not be allocated")
            return None
        return IExecutionContext(self._stub, self._logger, self._spec)


class IExecutionContext(_Counted):
    def __init__(self, stub: StubTensorRT, logger: Any, spec: Spec) -> None:
        super().__init__(stub)
        self._logger, self._spec = logger, spec
        self._shapes: dict[str, Shape] = {t.name: t.shape for t in spec.inputs if min(t.shape, default=0) >= 0}
        self._addresses: dict[str, int] = {}
        self._allocators: dict[str, Any] = {}
        self._listener: Any = None
        self._debug = False
        self.unfused_tensors_debug_state = False
        self.profiler: Any = None
        self.enqueue_emits_profile = True
        self._unreported = False
        self.active_optimization_profile = 0

    def set_optimization_profile_async(self, profile_index: int, stream_handle: int) -> bool:
        """All shapes are unknown again."""
        if not 0 <= profile_index < max(len(t.profiles) for t in self._spec.inputs):
            return False
        self.active_optimization_profile = profile_index
        self._shapes = {t.name: t.shape for t in self._spec.inputs if min(t.shape, default=0) >= 0}
        return True

    def set_input_shape(self, name: str, shape: Shape) -> bool:
        (tensor,) = (t for t in self._spec.inputs if t.name == name)
        least, _, most = tensor.profiles[self.active_optimization_profile]
        if not all(low <= dim <= high for low, dim, high in zip(least, shape, most, strict=True)):
            return False
        self._shapes[name] = shape
        return True

    def set_tensor_address(self, name: str, memory: int) -> bool:
        if memory == 0 or memory % 256:
            return False
        self._addresses[name] = memory
        return True

    def set_output_allocator(self, name: str, output_allocator: Any) -> bool:
        self._allocators[name] = output_allocator
        return True

    def set_debug_listener(self, listener: Any) -> bool:
        self._listener = listener
        return True

    def set_all_tensors_debug_state(self, flag: bool) -> bool:
        if self._spec.debug is None:
            self._logger.log("ERROR", "Error Code 3: API Usage Error (no debug tensor was marked)")
            return False
        self._debug = flag
        return True

    def infer_shapes(self) -> list[str]:
        unset = [t.name for t in self._spec.inputs if t.name not in self._shapes]
        host = [t.name for t in self._spec.inputs if t.location is TensorLocation.HOST]
        unset += [name for name in host if name not in self._addresses]
        if not unset:
            try:
                self._output_shapes()
            except ValueError as error:
                self._logger.log("ERROR", str(error))
                raise RuntimeError("infer_shapes error code: -1") from None
        return unset

    def get_tensor_shape(self, name: str) -> Shape:
        return self._shapes[name] if name in self._shapes else self._output_shapes()[name]

    def get_tensor_strides(self, name: str) -> Shape:
        """In elements: of HWC8 one is 8 values."""
        (tensor,) = (t for t in (*self._spec.inputs, *self._spec.outputs) if t.name == name)
        shape = self.get_tensor_shape(name)
        if tensor.format is TensorFormat.LINEAR:
            return tuple(math.prod(shape[axis + 1 :]) for axis in range(len(shape)))
        _, channels, rows, columns = shape
        groups = -(-channels // LANES[tensor.format])
        if tensor.format is TensorFormat.CHW4:
            return (groups * rows * columns, rows * columns, columns, 1)
        return (groups * rows * columns, 1, columns * groups, groups)

    def _output_shapes(self) -> Mapping[str, Shape]:
        if self._spec.shapes is None:
            return {t.name: t.shape for t in self._spec.outputs}
        values = {t.name: self._read(t) for t in self._spec.inputs if t.location is TensorLocation.HOST}
        return self._spec.shapes(self._shapes, values)

    def execute_async_v3(self, stream_handle: int) -> bool:
        assert isinstance(stream_handle, int)
        if self._spec.fails or any(t.name not in self._addresses for t in self._spec.inputs):
            self._logger.log("ERROR", "Error Code 1: Cuda Runtime (an illegal memory access was encountered)")
            return False
        self._spec.on_run()
        for target, source in self._spec.copies.items():  # on the GPU, in the stream
            nbytes = self._nbytes(next(t for t in self._spec.inputs if t.name == source))
            kind = self._stub._cudart.cudaMemcpyKind.cudaMemcpyDeviceToDevice
            addresses = self._addresses[target], self._addresses[source]
            self._ok(self._stub._cudart.cudaMemcpyAsync(*addresses, nbytes, kind, stream_handle))
        if not self._spec.copies:
            inputs = {t.name: self._read(t) for t in self._spec.inputs}
            values = self._spec.compute(inputs)
            if not all(self._write(t, values[t.name]) for t in self._spec.outputs):
                return False
            if self._listener is not None and self._debug and self._spec.debug is not None:
                self._show(self._spec.debug(inputs), stream_handle)
            if self._listener is not None and self.unfused_tensors_debug_state and self._spec.unfused is not None:
                self._show(self._spec.unfused(inputs), stream_handle)
        self._unreported = self.profiler is not None
        if self._unreported and self.enqueue_emits_profile:
            self.report_to_profiler()
        return True

    def report_to_profiler(self) -> bool:
        if not self._unreported or not self._spec.layers:
            return False
        self._unreported = False
        mark = f" [profile {self.active_optimization_profile}]" if self.active_optimization_profile else ""
        for name, milliseconds in self._spec.layers.items():
            self.profiler.report_layer_time(name + mark, milliseconds)
        return True

    def _nbytes(self, tensor: Tensor) -> int:
        return math.prod(self.get_tensor_shape(tensor.name)) * NUMPY[tensor.dtype].itemsize

    def _read(self, tensor: Tensor) -> Array:
        shape = self._shapes[tensor.name]
        array = np.empty(stored(np.empty(shape, np.uint8), tensor.format).shape, NUMPY[tensor.dtype])
        address = self._addresses[tensor.name]
        if tensor.location is TensorLocation.HOST:
            ctypes.memmove(array.__array_interface__["data"][0], address, array.nbytes)
        elif array.nbytes:
            kind = self._stub._cudart.cudaMemcpyKind.cudaMemcpyDeviceToHost
            target = array.__array_interface__["data"][0]
            self._ok(self._stub._cudart.cudaMemcpy(target, address, array.nbytes, kind))
        return np.ascontiguousarray(read_back(array, shape, tensor.format))

    def _write(self, tensor: Tensor, value: Array) -> bool:
        assert value.dtype == NUMPY[tensor.dtype], tensor.name
        content = np.asarray(stored(value, tensor.format), order="C")
        address = self._addresses.get(tensor.name, 0)
        allocator = self._allocators.get(tensor.name)
        if allocator is not None:
            address = allocator.reallocate_output_async(tensor.name, address, content.nbytes, 256, 0)
            if not address:
                self._logger.log("ERROR", "reallocateOutput returned nullptr")
                return False
            allocator.notify_shape(tensor.name, content.shape)
        assert address, f"{tensor.name} has neither address nor allocator"
        source = content.__array_interface__["data"][0]
        if tensor.location is TensorLocation.HOST:
            ctypes.memmove(address, source, content.nbytes)
        elif content.nbytes:
            kind = self._stub._cudart.cudaMemcpyKind.cudaMemcpyHostToDevice
            self._ok(self._stub._cudart.cudaMemcpy(address, source, content.nbytes, kind))
        return True

    def _show(self, values: Values, stream: int) -> None:
        for name, value in values.items():
            dtype = next(kind for kind, numpy in NUMPY.items() if numpy == value.dtype)
            address = value.__array_interface__["data"][0]
            self._listener.process_debug_tensor(address, TensorLocation.HOST, dtype, value.shape, name, stream)

    @staticmethod
    def _ok(result: tuple[Any, ...]) -> None:
        assert int(result[0]) == 0, result
