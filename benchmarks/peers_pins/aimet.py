"""AIMET for ONNX: automatic mixed precision (`amp`), or per-layer analysis with the worst tenth kept (`analyzer`).

int8 is simulated as TensorRT has it: the inputs of Conv, ConvTranspose, Gemm and MatMul, per tensor and symmetric, and
their weights per channel; what is kept high runs in fp16, the nearest that the tool offers. The range of each tensor is
the tool's own default, its minimum and maximum.
"""

from __future__ import annotations

import json
from importlib.metadata import version
from typing import Any

import onnx
import onnxruntime as ort
from aimet_onnx import QuantizationSimModel, analyze_per_layer_sensitivity, float16, int8
from aimet_onnx.batch_norm_fold import fold_all_batch_norms_to_weight
from aimet_onnx.lite_mp import flip_layers_to_higher_precision
from aimet_onnx.mixed_precision import analyze_mixed_precision_sensitivity, apply_amp

from benchmarks.peers_pins.answer import Answer, Clock, Question, answer
from benchmarks.pins_judge import QUANTIZED_OPS, compare, session

BEST = 200.0  # dB; stands for an output without error, which the tool cannot rank as infinite
SYMMETRIC = {
    "defaults": {
        "ops": {"is_output_quantized": "True", "is_symmetric": "True"},
        "params": {"is_quantized": "True", "is_symmetric": "True"},
        "strict_symmetric": "True",
        "per_channel_quantization": "True",
    },
    "params": {"bias": {"is_quantized": "False"}},
    "op_type": {},
    "supergroups": [],
    "model_input": {"is_input_quantized": "True"},
    "model_output": {},
}


class Evaluation:
    """SQNR of the worst float output over all samples."""

    def __init__(self, question: Question, model: onnx.ModelProto) -> None:
        self.samples = question.samples()
        types = [value.type.tensor_type.elem_type for value in model.graph.output]
        self._floats = [index for index, kind in enumerate(types) if kind == onnx.TensorProto.FLOAT]
        original = session(model)
        self._reference = [self._outputs(original, sample) for sample in self.samples]
        self._tolerance = question.tolerance

    def _outputs(self, running: ort.InferenceSession, sample: dict[str, Any]) -> list[Any]:
        found = running.run(None, sample)  # the simulation calls the outputs by other names
        return [found[index] for index in self._floats]

    def __call__(self, simulated: ort.InferenceSession) -> float:
        """Between −BEST (NaN or Inf) and BEST."""
        runs = (self._outputs(simulated, sample) for sample in self.samples)
        found = compare(zip(self._reference, runs, strict=True)).sqnr
        return max(-BEST, min(BEST, found))

    def accepts(self, simulated: ort.InferenceSession) -> bool:
        return self(simulated) >= self._tolerance


def work(question: Question) -> Answer:
    """Simulate, analyse, and read from the simulation which nodes were given the higher precision."""
    if question.precision != "int8":
        raise NotImplementedError(
            "nothing above float16 can be kept: AMP fails on float32 (and its older form simulates it as float16), "
            "flip_layers_to_higher_precision takes int16 and float16"
        )
    config = question.graph.with_suffix(".json")
    config.write_text(json.dumps(SYMMETRIC))
    model = onnx.load(question.model)
    evaluation = Evaluation(question, model)
    clock = Clock()
    fold_all_batch_norms_to_weight(model)
    tensors = {node.name: node.input[:2] for node in model.graph.node if node.op_type in QUANTIZED_OPS}
    sim = QuantizationSimModel(model, param_type=int8, activation_type=int8, config_file=str(config))
    wanted = {name for names in tensors.values() for name in names}
    for name, quantizer in sim.qc_quantize_op_dict.items():
        quantizer.enabled = name in wanted
    if question.options == ("amp",):
        candidates = [(float16, float16), (int8, int8)]
        sensitivity = analyze_mixed_precision_sensitivity(sim, candidates, evaluation, evaluation.samples)
        apply_amp(sim, sensitivity, evaluation.accepts)
    else:
        sim.compute_encodings(evaluation.samples)
        flip_layers_to_higher_precision(sim, analyze_per_layer_sensitivity(sim, evaluation))
    seconds = clock.seconds()
    wide = {name for name, quantizer in sim.qc_quantize_op_dict.items() if quantizer.enabled and quantizer.bitwidth > 8}
    return Answer([node for node, names in tensors.items() if wide.intersection(names)], seconds, "fp16")


answer(f"aimet-onnx {version('aimet-onnx')}", work)
