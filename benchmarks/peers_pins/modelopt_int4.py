"""NVIDIA ModelOpt's INT4 of an ONNX model's weights, with its defaults: called with MODEL DATA OUT and the method."""

from __future__ import annotations

import sys
from pathlib import Path

from modelopt.onnx.quantization.int4 import quantize

from benchmarks.peers_pins.reader import Reader


def main(model: str, data: str, out: str, method: str) -> None:
    """Quantise, and save."""
    import onnx

    given = quantize(
        model, calibration_method=method, calibration_data_reader=Reader(Path(data)), calibration_eps=["cpu"]
    )
    onnx.save_model(given, out)


main(*sys.argv[1:])
