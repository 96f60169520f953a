"""precisionlab: finds the layers that break in FP16 or INT8, and pins as few of them as possible."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from precisionlab.errors import PrecisionLabError
    from precisionlab.jobs.calibrate import calibrate
    from precisionlab.jobs.result import SweepResult
    from precisionlab.jobs.sweep import sweep
    from precisionlab.jobs.verify import verify
    from precisionlab.plan.plan import Pin, PrecisionPlan
    from precisionlab.precision import Precision

__version__ = "0.1.0"
"""The one place that says it: the package's metadata, `--version`, `doctor` and run.json take it from here."""

__all__ = ["Pin", "Precision", "PrecisionLabError", "PrecisionPlan", "SweepResult", "calibrate", "sweep", "verify"]

_HOMES = {
    "Pin": "precisionlab.plan.plan",
    "Precision": "precisionlab.precision",
    "PrecisionLabError": "precisionlab.errors",
    "PrecisionPlan": "precisionlab.plan.plan",
    "SweepResult": "precisionlab.jobs.result",
    "calibrate": "precisionlab.jobs.calibrate",
    "sweep": "precisionlab.jobs.sweep",
    "verify": "precisionlab.jobs.verify",
}


# Before ONNX Runtime is loaded: from 1.32 on its Linux wheel keeps a device identifier, and events to be sent. Whoever
# wants that sets the variable to 0.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")


def __getattr__(name: str) -> Any:
    # Imported when first used: onnx, onnxruntime and pandas take a second together.
    if name not in _HOMES:
        raise AttributeError(f"module 'precisionlab' has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted([*__all__, *(name for name in globals() if name.startswith("__"))])
