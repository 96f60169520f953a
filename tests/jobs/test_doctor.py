"""`doctor` says for each backend that it is ready, or what makes it so."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner
from models import DIGITS
from rtx import needs_rtx

import precisionlab
from precisionlab.backends.registry import EMULATION, KINDS, TENSORRT, choose_backend
from precisionlab.backends.tensorrt.presence import look
from precisionlab.cli import cli
from precisionlab.jobs import doctor
from precisionlab.system import versions

DOUBLE = Path(__file__).parents[1] / "double"


@pytest.fixture(scope="module")
def found_here() -> dict[str, doctor.Finding]:
    """What doctor finds here: it starts a process for each backend, so once."""
    return {finding.name: finding for finding in doctor.examine()}


def test_the_emulation_is_always_ready(found_here: dict[str, doctor.Finding]) -> None:
    found = found_here["backend onnxruntime"]
    assert found.ready
    assert "CPU" in found.seen
    assert not found.remedy


@pytest.mark.skipif(importlib.util.find_spec("tensorrt") is not None, reason="TensorRT is installed here")
def test_without_tensorrt_the_command_that_installs_it_is_given(found_here: dict[str, doctor.Finding]) -> None:
    found = found_here["backend tensorrt"]
    assert found.ready is False
    assert found.remedy == 'pip install "precisionlab[tensorrt-cu13]"'


@needs_rtx
def test_tensorrt_rtx_is_ready_to_compile_and_says_that_it_runs_nothing_without_a_gpu(
    found_here: dict[str, doctor.Finding],
) -> None:
    found = found_here["backend tensorrt-rtx"]
    assert found.ready
    assert "1.7" in found.seen
    assert "typed models" in found.seen


def test_a_tensorrt_that_does_not_start_is_told_and_not_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    """A package of that name that is no TensorRT."""
    monkeypatch.setattr(doctor.importlib.util, "find_spec", lambda name: object())
    kind = replace(KINDS[TENSORRT], package="precisionlab.no_such_module", remedy="pip install it")
    found = doctor._engines(kind, look("precisionlab.no_such_module"))
    assert found.ready is False
    assert found.remedy == "pip install it"


def beside(folder: Path, patch: pytest.MonkeyPatch, *packages: str, **modules: str) -> None:
    """Packages of these names are installed, and modules with these texts, in this process and its children."""
    for name in packages:
        (folder / f"{name}.dist-info").mkdir()
        (folder / f"{name}.dist-info" / "METADATA").write_text(f"Name: {name.split('-')[0]}\nVersion: 1\n")
    for name, text in modules.items():
        (folder / name).mkdir()
        (folder / name / "__init__.py").write_text(text)
    patch.setattr(sys, "path", [str(folder), str(DOUBLE), str(DOUBLE.parent), *sys.path])


CHATTY = "import atexit; atexit.register(print, '[TRT] bye'); print('[TRT] hello'); __version__ = '10.14.1.48.post1'"
ALONE = {"tensorrt": CHATTY, "cuda": "raise ModuleNotFoundError('no', name='cuda')"}


def test_the_double_of_tensorrt_is_ready_and_auto_takes_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    beside(tmp_path, monkeypatch)
    seen = look("tensorrt")
    assert doctor._engines(KINDS[TENSORRT], seen).ready
    assert doctor._cuda(seen).seen.startswith("driver for CUDA 12.8, cuda-python for CUDA 12.9, TensorRT for CUDA")
    assert choose_backend("auto") == (TENSORRT, ())


@pytest.mark.parametrize(
    ("packages", "modules", "why", "remedy"),
    [
        ([], ALONE, "cuda-python is not installed", 'pip install "cuda-python>='),
        (["tensorrt_cu12-10.1"], ALONE, "cuda-python is not installed", 'pip install "cuda-python>=12,<13"'),
        (["tensorrt_cu13-11.4"], {}, "this TensorRT is for CUDA 13", "pip uninstall -y tensorrt tensorrt-cu13 && pip"),
        ([], {"tensorrt": "raise ImportError('libnvinfer.so.10: gone')"}, "(libnvinfer.so.10: gone)", "pip install"),
        ([], {"tensorrt": "raise OSError('libnvinfer.so.10: gone')"}, "(libnvinfer.so.10: gone)", "pip install"),
        ([], {"tensorrt": "import os; os.abort()"}, "aborted (SIGABRT)", "pip install"),
    ],
)
def test_auto_says_why_it_emulates_beside_an_installed_tensorrt_and_what_mends_it(
    packages: list[str],
    modules: dict[str, str],
    why: str,
    remedy: str,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    beside(tmp_path, monkeypatch, *packages, **modules)
    name, (note,) = choose_backend("auto")
    assert name == EMULATION
    assert note.startswith("--backend auto passes over tensorrt, which is installed: ")
    assert why in note
    assert f"(`{remedy}" in note


def test_doctor_says_what_mends_a_tensorrt_that_cannot_be_loaded(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    broken = "raise OSError('libnvinfer.so.10: gone')"
    beside(tmp_path, monkeypatch, "tensorrt_cu12-10.1", tensorrt=broken)
    found = doctor._engines(KINDS[TENSORRT], look("tensorrt"))
    assert (found.ready, found.seen) == (False, "TensorRT cannot be loaded (libnvinfer.so.10: gone)")
    assert found.remedy == 'pip uninstall -y tensorrt tensorrt-cu12 && pip install "precisionlab[tensorrt-cu12]"'


def test_a_sweep_that_auto_emulates_beside_an_installed_tensorrt_says_why(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    beside(tmp_path, monkeypatch, **ALONE)
    command = ["sweep", str(DIGITS / "digits.onnx"), "--data", str(DIGITS), "--samples", "4", "--precisions", "bf16"]
    printed = CliRunner().invoke(cli, [*command, "--tolerance", "sqnr>=1", "--out", str(tmp_path / "run")])
    assert printed.exit_code == 0, printed.output
    assert "--backend auto passes over tensorrt, which is installed: the Python package cuda-python" in printed.stderr


def test_the_command_prints_a_line_for_each_and_what_to_do(
    found_here: dict[str, doctor.Finding], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor, "examine", found_here.values)
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
    monkeypatch.setattr(versions, "_version", lambda names: "1.0")  # else it is kept for the tests behind this one
    found = next(finding for finding in doctor.examine() if finding.name == "precisionlab")
    assert found.seen == precisionlab.__version__
    assert versions.versions()["precisionlab"] == precisionlab.__version__
    assert precisionlab.__version__ in CliRunner().invoke(cli, ["--version"]).output
