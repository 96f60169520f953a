#!/usr/bin/env bash
# ONNX Runtime 1.30.0 on a GPU: an input that a CUDA kernel reads in the host's memory (Slice's starts and ends, a
# Reshape's shape) is not read again where one would think it is, and nothing says so:
# - with `enable_cuda_graph` a run is captured with what such inputs held: written anew in place, as the documentation
#   asks for, each replay gives what the capture would have given, while other inputs are read anew;
# - without CUDA graphs too, where such an input is bound in the GPU's memory: it is copied to the host when it is bound
#   (`bind_ortvalue_input`), and `update_inplace` of the bound value changes no later run.
# Only bound in the host's memory, and without CUDA graphs, new values count.
#
# Seen on 2026-11-28 on an NVIDIA H200, driver for CUDA 13, Python 3.12, of x = 0, 1, …, 7 the places 0 to 3, then 5 to
# 8, negated (the Python below was run there with the packages at hand):
#   starts in cpu memory, enable_cuda_graph=0: [-0, -1, -2], then [-5, -6, -7]
#   starts in cpu memory, enable_cuda_graph=1: [-0, -1, -2], then [-0, -1, -2]
#   starts in cuda memory, enable_cuda_graph=0: [-0, -1, -2], then [-0, -1, -2]
#   starts in cuda memory, enable_cuda_graph=1: [-0, -1, -2], then [-0, -1, -2]
#
# Needs an NVIDIA GPU. Fails where any of these changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check \
    "onnxruntime-gpu[cuda,cudnn]==1.30.0" "onnx==1.22.0" "numpy<3"
"$folder/venv/bin/python" - <<'PY'
import numpy as np
import onnxruntime as ort
from onnx import TensorProto, helper

ort.preload_dlls()
ort.set_default_logger_severity(3)
print("onnxruntime", ort.__version__)
nodes = [helper.make_node("Slice", ["x", "starts", "ends"], ["cut"]), helper.make_node("Neg", ["cut"], ["y"])]
inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, [8])]
inputs += [helper.make_tensor_value_info(name, TensorProto.INT64, [1]) for name in ("starts", "ends")]
graph = helper.make_graph(nodes, "g", inputs, [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n"])])
model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8).SerializeToString()


def found(where: str, captured: str) -> tuple[list[float], list[float], list[float]]:
    """What places 0 to 3 give, then 5 to 8, and then those of another x."""
    session = ort.InferenceSession(model, providers=[("CUDAExecutionProvider", {"enable_cuda_graph": captured})])
    if session.get_providers()[0] != "CUDAExecutionProvider":
        raise SystemExit("this needs an NVIDIA GPU")
    x = ort.OrtValue.ortvalue_from_numpy(np.arange(8, dtype=np.float32), "cuda", 0)
    ends = {"starts": np.array([0], np.int64), "ends": np.array([3], np.int64)}
    places = {name: ort.OrtValue.ortvalue_from_numpy(array, where, 0) for name, array in ends.items()}
    y = ort.OrtValue.ortvalue_from_shape_and_type([3], np.float32, "cuda", 0)
    binding = session.io_binding()
    for name, value in {"x": x, **places}.items():
        binding.bind_ortvalue_input(name, value)
    binding.bind_ortvalue_output("y", y)
    session.run_with_iobinding(binding)
    first = y.numpy().tolist()
    for name, at in (("starts", 5), ("ends", 8)):
        places[name].update_inplace(np.array([at], np.int64))
    session.run_with_iobinding(binding)
    second = y.numpy().tolist()
    x.update_inplace(np.arange(10, 18, dtype=np.float32))
    session.run_with_iobinding(binding)
    return first, second, y.numpy().tolist()


for where in ("cpu", "cuda"):
    for captured in ("0", "1"):
        first, second, third = found(where, captured)
        print(f"starts in {where} memory, enable_cuda_graph={captured}: {first}, then {second}, of x + 10 {third}")
        is_new = (where, captured) == ("cpu", "0")
        assert first == [0, -1, -2], first
        assert second == ([-5, -6, -7] if is_new else first), second
        assert third == ([-15, -16, -17] if is_new else [-10, -11, -12]), third
print("an input that the host reads stays what it was when it was captured, or bound in the GPU's memory")
PY
