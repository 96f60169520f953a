"""The TensorRTs that the tests go through, as parameters: all bindings that the index has, and TensorRT-RTX.

The first and the last of each major version are tested wherever tests run, those between by `make thorough`. Where
there are none, one parameter is skipped, and says why.
"""

from __future__ import annotations

import importlib.metadata
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from rtx import needs_rtx

from bindings.index import Binding, few, index
from bindings.setup import bindings, unsupported
from precisionlab.system.release import Release, release_of

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class TensorRT:
    """One TensorRT: real bindings without their libraries, or in `binding` None: the TensorRT-RTX that is installed."""

    binding: Binding | None

    @property
    def is_rtx(self) -> bool:
        return self.binding is None

    @property
    def release(self) -> Release:
        """Of TensorRT-RTX that of the TensorRT that it is like."""
        return Release(11, 0) if self.binding is None else release_of(self.binding.version)

    @property
    def is_strong(self) -> bool:
        """Whether types stand in the network alone: precision flags, pins and calibrators went with 11.0."""
        return self.release >= Release(11, 0)

    @property
    def is_old(self) -> bool:
        """Whether it is a TensorRT 8: before the interfaces with a version of their own."""
        return self.release < Release(10, 0)

    @property
    def module(self) -> str:
        return "tensorrt_rtx" if self.is_rtx else "tensorrt_bindings"

    @property
    def version(self) -> str:
        """What the module calls itself."""
        return importlib.metadata.version("tensorrt-rtx-cu13") if self.binding is None else self.binding.version

    def run(self, *command: str | Path, cwd: Path | None = None) -> str:
        """What Python prints with these arguments, where `self.module` is this TensorRT; nothing may be warned of."""
        paths = [ROOT] if self.binding is None else [bindings(self.binding), ROOT]
        done = subprocess.run(
            [sys.executable, *map(str, command)],
            env={**os.environ, "PYTHONPATH": os.pathsep.join(map(str, paths)), "PYTHONDONTWRITEBYTECODE": "1"},
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
            cwd=cwd,
        )
        assert done.returncode == 0, done.stderr
        assert done.stderr == ""  # where the bindings put an exception that left a callback
        return done.stdout

    def __str__(self) -> str:
        return "rtx" if self.binding is None else str(self.binding)


RTX = TensorRT(None)


def parameters(wanted: Callable[[TensorRT], bool] = lambda tested: True) -> list[Any]:
    """Those that are `wanted`, for `pytest.mark.parametrize`."""
    rtx = [pytest.param(RTX, marks=needs_rtx, id="rtx")] if wanted(RTX) else []
    return [*_real(wanted), *rtx]


def everywhere() -> tuple[TensorRT, ...]:
    """The real bindings that are tested wherever tests run."""
    return () if unsupported() else tuple(TensorRT(b) for b in index().bindings if b in few(index().bindings))


def _real(wanted: Callable[[TensorRT], bool]) -> list[Any]:
    why = unsupported()
    always = everywhere()
    found = [
        pytest.param(tested, marks=() if tested in always else (pytest.mark.thorough, pytest.mark.slow), id=str(tested))
        for tested in map(TensorRT, () if why else index().bindings)
        if wanted(tested)
    ]
    why = why or "the package index has no such version for this Python"
    return found or [pytest.param(None, marks=pytest.mark.skip(reason=why), id="none")]
