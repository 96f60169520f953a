#!/bin/sh
# The fidelity of the emulation on a bare GPU machine without a network:
#   benchmarks/fidelity_device.sh PACKED OUT [MODEL…]
# PACKED is what `python -m benchmarks.fidelity pack` has filled (archives that came in several calls may be put there
# together), OUT takes the results (4 files). onnxruntime-gpu must be importable: say where by PYTHONPATH. SAMPLES, JOBS
# and CASES may be set. Runs from the root of the repository.
set -e
packed=$1 out=$2
shift 2
mkdir -p "$out" /tmp/fidelity_models /tmp/fidelity_site
log=$out/device.log
python=${PYTHON:-python3}
"$python" -m pip install -q --no-index --no-deps --no-compile --upgrade --target /tmp/fidelity_site "$packed"/wheels/*.whl
for first in "$packed"/*.tar.xz.00; do
    stem=${first%.00}
    cat "$stem".[0-9][0-9] | tar -xJ -C /tmp/fidelity_models ||
        echo "$(basename "$stem"): parts are missing, it is left out" | tee -a "$log"
done
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}:/tmp/fidelity_site"
# CUDA's and cuDNN's libraries as Python packages have them.
libraries=$("$python" - <<'PY'
import site, sys
from pathlib import Path
places = [Path(p) for p in (*sys.path, *site.getsitepackages()) if p]
print(":".join(dict.fromkeys(str(lib) for place in places for lib in sorted(place.glob("nvidia/*/lib")))))
PY
)
export LD_LIBRARY_PATH="$libraries${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}"
export PYTHONUNBUFFERED=1
{
    nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader || true
    "$python" -c 'import onnxruntime as o; print("onnxruntime", o.__version__, o.get_available_providers())'
    lscpu | grep -E "Model name|avx512_vnni|amx_int8|avx_vnni" | cut -c1-120 || true
} 2>&1 | tee -a "$log"
models="$*"
if [ -z "$models" ]; then
    models=
    for name in magika minilm_l3 orient ppocr4_det ppocr4_rec vit_focus layout; do
        [ -f "/tmp/fidelity_models/$name/$name.onnx" ] && models="$models $name"
    done
fi
# shellcheck disable=SC2086 # names of models have no spaces
"$python" -m benchmarks.fidelity $models --packed /tmp/fidelity_models --samples "${SAMPLES:-8}" \
    --jobs "${JOBS:-3}" --threads "${THREADS:-5}" --cases "${CASES:-fp16,fp16 patterns,bf16}" \
    --out "$out" 2>&1 | tee -a "$log"
