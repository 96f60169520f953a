"""NVIDIA ModelOpt's INT8 or FP8 of an ONNX model, with its defaults: MODE MODEL DATA OUT and the type of the rest."""

from __future__ import annotations

import sys
from pathlib import Path

from modelopt.onnx.quantization import quantize

from benchmarks.peers_pins.reader import Reader

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
