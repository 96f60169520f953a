#!/usr/bin/env bash
# onnx-ir 1.1.0: a value's type object may be shared, and setting `dtype` of one value then changes the others too: `dtype`
# writes into the TensorType, and `b.type = a.type` shares it.
#
# Seen on 2026-11-27, Python 3.11: after `b.type = a.type; a.dtype = FLOAT16`, b.dtype is FLOAT16.
#
# Fails where that changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check "onnx-ir==1.1.0"
"$folder/venv/bin/python" - <<'PY'
import onnx_ir as ir

a = ir.Value(name="a", type=ir.TensorType(ir.DataType.FLOAT))
b = ir.Value(name="b")
b.type = a.type
a.dtype = ir.DataType.FLOAT16
print(f"onnx-ir {ir.__version__}: a is {a.dtype.name}, and b, which nobody touched, is {b.dtype.name}")
assert b.dtype == ir.DataType.FLOAT16
PY
