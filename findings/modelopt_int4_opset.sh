#!/usr/bin/env bash
# nvidia-modelopt 0.47.0, INT4 of an ONNX model's weights (`modelopt.onnx.quantization.int4`), without a word:
# - The file keeps the model's own opset (17 here), at which DequantizeLinear has neither INT4 nor blocks (both came with
#   opset 21): ONNX Runtime refuses to load it. Read as opset 21 it runs.
# - A weight whose rows no block divides (200 rows in blocks of 128) is padded to 256 rows for its scales: 2 of them, for
#   200 rows. TensorRT-RTX reads these as blocks of 100 (see tensorrt_rtx_int4_blocks.sh).
# - AWQ (its default) concatenates what samples give, and fails on samples of different lengths.
#
# Seen on 2026-11-28, Python 3.11, on a CPU. (pip brings PyTorch with CUDA, several GB, where it does not find a CPU
# build.) Fails where that changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check "torch==2.13.0" "nvidia-modelopt==0.47.0" \
  "onnx==1.21.0" "onnxruntime==1.24.4" "onnxconverter-common==1.16.0" "onnxscript==0.7.2" "onnx-graphsurgeon==0.6.1" \
  "onnxslim==0.1.98" "polygraphy==0.53.6" "cppimport==26.4.17" "lief==1.0.0" "ml_dtypes==0.6.0" "numpy<3"
cd "$folder"
ORT_DISABLE_TELEMETRY=1 "$folder/venv/bin/python" - <<'PY' 2>/dev/null | grep -E "^(nvidia-modelopt|opset|scales|awq) "
from importlib.metadata import version

import numpy as np
import onnx
import onnx.parser
import onnxruntime as ort
from modelopt.onnx.quantization.int4 import quantize
from onnx import numpy_helper
from onnxruntime.quantization import CalibrationDataReader

print("nvidia-modelopt", version("nvidia-modelopt"))
random = np.random.default_rng(0)


class Reader(CalibrationDataReader):
    def __init__(self, lengths: list[int], width: int) -> None:
        self.samples = [{"x": random.standard_normal((1, length, width)).astype(np.float32)} for length in lengths]
        self.rewind()

    def get_next(self) -> dict[str, np.ndarray] | None:
        return next(self.left, None)

    def get_first(self) -> dict[str, np.ndarray]:
        return self.samples[0]

    def rewind(self) -> None:
        self.left = iter(self.samples)


def made(rows: int, method: str, lengths: list[int]) -> onnx.ModelProto:
    text = f"(float[N,T,{rows}] x) => (float[N,T,64] y) {{ y = MatMul(x, w) }}"
    model = onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["" : 17]> g {text}')
    weight = random.standard_normal((rows, 64)).astype(np.float32)
    model.graph.initializer.append(numpy_helper.from_array(weight, "w"))
    model.graph.node[0].name = "product"
    onnx.save(model, "model.onnx")
    return quantize("model.onnx", method, Reader(lengths, rows), calibration_eps=["cpu"])


def loads(model: onnx.ModelProto) -> bool:
    try:
        ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    except Exception:
        return False
    return True


model = made(256, "rtn_dq", [4, 4])
opset = next(o for o in model.opset_import if o.domain in ("", "ai.onnx"))
before, first = opset.version, loads(model)
opset.version, model.ir_version = 21, max(10, model.ir_version)
print("opset", before, "loads:", first, "read as 21:", loads(model), flush=True)
assert (before, first, loads(model)) == (17, False, True)

model = made(200, "rtn_dq", [4, 4])
(node,) = (node for node in model.graph.node if node.op_type == "DequantizeLinear")
shapes = {tensor.name: list(tensor.dims) for tensor in model.graph.initializer}
print("scales of", shapes[node.input[0]], "have the shape", shapes[node.input[1]], flush=True)
assert shapes[node.input[1]][0] == 2

for lengths in ([4, 4], [4, 5]):
    try:
        made(256, "awq_clip", lengths)
        result = "is made"
    except ValueError as error:
        result = f"fails: {str(error)[:60]}"
    print("awq with samples of", lengths, result, flush=True)
    assert result.startswith("is made") is (lengths == [4, 4])
PY
