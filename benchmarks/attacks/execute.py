"""Runs an attempt: in a fork of this process, which has all libraries loaded, or behind a shell."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.attacks import ROOT
from benchmarks.attacks.attempt import Attempt
from benchmarks.attacks.folders import look, make_outside, mixed, texts_of

LATE = -1000
"""The exit code of what did not end in time."""


@dataclass(frozen=True)
class Outcome:
    """How a command ended, all that was there before and after, and the pages and tables it has written.

    `mixed` are the files of the run's folder that do not fit its run.json.
    """

    code: int
    output: str
    said: str
    seconds: float
    before: dict[str, str]
    after: dict[str, str]
    texts: dict[str, str]
    mixed: tuple[str, ...]


def load() -> None:
    """Import what a command imports, but start nothing: threads would not survive a fork."""
    import onnxruntime  # noqa: F401


def execute(attempt: Attempt, folder: Path, template: Path | None) -> Outcome:
    """Run one attempt in a folder that is made for it, and removed again."""
    here = folder / "here"
    try:
        here.mkdir(parents=True)
        make_outside(folder)
        if attempt.run and template is not None:
            shutil.copytree(template, here / "run", symlinks=True)
        words = prepared(attempt, here)
        before = look(folder)
        started = time.monotonic()
        code = behind_shell(attempt, words, folder) if attempt.shell else forked(attempt, words, folder)
        seconds = time.monotonic() - started
        output, said = (text_of(folder.parent / f"{folder.name}.{name}") for name in ("out", "err"))
        after = look(folder)
        written = {name: text for name, text in texts_of(folder).items() if before.get(name) != after.get(name)}
        return Outcome(code, output, said, seconds, before, after, written, mixed(here / "run"))
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def prepared(attempt: Attempt, here: Path) -> list[str]:
    """Make the attempt's files, in a process of its own; the words of the command."""
    reader, writer = os.pipe()

    def make() -> int:
        os.chdir(here)
        os.write(writer, json.dumps(list(attempt.make())).encode("utf-8", "surrogatepass"))
        return 0

    child = fork(make)
    os.close(writer)
    with os.fdopen(reader, "rb") as stream:
        content = stream.read()
    if ended(child, 120.0) != 0:
        raise RuntimeError(f"{attempt.name}: its files cannot be made")
    found: list[str] = json.loads(content.decode("utf-8", "surrogatepass"))
    return found


def forked(attempt: Attempt, words: list[str], folder: Path) -> int:
    """The exit code of the command in a fork."""

    def run() -> int:
        os.chdir(folder / "here")
        for handle, name in ((1, "out"), (2, "err")):
            file = os.open(folder.parent / f"{folder.name}.{name}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.dup2(file, handle)
            os.close(file)
        nothing = os.open(os.devnull, os.O_RDONLY)
        os.dup2(nothing, 0)
        sys.argv = ["precisionlab", *words]
        from precisionlab.cli import main

        main()
        return 0

    return ended(fork(run), attempt.seconds)


def behind_shell(attempt: Attempt, words: list[str], folder: Path) -> int:
    """The exit code of the shell's line, whose command is a process of its own."""
    command = shlex.join([sys.executable, "-m", "precisionlab", *words])
    names = [folder.parent / f"{folder.name}.{name}" for name in ("out", "err")]
    with names[0].open("wb") as output, names[1].open("wb") as said:
        process = subprocess.Popen(
            ["bash", "-c", attempt.shell.replace("{}", command)],
            cwd=folder / "here",
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=said,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            start_new_session=True,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )
        try:
            return process.wait(attempt.seconds)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            return LATE


def fork(function: Callable[[], Any]) -> int:
    """Run it in a child of this process; the child's id. Its exit code is what the function gives or exits with."""
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    child = os.fork()
    if child:
        return child
    code = 70
    try:
        os.setsid()
        code = function()
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        import traceback

        os.write(2, traceback.format_exc().encode("utf-8", "replace"))
    finally:
        for stream in (sys.stdout, sys.stderr):
            if stream is not None:
                with suppress(OSError, ValueError):
                    stream.flush()
        os._exit(code & 0xFF)


def ended(child: int, seconds: float) -> int:
    """The exit code of a child, below 0 for a signal; it is ended when it takes longer."""
    late, pause = time.monotonic() + seconds, 0.002
    while True:
        found, status = os.waitpid(child, os.WNOHANG)
        if found:
            return os.waitstatus_to_exitcode(status)
        if time.monotonic() > late:
            os.killpg(child, signal.SIGKILL)
            os.waitpid(child, 0)
            return LATE
        time.sleep(pause)
        pause = min(0.05, pause * 1.5)


def text_of(path: Path) -> str:
    """What a stream was given; the file is removed."""
    content = path.read_bytes() if path.exists() else b""
    path.unlink(missing_ok=True)
    return content.decode("utf-8", "replace")
