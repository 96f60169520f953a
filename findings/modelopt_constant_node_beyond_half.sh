#!/usr/bin/env bash
# nvidia-modelopt 0.47.0: INT8 quantisation of an ONNX model (high_precision_dtype "fp16", its default) writes a Constant
# node beyond half as -inf, without a word. An initializer with the same number is clamped to -65504, with a warning. The
# number here is an attention mask of -3.4e38, as transformers exports it: 0 * -inf is NaN for every token that is not
# masked, and the QuantizeLinear behind the Softmax makes an ordinary number of NaN. So the output is finite, and wrong.
#
# Seen on 2026-11-28, Python 3.11, on a CPU: as a Constant node -inf, the output finite with -10.5 dB; as an initializer
# -65504, and 23.1 dB. (pip brings PyTorch with CUDA, several GB, where it does not find a CPU build.)
#
# Fails where that changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check "torch==2.13.0" "nvidia-modelopt==0.47.0" \
  "onnx==1.21.0" "onnxruntime==1.24.4" "onnxconverter-common==1.16.0" "onnxscript==0.7.2" "onnx-graphsurgeon==0.6.1" \
  "onnxslim==0.1.98" "polygraphy==0.53.6" "cppimport==26.4.17" "lief==1.0.0" "ml_dtypes==0.6.0" "numpy<3"
cd "$folder"
ORT_DISABLE_TELEMETRY=1 "$folder/venv/bin/python" - <<'PY' 2>/dev/null | grep -E "^(nvidia-modelopt|mask) "
from importlib.metadata import version

import numpy as np
import onnx
import onnx.parser
import onnxruntime as ort
from modelopt.onnx.quantization import quantize
from onnx import numpy_helper

LOW = np.finfo(np.float32).min
ATTENTION = """
    one = Constant <value = float {1.0}> ()  q = MatMul(x, a)  k = MatMul(x, b)  t = Transpose <perm = [0, 2, 1]> (k)
    s = MatMul(q, t)  i = Sub(one, m)  n = Mul(i, low)  z = Add(s, n)  p = Softmax <axis = -1> (z)
    h = MatMul(p, x)  y = MatMul(h, c)
"""
random = np.random.default_rng(0)
weights = {name: random.standard_normal((64, 64)).astype(np.float32) / 8 for name in "abc"}
samples = {
    "x": random.standard_normal((16, 8, 64)).astype(np.float32),
    "m": np.repeat((np.arange(8) < 5).astype(np.float32)[None, None], 16, 0),
}


def model(mask: str) -> onnx.ModelProto:
    text = f"(float[1,8,64] x, float[1,1,8] m) => (float[1,8,64] y) {{ {mask} {ATTENTION} }}"
    found = onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["" : 17]> g {text}')
    held = weights if mask else {**weights, "low": np.float32(LOW)}
    found.graph.initializer.extend(numpy_helper.from_array(np.asarray(array), name) for name, array in held.items())
    for index, node in enumerate(found.graph.node):
        node.name = f"n{index}"
    onnx.checker.check_model(found, full_check=True)
    return found


def outputs(path: str) -> np.ndarray:
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    rows = zip(samples["x"], samples["m"], strict=True)
    return np.stack([session.run(None, {"x": x[None], "m": m[None]})[0] for x, m in rows])


def constants(path: str) -> list[float]:
    graph = onnx.load(path).graph
    tensors = [*graph.initializer, *(a.t for node in graph.node for a in node.attribute if a.name == "value")]
    arrays = map(numpy_helper.to_array, tensors)
    return [float(array.min()) for array in arrays if array.dtype == np.float16 and array.size and array.min() < -1e4]


print("nvidia-modelopt", version("nvidia-modelopt"))
for mask, expected in ((f"low = Constant <value = float {{{LOW:.9g}}}> ()", -np.inf), ("", -65504.0)):
    onnx.save(model(mask), "float.onnx")
    quantize("float.onnx", "int8", calibration_data=samples, calibration_eps=["cpu"], output_path="int8.onnx")
    wanted, given, held = outputs("float.onnx"), outputs("int8.onnx"), constants("int8.onnx")
    sqnr = 10 * np.log10(np.sum(wanted**2) / np.sum((given - wanted) ** 2))
    where = "a Constant node" if mask else "an initializer"
    print(f"mask as {where}: {held}, output finite {np.isfinite(given).all()}, {sqnr:.1f} dB", flush=True)
    assert held == [expected]
    assert np.isfinite(given).all()
    assert (sqnr < 3) == bool(mask)
PY
