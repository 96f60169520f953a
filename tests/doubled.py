"""Puts the double of TensorRT in the place of the real one."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest

TESTS = Path(__file__).parent
DOUBLE = TESTS / "double"


def arrange(patch: pytest.MonkeyPatch, folder: Path, **settings: Any) -> None:
    """Put the double in TensorRT's place, in this process and its children; `settings` are those of the double."""
    file = folder / "double.json"
    file.write_text(json.dumps(settings))
    patch.setenv("TENSORRT_DOUBLE", str(file))
    patch.setattr(sys, "path", [str(DOUBLE), str(TESTS), *sys.path])
    patch.setenv("PYTHONPATH", os.pathsep.join([str(DOUBLE), str(TESTS)]))
