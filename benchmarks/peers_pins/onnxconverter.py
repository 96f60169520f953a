"""onnxconverter-common's auto_mixed_precision: halves the list of nodes until what is left has to stay in FP32."""

from __future__ import annotations

from importlib.metadata import version
from typing import Any

import numpy as np
import onnx
from onnxconverter_common import auto_mixed_precision, float16

from benchmarks.peers_pins.answer import Answer, Clock, Question, answer
from benchmarks.pins_judge import compare


def work(question: Question) -> Answer:
    """Convert under the tolerance; the last list of blocked nodes that is tried is the one of the result."""
    blocked: list[str] = []
    original = float16.convert_float_to_float16

    def recorded(model: onnx.ModelProto, *arguments: Any, node_block_list: list[str], **options: Any) -> Any:
        blocked[:] = node_block_list
        return original(model, *arguments, node_block_list=node_block_list, **options)

    def validate(reference: list[Any], variant: list[Any]) -> bool:
        floats = [(r, v.astype(np.float32)) for r, v in zip(reference, variant, strict=True) if r.dtype == np.float32]
        return compare([tuple(zip(*floats, strict=True))]).sqnr >= question.tolerance

    float16.convert_float_to_float16 = recorded
    model = onnx.load(question.model)
    batch = one_batch(question.samples())
    clock = Clock()
    auto_mixed_precision.auto_convert_mixed_precision(model, batch, validate, keep_io_types=True)
    seconds = clock.seconds()
    never = set(float16.DEFAULT_OP_BLOCK_LIST)
    return Answer(blocked + [node.name for node in model.graph.node if node.op_type in never], seconds)


def one_batch(samples: list[dict[str, Any]]) -> dict[str, Any]:
    """The samples of the first one's shapes as one batch: the tool takes a single run."""
    shapes = {name: array.shape for name, array in samples[0].items()}
    alike = [s for s in samples if all(s[name].shape == shape for name, shape in shapes.items())]
    return {name: np.concatenate([s[name] for s in alike]) for name in shapes}


answer(f"onnxconverter-common {version('onnxconverter-common')}", work)
