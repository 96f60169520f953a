"""TensorRT-RTX in the tests: its parser and builder run without a GPU, in a process of their own."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

DRIVERS = Path(__file__).parent / "rtxdrive"


def has_rtx() -> bool:
    return importlib.util.find_spec("tensorrt_rtx") is not None


needs_rtx = pytest.mark.skipif(
    not has_rtx(),
    reason="TensorRT-RTX is not installed (Linux x86_64 alone: `make test` installs it)",
)


def drive(script: str, *arguments: str | Path, seconds: float = 120) -> Any:
    """Run `rtxdrive/<script>.py` in a process of its own; it prints its answer as its last line, in JSON."""
    command = [sys.executable, str(DRIVERS / f"{script}.py"), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=seconds)
    assert done.returncode == 0, f"exit {done.returncode}\n{done.stdout}\n{done.stderr}"
    return json.loads(done.stdout.strip().splitlines()[-1])
