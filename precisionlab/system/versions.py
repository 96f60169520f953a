"""What figures depend on besides the input: the versions of packages, and the kind of processor."""

from __future__ import annotations

import importlib.metadata
import platform
from functools import cache

from precisionlab import __version__

RULES = 5
"""Of the emulation: raised where the same plan gives other figures, so that none of before is taken over."""

PROCESSOR = "processor"

# ONNX Runtime comes as one of several packages, which hold the same module.
_NAMES: tuple[tuple[str, ...], ...] = (
    ("onnx",),
    ("onnxruntime", "onnxruntime-gpu"),
    ("onnx-ir",),
    ("numpy",),
    ("numba",),
)


def versions() -> dict[str, str]:
    """Package → version: our own, which a source tree that was never installed has too, and of those installed.

    And `processor` → x86_64 or aarch64: ONNX Runtime's kernels for one add in another order than those for the other.
    """
    others = {names[0]: version for names in _NAMES if (version := _version(names)) is not None}
    return {"precisionlab": __version__, **others, PROCESSOR: platform.machine()}


@cache
def _version(names: tuple[str, ...]) -> str | None:
    for name in names:
        try:
            return importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return None
