#!/usr/bin/env bash
# onnxruntime 1.32.0: `quantize_static` in the QDQ format leaves out a Relu whose output is quantised from 0 on, as the
# quantiser clips there anyway, and gives the Relu's name to what the Conv in front of it gives. So the float tensor of that
# name holds negative values, and is another thing than in the float model: who compares the two by name finds a layer lost
# that is not. What comes behind takes the quantised values, and these are the Relu's.
#
# Seen on 2026-11-28, Python 3.11, on a CPU: the tensor `r` is a Conv's output with negative values; behind its Q/DQ pair
# there are none.
#
# Fails where that changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check "onnxruntime==1.32.0" "onnx==1.23.2" \
  "numpy<3" "sympy==1.14.0" "packaging"
cd "$folder"
ORT_DISABLE_TELEMETRY=1 "$folder/venv/bin/python" - <<'PY' 2>/dev/null
from importlib.metadata import version

import numpy as np
import onnx
import onnx.parser
import onnxruntime as ort
from onnx import numpy_helper
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

TEXT = """<ir_version: 8, opset_import: ["" : 17]> g (float[1,3,8,8] x) => (float[1,4,8,8] y) {
    c = Conv <pads = [1, 1, 1, 1]> (x, w)  r = Relu(c)  y = Conv <pads = [1, 1, 1, 1]> (r, v) }"""
random = np.random.default_rng(0)
model = onnx.parser.parse_model(TEXT)
for name, channels in (("w", 3), ("v", 4)):
    weight = random.standard_normal((4, channels, 3, 3)).astype(np.float32)
    model.graph.initializer.append(numpy_helper.from_array(weight, name))
onnx.save(model, "float.onnx")
x = random.standard_normal((1, 3, 8, 8)).astype(np.float32)


class Reader(CalibrationDataReader):
    def __init__(self) -> None:
        self.items = iter([{"x": x}])

    def get_next(self):
        return next(self.items, None)


quantize_static("float.onnx", "int8.onnx", Reader(), quant_format=QuantFormat.QDQ, activation_type=QuantType.QInt8)
found = onnx.load("int8.onnx")
maker = next(node for node in found.graph.node if "r" in node.output)
behind = next(node for node in found.graph.node if node.op_type == "DequantizeLinear" and node.input[0].startswith("r_"))
found.graph.output.extend(onnx.ValueInfoProto(name=name) for name in ("r", behind.output[0]))
options = ort.SessionOptions()
options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
session = ort.InferenceSession(found.SerializeToString(), options, providers=["CPUExecutionProvider"])
_, raw, taken = session.run(None, {"x": x})
print("onnxruntime", version("onnxruntime"))
print(f"r is given by {maker.op_type}; Relu left: {any(node.op_type == 'Relu' for node in found.graph.node)}")
print(f"least value of r {raw.min():.2f}, of {behind.output[0]} {taken.min():.2f}")
assert maker.op_type == "Conv"
assert raw.min() < 0 <= taken.min()
PY
