"""Two users of one folder, one of whom may see and write little: success or one sentence, and nothing is lost."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from models import DIGITS
from test_disk import contents, holder, run, sweep

from precisionlab.system.lock import held_folder

ROOT = Path(__file__).parents[2]
MODEL = str(DIGITS / "digits.onnx")
NOBODY = 65534
AS_NOBODY = ["setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups", sys.executable]
# What `sweep` gives too: the run of one user has to be the run of the other.
FEW = ("--data", str(DIGITS), "--samples", "2", "--threads", "1", "--precisions", "int8")


def as_nobody(words: list[str], home: Path | str) -> subprocess.CompletedProcess[str]:
    """Python as a user who has nothing, and whose home cannot be written."""
    environment = environment_of(home)
    return subprocess.run(
        [*AS_NOBODY, *words], env=environment, cwd="/", capture_output=True, text=True, check=False, timeout=300
    )


def environment_of(home: Path | str, **others: str) -> dict[str, str]:
    """That of a user with this home."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("XDG_", "NUMBA_"))}
    return {**clean, "HOME": str(home), "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1", **others}


@pytest.fixture(scope="module")
def place() -> Iterator[Path]:
    """A folder that everybody may enter; pytest's own are for one user."""
    if not hasattr(os, "geteuid") or os.geteuid() != 0 or shutil.which("setpriv") is None:
        pytest.skip("only root can work as another user, by util-linux's setpriv")
    with tempfile.TemporaryDirectory() as made:
        Path(made).chmod(0o755)
        tried = as_nobody(["-c", f"import onnx, precisionlab.jobs.sweep; open({MODEL!r})"], made)
        if tried.returncode:
            pytest.skip(f"nobody can run precisionlab here: {tried.stderr.strip()[-200:]}")
        caches = Path(made) / "numba"
        caches.mkdir()
        caches.chmod(0o777)  # so that not each process compiles anew
        yield Path(made)


@pytest.fixture(scope="module")
def swept(place: Path) -> Path:
    """A run of root's."""
    assert sweep(place / "roots").exit_code in (0, 1)
    return place / "roots"


_COMMANDS = """
import json, sys, traceback
from click.testing import CliRunner
from precisionlab.cli import cli

for line in sys.stdin:
    found = CliRunner().invoke(cli, json.loads(line))
    said = found.stderr
    if found.exception is not None and not isinstance(found.exception, SystemExit):
        said += "".join(traceback.format_exception(found.exception))
    print(json.dumps([found.exit_code, said]), flush=True)
"""


class Done(NamedTuple):
    """What became of a command."""

    returncode: int
    stderr: str


Nobody = Callable[..., Done]


@pytest.fixture(scope="module")
def nobody(place: Path) -> Iterator[Nobody]:
    """Carries out commands as nobody, in one process for all: what they import takes longer than they do."""
    environment = environment_of(place, NUMBA_CACHE_DIR=str(place / "numba"))
    command = [*AS_NOBODY, "-c", _COMMANDS]
    with subprocess.Popen(
        command, env=environment, cwd="/", stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        asked, answers = process.stdin, process.stdout

        def call(*words: str | Path) -> Done:
            asked.write(json.dumps([str(word) for word in words]) + "\n")
            asked.flush()
            return Done(*json.loads(answers.readline()))

        yield call
        asked.close()


def assert_refused(done: Done, what: str) -> None:
    assert done.returncode == 2, done.stderr
    lines = [line for line in done.stderr.splitlines() if line.startswith("precisionlab: ")]
    assert len(lines) == 1
    assert what in lines[0]
    assert "Traceback" not in done.stderr


def copy_of(run_folder: Path, name: str, mode: int, owner: int = 0) -> Path:
    """A copy of a run, its folder with a mode, all of it of one owner."""
    copy = Path(shutil.copytree(run_folder, run_folder.parent / name))
    copy.chmod(mode)
    for path in (copy, *copy.rglob("*")):
        os.chown(path, owner, owner)
    return copy


def test_a_user_who_can_write_neither_home_nor_package_sweeps_all_the_same(place: Path) -> None:
    out = place / "without"
    out.mkdir()
    os.chown(out, NOBODY, NOBODY)
    done = as_nobody(["-m", "precisionlab", "sweep", MODEL, *FEW, "--out", str(out)], place)
    assert done.returncode in (0, 1), done.stderr
    assert (out / "report.html").exists()


def test_who_comes_second_is_told_of_the_other_user(place: Path, nobody: Nobody) -> None:
    for name, mode in (("open", 0o777), ("sticky", 0o1777)):
        folder = place / name
        folder.mkdir()
        folder.chmod(mode)
        with holder(folder) as other:
            assert_refused(nobody("sweep", MODEL, *FEW, "--out", folder), f"in use by process {other.pid} ")
        assert nobody("sweep", MODEL, *FEW, "--out", folder).returncode in (0, 1)


def test_a_lock_that_another_user_has_left_locks_nothing(place: Path, nobody: Nobody) -> None:
    for name, mode in (("left", 0o777), ("left sticky", 0o1777)):
        folder = place / name
        folder.mkdir()
        folder.chmod(mode)
        (folder / ".lock").write_text('{"pid": 1, "host": "x", "since": "y"}')
        assert nobody("sweep", MODEL, *FEW, "--out", folder).returncode in (0, 1)
        os.chown(folder / "journal.jsonl", NOBODY, NOBODY)
        with held_folder(folder, pytest.fail):
            assert (folder / "run.json").exists()


def test_a_run_is_gone_on_with_by_another_user_or_stays_as_it_is(place: Path, nobody: Nobody, swept: Path) -> None:
    again = ("sweep", MODEL, *FEW)
    folder = copy_of(swept, "shared", 0o777)
    assert nobody(*again, "--out", folder).returncode in (0, 1)
    assert (folder / "run.json").stat().st_uid == NOBODY
    before = contents(folder)
    more = (*again, "--tolerance", "sqnr>=45")
    assert_refused(nobody(*more, "--out", folder), f"{folder}: cannot be written (Permission denied)")
    assert contents(folder) == before
    assert sweep(folder, "--tolerance", "sqnr>=45").exit_code in (0, 1), "root may"
    sticky = copy_of(swept, "shared and sticky", 0o1777)
    before = contents(sticky)
    assert_refused(nobody(*again, "--out", sticky), f"{sticky}: cannot be written (Operation not permitted)")
    assert contents(sticky) == before
    theirs = copy_of(swept, "nobody's", 0o1777, NOBODY)
    assert sweep(theirs).exit_code in (0, 1)


@pytest.mark.parametrize("name", ["journal.jsonl", "run.json"])
def test_a_file_that_another_user_keeps_to_himself_stays_as_it_is(
    place: Path, nobody: Nobody, swept: Path, name: str
) -> None:
    folder = copy_of(swept, f"private {name}", 0o777)
    (folder / name).chmod(0o600)
    before = contents(folder)
    words = ("sweep", MODEL, *FEW, "--out", folder) if name == "journal.jsonl" else ("verify", folder / "plan.json")
    assert_refused(nobody(*words), "Permission denied")
    assert contents(folder) == before
    (folder / name).chmod(0o644)
    assert nobody(*words).returncode in (0, 1)


def test_histograms_that_another_user_keeps_to_himself_are_not_replaced(place: Path, nobody: Nobody) -> None:
    folder, command = place / "calibration", ("calibrate", MODEL, *FEW[:-2], "--out", str(place / "calibration"))
    assert run(*command).exit_code == 0
    folder.chmod(0o777)
    (folder / "histograms.npz").chmod(0o600)
    before = contents(folder)
    assert_refused(nobody(*command), f"{folder / 'histograms.npz'}: cannot be read (Permission denied)")
    assert contents(folder) == before
    assert run(*command).exit_code == 0


def test_below_a_folder_that_may_not_be_entered_nothing_is_said_to_be_missing(
    place: Path, nobody: Nobody, swept: Path
) -> None:
    hidden, page = place / "hidden", place / "numba" / "page.html"
    hidden.mkdir(mode=0o700)
    shutil.copytree(swept, hidden / "run")
    plan = swept / "plan.json"
    for words in [
        ("report", hidden / "run", "--out", page),
        ("diff", hidden / "run", swept),
        ("verify", hidden / "run" / "plan.json"),
        ("verify", plan, "--model", hidden / "digits.onnx"),
        ("verify", plan, "--data", hidden / "data"),
        ("export", hidden / "run" / "plan.json", "--format", "json"),
        ("export", plan, "--format", "json", "--out", hidden / "x.json"),
        ("calibrate", "--data", hidden / "data", "--out", place / "numba" / "c"),
        ("calibrate", MODEL, "--data", DIGITS, "--merge", hidden / "c", "--out", place / "numba" / "c"),
        ("sweep", MODEL, "--plan", hidden / "run" / "plan.json", "--out", place / "numba" / "r"),
    ]:
        done = nobody(*words)
        assert_refused(done, f"{hidden}/")
        assert "Permission denied" in done.stderr, words
    assert nobody("report", swept, "--out", page).returncode == 0
