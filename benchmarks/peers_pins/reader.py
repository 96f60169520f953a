"""Samples as ONNX Runtime's calibration hands them on; what ModelOpt takes. Needs NumPy and ONNX Runtime alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from onnxruntime.quantization import CalibrationDataReader


class Reader(CalibrationDataReader):  # type: ignore[misc]
    """Hands the samples over; as the tool's own reader, it can be asked for the first, and to begin anew."""

    def __init__(self, folder: Path) -> None:
        self._files = sorted(folder.glob("*.npz"))
        self.rewind()

    def get_next(self) -> dict[str, Any] | None:
        """The next sample's inputs."""
        file = next(self._left, None)
        return None if file is None else dict(np.load(file))

    def get_first(self) -> dict[str, Any]:
        """The first sample's inputs."""
        return dict(np.load(self._files[0]))

    def rewind(self) -> None:
        """Begin anew."""
        self._left = iter(self._files)
