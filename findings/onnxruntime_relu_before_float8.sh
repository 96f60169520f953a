#!/usr/bin/env bash
# ONNX Runtime 1.32.0, CPU: at extended optimisations and above (the default) a Relu before a QuantizeLinear to
# FLOAT8E4M3FN or FLOAT8E5M2 is taken away, as if the zero point 0 were the least value of the type: what is below 0 then
# stays below 0. Without optimisations, at the basic ones, and with int8, it is right. A Clip or Max in its place, or an
# Abs between, is right at every level. (Optimiser: ReluQuantFusion, level 2.)
#
# Seen on 2026-11-28, Python 3.11. Fails where that changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check "onnx==1.23.2" "onnxruntime==1.32.0" "numpy<3"
"$folder/venv/bin/python" - <<'PY'
import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto, helper, numpy_helper

X = np.float32([-3, -0.5, 0, 0.5, 3])
LEVELS = ("ORT_DISABLE_ALL", "ORT_ENABLE_BASIC", "ORT_ENABLE_EXTENDED", "ORT_ENABLE_ALL")


def given(kind: int, level: str, behind: str = "") -> list[float]:
    """What x gives through Relu, QuantizeLinear to the type and back."""
    constants = [numpy_helper.from_array(np.float32(0.25), "s"), helper.make_tensor("z", kind, [], b"\0", raw=True)]
    nodes = [helper.make_node("Relu", ["x"], ["r"])]
    nodes += [helper.make_node(behind, ["r"], ["k"])] if behind else []
    nodes += [
        helper.make_node("QuantizeLinear", ["k" if behind else "r", "s", "z"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["y"]),
    ]
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [None]) for name in "xy"]
    graph = helper.make_graph(nodes, "g", ends[:1], ends[1:], constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=9)
    onnx.checker.check_model(model, full_check=True)
    options = ort.SessionOptions()
    options.graph_optimization_level = getattr(ort.GraphOptimizationLevel, level)
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return session.run(None, {"x": X})[0].tolist()


print("onnxruntime", ort.__version__)
right = [0.0, 0.0, 0.0, 0.5, 3.0]
for name in ("FLOAT8E4M3FN", "FLOAT8E5M2", "INT8"):
    for level in LEVELS:
        found = given(getattr(TensorProto, name), level)
        print(name, level, found)
        is_wrong = name != "INT8" and level in LEVELS[2:]
        assert found == ([-3.0, -0.5, 0.0, 0.5, 3.0] if is_wrong else right)
assert all(given(TensorProto.FLOAT8E4M3FN, level, "Abs") == right for level in LEVELS)
PY
