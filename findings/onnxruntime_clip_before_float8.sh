#!/usr/bin/env bash
# ONNX Runtime 1.32.0, CPU, QuantizeLinear to FLOAT8E4M3FN or FLOAT8E5M2, at extended optimisations and above (default):
# - A Relu before it is taken away, as if the zero point 0 were the least value of the type: what is below 0 then stays
#   below 0. (Optimiser: ReluQuantRewrite.)
# - A Clip before it, behind another node, ends the loading: "GetQConstantLowerUpper … Unexpected data type for
#   QuantizeLinear input y_zero_point of 17". (Optimiser: ClipQuantRewrite.)
# With int8, at the basic optimisations, with these two optimisers disabled, or with a Min with float32's largest number
# between, both are right.
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
RIGHT = {"Relu": [0.0, 0.0, 0.0, 0.5, 3.0], "Clip": [0.0, 0.0, 0.0, 0.5, 2.0]}
CONSTANTS = {"s": 0.25, "low": 0.0, "high": 2.0, "largest": np.finfo(np.float32).max}


def given(op: str, kind: int, level: str, kept: bool = False, disabled: list[str] | None = None) -> list[float] | str:
    """What -(-x) gives through the operator, QuantizeLinear to the type and back; or why it does not load."""
    constants = [numpy_helper.from_array(np.float32(value), name) for name, value in CONSTANTS.items()]
    constants.append(helper.make_tensor("z", kind, [], b"\0", raw=True))
    nodes = [helper.make_node("Neg", ["x"], ["m"]), helper.make_node("Neg", ["m"], ["n"])]
    nodes.append(helper.make_node(op, ["n", "low", "high"] if op == "Clip" else ["n"], ["r"]))
    nodes += [helper.make_node("Min", ["r", "largest"], ["k"])] if kept else []
    nodes += [
        helper.make_node("QuantizeLinear", ["k" if kept else "r", "s", "z"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["y"]),
    ]
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [None]) for name in "xy"]
    graph = helper.make_graph(nodes, "g", ends[:1], ends[1:], constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=9)
    onnx.checker.check_model(model, full_check=True)
    options = ort.SessionOptions()
    options.graph_optimization_level = getattr(ort.GraphOptimizationLevel, level)
    options.log_severity_level = 4
    providers = ["CPUExecutionProvider"]
    content = model.SerializeToString()
    try:
        session = ort.InferenceSession(content, options, providers=providers, disabled_optimizers=disabled)
    except Exception as error:
        return str(error)
    return session.run(None, {"x": X})[0].tolist()


print("onnxruntime", ort.__version__)
for op, right in RIGHT.items():
    for name in ("FLOAT8E4M3FN", "FLOAT8E5M2", "INT8"):
        for level in LEVELS:
            kind = getattr(TensorProto, name)
            found = given(op, kind, level)
            print(op, name, level, found if isinstance(found, list) else f"does not load: {found[-90:]}")
            if name == "INT8" or level in LEVELS[:2]:
                assert found == right
            elif op == "Relu":
                assert found == X.tolist()
            else:
                assert "Unexpected data type for QuantizeLinear" in found
            assert given(op, kind, level, kept=True) == right
            assert given(op, kind, level, disabled=["ReluQuantRewrite", "ClipQuantRewrite"]) == right
PY
