#!/usr/bin/env bash
# TensorRT-RTX 1.7.1.116: the bindings have BuilderFlag.VERSION_COMPATIBLE, and the builder takes it, but the wheels lack the
# library that it needs: each such build ends with "Unable to load library: libnvinfer_lean.so.1". Without it the same
# model is built.
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

import tensorrt_rtx as trt
from onnx import TensorProto as T
from onnx import helper as h

graph = h.make_graph(
    [h.make_node("Relu", ["x"], ["y"])],
    "g",
    [h.make_tensor_value_info("x", T.FLOAT, [1, 4])],
    [h.make_tensor_value_info("y", T.FLOAT, [1, 4])],
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
config.num_compute_capabilities = 1
config.set_compute_capability(trt.ComputeCapability.SM89, 0)
if sys.argv[1] == "flag":
    config.set_flag(trt.BuilderFlag.VERSION_COMPATIBLE)
built = builder.build_serialized_network(network, config)
lean = "Unable to load library: libnvinfer_lean.so.1" in logger.errors
print("built" if built is not None else "not built: lean" if lean else f"not built: {logger.errors[:200]}")
PY
check() { # with the flag or without, what is expected
    local said
    said=$("$folder/venv/bin/python" "$folder/build.py" "$1" 2>/dev/null | tail -n 1)
    echo "$1: $said"
    test "$said" = "$2"
}
check plain built
check flag "not built: lean"
