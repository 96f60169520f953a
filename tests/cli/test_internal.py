"""What goes wrong inside, or around: one sentence and an exit code, and a traceback only for who asks for it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import pytest
from models import DIGITS

import precisionlab.calibration.cache
from precisionlab.calibration.cache import write_cache
from precisionlab.cli import main
from precisionlab.errors import OptionError


def fails(monkeypatch: pytest.MonkeyPatch, error: BaseException, *args: str) -> int:
    """The exit code of the whole command where what it calls raises this."""

    def broken(*_: Any, **__: Any) -> NoReturn:
        raise error

    monkeypatch.setattr(precisionlab.calibration.cache, "read_cache_file", broken)
    monkeypatch.setattr(sys, "argv", ["precisionlab", *args])
    with pytest.raises(SystemExit) as end:
        main()
    return int(end.value.code or 0)


SHOW = ("cache", "show", "x.cache")


def test_an_error_of_our_own_is_one_sentence_and_70(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert fails(monkeypatch, TypeError("not\n a number"), *SHOW) == 70
    assert capsys.readouterr() == (
        "",
        "precisionlab: internal error: TypeError: not a number; run it again with --debug, and report what that "
        "prints\n",
    )
    assert fails(monkeypatch, AssertionError(), *SHOW) == 70
    assert "internal error: AssertionError; run it again" in capsys.readouterr().err


@pytest.mark.parametrize(
    "args", [("--debug", *SHOW), (*SHOW, "--debug"), ("cache", "--debug", "show", "x.cache")], ids=" ".join
)
def test_with_debug_the_traceback_is_shown_wherever_it_is_asked_for(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], args: tuple[str, ...]
) -> None:
    assert fails(monkeypatch, TypeError("odd"), *args) == 70
    assert "in broken\n" in (told := capsys.readouterr().err)
    assert told.startswith("Traceback (most recent call last)")
    assert fails(monkeypatch, OptionError("x: wrong"), *args) == 2
    assert "in broken\n" in (told := capsys.readouterr().err)
    assert told.endswith("\nprecisionlab: x: wrong\n")


def test_without_debug_an_error_of_the_users_is_its_sentence_alone(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert fails(monkeypatch, OptionError("x: wrong"), *SHOW) == 2
    assert capsys.readouterr().err == "precisionlab: x: wrong\n"


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (MemoryError(), "memory ran out; use --memory or fewer --threads; the same command goes on from here"),
        (MemoryError("1 TB of x"), "memory ran out (1 TB of x); use --memory or fewer --threads"),
        (OSError(28, "No space left on device", "/a/b"), "/a/b: the disk is full (No space left on device); make room"),
        (OSError(28, "No space left on device"), "precisionlab: the disk is full (No space left on device); make room"),
    ],
    ids=str,
)
def test_memory_and_a_full_disk_are_the_users_to_fix(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], error: Exception, told: str
) -> None:
    assert fails(monkeypatch, error, *SHOW) == 2
    said = capsys.readouterr().err
    assert told in said
    assert said.count("\n") == 1


def test_ctrl_c_is_130(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert fails(monkeypatch, KeyboardInterrupt(), *SHOW) == 130
    assert capsys.readouterr().err == "precisionlab: stopped; the same command goes on from here\n"


def test_what_numpy_cannot_allocate_is_memory_that_ran_out(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(MemoryError) as caught:
        np.empty(2**56)
    assert fails(monkeypatch, caught.value, *SHOW) == 2
    assert "memory ran out (Unable to allocate 512. PiB" in capsys.readouterr().err


def with_cache(folder: Path) -> list[str]:
    (folder / "x.cache").write_bytes(write_cache({f"tensor {i}": 0.5 for i in range(3000)}, "10.16.1"))
    return [sys.executable, "-m", "precisionlab", "cache", "show", str(folder / "x.cache")]


def test_a_reader_that_has_seen_enough_ends_the_command_quietly(tmp_path: Path) -> None:
    with subprocess.Popen(with_cache(tmp_path), stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.readline()
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 141


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
def test_output_to_a_full_disk_is_told(tmp_path: Path) -> None:
    with Path("/dev/full").open("wb") as full:
        found = subprocess.run(with_cache(tmp_path), stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert found.returncode == 2
    assert "No space left on device" in found.stderr
    assert found.stderr.count("\n") == 1


def test_no_help_needs_more_than_the_command_line() -> None:
    command = [sys.executable, "-X", "importtime", "-m", "precisionlab", "sweep", str(DIGITS), "--help"]
    found = subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ, "COLUMNS": "100"})
    assert found.returncode == 0
    assert "onnxruntime" not in found.stderr
    assert "--debug" not in found.stdout


@pytest.mark.thorough
def test_where_compiled_loops_cannot_be_kept_they_are_compiled_anew(tmp_path: Path) -> None:
    """As in a read-only installation, for a user without a home."""
    source, package = Path(precisionlab.__file__).parent, tmp_path / "package" / "precisionlab"
    shutil.copytree(source, package, ignore=shutil.ignore_patterns("__pycache__"))
    for folder in (package, *(path for path in package.rglob("*") if path.is_dir())):
        (folder / "__pycache__").touch()  # nobody, root included, can make a folder of it
    home = {name: value for name, value in os.environ.items() if not name.startswith(("XDG_", "NUMBA_"))}
    options = [str(DIGITS / "digits.onnx"), "--data", str(DIGITS), "--samples", "2", "--out", str(tmp_path / "run")]
    done = subprocess.run(
        [sys.executable, "-m", "precisionlab", "calibrate", *options],
        env={**home, "PYTHONPATH": str(package.parent), "HOME": "/dev/null", "PYTHONDONTWRITEBYTECODE": "1"},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "run" / "calibration.cache").exists()
    assert not list(tmp_path.rglob("*.nbc"))
    compilers = [path for path in source.rglob("*.py") if "import njit" in path.read_text(encoding="utf-8")]
    assert [path.name for path in compilers] == ["loops.py"], "numba's own cache ends the run where it has no place"


@pytest.mark.thorough
def test_nothing_but_the_run_is_left_behind_and_no_event_of_other_libraries(tmp_path: Path) -> None:
    """ONNX Runtime 1.32's Linux wheel keeps an identifier of the device, and events, in the user's cache."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("XDG_", "ORT_"))}
    options = [str(DIGITS / "digits.onnx"), "--data", str(DIGITS), "--samples", "2", "--out", str(tmp_path / "run")]
    done = subprocess.run(
        [sys.executable, "-m", "precisionlab", "calibrate", *options],
        env={**clean, "HOME": str(tmp_path / "home"), "PYTHONPATH": os.pathsep.join(sys.path)},
        cwd=tmp_path,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0
    assert not [path for path in (tmp_path / "home").rglob("*") if "precisionlab" not in str(path)]
