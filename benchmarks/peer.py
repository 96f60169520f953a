"""What ONNX Runtime's quantisation tools need to be fed."""

from __future__ import annotations

from typing import Any

from onnxruntime.quantization import CalibrationDataReader

from precisionlab.data import Sample


class Reader(CalibrationDataReader):  # type: ignore[misc]
    """Hands the samples over, once."""

    def __init__(self, samples: list[Sample]) -> None:
        self._samples = iter(samples)

    def get_next(self) -> dict[str, Any] | None:
        """The next sample's inputs."""
        sample = next(self._samples, None)
        return None if sample is None else dict(sample.inputs)
