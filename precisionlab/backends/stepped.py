"""The emulation of ONNX Runtime's own kernels: what their results in half are held against."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from precisionlab.backends.base import SensitivityRequest
from precisionlab.backends.onnxruntime import OnnxRuntimeBackend
from precisionlab.compare.sensitivity import Sensitivities
from precisionlab.data import Sample
from precisionlab.errors import EngineError
from precisionlab.rewrite.stepped import SteppedCopier


class SteppedBackend(OnnxRuntimeBackend):
    """The emulation, with what ONNX Runtime's CUDA kernels round inside of layers besides."""

    copier = SteppedCopier

    def sensitivities(self, request: SensitivityRequest, samples: Iterable[Sample]) -> Iterator[Sensitivities]:
        """Raises EngineError: layers are ranked as TensorRT has them."""
        raise EngineError("layers are toggled in the emulation of TensorRT alone; rank there")
