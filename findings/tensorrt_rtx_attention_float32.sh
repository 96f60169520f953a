#!/usr/bin/env bash
# TensorRT-RTX 1.7.1.116 (builder alone, no GPU): ONNX's Attention (opset 23) of rank 4 is compiled in float16 and
# bfloat16, and refused in float32, for every target: "Attention operation was not supported by a dedicated kernel.
# Alternatively, padded attention operation may be marked as decomposable". Its parser marks so what has rank 3, fixed
# shapes, and neither mask nor causal attention nor fewer heads of keys: that is compiled in float32 too. Heads of 512
# are refused in half as well. A mask in float32 beside operands in half, which ONNX allows, parses, and the build then
# ends in "Input 0's element type (half) differs from input 1's".
#
# Seen on 2026-11-28, Python 3.11. Fails where that changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check "setuptools<81" wheel "onnx==1.23.2" "numpy<3"
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check --no-build-isolation "tensorrt-rtx-cu13==1.7.1.116"
"$folder/venv/bin/python" - <<'PY'
import onnx
import tensorrt_rtx as trt
from onnx import TensorProto, helper

ERROR = trt.ILogger.Severity.ERROR


class Errors(trt.ILogger):
    def __init__(self) -> None:
        super().__init__()
        self.texts: list[str] = []

    def log(self, severity: object, text: str) -> None:
        if severity == ERROR:
            self.texts.append(text)


logger = Errors()
builder = trt.Builder(logger)
FLOAT, HALF, BFLOAT = TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16


def said(shape: list[int], dtype: int, target: str = "SM89", mask: int = 0, **attributes: int) -> str:
    """What the builder says of one Attention; empty where there is an engine."""
    inputs = [helper.make_tensor_value_info(name, dtype, shape) for name in "qkv"]
    if mask:
        inputs.append(helper.make_tensor_value_info("m", mask, [8, 8]))
    node = helper.make_node("Attention", [value.name for value in inputs], ["y"], "att", **attributes)
    graph = helper.make_graph([node], "g", inputs, [helper.make_tensor_value_info("y", dtype, shape)])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)], ir_version=10)
    onnx.checker.check_model(model, full_check=True)
    logger.texts.clear()
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, logger)
    assert parser.parse(model.SerializeToString()), parser.get_error(0).desc()
    config = builder.create_builder_config()
    config.num_compute_capabilities = 1
    config.set_compute_capability(getattr(trt.ComputeCapability, target), 0)
    engine = builder.build_serialized_network(network, config)
    return "" if engine is not None else " ".join(logger.texts)


four, three, heads = [1, 4, 8, 16], [1, 8, 64], {"q_num_heads": 4, "kv_num_heads": 4}
print("TensorRT-RTX", trt.__version__)
for target in ("SM80", "SM89", "SM120"):
    found = {name: said(four, dtype, target) for name, dtype in (("float16", HALF), ("bfloat16", BFLOAT), ("float32", FLOAT))}
    print(target, {name: text[-160:] or "an engine" for name, text in found.items()})
    assert not found["float16"] and not found["bfloat16"]
    assert "not supported by a dedicated kernel" in found["float32"]
assert not said(three, FLOAT, **heads), "rank 3"
assert "dedicated kernel" in said(three, FLOAT, mask=FLOAT, **heads), "rank 3 with a mask"
assert "dedicated kernel" in said(three, FLOAT, is_causal=1, **heads), "rank 3, causal"
assert "dedicated kernel" in said([1, 4, 8, 512], HALF), "heads of 512"
mixed = said(four, HALF, mask=FLOAT)
print("a mask in float32 beside half:", mixed[-120:])
assert "element type" in mixed and "differs" in mixed
PY
