"""NVIDIA ModelOpt's AutoCast: keeps nodes in FP32 by static thresholds on what they take and give."""

from __future__ import annotations

from importlib.metadata import version
from typing import Any

import onnx
from modelopt.onnx.autocast import convert, convert_to_mixed_precision

from benchmarks.peers_pins.answer import Answer, Clock, Question, answer


def work(question: Question) -> Answer:
    """Convert with the calibration data and all defaults; the classification is taken on its way to the converter."""
    seen: dict[str, Any] = {}

    class Converter(convert.PrecisionConverter):
        def __init__(self, model: onnx.ModelProto, *arguments: Any, **options: Any) -> None:
            seen["nodes"] = {node.name for node in model.graph.node}
            seen["graph"] = model.SerializeToString()
            super().__init__(model, *arguments, **options)

        def convert(self, high: list[str], low: list[str]) -> onnx.ModelProto:
            seen["high"] = list(high)
            return super().convert(high, low)

    convert.PrecisionConverter = Converter
    clock = Clock()
    convert_to_mixed_precision(
        str(question.model), low_precision_type=question.precision, calibration_data=str(question.data)
    )
    seconds = clock.seconds()
    if not seen["nodes"] <= {node.name for node in onnx.load(question.model).graph.node}:
        question.graph.write_bytes(seen["graph"])  # nodes were fused or renamed: they are to be judged where they are
    return Answer(seen["high"], seconds)


answer(f"nvidia-modelopt {version('nvidia-modelopt')}", work)
