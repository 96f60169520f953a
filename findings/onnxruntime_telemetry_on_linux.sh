#!/usr/bin/env bash
# onnxruntime 1.32.0, Linux x86_64 wheel from PyPI: running a model leaves a device identifier and a database of events
# in the user's cache folder. Its telemetry, known from the Windows builds, is built into the Linux wheel and on by default;
# ORT_DISABLE_TELEMETRY=1 in the environment keeps it off, and then nothing is written.
#
# Seen on 2026-11-27, Debian 12, Python 3.11:
#   1.32.0, as installed:               .cache/Microsoft/DeveloperTools/.onnxruntime/deviceid
#                                       .cache/Microsoft/DeveloperTools/.onnxruntime/onnxruntime.db
#   1.32.0, ORT_DISABLE_TELEMETRY=1:    nothing
#
# Fails where that changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check "onnxruntime==1.32.0" "onnx==1.23.2" "numpy<3"
cat > "$folder/run.py" <<'PY'
import numpy as np
import onnx
import onnxruntime

text = '<ir_version: 8, opset_import: ["": 17]> g (float[2] x) => (float[2] y) {y = Relu(x)}'
model = onnx.parser.parse_model(text).SerializeToString()
session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
session.run(None, {"x": np.ones(2, np.float32)})
PY

written() { # the files that a run leaves in an empty home, with these settings of the environment
    mkdir "$folder/$1"
    env -i PATH="$PATH" HOME="$folder/$1" "${@:2}" "$folder/venv/bin/python" "$folder/run.py" 2>/dev/null
    (cd "$folder/$1" && find . -type f | sort)
}

usual=$(written usual)
off=$(written off ORT_DISABLE_TELEMETRY=1)
printf 'as installed:\n%s\nORT_DISABLE_TELEMETRY=1:\n%s\n' "$usual" "${off:-nothing}"
grep -q '\.onnxruntime/deviceid$' <<< "$usual"
grep -q '\.onnxruntime/onnxruntime\.db$' <<< "$usual"
[ -z "$off" ]
