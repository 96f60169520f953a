"""The same command gives the same bytes, whatever works on it: every file of a run, dates and durations aside."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from click.testing import CliRunner
from models import DIGITS

from precisionlab.cli import cli
from precisionlab.system.runlog import RUN_LOG

PREPARED = DIGITS.parent / "examples" / "prepared"

_MAY_DIFFER = [
    r"\d{4}-\d\d-\d\d[T ]\d\d:\d\d(:\d\d)?(\+00:00)?",
    r'"seconds": [\d.e+-]+',
    r'"sha256": "[\da-f]{16}"',  # of a journal's line, its seconds included
    r'"threads": \d+',
    r"\d+ s on \d+ threads?",
    r"--(threads|processes|memory) \S+",
    r' tabindex="0"',  # of a command that scrolls, as its folder has a long name
]


def run(*arguments: str, out: Path) -> dict[str, bytes]:
    """The files that the command leaves behind, without what may differ."""
    found = CliRunner().invoke(cli, [*arguments, "--out", str(out)])
    assert found.exit_code in (0, 1), found.output
    assert not found.exception or isinstance(found.exception, SystemExit), found.exception
    files = {str(file.relative_to(out)): file.read_bytes() for file in sorted(out.rglob("*")) if file.is_file()}
    return {name: _cleaned(content, out) for name, content in files.items()}


def _cleaned(content: bytes, out: Path) -> bytes:
    try:
        text = content.decode()
    except UnicodeDecodeError:
        return content
    for pattern in _MAY_DIFFER:
        text = re.sub(pattern, "", text)
    return text.replace(str(out), "OUT").encode()


def assert_same(found: dict[str, bytes], expected: dict[str, bytes], how: str) -> None:
    assert set(found) == set(expected), how
    assert len(found) > 5
    differ = [name for name in expected if found[name] != expected[name] and name != RUN_LOG]  # which tells the time
    assert not differ, f"{how}: {', '.join(differ)}"


WAYS = {
    "again": ("--threads", "1"),
    "on three threads": ("--threads", "3"),
    "in two processes": ("--processes", "2"),
    "in a budget that cuts alike": ("--threads", "2", "--memory", "2G"),
}


@pytest.fixture(scope="module")
def swept(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    return run(*_SWEEP, "--threads", "1", out=tmp_path_factory.mktemp("first") / "run")


@pytest.fixture(scope="module")
def calibrated(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    return run(*_CALIBRATE, "--threads", "1", out=tmp_path_factory.mktemp("first") / "run")


_DIGITS = (str(DIGITS / "digits.onnx"), "--data", str(DIGITS))
_SWEEP = ("sweep", *_DIGITS, "--samples", "36", "--tolerance", "sqnr>=45", "--max-evaluations", "5")
_CALIBRATE = ("calibrate", *_DIGITS, "--method", "auto")


@pytest.mark.parametrize("way", WAYS)
def test_a_sweep_gives_the_same_files(swept: dict[str, bytes], tmp_path: Path, way: str) -> None:
    assert_same(run(*_SWEEP, *WAYS[way], out=tmp_path / "run"), swept, way)


@pytest.mark.parametrize("way", WAYS)
def test_a_calibration_gives_the_same_files(calibrated: dict[str, bytes], tmp_path: Path, way: str) -> None:
    assert_same(run(*_CALIBRATE, *WAYS[way], out=tmp_path / "run"), calibrated, way)


@pytest.mark.skipif(not (PREPARED / "magika" / "magika.onnx").is_file(), reason="magika is not prepared: make models")
def test_a_real_model_gives_the_same_files(tmp_path: Path) -> None:
    model = PREPARED / "magika"
    command = ("sweep", str(model / "magika.onnx"), "--data", str(model / "data"), "--precisions", "fp16")
    command += ("--samples", "2", "--max-evaluations", "1")
    first = run(*command, "--threads", "1", out=tmp_path / "a" / "run")
    assert_same(run(*command, "--threads", "1", out=tmp_path / "b" / "run"), first, "again")
    assert_same(run(*command, "--threads", "4", out=tmp_path / "c" / "run"), first, "on four threads")
