"""ONNX Runtime sessions: how they are set up so that an emulation stays what it says."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import onnx_ir as ir
import onnxruntime as ort
from numpy.typing import NDArray

from precisionlab.errors import ModelError

# protobuf cannot hold more than 2 GB in one message; stay well below it.
_INLINE_LIMIT = 1_500_000_000

_UNKNOWN_OPERATOR = re.compile(r"([\w.\-]*):(\w+)\(-?\d+\) is not a registered function/op")


class Session:
    """One graph, ready to run on the CPU. Raises ModelError where ONNX Runtime cannot load it."""

    def __init__(self, graph: ir.Model, threads: int, shrink: bool) -> None:
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 4
        # ONNX Runtime would turn Quantize/Dequantize pairs into integer kernels, and move them.
        options.add_session_config_entry("session.disable_quant_qdq", "1")
        # Threads that spin after a run would fight with those that sum the errors.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        self._run_options = ort.RunOptions()
        self._run_options.log_severity_level = 4
        if shrink:
            self._run_options.add_run_config_entry("memory.enable_memory_arena_shrinkage", "cpu:0")
        self.outputs = [str(v.name) for v in graph.graph.outputs]
        try:
            self._session = _create(graph, options)
        except Exception as error:  # ONNX Runtime's exceptions have no common base
            raise ModelError(f"ONNX Runtime cannot load the model: {_reason(error)}") from None

    def run(self, feeds: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """All outputs by name. The arrays stand in ONNX Runtime's memory: let go of them soon."""
        try:
            values = self._session.run(self.outputs, dict(feeds), self._run_options)
        except Exception as error:
            raise ModelError(f"ONNX Runtime cannot run the model: {_reason(error)}") from None
        return dict(zip(self.outputs, values, strict=True))


def _create(graph: ir.Model, options: ort.SessionOptions) -> ort.InferenceSession:
    size = sum(v.const_value.nbytes for v in graph.graph.initializers.values() if v.const_value is not None)
    if size < _INLINE_LIMIT and not any(
        isinstance(v.const_value, ir.ExternalTensor) for v in graph.graph.initializers.values()
    ):
        content = ir.to_proto(graph).SerializeToString()
        return ort.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    with tempfile.TemporaryDirectory(prefix="precisionlab-") as folder:
        path = Path(folder) / "graph.onnx"
        ir.save(graph, path, external_data="weights.bin")
        return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def _reason(error: Exception) -> str:
    """ONNX Runtime's message without its error code and source position."""
    text = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    if match := _UNKNOWN_OPERATOR.search(text):
        operator = f"{match[1]}::{match[2]}" if match[1] else match[2]
        return f"it does not know the operator {operator}; replace it, or define it as a function in the model"
    parts = text.split(" : ", 3)
    return parts[-1][:400] if text.startswith("[ONNXRuntimeError]") else text[:400]
