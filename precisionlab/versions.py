"""The versions of the packages that figures depend on."""

from __future__ import annotations

import importlib.metadata


def versions() -> dict[str, str]:
    """Package → version."""
    names = ("precisionlab", "onnx", "onnxruntime", "onnx-ir", "numpy", "numba")
    return {name: importlib.metadata.version(name) for name in names}
