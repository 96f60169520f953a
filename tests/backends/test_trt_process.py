"""TensorRT's process may die in any way: one clear error comes of it, and the next job finds a fresh one."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import trtchild

from precisionlab.backends.tensorrt.process import EngineProcess, how_it_died
from precisionlab.errors import BuildError, DataError, EngineError, ModelError, OptionError

needs_linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="looks into /proc")


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return tmp_path / "logs" / "engine.log"


@pytest.fixture
def process(log: Path) -> Iterator[EngineProcess]:
    log.parent.mkdir()
    with EngineProcess(trtchild.handlers, log, log=log) as started:
        yield started


def refused(process: EngineProcess, name: str, *args: Any, **options: Any) -> str:
    """The text of the EngineError that this call ends in."""
    with pytest.raises(EngineError) as found:
        process.call(name, *args, what=f"building {name}.engine", **options)
    assert type(found.value) is EngineError
    return str(found.value)


@pytest.mark.parametrize(
    ("name", "args", "how", "words"),
    [
        ("segfault", (), "crashed with a segmentation fault (SIGSEGV)", "about to read address 0"),
        ("abort", (), "aborted (SIGABRT)", "about to abort"),
        ("kill", (signal.SIGKILL,), "was killed by SIGKILL (out of memory?)", "about to be killed"),
        ("kill", (signal.SIGTERM,), "was ended by SIGTERM", "about to be killed"),
        ("exit", (3,), "exited with code 3", "about to exit"),
        ("exit", (0,), "exited with code 0", "about to exit"),
    ],
)
def test_a_death_is_one_error_that_says_which_job_how_and_the_last_words(
    process: EngineProcess, log: Path, name: str, args: tuple[Any, ...], how: str, words: str
) -> None:
    first = process.call("pid")
    text = refused(process, name, *args)
    assert text.startswith(f"building {name}.engine: TensorRT's process {how}.")
    assert words in text
    assert "Fatal Python error" not in text  # Python's own dump is in the log, and says nothing to a user
    assert str(log) in text
    assert process.call("pid") != first
    assert process.started == 2


def test_the_dump_of_a_crash_is_in_the_log(process: EngineProcess, log: Path) -> None:
    refused(process, "segfault")
    assert "Fatal Python error: Segmentation fault" in log.read_text()


def test_last_words_are_those_of_the_job_that_died(process: EngineProcess) -> None:
    refused(process, "abort")
    assert "It said nothing before." in refused(process, "sys.exit")


def test_a_process_that_hangs_is_ended(process: EngineProcess) -> None:
    started = time.monotonic()
    assert "was ended: it hung for 0.5 s" in refused(process, "hang", silence=0.5)
    assert time.monotonic() - started < 10
    assert process.call("echo", "again", silence=30) == "again"


def test_a_process_that_talks_does_not_hang(process: EngineProcess) -> None:
    heard: list[str] = []
    callbacks = {"progress": heard.append}
    process.call("pid")  # the start takes its time too
    assert process.call("chat", 1.2, silence=0.6, callbacks=callbacks) == "done"
    assert len(heard) > 5


@needs_linux
def test_a_process_that_died_between_two_jobs_is_replaced(process: EngineProcess) -> None:
    pid = process.call("pid")
    os.kill(pid, signal.SIGKILL)
    assert gone(pid)
    assert process.call("echo", 1) == 1
    assert process.started == 2


def test_what_is_printed_does_not_disturb(process: EngineProcess, log: Path) -> None:
    assert process.call("garbage") == "still understood"
    text = log.read_text(errors="replace")
    assert "printed to file descriptor 1" in text
    assert "printed to sys.stdout" in text
    assert "printed by a child of the child" in text


def test_standard_input_is_empty_for_whoever_reads_it(process: EngineProcess) -> None:
    assert process.call("stdin", silence=10) == ""


def test_large_arrays_go_both_ways(process: EngineProcess) -> None:
    array = np.arange(3_000_000, dtype=np.float32).reshape(3, -1) / 1e4
    back = process.call("echo", {"x": array, "half": array[:, :5].astype(np.float16)})
    np.testing.assert_array_equal(back["x"], array)
    assert back["half"].dtype == np.float16


def test_users_errors_come_back_as_they_are(process: EngineProcess) -> None:
    with pytest.raises(BuildError, match=r"^no kernel for conv1$"):
        process.call("fail", "BuildError")
    with pytest.raises(DataError, match=r"^sample 3 is empty$"):
        process.call("fail", "DataError")
    process.call("pid")
    assert process.started == 1


def test_after_an_engine_error_the_gpus_context_is_not_trusted(process: EngineProcess) -> None:
    process.call("remember", "engine", "loaded")
    assert refused(process, "fail", "EngineError") == "CUDA error 700"
    assert process.call("recall", "engine") is None
    assert process.started == 2


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        ("ValueError", "ValueError: not foreseen"),
        ("MemoryError", "MemoryError"),
        ("StrangeDataError", "its answer cannot be read"),
    ],
)
def test_any_other_error_is_an_engine_error_with_its_text(
    process: EngineProcess, log: Path, kind: str, text: str
) -> None:
    assert refused(process, "fail", kind).startswith(f"building fail.engine: {text}")
    assert process.call("echo", "next") == "next"


def test_the_traceback_of_an_unforeseen_error_is_in_the_log(process: EngineProcess, log: Path) -> None:
    refused(process, "fail", "ValueError")
    assert "trtchild.py" in log.read_text()


def test_an_answer_that_cannot_be_sent_is_told(process: EngineProcess) -> None:
    assert "its answer cannot be sent" in refused(process, "lambda")


def test_an_unknown_job_is_told(process: EngineProcess) -> None:
    assert "KeyError: 'no such job'" in refused(process, "no such job")


def test_what_a_handler_keeps_stays_from_call_to_call(process: EngineProcess) -> None:
    first = process.call("remember", "engine", [1, 2])
    assert process.call("recall", "engine") == [1, 2]
    assert process.call("pid") == first


def test_a_factory_that_fails_says_so_in_its_own_words(log: Path) -> None:
    with EngineProcess(trtchild.fail_to_open, log=log) as process:
        for _ in range(2):
            assert refused(process, "echo", 1) == "the Python package tensorrt is not installed"
    with EngineProcess(trtchild.fail_by_model, log=log) as process:
        for _ in range(2):  # and not, the second time, that there is no such handler
            with pytest.raises(ModelError, match="no such model"):
                process.call("echo", 1)


def test_a_factory_that_crashes_is_told_from_a_job_that_does(log: Path) -> None:
    with EngineProcess(trtchild.crash_on_opening, log=log) as process:
        assert refused(process, "echo", 1).startswith("start of building echo.engine: TensorRT's process aborted")


def test_a_log_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with EngineProcess(trtchild.fail_to_open, log=tmp_path / "file" / "log") as process:
        assert "cannot be started, its log is" in refused(process, "echo", 1)


# Callbacks


def test_batches_and_progress_go_through_callbacks(process: EngineProcess) -> None:
    left: list[Any] = [np.full((2, 3), 1, np.float32), np.full((2, 3), 2, np.float32)]
    heard: list[Any] = []

    def batch(names: list[str]) -> Any:
        heard.append(names)
        return left.pop(0) if left else None

    assert process.call("batches", callbacks={"batch": batch, "progress": heard.append}) == [6.0, 12.0]
    assert heard == [["image"], "batch 1", ["image"], "batch 2", ["image"]]


@pytest.mark.parametrize("name", ["batches", "batches in order"])
def test_the_error_of_a_callback_that_is_asked_comes_out_when_the_job_has_left(
    process: EngineProcess, log: Path, name: str
) -> None:
    error = DataError("sample 7 has another shape")

    def batch(names: list[str]) -> Any:
        raise error

    before = process.call("pid")
    with pytest.raises(DataError) as found:
        process.call(name, callbacks={"batch": batch})
    assert found.value is error
    assert process.call("pid") == before
    assert ("left in order" in log.read_text()) == (name == "batches in order")


def test_a_callback_that_only_hears_and_fails_ends_the_job(process: EngineProcess) -> None:
    def progress(text: str) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        process.call("chat", 60.0, callbacks={"progress": progress})
    assert process.call("echo", "next") == "next"
    assert process.started == 2


def test_a_question_that_nobody_answers_is_told(process: EngineProcess) -> None:
    with pytest.raises(KeyError, match="batch"):
        process.call("batches")
    assert process.call("echo", "next") == "next"


# Memory


@needs_linux
def test_a_process_beyond_its_memory_is_ended(log: Path) -> None:
    log.parent.mkdir()
    with EngineProcess(trtchild.handlers, log, log=log, memory=400 * 1024**2) as process:
        assert process.call("echo", 1) == 1
        text = refused(process, "take memory", 500 * 1024**2)
        assert "was ended: it took" in text
        assert "400 MiB are allowed" in text
        assert process.call("echo", 2) == 2


def test_a_memory_limit_that_nobody_would_watch_is_refused(log: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "win32")
    with pytest.raises(OptionError, match="Linux"):
        EngineProcess(trtchild.handlers, log, log=log, memory=1)


# Leaving


def is_there(pid: int) -> bool:
    """Whether a process still runs. Of one that was killed, the first thread may be dead before the others are."""
    try:
        threads = list(Path(f"/proc/{pid}/task").iterdir())
        return len(threads) > 1 or "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False


def gone(pid: int) -> bool:
    deadline = time.monotonic() + 10
    while is_there(pid) and time.monotonic() < deadline:
        time.sleep(0.05)
    return not is_there(pid)


@needs_linux
def test_close_ends_the_process(process: EngineProcess) -> None:
    pid = process.call("pid")
    process.close()
    assert gone(pid)
    process.close()


@needs_linux
@pytest.mark.parametrize("state", ["idle", "busy"])
def test_no_process_is_left_when_the_parent_is_killed(log: Path, state: str) -> None:
    log.parent.mkdir()
    command = [sys.executable, str(Path(trtchild.__file__)), str(log), state]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        assert is_there(pid)
        parent.kill()
    assert gone(pid)


@needs_linux
def test_no_process_is_left_though_a_fork_of_the_parent_holds_the_pipe(log: Path) -> None:
    log.parent.mkdir()
    script = (
        "import os, sys, time, trtchild; from pathlib import Path; "
        "from precisionlab.backends.tensorrt.process import EngineProcess; log = Path(sys.argv[1]); "
        "process = EngineProcess(trtchild.handlers, log, log=log); pid = process.call('pid'); fork = os.fork(); "
        "fork or time.sleep(600); print(pid, fork, flush=True); time.sleep(600)"
    )
    environment = os.environ | {"PYTHONPATH": str(Path(trtchild.__file__).parent)}
    command = [sys.executable, "-c", script, str(log)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as parent:
        assert parent.stdout is not None
        pid, fork = map(int, parent.stdout.readline().split())
        parent.kill()
        try:
            assert gone(pid)
            assert is_there(fork)
        finally:
            os.kill(fork, signal.SIGKILL)


def test_the_keyboard_interrupts_the_parent_alone(process: EngineProcess) -> None:
    assert process.call("interrupt") == "not impressed"


def test_modules_are_found_where_the_parent_finds_them(process: EngineProcess) -> None:
    assert process.call("path") == sys.path


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (-9, "out of memory?"),
        (-11, "segmentation fault"),
        (-7, "SIGBUS"),
        (-250, "signal 250"),
        (0xC0000005, "access violation"),
        (1, "exited with code 1"),
    ],
)
def test_exit_codes_are_told_in_words(code: int, words: str) -> None:
    assert words in how_it_died(code)


def test_the_process_starts_without_what_reads_models_and_samples() -> None:
    """It is started anew for whatever dies: onnx_ir, its sympy and ONNX Runtime took half of that."""
    code = "import sys; import precisionlab.backends.tensorrt.service; print(*sys.modules)"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    needless = {"onnx_ir", "sympy", "onnxruntime", "precisionlab.model", "precisionlab.data"}
    assert not needless & set(found.stdout.split())
