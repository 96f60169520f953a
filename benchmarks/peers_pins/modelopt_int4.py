"""NVIDIA ModelOpt's INT4 of an ONNX model's weights, with its defaults: called with MODEL DATA OUT and the method."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
from modelopt.onnx.quantization.int4 import quantize
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


def main(model: str, data: str, out: str, method: str) -> None:
    """Quantise, and save."""
    import onnx

    given = quantize(
        model, calibration_method=method, calibration_data_reader=Reader(Path(data)), calibration_eps=["cpu"]
    )
    onnx.save_model(given, out)


main(*sys.argv[1:])
