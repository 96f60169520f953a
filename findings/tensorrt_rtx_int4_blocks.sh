#!/usr/bin/env bash
# TensorRT-RTX 1.7.1.116 (builder alone, no GPU), INT4 weights by DequantizeLinear-21 with block_size, for SM89 and SM120:
# - The attribute is not looked at. The parser takes the length of the axis over the number of scales for the size. ONNX
#   allows a short last block (200 rows in blocks of 64: 4 scales): it is read as 4 blocks of 50, without a word, and most
#   rows are dequantised by another block's scale. The engine is the same as that of blocks of 50, byte for byte.
#   Where the number of scales does not divide the length it is refused.
# - Two or more blocks on the axis that is summed over (16 to 128 tried, on axis 0, and on axis 1 behind transB): one
#   kernel with the weight in Int4. A single block, or an odd number of columns: a kernel of its own writes the whole
#   weight in half, and a half GEMM reads that.
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

import ml_dtypes
import numpy as np
import onnx
import tensorrt_rtx as trt
from onnx import TensorProto, helper, numpy_helper

HALF = TensorProto.FLOAT16


class Messages(trt.ILogger):
    def __init__(self) -> None:
        super().__init__()
        self.texts: list[str] = []

    def log(self, severity: object, text: str) -> None:
        self.texts.append(text)


logger = Messages()
builder = trt.Builder(logger)


def model(length: int, columns: int, block: int, turned: bool = False) -> onnx.ModelProto:
    rng, axis = np.random.default_rng(0), int(turned)
    shape = [columns, length] if turned else [length, columns]
    scales = list(shape)
    scales[axis] = -(-length // block)
    constants = [
        numpy_helper.from_array(rng.integers(-8, 8, shape).astype(ml_dtypes.int4), "w"),
        numpy_helper.from_array((rng.random(scales) / 100 + 0.001).astype(np.float16), "s"),
    ]
    nodes = [
        helper.make_node("DequantizeLinear", ["w", "s"], ["d"], "dequantise", axis=axis, block_size=block),
        helper.make_node("Gemm", ["x", "d"], ["y"], "product", transB=axis),
    ]
    x, y = (helper.make_tensor_value_info(n, HALF, [8, size]) for n, size in (("x", length), ("y", columns)))
    made = helper.make_model(
        helper.make_graph(nodes, "g", [x], [y], constants), opset_imports=[helper.make_opsetid("", 21)], ir_version=10
    )
    onnx.checker.check_model(made, full_check=True)
    return made


def built(given: onnx.ModelProto, target: str) -> tuple[bytes, list[str]]:
    """The engine, and what the builder's log says of its kernels; nothing of both where the parser refuses."""
    logger.texts.clear()
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, logger)
    if not parser.parse(given.SerializeToString()):
        print("  refused:", parser.get_error(0).desc()[-150:].strip())
        return b"", []
    config = builder.create_builder_config()
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    config.num_compute_capabilities = 1
    config.set_compute_capability(getattr(trt.ComputeCapability, target), 0)
    engine = bytes(builder.build_serialized_network(network, config))
    (layers,) = (text for text in logger.texts if text.startswith("Layers:"))
    return engine, [line for line in layers.splitlines() if line.startswith("Name: ") and "LayerType" in line]


print("TensorRT-RTX", trt.__version__)
for target in ("SM89", "SM120"):
    _, short, whole, again = (built(model(200, 64, block), target)[0] for block in (50, 64, 50, 50))
    # A builder numbers its builds in one digit of the engine, and its first for a target may differ in more.
    other, same = (sum(a != b for a, b in zip(whole, engine, strict=True)) for engine in (short, again))
    print(target, "200 rows: bytes that differ from the engine of blocks of 50: of 64", other, "of another build", same)
    assert other <= same <= 1
    assert built(model(200, 64, 16), target) == (b"", [])
    for length, columns, block, turned in (
        (256, 64, 16, False), (256, 64, 128, False), (256, 64, 64, True), (256, 64, 256, False), (256, 33, 64, False),
    ):
        lines = built(model(length, columns, block, turned), target)[1]
        product = next(line for line in lines if "[ONNX Layer: product]" in line)
        fused = "Datatype: Int4" in product
        print(f"{target} {length} rows, {columns} columns, blocks of {block}{', turned' if turned else ''}:", len(lines),
              "kernels, the weight in", re.findall(r"Datatype: (Int4)", product) or "half", "where it is multiplied")
        assert fused is (length > block and columns % 2 == 0)
PY
