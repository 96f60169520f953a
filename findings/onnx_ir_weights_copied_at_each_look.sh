#!/usr/bin/env bash
# onnx-ir 1.1.0: the weights of a file that is loaded stay in protobuf's memory, and numpy() makes a copy of the bytes at
# each call. A tool that hands weights to several ONNX Runtime sessions holds them once for each session, and spends most
# of a small session's making on copies. An ir.Tensor made of the first copy is shared from then on.
#
# Seen on 2026-11-28, Python 3.11: two calls of numpy() share no memory; of an ir.Tensor they do.
#
# Fails where that changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check "onnx==1.23.2" "onnx-ir==1.1.0" "numpy<3"
cd "$folder"
"$folder/venv/bin/python" - <<'PY'
from importlib.metadata import version

import numpy as np
import onnx
import onnx_ir as ir
from onnx import helper, numpy_helper

weight = numpy_helper.from_array(np.ones(1 << 20, np.float32), "w")
value = helper.make_tensor_value_info
graph = helper.make_graph(
    [helper.make_node("Mul", ["x", "w"], ["y"])],
    "g",
    [value("x", onnx.TensorProto.FLOAT, [1])],
    [value("y", onnx.TensorProto.FLOAT, [1 << 20])],
    [weight],
)
onnx.save(helper.make_model(graph), "model.onnx")
loaded = ir.load("model.onnx").graph.initializers["w"].const_value
owned = ir.Tensor(loaded.numpy(), name="w")
shared = {type(tensor).__name__: np.shares_memory(tensor.numpy(), tensor.numpy()) for tensor in (loaded, owned)}
print("onnx-ir", version("onnx-ir"), "two looks share memory:", shared)
assert shared == {"TensorProtoTensor": False, "Tensor": True}
PY
