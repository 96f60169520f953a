"""Signals, and streams that are closed or full: the exit code is the README's, and no traceback is shown."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

import pytest
from models import DIGITS

MODEL = DIGITS / "digits.onnx"
SWEEP = [sys.executable, "-m", "precisionlab", "sweep", str(MODEL), "--data", str(DIGITS), "--precisions", "fp16"]
FEW = ["--samples", "4", "--max-evaluations", "2"]

pytestmark = pytest.mark.skipif(os.name != "posix", reason="signals and /dev/full are POSIX's")


class Usual(NamedTuple):
    """A run's exit code and folder."""

    code: int
    run: Path


def shell(command: str, tmp_path: Path, *more: str) -> tuple[int, str]:
    """The exit code of the sweep behind a shell's redirections, and what standard error said, if that was kept."""
    words = " ".join([*SWEEP, *FEW, "--out", str(tmp_path / "run"), *more])
    done = subprocess.run(
        ["bash", "-c", f"{words} {command}"], capture_output=True, text=True, check=False, timeout=120
    )
    assert "Traceback" not in done.stderr
    return done.returncode, done.stderr


@pytest.fixture(scope="module")
def usual(tmp_path_factory: pytest.TempPathFactory) -> Usual:
    """The same sweep with nothing in its way."""
    folder = tmp_path_factory.mktemp("usual")
    return Usual(shell("", folder)[0], folder / "run")


@pytest.mark.parametrize("stream", ["2>&-", "2>/dev/full", "2>&- </dev/null"])
def test_a_standard_error_that_takes_nothing_does_not_end_the_work(tmp_path: Path, stream: str, usual: Usual) -> None:
    assert shell(stream, tmp_path)[0] == usual.code in (0, 1)
    assert (tmp_path / "run" / "report.html").exists()


def test_a_standard_error_whose_reader_has_gone_does_not_end_the_work(tmp_path: Path, usual: Usual) -> None:
    code, _ = shell("2> >(head -n 1 >/dev/null)", tmp_path)
    assert code == usual.code


@pytest.mark.parametrize("stream", [">&-", ">/dev/full", ">&- 2>/dev/full", ">&- 2>&-"])
def test_a_result_that_cannot_be_printed_is_no_verdict(tmp_path: Path, stream: str, usual: Usual) -> None:
    shutil.copytree(usual.run, tmp_path / "run")  # the work is done already: what is printed at its end is the matter
    (tmp_path / "run" / "report.html").unlink()
    code, said = shell(stream, tmp_path)
    assert code == 2
    assert "standard output" in said or "2>" in stream
    assert (tmp_path / "run" / "report.html").exists(), "what was asked for is written all the same"


def test_help_on_a_closed_output_is_an_error_and_on_an_open_one_none() -> None:
    line = f"{sys.executable} -m precisionlab --help"
    for stream, code in ((">&-", 2), (">/dev/full", 2), (">/dev/null", 0)):
        done = subprocess.run(["bash", "-c", f"{line} {stream}"], capture_output=True, text=True, check=False)
        assert (done.returncode, "Traceback" in done.stderr) == (code, False), stream


# Signals


def started(tmp_path: Path, *more: str) -> subprocess.Popen[str]:
    """A sweep at work: some lines of progress have come."""
    process = subprocess.Popen(
        [*SWEEP, "--out", str(tmp_path / "run"), *more],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    assert process.stderr is not None
    while line := process.stderr.readline():
        if line.startswith("fp16 ("):  # so the reference is in the journal
            return process
    raise AssertionError("the sweep has ended")


def children(parent: int) -> set[int]:
    found = set()
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[1]) == parent:
            found |= {int(path.parent.name)} | children(int(path.parent.name))
    return found


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="/proc is Linux'")
@pytest.mark.parametrize(
    ("pauses", "more"),
    [
        *(([], []), ([0.0], []), ([0.3], []), ([0.05, 0.05, 0.3], [])),
        *(([], ["--processes", "2"]), ([0.05, 0.05, 0.3], ["--processes", "2"])),
    ],
)
def test_interrupts_end_within_seconds_however_often_they_come(
    tmp_path: Path, pauses: list[float], more: list[str]
) -> None:
    process = started(tmp_path, *more)
    workers = children(process.pid)
    began = time.monotonic()
    process.send_signal(signal.SIGINT)
    for pause in pauses:
        time.sleep(pause)
        process.send_signal(signal.SIGINT)
    output, said = process.communicate(timeout=20)
    assert process.returncode == 130
    assert time.monotonic() - began < 8  # 5 s on a machine that does nothing else
    assert output == ""
    assert said.splitlines()[-1] == "precisionlab: stopped; the same command goes on from here"
    assert "Traceback" not in said
    time.sleep(0.5)
    assert not [pid for pid in workers if Path(f"/proc/{pid}").exists() and "Z" not in state(pid)]


def state(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return "Z"


def test_a_run_that_was_stopped_twice_goes_on_to_the_same_plan(tmp_path: Path, usual: Usual) -> None:
    process = started(tmp_path, *FEW)
    process.send_signal(signal.SIGINT)
    time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=20)
    code, said = shell("", tmp_path)
    assert "taken from the journal" in said
    assert code == usual.code
    assert (tmp_path / "run" / "plan.json").read_bytes() == (usual.run / "plan.json").read_bytes()


@pytest.mark.parametrize("more", [[], ["--processes", "2"]], ids=["alone", "processes"])
def test_a_service_manager_ends_it_without_another_word_than_ours(tmp_path: Path, more: list[str]) -> None:
    process = started(tmp_path, *more)
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=20)
    assert process.returncode == 143
    assert said.splitlines()[-1] == "precisionlab: stopped; the same command goes on from here"
    assert "resource_tracker" not in said
    assert "Traceback" not in said
