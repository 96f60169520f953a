"""ONNX Runtime sessions: how they are set up so that an emulation stays what it says."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import cache
from threading import Event
from types import MappingProxyType
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
from google.protobuf.message import EncodeError
from numpy.typing import NDArray

from precisionlab.backends.refusals import check_memory, why_not_loaded, why_not_run
from precisionlab.errors import ModelError
from precisionlab.model.expression import RAISED
from precisionlab.model.mapped import let_go

# Below this size a weight travels inside the graph's protobuf, as small constants must for ONNX Runtime
# to infer shapes from them.
_INLINE_BYTES = 1024
# The types of weights that numpy has too; others (bfloat16, int4, strings, …) travel inside.
_SHARED = frozenset(
    {
        ir.DataType.FLOAT,
        ir.DataType.DOUBLE,
        ir.DataType.FLOAT16,
        ir.DataType.INT8,
        ir.DataType.UINT8,
        ir.DataType.INT32,
        ir.DataType.INT64,
    }
)

# These reach across layers although the value between is shown: a scale or a transpose goes into the MatMul
# behind it. What a layer gives must not depend on what else its segment holds. NchwcTransformer does so too, in
# the last bits of a pooling's sum, and stays: without it a model of small convolutions takes half as long again.
# Of a model's own Quantize/Dequantize pair and a gate behind it the remover would make one. Before a QuantizeLinear to
# FP8 the rewrites take a Relu away, as if it were one before uint8, and do not know what to make of a Clip (1.32).
_REWRITES = ["ReluQuantRewrite", "ClipQuantRewrite"]
_ACROSS_LAYERS = ["MatMulScaleFusion", "MatmulTransposeFusion", "DoubleQDQPairsRemover", *_REWRITES]

_M_MMAP_THRESHOLD, _M_TRIM_THRESHOLD, _M_ARENA_MAX = -3, -1, -8
_LARGE_BLOCK, _LARGEST_KEPT, _NEVER = 4 * 1024**2, 32 * 1024**2, 2**31 - 1
_KEPT = Event()

_READERS, _WORTH_THREADS = 4, 64 * 1024**2
"""Threads that read weights side by side, where there are so many bytes of them."""

_MANY = 1000
"""Nodes of a graph whose session is hundreds of thousands of small blocks."""


AS_OPTIMIZED = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
"""The level at which ONNX Runtime fuses and folds what it can."""
AS_WRITTEN = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
"""The level at which each node is a kernel of its own: nothing is fused or folded."""
UNPACKED = MappingProxyType({"session.disable_prepacking": "1"})
"""For a graph that runs once: packing its weights would take longer than the run."""


class Session:
    """One graph, ready to run on the CPU. Raises ModelError where ONNX Runtime cannot load it."""

    def __init__(
        self,
        graph: ir.Model,
        threads: int,
        providers: Sequence[Any] = ("CPUExecutionProvider",),
        level: ort.GraphOptimizationLevel = AS_OPTIMIZED,
        entries: Mapping[str, str] = MappingProxyType({}),
        handed: Mapping[str, Any] = MappingProxyType({}),
    ) -> None:
        """`entries` are more of ONNX Runtime's own settings of a session.

        `handed` are initialisers, by name, that each run is given as the device has them: see `handed`.
        """
        _share_arena()
        _give_back_what_is_freed()
        options = ort.SessionOptions()
        options.graph_optimization_level = level
        options.intra_op_num_threads = threads
        options.log_severity_level = 4
        # ONNX Runtime would turn Quantize/Dequantize pairs into integer kernels, and move them.
        options.add_session_config_entry("session.disable_quant_qdq", "1")
        # Threads that spin after a run would fight with those that sum the errors.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        options.add_session_config_entry("session.use_env_allocators", "1")
        for name, value in entries.items():
            options.add_session_config_entry(name, value)
        # Shape comes before what else is ready: else what a probe asks the shapes of is all held to the end.
        options.execution_order = ort.ExecutionOrder.PRIORITY_BASED
        self._run_options = ort.RunOptions()
        self._run_options.log_severity_level = 4
        self.inputs = [str(v.name) for v in graph.graph.inputs]
        self.outputs = [str(v.name) for v in graph.graph.outputs]
        self._floats = frozenset(str(v.name) for v in graph.graph.inputs if v.dtype == ir.DataType.FLOAT)
        try:
            # The session reads the shared weights where they are, so they must live as long as it does.
            self._session: ort.InferenceSession | None
            self._session, self._weights = _create(graph, options, providers, handed)
        except RAISED as error:
            check_memory(error)
            raise ModelError(f"ONNX Runtime cannot load the model: {why_not_loaded(error)}") from None
        self.types = {str(info.name): _element(str(info.type)) for info in self._session.get_outputs()}
        self._handed = dict(handed)
        self._is_of_many = len(graph.graph) >= _MANY
        self._files = _external(graph)
        self._let_go()  # ONNX Runtime has packed copies of most by now; what it has not is read again

    def run(self, feeds: Mapping[str, Any]) -> dict[str, Any]:
        """All outputs by name. The arrays stand in ONNX Runtime's memory: let go of them soon."""
        assert self._session is not None
        if not self.outputs:
            return {}
        try:
            given = {name: self.fed(name, value) for name, value in feeds.items()}
            values = self._values(self._session, given | self._handed)
        except RAISED as error:
            check_memory(error)
            raise ModelError(f"ONNX Runtime cannot run the model: {why_not_run(error)}") from None
        return dict(zip(self.outputs, values, strict=True))

    def fed(self, name: str, value: Any) -> Any:
        """What the graph takes: a sample of a model that takes half stays half, and its lifted graph takes float32."""
        return as_float32(value) if name in self._floats else value

    def _values(self, session: ort.InferenceSession, feeds: Mapping[str, Any]) -> list[Any]:
        """The outputs in order; raises whatever ONNX Runtime does."""
        values: list[Any] = session.run(self.outputs, dict(feeds), self._run_options)
        return values

    def close(self) -> None:
        """Let go of the graph and its weights now; it runs no more."""
        self._session, self._weights, self._handed = None, [], {}
        self._let_go()
        if self._is_of_many:
            _give_back_small_blocks()

    def _let_go(self) -> None:
        for weight in self._files:
            let_go(weight)


def as_float32(value: Any) -> Any:
    """An array of half or bfloat16 in float32, which holds all its values; any other value as it is."""
    is_half = isinstance(value, np.ndarray) and value.dtype.itemsize == 2 and value.dtype.kind in "fV"
    return value.astype(np.float32) if is_half else value


def _element(kind: str) -> ir.DataType | None:
    """The element type that ONNX Runtime writes as `tensor(float)`; None for what is no tensor."""
    name = kind.removeprefix("tensor(").removesuffix(")")
    return ir.DataType[name.upper()] if kind.startswith("tensor(") else None


def _give_back_small_blocks() -> None:
    """Have glibc give pages that hold nothing any more back to the system: between small blocks it keeps them.

    Of the session of 50,000 nodes 200 MB were kept, which the next one, of other sizes, did not fill.
    """
    if sys.platform == "linux":
        with suppress(OSError, AttributeError):  # another libc, that does not do so
            ctypes.CDLL(None).malloc_trim(0)


def _external(graph: ir.Model) -> list[ir.ExternalTensor]:
    weights = (value.const_value for value in graph.graph.initializers.values())
    return [weight for weight in weights if isinstance(weight, ir.ExternalTensor)]


def serialized(graph: ir.Model) -> bytes:
    """The graph's protobuf. Raises ModelError where it would be larger than one can be."""
    proto = ir.to_proto(graph)
    try:
        content: bytes = proto.SerializeToString()
    except (EncodeError, ValueError):
        raise ModelError(
            "a part of the model has more than 2 GiB of constants that ONNX Runtime is given inside the graph (small "
            "ones, and types that NumPy has not); save the model with fewer of them"
        ) from None
    return content


def _create(
    graph: ir.Model, options: ort.SessionOptions, providers: Sequence[Any], handed: Collection[str]
) -> tuple[ort.InferenceSession, list[ort.OrtValue]]:
    """A session whose large weights are shared with the model in memory and not written; `handed` are inputs of it.

    So a model with more than protobuf's 2 GB works, and a session costs little beside its run. Returns the
    session and the weights.
    """
    large = {}
    for name, value in graph.graph.initializers.items():
        if (tensor := value.const_value) is None or name in handed:
            continue
        if tensor.nbytes > _INLINE_BYTES and value.dtype in _SHARED:
            large[str(name)] = tensor
        elif isinstance(tensor, ir.ExternalTensor):  # its file cannot be found from inside the protobuf
            value.const_value = ir.Tensor(tensor.numpy(), dtype=tensor.dtype, name=name)
    try:
        for name, tensor in large.items():
            graph.graph.initializers[name].const_value = ir.ExternalTensor(
                "weights", 0, tensor.nbytes, tensor.dtype, shape=ir.Shape(tuple(tensor.shape.numpy())), name=name
            )
        with _as_inputs(graph, handed):
            content = serialized(graph)
    finally:
        for name, tensor in large.items():
            graph.graph.initializers[name].const_value = tensor
    values = [ort.OrtValue.ortvalue_from_numpy(array) for array in contents_of(list(large.values()))]
    options.add_external_initializers(list(large), values)
    session = ort.InferenceSession(content, options, providers=list(providers), disabled_optimizers=_ACROSS_LAYERS)
    return session, values


@contextmanager
def _as_inputs(graph: ir.Model, names: Collection[str]) -> Iterator[None]:
    """These initialisers are inputs of the graph meanwhile."""
    values = [graph.graph.initializers.pop(name) for name in names]
    graph.graph.inputs.extend(values)
    try:
        yield
    finally:
        for value in values:
            graph.graph.inputs.remove(value)
            graph.graph.initializers.add(value)


def contents_of(tensors: Sequence[ir.TensorProtocol]) -> list[NDArray[Any]]:
    """The tensors as arrays. Where they are large they are read, and rounded, side by side."""

    def content(tensor: ir.TensorProtocol) -> NDArray[Any]:
        return np.ascontiguousarray(tensor.numpy())

    if sum(tensor.nbytes for tensor in tensors) < _WORTH_THREADS:
        return [content(tensor) for tensor in tensors]
    with ThreadPoolExecutor(_READERS) as pool:
        return list(pool.map(content, tensors))


@cache
def _share_arena() -> None:
    """One arena for all sessions of the process: with one for each, memory would be held many times over."""
    info = ort.OrtMemoryInfo("Cpu", ort.OrtAllocatorType.ORT_ARENA_ALLOCATOR, 0, ort.OrtMemType.DEFAULT)
    ort.create_and_register_allocator(info, None)


def keep_what_is_freed() -> None:
    """Have glibc keep what is freed, for the next session to take: from now on, for the whole process.

    For where a GPU does the work: there the host's memory holds weights on their way alone. Of a session that copies
    300 MB of them two thirds of the time were page faults, and those of one process wait for each other.
    """
    _KEPT.set()
    for parameter, value in ((_M_MMAP_THRESHOLD, _LARGEST_KEPT), (_M_TRIM_THRESHOLD, _NEVER)):
        _tell_malloc(parameter, value)


@cache
def _give_back_what_is_freed() -> None:
    """Have glibc map large blocks, so that they go back to the system when they are freed, and have one arena.

    By default it raises the size from which it does so with every such block, up to 32 MB, and what lies among smaller
    blocks is kept: of weights of 25 MB, rounded and packed one after the other, ten times as much was held as lived.
    Threads that make sessions have arenas of their own by default, which keep what was freed in them: a sixth of what
    an INT8 sweep of a small model holds, and they cost a tenth of its processor time.
    """
    _tell_malloc(_M_ARENA_MAX, 1)
    if not _KEPT.is_set():
        _tell_malloc(_M_MMAP_THRESHOLD, _LARGE_BLOCK)


def _tell_malloc(parameter: int, value: int) -> None:
    if sys.platform == "linux":
        with suppress(OSError, AttributeError):  # another libc, that does not do so
            ctypes.CDLL(None).mallopt(parameter, value)
