"""`doctor` says for each backend that it is ready, or what makes it so."""

from __future__ import annotations

import importlib.metadata
import importlib.util
from dataclasses import replace

import pytest
from click.testing import CliRunner
from rtx import needs_rtx

import precisionlab
from precisionlab.backends.registry import KINDS, TENSORRT
from precisionlab.cli import cli
from precisionlab.jobs import doctor
from precisionlab.system import versions


def findings() -> dict[str, doctor.Finding]:
    return {finding.name: finding for finding in doctor.examine()}


def test_the_emulation_is_always_ready() -> None:
    found = findings()["backend onnxruntime"]
    assert found.ready
    assert "CPU" in found.seen
    assert not found.remedy


@pytest.mark.skipif(importlib.util.find_spec("tensorrt") is not None, reason="TensorRT is installed here")
def test_without_tensorrt_the_command_that_installs_it_is_given() -> None:
    found = findings()["backend tensorrt"]
    assert found.ready is False
    assert found.remedy == "pip install 'precisionlab[tensorrt]'"


@needs_rtx
def test_tensorrt_rtx_is_ready_to_compile_and_says_that_it_runs_nothing_without_a_gpu() -> None:
    found = findings()["backend tensorrt-rtx"]
    assert found.ready
    assert "1.7" in found.seen
    assert "typed models" in found.seen


def test_a_tensorrt_that_does_not_start_is_told_and_not_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    """A package of that name that is no TensorRT."""
    monkeypatch.setattr(doctor.importlib.util, "find_spec", lambda name: object())
    found = doctor._engines(replace(KINDS[TENSORRT], package="precisionlab.no_such_module", remedy="pip install it"))
    assert found.ready is False
    assert found.remedy == "pip install it"


def test_the_command_prints_a_line_for_each_and_what_to_do() -> None:
    printed = CliRunner().invoke(cli, ["doctor"], catch_exceptions=False)
    assert printed.exit_code == 0
    assert "ready  backend onnxruntime" in printed.output
    assert "backend tensorrt-rtx" in printed.output


def test_a_source_tree_that_was_never_installed_tells_its_version(monkeypatch: pytest.MonkeyPatch) -> None:
    def version(name: str) -> str:
        if name == "precisionlab":
            raise importlib.metadata.PackageNotFoundError(name)
        return "1.0"

    monkeypatch.setattr(importlib.metadata, "version", version)
    assert findings()["precisionlab"].seen == precisionlab.__version__
    assert versions.versions()["precisionlab"] == precisionlab.__version__
    assert precisionlab.__version__ in CliRunner().invoke(cli, ["--version"]).output
