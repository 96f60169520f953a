"""What TensorRT's own logger prints is read back: real lines of every version, and what may stand between."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from bindings.setup import bindings
from bindings.versions import TensorRT, parameters

from precisionlab.backends.tensorrt.logger import LogKeeper
from precisionlab.backends.tensorrt.outputlog import OutputKeeper, keeper_for, logger_for, messages

ROOT = Path(__file__).parents[2]
STAMP = "[11/27/2026-23:49:38] [TRT] "

SAYS = """
import sys
from pathlib import Path
import tensorrt_bindings as trt
from precisionlab.backends.tensorrt.outputlog import OutputKeeper, keeper_for, logger_for
keeper = keeper_for(trt, Path(sys.argv[1]))
logger = logger_for(trt, keeper)
assert isinstance(keeper, OutputKeeper) and type(logger) is trt.Logger
assert trt.init_libnvinfer_plugins(logger, "")  # the bindings take it where they want an ILogger
severity = trt.ILogger.Severity
for name in ("INTERNAL_ERROR", "ERROR", "WARNING", "INFO", "VERBOSE"):
    logger.log(getattr(severity, name), name + " of /层/Conv\\nits second line")
print(keeper.errors, keeper.warnings, keeper.layers, file=sys.stderr)
keeper.forget()
print(keeper.errors, keeper.warnings, file=sys.stderr)
"""


@pytest.mark.parametrize("tested", parameters(lambda tested: not tested.is_rtx))
def test_the_real_logger_prints_what_is_read_back_and_nothing_that_is_verbose(tested: TensorRT, tmp_path: Path) -> None:
    log = tmp_path / "log"
    assert tested.binding is not None
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(bindings(tested.binding)), str(ROOT)])}
    with log.open("wb") as stream:
        done = subprocess.run(
            [sys.executable, "-c", SAYS, str(log)], env=env, stdout=stream, stderr=subprocess.PIPE, text=True,
            check=False, timeout=60,
        )  # fmt: skip
    assert done.returncode == 0, done.stderr
    first, second = done.stderr.splitlines()[-2:]
    errors = tuple(f"{name} of /层/Conv\nits second line" for name in ("INTERNAL_ERROR", "ERROR"))
    assert first == f"{errors} {('WARNING of /层/Conv' + chr(10) + 'its second line',)} None"
    assert second == "() ()"
    assert "INFO of" in log.read_text()
    assert "VERBOSE" not in log.read_text()


def test_messages_are_told_from_what_else_is_printed() -> None:
    text = f"of CUDA\n{STAMP}[E] first\nmore of it\n{STAMP}[I] told\n12:00:00 W ours\n{STAMP}[W] careful\n"
    assert messages(text) == [("E", "first\nmore of it"), ("I", "told\n12:00:00 W ours"), ("W", "careful")]
    assert messages("") == messages("nothing of TensorRT\n") == []


def test_a_line_is_taken_when_it_is_whole_and_each_message_once(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text(f"{STAMP}[E] of an earlier run\n")
    keeper = OutputKeeper(log)
    assert keeper.errors == ()
    with log.open("a") as stream:
        stream.write(f"{STAMP}[E] one\n{STAMP}[E] tw")
        stream.flush()
        assert keeper.errors == ("one",)
        stream.write("o\n")
        stream.flush()
        assert keeper.errors == ("one", "two")
        keeper.forget()
        stream.write(f"{STAMP}[W] three\n")
    assert (keeper.errors, keeper.warnings) == ((), ("three",))


def test_a_log_that_is_gone_says_nothing_and_one_that_is_no_file_is_a_warning(tmp_path: Path) -> None:
    assert OutputKeeper(tmp_path / "missing").errors == ()
    (tmp_path / "link").symlink_to(tmp_path / "other")
    keeper = OutputKeeper(tmp_path / "link")
    (tmp_path / "other").write_text(f"{STAMP}[E] a stranger's\n")
    assert keeper.errors == ()
    assert len(keeper.warnings) == 1


def test_only_a_tensorrt_that_compiles_for_others_gpus_is_heard_line_by_line(tmp_path: Path) -> None:
    rtx = type("trt", (), {"ComputeCapability": None, "ILogger": type("ILogger", (), {"__init__": lambda self: None})})
    keeper = keeper_for(rtx, tmp_path / "log")
    assert type(keeper) is LogKeeper
    logger_for(rtx, keeper).log(type("severity", (), {"name": "VERBOSE"}), "Layers:\nName: a")
    assert keeper.layers == "Layers:\nName: a"
