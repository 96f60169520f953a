#!/usr/bin/env bash
# onnxruntime 1.32.0: `onnxruntime.transformers.float16.convert_float_to_float16` with `keep_io_types=True` writes the Casts
# of the inputs behind the nodes that take them. ONNX wants nodes in topological order, and its checker refuses the file;
# ONNX Runtime sorts them, and runs it. What reads such a file has to sort it first.
#
# Seen on 2026-11-28, Python 3.11, on a CPU: the last node is the Cast of the input, the checker says "Nodes in a graph must
# be topologically sorted", and ONNX Runtime runs it (and on this CPU rounds nothing to half: 6e-08 off float32).
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
from onnxruntime.transformers.float16 import convert_float_to_float16

TEXT = '<ir_version: 8, opset_import: ["" : 17]> g (float[2,4] x) => (float[2,4] y) { a = Relu(x) y = Tanh(a) }'
given = convert_float_to_float16(onnx.parser.parse_model(TEXT), keep_io_types=True)
onnx.save(given, "half.onnx")
operators = [node.op_type for node in given.graph.node]
place = next(i for i, node in enumerate(given.graph.node) if "x" in node.input)
taker = next(i for i, node in enumerate(given.graph.node) if given.graph.node[place].output[0] in node.input)
try:
    onnx.checker.check_model("half.onnx")
    said = "nothing"
except onnx.checker.ValidationError as error:
    said = str(error).splitlines()[0]
session = ort.InferenceSession("half.onnx", providers=["CPUExecutionProvider"])
x = np.linspace(-1, 1, 8, dtype=np.float32).reshape(2, 4)
off = float(np.abs(session.run(None, {"x": x})[0] - np.tanh(np.maximum(x, 0))).max())
print("onnxruntime", version("onnxruntime"), "onnx", version("onnx"))
print("nodes:", operators, f"the input's Cast stands at {place}, what takes it at {taker}")
print("the checker says:", said)
print(f"ONNX Runtime runs it, to {off:.1g}")
assert place > taker
assert "topologically sorted" in said
assert off < 1e-3
PY
