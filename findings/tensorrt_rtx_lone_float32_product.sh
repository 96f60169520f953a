#!/usr/bin/env bash
# TensorRT-RTX 1.7.1.116 (builder alone, no GPU): a float32 product that stands alone between a Cast from and a Cast to
# float16 in a strongly typed network is compiled in half. Its float32 weights are rounded to half: 1e6 is stored as Inf.
# There is no warning. MatMul, Gemm without bias, Einsum, Conv (with a bias too) and ConvTranspose; Reshape, Transpose
# and the like between; behind a Conv without bias an Add as well. The documentation of strongly typed networks says
# that the types of the network are kept.
#
# Seen on 2026-11-28, Python 3.11, for compute capability 8.0, 8.9 and 12.0: the engine's bytes hold the weights as half
# alone; with a zero subtracted from the product's input, in float32, they hold them as float32.
#
# Fails where that changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check "setuptools<81" wheel "onnx==1.23.2" "numpy<3"
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check --no-build-isolation "tensorrt-rtx-cu13==1.7.1.116"
"$folder/venv/bin/python" - <<'PY'
import numpy as np
import onnx.parser
import tensorrt_rtx as trt
from onnx import numpy_helper

logger = trt.Logger(trt.Logger.ERROR)
builder = trt.Builder(logger)
WEIGHT, LARGE = np.float32(1.2345678), np.float32(1e6)


def held(body: str, shape: str, weight: np.ndarray, target: str) -> tuple[bool, bool]:
    """Whether the engine's bytes hold eight weights in a row as float32, and as half."""
    text = f"({shape} x) => ({shape} y) {{ a = Tanh(x) c = Cast <to = 1> (a) {body} d = Cast <to = 10> (m) y = Tanh(d) }}"
    model = onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["" : 17]> g {text}')
    model.graph.initializer.append(numpy_helper.from_array(weight, "w"))
    model.graph.initializer.append(numpy_helper.from_array(np.float32(0), "zero"))
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, logger)
    assert parser.parse(model.SerializeToString())
    config = builder.create_builder_config()
    config.num_compute_capabilities = 1
    config.set_compute_capability(getattr(trt.ComputeCapability, target), 0)
    engine = bytes(builder.build_serialized_network(network, config))
    with np.errstate(over="ignore"):
        rows = weight.ravel()[:8], weight.ravel()[:8].astype(np.float16)
    return rows[0].tobytes() in engine, rows[1].tobytes() in engine


print("TensorRT-RTX", trt.__version__)
conv = "Conv <kernel_shape = [3,3], pads = [1,1,1,1]>"
for target in ("SM80", "SM89", "SM120"):
    for value in (WEIGHT, LARGE):
        for name, shape, weight, product in (
            ("MatMul", "float16[4,64]", np.full((64, 64), value), "MatMul({}, w)"),
            ("Conv", "float16[1,16,8,8]", np.full((16, 16, 3, 3), value), conv + "({}, w)"),
        ):
            alone = held(f"m = {product.format('c')}", shape, weight, target)
            behind = held(f"z = Sub(c, zero) m = {product.format('z')}", shape, weight, target)
            stored = weight.ravel()[0].astype(np.float16) if value == WEIGHT else "inf"
            print(f"{target} {name} of {value:g}: alone half ({stored}) {alone[1]}, float32 {alone[0]}; less zero float32 {behind[0]}")
            assert (alone, behind) == ((False, True), (True, False))
PY
