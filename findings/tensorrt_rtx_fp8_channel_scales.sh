#!/usr/bin/env bash
# TensorRT-RTX 1.7.1.116 (builder alone, no GPU), FP8 (E4M3) by Q/DQ nodes, compiled for SM89 and SM120:
# - A MatMul in a float16 model whose weight has a scale for each channel becomes a GEMM that gives its FP8 products'
#   sums unscaled, in half, and a kernel behind it that multiplies by a half vector of both scales. One product of two
#   FP8 numbers may be 448 * 448 = 200704, three times what half holds, so that nearly everything is Inf. With one scale
#   for the weight, the product of both scales is the GEMM's own factor, in float32. (INT8 is compiled alike.)
# - A ConvTranspose is never computed in FP8: both operands are rounded to it, dequantised and multiplied in half. Conv
#   and MatMul take FP8 on both sides.
#
# Seen on 2026-11-28, Python 3.11. Fails where that changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check "setuptools<81" wheel "onnx==1.23.2" "numpy<3" "ml_dtypes<1"
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check --no-build-isolation "tensorrt-rtx-cu13==1.7.1.116"
"$folder/venv/bin/python" - <<'PY'
import re
import struct

import ml_dtypes
import numpy as np
import onnx
import tensorrt_rtx as trt
from onnx import TensorProto, helper, numpy_helper

FP8, HALF = TensorProto.FLOAT8E4M3FN, TensorProto.FLOAT16


class Messages(trt.ILogger):
    def __init__(self) -> None:
        super().__init__()
        self.texts: list[str] = []

    def log(self, severity: object, text: str) -> None:
        self.texts.append(text)


logger = Messages()
builder = trt.Builder(logger)
X = np.float16(0.25)
CHANNELS = (2.0 ** -(np.arange(64) % 5 + 1.0)).astype(np.float16)


def fp8(name: str, array: np.ndarray) -> onnx.TensorProto:
    low = array.astype(ml_dtypes.float8_e4m3fn)
    return helper.make_tensor(name, FP8, list(low.shape), low.tobytes(), raw=True)


def built(op: str, taken: list[int], weight: list[int], given: list[int], axis: int | None, target: str) -> tuple[bytes, str]:
    """The engine's bytes, and what the builder's log says of the kernel that runs the product."""
    scale = CHANNELS if axis is not None else np.float16(0.5)
    rng = np.random.default_rng(0)
    constants = [
        numpy_helper.from_array(np.asarray(X), "sx"), fp8("zx", np.zeros(())),
        numpy_helper.from_array(np.asarray(scale), "sw"), fp8("zw", np.zeros(np.shape(scale))),
        fp8("w", rng.standard_normal(weight) * 100),
    ]
    along = {} if axis is None else {"axis": axis}
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "sx", "zx"], ["q"], "q"),
        helper.make_node("DequantizeLinear", ["q", "sx", "zx"], ["a"], "a"),
        helper.make_node("DequantizeLinear", ["w", "sw", "zw"], ["b"], "b", **along),
        helper.make_node(op, ["a", "b"], ["y"], "product"),
    ]
    ends = [helper.make_tensor_value_info(name, HALF, shape) for name, shape in (("x", taken), ("y", given))]
    graph = helper.make_graph(nodes, "g", ends[:1], ends[1:], constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=9)
    onnx.checker.check_model(model, full_check=True)
    logger.texts.clear()
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, logger)
    assert parser.parse(model.SerializeToString()), parser.get_error(0).desc()
    config = builder.create_builder_config()
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    config.num_compute_capabilities = 1
    config.set_compute_capability(getattr(trt.ComputeCapability, target), 0)
    engine = builder.build_serialized_network(network, config)
    assert engine is not None, logger.texts[-3:]
    (layers,) = (text for text in logger.texts if text.startswith("Layers:"))
    return bytes(engine), next(line for line in layers.splitlines() if "Name: product" in line)


def factors(engine: bytes) -> list[float]:
    found = re.findall(rb"fully_connected=\{[^\n]*? alpha=([0-9A-F]{8})", engine)
    return [struct.unpack(">f", bytes.fromhex(digits.decode()))[0] for digits in found]


print("TensorRT-RTX", trt.__version__)
for target in ("SM89", "SM120"):
    many, kernel = built("MatMul", [8, 128], [128, 64], [8, 64], 1, target)
    one, _ = built("MatMul", [8, 128], [128, 64], [8, 64], None, target)
    print(target, "MatMul, a scale for each channel: factor", factors(many), "one scale: factor", factors(one))
    assert factors(many) == [1.0]
    assert factors(one) == [0.125]
    assert "Datatype: FP8" in kernel
    assert (CHANNELS.astype(np.float32) * 0.25).astype(np.float16)[:10].tobytes() in many, "both scales in one half vector"
    _, conv = built("Conv", [1, 32, 8, 8], [64, 32, 3, 3], [1, 64, 6, 6], 0, target)
    _, turned = built("ConvTranspose", [1, 32, 8, 8], [32, 64, 3, 3], [1, 64, 10, 10], 1, target)
    for name, line in (("Conv", conv), ("ConvTranspose", turned)):
        print(target, name, "takes and gives", re.findall(r"Datatype: (\w+)", line))
    assert "FP8" in conv
    assert "FP8" not in turned
PY
