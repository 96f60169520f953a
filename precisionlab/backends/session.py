"""ONNX Runtime sessions: how they are set up so that an emulation stays what it says."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cache
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
from numpy.typing import NDArray

from precisionlab.errors import ModelError

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
_ACROSS_LAYERS = ["MatMulScaleFusion", "MatmulTransposeFusion"]

_UNKNOWN_OPERATOR = re.compile(r"([\w.\-]*):(\w+)\(-?\d+\) is not a registered function/op")


class Session:
    """One graph, ready to run on the CPU. Raises ModelError where ONNX Runtime cannot load it."""

    def __init__(self, graph: ir.Model, threads: int) -> None:
        _share_arena()
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 4
        # ONNX Runtime would turn Quantize/Dequantize pairs into integer kernels, and move them.
        options.add_session_config_entry("session.disable_quant_qdq", "1")
        # Threads that spin after a run would fight with those that sum the errors.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        options.add_session_config_entry("session.use_env_allocators", "1")
        self._run_options = ort.RunOptions()
        self._run_options.log_severity_level = 4
        self.outputs = [str(v.name) for v in graph.graph.outputs]
        try:
            # The session reads the shared weights where they are, so they must live as long as it does.
            self._session, self._weights = _create(graph, options)
        except Exception as error:  # ONNX Runtime's exceptions have no common base
            raise ModelError(f"ONNX Runtime cannot load the model: {_reason(error)}") from None

    def run(self, feeds: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """All outputs by name. The arrays stand in ONNX Runtime's memory: let go of them soon."""
        try:
            values = self._session.run(self.outputs, dict(feeds), self._run_options)
        except Exception as error:
            raise ModelError(f"ONNX Runtime cannot run the model: {_reason(error)}") from None
        return dict(zip(self.outputs, values, strict=True))


def _create(graph: ir.Model, options: ort.SessionOptions) -> tuple[ort.InferenceSession, list[ort.OrtValue]]:
    """A session whose large weights are shared with the model in memory, neither written nor copied.

    So a model with more than protobuf's 2 GB works, and a session costs little beside its run. Returns the
    session and the weights.
    """
    large = {}
    for name, value in graph.graph.initializers.items():
        if (tensor := value.const_value) is None:
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
        content = ir.to_proto(graph).SerializeToString()
    finally:
        for name, tensor in large.items():
            graph.graph.initializers[name].const_value = tensor
    values = [ort.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(t.numpy())) for t in large.values()]
    options.add_external_initializers(list(large), values)
    session = ort.InferenceSession(
        content, options, providers=["CPUExecutionProvider"], disabled_optimizers=_ACROSS_LAYERS
    )
    return session, values


@cache
def _share_arena() -> None:
    """One arena for all sessions of the process: with one for each, memory would be held many times over."""
    info = ort.OrtMemoryInfo("Cpu", ort.OrtAllocatorType.ORT_ARENA_ALLOCATOR, 0, ort.OrtMemType.DEFAULT)
    ort.create_and_register_allocator(info, None)


def _reason(error: Exception) -> str:
    """ONNX Runtime's message without its error code and source position."""
    text = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    if match := _UNKNOWN_OPERATOR.search(text):
        operator = f"{match[1]}::{match[2]}" if match[1] else match[2]
        return f"it does not know the operator {operator}; replace it, or define it as a function in the model"
    parts = text.split(" : ", 3)
    return parts[-1][:400] if text.startswith("[ONNXRuntimeError]") else text[:400]
