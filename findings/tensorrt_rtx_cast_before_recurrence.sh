#!/usr/bin/env bash
# TensorRT-RTX 1.7.1.116: the builder fails on an LSTM, GRU or RNN in float32 that reads forward what a Cast has widened
# from float16, with "Mismatched number of elements in reshape op". Reversed and bidirectional ones are built, as is the
# same with anything computed between (x - 0).
#
# Seen on 2026-11-28, Python 3.11, for SM89, on a machine without a GPU.
#
# Fails where that changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
pip=("$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check)
"${pip[@]}" wheel setuptools "onnx==1.23.2"
"${pip[@]}" --no-build-isolation "tensorrt-rtx-cu13==1.7.1.116"
cat >"$folder/build.py" <<'PY'
import sys

import numpy as np
import onnx
import tensorrt_rtx as trt
from onnx import TensorProto as T
from onnx import helper as h
from onnx import numpy_helper as n

kind, between, direction = sys.argv[1:]
gates, ways = {"LSTM": 4, "GRU": 3, "RNN": 1}[kind], 2 if direction == "bidirectional" else 1
nodes = [h.make_node("Cast", ["x"], ["half"], to=T.FLOAT16), h.make_node("Cast", ["half"], ["wide"], to=T.FLOAT)]
if between == "sub":
    nodes.append(h.make_node("Sub", ["wide", "zero"], ["taken"]))
taken = "taken" if between == "sub" else "wide"
nodes.append(h.make_node(kind, [taken, "w", "r"], ["y"], hidden_size=8, direction=direction))
constants = {"w": (ways, 8 * gates, 4), "r": (ways, 8 * gates, 8), "zero": ()}
graph = h.make_graph(
    nodes,
    "g",
    [h.make_tensor_value_info("x", T.FLOAT, [6, 2, 4])],
    [h.make_tensor_value_info("y", T.FLOAT, [6, ways, 2, 8])],
    [n.from_array(np.zeros(shape, np.float32), name) for name, shape in constants.items()],
)
model = h.make_model(graph, opset_imports=[h.make_opsetid("", 17)], ir_version=8)


class Logger(trt.ILogger):
    def __init__(self):
        super().__init__()
        self.errors = ""

    def log(self, severity, text):
        if severity <= trt.ILogger.ERROR:
            self.errors += text


logger = Logger()
builder = trt.Builder(logger)
network = builder.create_network(0)
parser = trt.OnnxParser(network, logger)
assert parser.parse(model.SerializeToString())
config = builder.create_builder_config()
built = builder.build_serialized_network(network, config)
reshape = "Mismatched number of elements in reshape op" in logger.errors
print("built" if built is not None else "not built: reshape" if reshape else f"not built: {logger.errors[:200]}")
PY
check() { # kind, what stands between, direction, what is expected
    local said
    said=$("$folder/venv/bin/python" "$folder/build.py" "$1" "$2" "$3" 2>/dev/null | tail -n 1)
    echo "$1, $2 between, $3: $said"
    test "$said" = "$4"
}
for kind in LSTM GRU RNN; do
    check "$kind" nothing forward "not built: reshape"
    check "$kind" nothing reverse built
    check "$kind" nothing bidirectional built
    check "$kind" sub forward built
done
