"""ONNX Runtime sessions on the CUDA provider, whose values stay in the GPU's memory from one graph to the next."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Mapping
from functools import cache
from typing import Any

import onnx_ir as ir
import onnxruntime as ort

from precisionlab.backends.cuda.arrays import DeviceArray
from precisionlab.backends.session import Session
from precisionlab.errors import EngineError

PROVIDER = "CUDAExecutionProvider"


@cache
def load_libraries() -> None:
    """Load CUDA and cuDNN out of Python packages, where they are. It prints what it misses; the session says it too."""
    if hasattr(ort, "preload_dlls"):  # since 1.21
        with contextlib.redirect_stdout(io.StringIO()):
            ort.preload_dlls()


class CudaSession(Session):
    """One graph on one GPU. TF32 is off: float32 means float32."""

    def __init__(self, graph: ir.Model, number: int, handed: Mapping[str, DeviceArray]) -> None:
        """`handed` are initialisers, by name, that are in the GPU's memory already.

        Raises ModelError where ONNX Runtime cannot load the graph, EngineError where its CUDA does not start.
        """
        options = {
            "device_id": str(number),
            "use_tf32": "0",
            # Searching tries every algorithm with the data at hand; which one wins is chance, and so are the last bits.
            "cudnn_conv_algo_search": "HEURISTIC",
            "arena_extend_strategy": "kSameAsRequested",
        }
        self._number = number
        super().__init__(graph, 1, ((PROVIDER, options), "CPUExecutionProvider"), handed=handed)
        assert self._session is not None
        # Only float32 is summed up on the GPU; shapes and indices are wanted in the host's memory.
        self._on_device = {info.name: info.type == "tensor(float)" for info in self._session.get_outputs()}
        if PROVIDER not in self._session.get_providers():
            raise EngineError(
                f"ONNX Runtime cannot use GPU {number}: its CUDA provider does not start; CUDA, cuDNN and the driver "
                "must be those that this version of onnxruntime-gpu asks for"
            )

    def _values(self, session: ort.InferenceSession, feeds: Mapping[str, Any]) -> list[Any]:
        binding = session.io_binding()
        for name, value in feeds.items():
            if isinstance(value, DeviceArray):
                binding.bind_ortvalue_input(name, value.value)
            else:
                binding.bind_cpu_input(name, value)
        for name in self.outputs:
            if self._on_device[name]:
                binding.bind_output(name, "cuda", self._number)
            else:
                binding.bind_output(name, "cpu")
        session.run_with_iobinding(binding, self._run_options)
        binding.synchronize_outputs()
        found = zip(self.outputs, binding.get_outputs(), strict=True)
        return [DeviceArray(value) if self._on_device[name] else value.numpy() for name, value in found]
