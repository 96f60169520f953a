#!/usr/bin/env bash
# ONNX Runtime 1.32.0, CPU: Cast to FLOAT8E4M3FN with saturate=0 gives 448 for 480 to 495 (and -448 for -480 to -495), and
# NaN for 465 to 479, from 496 on, and so forth. ONNX's specification ("FP8 E4M3FN not saturate") and
# its reference evaluator give NaN for all of them. With saturate=1, and by QuantizeLinear, both give 448.
#
# Seen on 2026-11-28, Python 3.11. Fails where that changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check "onnx==1.23.2" "onnxruntime==1.32.0" "numpy<3"
"$folder/venv/bin/python" - <<'PY'
import numpy as np
import onnxruntime as ort
from onnx import TensorProto, helper
from onnx.reference import ReferenceEvaluator

X = np.float32([448, 464, 465, 479, 480, 481, 495, 496, 1000, -480])


def given(saturate: int) -> tuple[list[float], list[float]]:
    """What ONNX Runtime gives for X, and the reference."""
    nodes = [
        helper.make_node("Cast", ["x"], ["q"], to=TensorProto.FLOAT8E4M3FN, saturate=saturate),
        helper.make_node("Cast", ["q"], ["y"], to=TensorProto.FLOAT),
    ]
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [None]) for name in "xy"]
    graph = helper.make_graph(nodes, "g", ends[:1], ends[1:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=9)
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, {"x": X})[0].tolist(), ReferenceEvaluator(model).run(None, {"x": X})[0].tolist()


print("onnxruntime", ort.__version__)
for saturate in (0, 1):
    found, reference = given(saturate)
    print(f"saturate={saturate}: x {X.tolist()}\n  onnxruntime {found}\n  reference   {reference}")
    if saturate:
        assert found == reference
    else:
        differs = [x for x, a, b in zip(X.tolist(), found, reference) if not (a == b or (a != a and b != b))]
        assert differs == [480.0, 481.0, 495.0, -480.0], differs
PY
