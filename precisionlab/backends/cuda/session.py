"""ONNX Runtime sessions on the CUDA provider, whose values stay in the GPU's memory from one graph to the next."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable, Mapping
from functools import cache, partial
from types import MappingProxyType
from typing import Any

import onnx_ir as ir
import onnxruntime as ort

from precisionlab.backends.cuda.arrays import DeviceArray
from precisionlab.backends.refusals import check_memory, why_not_run
from precisionlab.backends.session import Session
from precisionlab.errors import EngineError, ModelError
from precisionlab.model.expression import RAISED

PROVIDER = "CUDAExecutionProvider"

_GRAPH = "gpu_graph_id"
"""ONNX Runtime's setting of a run: the number of its CUDA graph, -1 for none. Where it is missing to look for it takes
as long as to launch ten kernels."""


NO_ENTRIES: Mapping[str, str] = MappingProxyType({})
CAPTURED = MappingProxyType({"enable_cuda_graph": "1"})
"""For a session whose runs can be captured; ONNX Runtime refuses it where values go between GPU and CPU on the way."""


@cache
def load_libraries() -> None:
    """Load CUDA and cuDNN out of Python packages, where they are. It prints what it misses; the session says it too."""
    if hasattr(ort, "preload_dlls"):  # since 1.21
        with contextlib.redirect_stdout(io.StringIO()):
            ort.preload_dlls()


class CudaSession(Session):
    """One graph on one GPU. TF32 is off: float32 means float32."""

    def __init__(
        self, graph: ir.Model, number: int, handed: Mapping[str, DeviceArray], entries: Mapping[str, str] = NO_ENTRIES
    ) -> None:
        """`handed` are initialisers, by name, that are in the GPU's memory already.

        `entries` are more of the provider's own settings.

        Raises ModelError where ONNX Runtime cannot load the graph, EngineError where its CUDA does not start.
        """
        options = {
            "device_id": str(number),
            "use_tf32": "0",
            # Searching tries every algorithm with the data at hand; which one wins is chance, and so are the last bits.
            "cudnn_conv_algo_search": "HEURISTIC",
            "arena_extend_strategy": "kSameAsRequested",
            **entries,
        }
        self._number = number
        super().__init__(graph, 1, ((PROVIDER, options), "CPUExecutionProvider"), handed=handed)
        assert self._session is not None
        self._run_options.add_run_config_entry(_GRAPH, "-1")
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

    def captured(
        self, inputs: Mapping[str, DeviceArray], outputs: Mapping[str, DeviceArray], number: int
    ) -> Callable[[], None]:
        """Run at these places; what is given does that again, as one launch. `number` tells captures apart.

        Whatever another thread does on the GPU meanwhile makes it fail; launched from another thread it is captured
        again. Raises ModelError where it cannot be captured.
        """
        assert self._session is not None
        binding, options = self._session.io_binding(), ort.RunOptions()
        options.log_severity_level = 4
        options.add_run_config_entry(_GRAPH, str(number))
        for name, value in {**inputs, **self._handed}.items():
            binding.bind_ortvalue_input(name, value.value)
        for name, value in outputs.items():
            binding.bind_ortvalue_output(name, value.value)
        for name in self.outputs:
            if name not in outputs:
                binding.bind_output(name, "cpu")
        launch = partial(_launched, self._session, binding, options)
        launch()
        return launch


def _launched(session: ort.InferenceSession, binding: ort.IOBinding, options: ort.RunOptions) -> None:
    """Run what is bound. Raises ModelError."""
    try:
        session.run_with_iobinding(binding, options)
    except RAISED as error:
        check_memory(error)
        raise ModelError(f"ONNX Runtime cannot run the model: {why_not_run(error)}") from None
