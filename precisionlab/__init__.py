"""precisionlab: finds the layers that break in FP16 or INT8, and pins as few of them as possible."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from precisionlab.errors import PrecisionLabError
    from precisionlab.jobs.calibrate import calibrate
    from precisionlab.jobs.compare import compare
    from precisionlab.jobs.diff import diff
    from precisionlab.jobs.exporting import export
    from precisionlab.jobs.extract import extract
    from precisionlab.jobs.fidelity import fidelity
    from precisionlab.jobs.report import report
    from precisionlab.jobs.result import CalibrationResult, CompareResult, SweepResult
    from precisionlab.jobs.sweep import sweep
    from precisionlab.jobs.verify import verify
    from precisionlab.plan.plan import Pin, PrecisionPlan
    from precisionlab.precision import Precision

__version__ = "0.1.0"
"""The one place that says it: the package's metadata, `--version`, `doctor` and run.json take it from here."""

__all__ = [
    "CalibrationResult",
    "CompareResult",
    "Pin",
    "Precision",
    "PrecisionLabError",
    "PrecisionPlan",
    "SweepResult",
    "calibrate",
    "compare",
    "diff",
    "export",
    "extract",
    "fidelity",
    "report",
    "sweep",
    "verify",
]

_HOMES = {
    "CalibrationResult": "precisionlab.jobs.result",
    "CompareResult": "precisionlab.jobs.result",
    "Pin": "precisionlab.plan.plan",
    "Precision": "precisionlab.precision",
    "PrecisionLabError": "precisionlab.errors",
    "PrecisionPlan": "precisionlab.plan.plan",
    "SweepResult": "precisionlab.jobs.result",
    "calibrate": "precisionlab.jobs.calibrate",
    "diff": "precisionlab.jobs.diff",
    "extract": "precisionlab.jobs.extract",
    "fidelity": "precisionlab.jobs.fidelity",
    "sweep": "precisionlab.jobs.sweep",
    "verify": "precisionlab.jobs.verify",
}

_ROOMS = ("compare", "export", "report")
"""Jobs that are called like a room of the package, which then is what can be called: see `system/callables.py`."""


# Before ONNX Runtime is loaded: from 1.32 on its Linux wheel keeps a device identifier, and events to be sent. Whoever
# wants that sets the variable to 0.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")


def __getattr__(name: str) -> Any:
    # Imported when first used: onnx, onnxruntime and pandas take a second together.
    import importlib

    if name in _ROOMS:
        return importlib.import_module(f"precisionlab.{name}")
    if name not in _HOMES:
        raise AttributeError(f"module 'precisionlab' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted([*__all__, *(name for name in globals() if name.startswith("__"))])
