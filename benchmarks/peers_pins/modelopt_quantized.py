"""NVIDIA ModelOpt's INT8 or FP8 of an ONNX model, with its defaults: MODE MODEL DATA OUT and the type of the rest."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
from modelopt.onnx.quantization import quantize
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


mode, model, data, out, high = sys.argv[1:]
quantize(
    model,
    mode,
    calibration_data_reader=Reader(Path(data)),
    calibration_eps=["cpu"],
    high_precision_dtype=high,
    output_path=out,
    direct_io_types=False,
)
