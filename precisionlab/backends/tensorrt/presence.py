"""Whether TensorRT and a GPU are there, asked without loading either into this process."""

from __future__ import annotations

import importlib.util
import subprocess
import sys

_PATIENCE = 60.0
_PROBE = """
import tensorrt
try:
    from cuda.bindings import runtime
except ImportError:
    from cuda import cudart as runtime
error, count = runtime.cudaGetDeviceCount()
raise SystemExit(0 if int(error) == 0 and count > 0 else 1)
"""


def is_usable() -> bool:
    """Whether `tensorrt` can be imported and sees a GPU.

    A broken driver can take its process down, so another one looks; on a machine without TensorRT none is started.
    """
    if importlib.util.find_spec("tensorrt") is None or importlib.util.find_spec("cuda") is None:
        return False
    try:
        done = subprocess.run([sys.executable, "-c", _PROBE], capture_output=True, check=False, timeout=_PATIENCE)
    except (OSError, subprocess.TimeoutExpired):
        return False
    return done.returncode == 0
