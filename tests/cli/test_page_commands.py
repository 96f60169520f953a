"""Every command that a report shows is run as it stands there, from a folder that has nothing to do with the run."""

from __future__ import annotations

import html
import re
import shlex
import shutil
from pathlib import Path
from typing import Any

import doubled
import pytest
from click.testing import CliRunner
from models import DIGITS

from precisionlab.cli import cli

METRIC = """
import numpy as np

def right(outputs, labels):
    return float(np.mean(np.argmax(outputs["logits"], axis=-1) == labels))
"""
RUNS: dict[str, list[str]] = {
    "repaired and INT8": [],
    "pinned, with a tolerance and a metric": ["--no-repair", "--metric", "metric.py:right", "--tolerance", "sqnr>=25"],
    "nothing right": ["--precisions", "fp16", "--no-repair", "--max-pins", "0", "--budget", "60s"],
}


def shown(page: Path) -> list[str]:
    """The commands of a page, as they are copied from it."""
    blocks = re.findall(r"data-copy><pre[^>]*><code>(.*?)</code>", page.read_text(encoding="utf-8"), re.S)
    return list(dict.fromkeys(map(html.unescape, blocks)))


def run(line: str, patch: pytest.MonkeyPatch) -> tuple[int, str]:
    """The exit code, and what was printed."""
    words = shlex.split(line)
    if words[0] == "cd":
        patch.chdir(words[1])
        words = words[3:]
    assert words[0] == "precisionlab"
    result = CliRunner().invoke(cli, words[1:], catch_exceptions=False)
    return result.exit_code, result.output


@pytest.mark.parametrize("options", RUNS.values(), ids=RUNS)
def test_every_command_of_a_page_runs_from_anywhere(
    options: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, elsewhere = tmp_path / "begun here", tmp_path / "elsewhere"
    shutil.copytree(DIGITS, begun / "data")
    (begun / "metric.py").write_text(METRIC)
    elsewhere.mkdir()
    monkeypatch.chdir(begun)
    words = ["sweep", "data/digits.onnx", "--data", "data", "--samples", "32", *options]
    monkeypatch.setattr("sys.argv", ["precisionlab", *words])
    swept = CliRunner().invoke(cli, words, catch_exceptions=False)
    opened: list[Any] = []
    monkeypatch.setattr("webbrowser.open", lambda address: opened.append(address) or True)
    monkeypatch.setenv("DISPLAY", ":0")
    commands = shown(begun / "reports" / "digits" / "report.html")
    assert len(commands) >= 4
    for line in commands:
        monkeypatch.chdir(elsewhere)
        with monkeypatch.context() as patch:
            if "--backend tensorrt" in line:
                doubled.arrange(patch, tmp_path)
            code, said = run(line, patch)
        assert code in ((0, 1) if swept.exit_code or "--backend tensorrt" in line else (0,)), (line, said)
        assert "Traceback" not in said
    assert opened
    assert list(elsewhere.iterdir()) == []


def test_the_commands_of_a_calibrations_page_run_from_anywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    begun, elsewhere = tmp_path / "begun here", tmp_path / "elsewhere"
    shutil.copytree(DIGITS, begun / "data")
    elsewhere.mkdir()
    monkeypatch.chdir(begun)
    words = ["calibrate", "data/digits.onnx", "--data", "data", "--samples", "32", "--out", "ranges"]
    assert CliRunner().invoke(cli, words, catch_exceptions=False).exit_code == 0
    commands = [line for line in shown(begun / "ranges" / "calibration.html") if line.startswith("precisionlab ")]
    assert len(commands) == 2
    monkeypatch.chdir(elsewhere)
    for line in commands:
        code, said = run(line, monkeypatch)
        assert code == 0, (line, said)
