#!/usr/bin/env bash
# onnxruntime 1.32.0 (CPU): an RNN whose activation is ThresholdedRelu, with no activation_alpha, runs with a threshold of 0.
# ONNX's operators RNN, GRU and LSTM say of activation_alpha "Default values are the same as of corresponding ONNX
# operators", and ThresholdedRelu's own default is alpha = 1.0. LeakyRelu's default (0.01) is followed.
#
# Seen on 2026-11-27, Python 3.11: for x = 0.5 the state is 0.5, where with activation_alpha = [1.0] it is 0.
#
# Fails where that changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check "onnxruntime==1.32.0" "onnx==1.23.2" "numpy<3"
ORT_DISABLE_TELEMETRY=1 "$folder/venv/bin/python" - <<'PY'
import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper


def state(activation: str, **attributes: list[float]) -> float:
    """What one step of a recurrent layer with weight 1 and no state gives for 0.5."""
    node = helper.make_node("RNN", ["x", "w", "r"], ["", "h"], hidden_size=1, activations=[activation], **attributes)
    graph = helper.make_graph(
        [node],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 1, 1])],
        [helper.make_tensor_value_info("h", TensorProto.FLOAT, [1, 1, 1])],
        [numpy_helper.from_array(np.full((1, 1, 1), v, np.float32), n) for n, v in (("w", 1), ("r", 0))],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model, full_check=True)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return float(session.run(None, {"x": np.full((1, 1, 1), 0.5, np.float32)})[0].item())


default = onnx.defs.get_schema("ThresholdedRelu", 17).attributes["alpha"].default_value.f
found, stated = state("ThresholdedRelu"), state("ThresholdedRelu", activation_alpha=[default])
print(f"onnxruntime {onnxruntime.__version__}: left out {found}, with ThresholdedRelu's own default, {default}: {stated}")
assert (default, found, stated) == (1.0, 0.5, 0.0)
assert state("LeakyRelu") == state("LeakyRelu", activation_alpha=[onnx.defs.get_schema("LeakyRelu", 17).attributes["alpha"].default_value.f])
PY
