#!/usr/bin/env bash
# ONNX Runtime 1.32.0: weights handed over by `SessionOptions.add_external_initializers` are copied while a session is
# made, once for each session, though the values stay where they are and the caller must keep them: making a session of
# 64 MB of weights that it need not pack (`session.disable_prepacking`) touches 64 MB of new memory. Who makes many
# sessions of the same weights pays for a copy each time. Adding the same values by `add_initializer` too changes nothing.
#
# Seen on 2026-11-28, Python 3.11: 67 MB of new pages for 67 MB of weights, both ways.
#
# Fails where that changes: less new memory than half of the weights.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check \
    "onnxruntime==1.32.0" "onnx==1.22.0" "numpy<3"
MALLOC_MMAP_THRESHOLD_=4194304 "$folder/venv/bin/python" - <<'PY'
import resource

import numpy as np
import onnxruntime as ort
from onnx import TensorProto, helper

SIZE, COUNT = 2048, 4
weights = {f"w{i}": np.random.default_rng(i).random((SIZE, SIZE), dtype=np.float32) for i in range(COUNT)}
values = {name: ort.OrtValue.ortvalue_from_numpy(array) for name, array in weights.items()}


def elsewhere(name: str) -> TensorProto:
    """A tensor whose content is not in the file."""
    tensor = TensorProto(name=name, data_type=TensorProto.FLOAT, dims=[SIZE, SIZE], data_location=TensorProto.EXTERNAL)
    for key, value in (("location", "weights"), ("offset", "0"), ("length", str(weights[name].nbytes))):
        tensor.external_data.add(key=key, value=value)
    return tensor


nodes = [helper.make_node("MatMul", [f"t{i}", f"w{i}"], [f"t{i + 1}"]) for i in range(COUNT)]
ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, SIZE]) for name in ("t0", f"t{COUNT}")]
graph = helper.make_graph(nodes, "g", ends[:1], ends[1:], [elsewhere(name) for name in weights])
model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8).SerializeToString()
total = sum(array.nbytes for array in weights.values())


def new_memory(shared: bool) -> int:
    """Bytes of pages that are touched for the first time while a session is made."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.add_session_config_entry("session.disable_prepacking", "1")
    options.add_external_initializers(list(values), list(values.values()))
    if shared:
        for name, value in values.items():
            options.add_initializer(name, value)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    session = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    after = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    session.run(None, {"t0": np.ones((1, SIZE), np.float32)})
    return (after - before) * resource.getpagesize()


for shared in (False, True):
    new_memory(shared)
    found = new_memory(shared)
    print(f"{'both ways' if shared else 'external'}: {found / 1e6:.0f} MB of new memory for {total / 1e6:.0f} MB of weights")
    assert found > total / 2, "the weights are not copied any more"
PY
