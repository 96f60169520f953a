"""A run with other options goes beside the one that lies there, so that there are two to compare."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from click.testing import CliRunner
from models import proto

from precisionlab.cli import cli
from precisionlab.jobs.sweep import sweep

BODY = "(float[N,4] x) => (float[N,4] y) { a = MatMul(x, w) y = Relu(a) }"


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    write(1.0)
    (tmp_path / "data").mkdir()
    for index in range(2):
        np.savez(tmp_path / "data" / f"{index}.npz", x=np.full((1, 4), index + 1, np.float32))
    return tmp_path


def write(weight: float) -> None:
    onnx.save_model(proto(BODY, {"w": np.full((4, 4), weight, np.float32)}), "model.onnx")


def run(*options: str) -> str:
    arguments = ["sweep", "model.onnx", "--data", "data", "--precisions", "fp16", "--threads", "1", *options]
    found = CliRunner().invoke(cli, arguments, catch_exceptions=False)
    assert found.exit_code == 0
    return next(line for line in found.stdout.splitlines() if line.startswith("Report: ")).split("/")[-2]


@pytest.mark.thorough
def test_other_options_go_to_a_folder_of_their_own_and_the_same_ones_back_to_theirs(here: Path) -> None:
    assert run() == "model"
    first = (here / "reports/model/run.json").read_bytes()
    assert run("--tolerance", "sqnr>=50") == "model-2"
    assert run("--tolerance", "sqnr>=60") == "model-3"
    assert (here / "reports/model/run.json").read_bytes() == first
    assert run("--tolerance", "sqnr>=50", "--budget", "10m", "--max-evaluations", "9", "--memory", "2G") == "model-2"
    assert run() == "model"
    found = CliRunner().invoke(cli, ["diff", "reports/model", "reports/model-2"], catch_exceptions=False)
    assert found.exit_code == 0
    assert "tolerance of fp16" in found.stdout


@pytest.mark.thorough
def test_another_model_of_the_same_name_is_another_run_which_diff_compares_where_it_is_told(here: Path) -> None:
    assert run() == "model"
    write(2.0)
    assert run() == "model-2"
    refused = CliRunner().invoke(cli, ["diff", "reports/model", "reports/model-2"])
    assert refused.exit_code == 2
    assert "--other-model" in refused.stderr
    assert CliRunner().invoke(cli, ["diff", "reports/model", "reports/model-2", "--other-model"]).exit_code == 0


def test_a_run_that_was_killed_is_gone_on_with_and_where_the_user_says_is_where_it_goes(here: Path) -> None:
    assert run() == "model"
    (here / "reports/model/run.json").unlink()
    assert run("--tolerance", "sqnr>=50") == "model"
    assert run("--out", "reports/model") == "model"


@pytest.mark.parametrize("content", ["", "[]", '{"request": {}}', "{", '{"request": "0"}'])
def test_what_is_no_run_of_ours_is_not_overwritten(content: str, here: Path) -> None:
    (here / "reports/model").mkdir(parents=True)
    (here / "reports/model/run.json").write_text(content)
    assert run() == "model-2"
    assert (here / "reports/model/run.json").read_text() == content


def test_where_it_went_is_noted(here: Path) -> None:
    notes: list[str] = []

    class Noting:
        def stage(self, title: str, total: int, unit: str = "sample") -> None: ...

        def advance(self, done: int) -> None: ...

        def note(self, text: str) -> None:
            notes.append(text)

    for precision in ("fp16", "bf16"):
        sweep("model.onnx", "data", precisions=precision, threads=1, observer=Noting())
    assert any("reports/model holds" in note and "reports/model-2" in note for note in notes)
    assert json.loads((here / "reports/model-2/run.json").read_text())["request"]
