"""The example of a GitHub Actions workflow: its steps run, one after the other, as the runner has them."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import yaml
from models import proto

ROOT = Path(__file__).parents[1]
EXAMPLE = ROOT / "examples" / "ci" / "precision.yml"

pytestmark = pytest.mark.slow  # processes


def workflow() -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load(EXAMPLE.read_text(encoding="utf-8"))
    return found


def steps() -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = workflow()["jobs"]["precision"]["steps"]
    return found


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A repository with a small model and samples, and `precisionlab` on the path."""
    write(tmp_path, 1.0)
    (tmp_path / "samples").mkdir()
    for index in range(2):
        np.savez(tmp_path / "samples" / f"{index}.npz", x=np.full((1, 4), index + 1, np.float32))
    (tmp_path / "bin").mkdir()
    command = tmp_path / "bin" / "precisionlab"
    command.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m precisionlab "$@"\n')
    command.chmod(0o755)
    return tmp_path


def write(folder: Path, weight: float) -> None:
    body = "(float[N,4] x) => (float[N,4] y) { a = MatMul(x, w) b = Mul(a, k) y = Relu(b) }"
    weights = {"w": np.full((4, 4), weight, np.float32), "k": np.float32(1)}
    onnx.save_model(proto(body, weights), folder / "model.onnx")


def run(checkout: Path, name: str) -> int:
    """One step by its name, as the runner's shell has it."""
    (step,) = [step for step in steps() if step.get("name") == name]
    path = f"{checkout / 'bin'}{os.pathsep}{os.environ['PATH']}"
    environment = {
        **os.environ,
        "PATH": path,
        "PYTHONPATH": str(ROOT),
        "GITHUB_STEP_SUMMARY": str(checkout / "summary"),
    }
    shell = ["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", step["run"]]
    return subprocess.run(shell, cwd=checkout, env=environment, check=False, capture_output=True).returncode


def test_actions_have_versions_and_the_job_may_read_alone() -> None:
    used = [step["uses"] for step in steps() if "uses" in step]
    assert used
    assert all(re.fullmatch(r"actions/[\w/-]+@v\d+", name) for name in used)
    assert workflow()["permissions"] == {"contents": "read"}


def test_the_page_about_ci_shows_the_file() -> None:
    page = (ROOT / "docs" / "how-to" / "ci.md").read_text(encoding="utf-8")
    assert "examples/ci/precision.yml" in page


@pytest.mark.thorough
def test_a_model_that_stays_right_passes_and_one_that_does_not_fails(checkout: Path) -> None:
    assert run(checkout, "Sweep") == 0
    assert json.loads((checkout / "result.json").read_text())["met"] is True
    assert run(checkout, "Summary") == 0
    assert "FP16" in (checkout / "summary").read_text()
    assert run(checkout, "Beside the main branch") == 0
    assert run(checkout, "Keep the run of the main branch") == 0
    write(checkout, 3e4)  # beyond what FP16 holds
    broken = run(checkout, "Sweep")
    assert run(checkout, "Summary") == 0
    assert (checkout / "reports" / "now" / "summary.md").exists()
    beside = run(checkout, "Beside the main branch")
    assert (broken, beside) != (0, 0)
    assert (checkout / "reports" / "now" / "diff.html").exists()
