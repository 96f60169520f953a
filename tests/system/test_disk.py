"""A disk that fills up and a folder that another process writes to: one sentence, and nothing is lost by it."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from models import DIGITS

from precisionlab.cli import cli
from precisionlab.errors import OptionError
from precisionlab.system.disk import drafted, make_folder, remove_drafts, write_whole
from precisionlab.system.lock import held_file, held_folder

MODEL = str(DIGITS / "digits.onnx")
DATA = ("--data", str(DIGITS), "--samples", "2", "--threads", "1")


def run(*args: str | Path) -> Result:
    """The command in this process; an exception of any kind but an exit is a failure."""
    return CliRunner().invoke(cli, [str(arg) for arg in args], catch_exceptions=False)


def sweep(folder: Path, *options: str) -> Result:
    return run("sweep", MODEL, *DATA, "--precisions", "int8", "--out", folder, *options)


def contents(folder: Path) -> dict[str, bytes]:
    """All files below a folder, hidden ones too."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_a_folder_that_cannot_be_made_leaves_none_of_those_above_it(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("a user's")
    with pytest.raises(OSError, match="exists"):
        make_folder(tmp_path / "new" / ".." / "file")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    assert [path.name for path in make_folder(tmp_path / "new" / "below")] == ["below", "new"]


# A disk that fills up

SIZE = 8 * 1024 * 1024
BALLAST = "ballast"


@pytest.fixture(scope="module")
def disk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A small disk of its own."""
    place = tmp_path_factory.mktemp("disk")
    mount = ["mount", "-t", "tmpfs", "-o", f"size={SIZE}", "precisionlab-test", str(place)]
    try:
        subprocess.run(mount, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"no small disk can be mounted here: {getattr(error, 'stderr', b'') or error}")
    yield place
    subprocess.run(["umount", str(place)], check=True)


@pytest.fixture(scope="module")
def swept(disk: Path) -> Path:
    """A run on that disk."""
    assert sweep(disk / "run").exit_code == 0
    shutil.copytree(disk / "run", disk / "first")
    return disk / "run"


@contextmanager
def room(disk: Path, left: int) -> Iterator[None]:
    """So many bytes are left on the disk, and no more."""
    ballast = disk / BALLAST
    with ballast.open("wb") as stream:
        free = os.statvfs(disk)
        stream.write(b"\0" * max(0, free.f_bavail * free.f_frsize - left))
    try:
        yield
    finally:
        ballast.unlink()


def assert_told(result: Result, place: Path | str) -> None:
    assert result.exit_code == 2, result.output
    line = result.stderr.strip().splitlines()[-1]
    assert line.startswith("precisionlab: ")
    assert str(place) in line
    assert "the disk is full" in line
    assert "make room" in line


@pytest.mark.parametrize("left", [0, 32768])
def test_a_sweep_on_a_full_disk_keeps_the_earlier_results_and_goes_on_when_there_is_room(
    disk: Path, swept: Path, left: int
) -> None:
    before = contents(swept)
    # Plans that the journal does not have yet.
    options = ("--tolerance", f"sqnr>={45 + left / 2**20}", "--max-evaluations", "4")
    with room(disk, left):
        assert_told(sweep(swept, *options), swept)
        after = contents(swept)
        assert after.keys() - before.keys() <= {"best.int8.json"}
        for name in before.keys() - {"journal.jsonl", "run.log"}:
            assert after[name] == before[name], name
        assert after["journal.jsonl"].startswith(before["journal.jsonl"])
        assert after["journal.jsonl"].endswith(b"\n")
    again = sweep(swept, *options)
    assert again.exit_code in (0, 1)
    known = after["journal.jsonl"].count(b"\n") - before["journal.jsonl"].count(b"\n")
    assert again.stderr.count("taken from the journal") >= known
    now = contents(swept)
    assert "best.int8.json" not in now
    with room(disk, 32768):  # for the results alone: the journal has all that they need
        assert_told(sweep(swept, *options), swept)
        left_over = contents(swept)
        assert left_over.pop("run.log").startswith(now.pop("run.log"))
        left_over.pop("best.int8.json", None)
        assert left_over == now


@pytest.mark.parametrize("left", [0, 32768])
def test_a_calibration_on_a_full_disk_keeps_the_earlier_one(disk: Path, left: int) -> None:
    folder = disk / "calibration"
    command = ("calibrate", MODEL, *DATA, "--out", folder)
    assert run(*command).exit_code == 0
    before = contents(folder)
    with room(disk, left):
        assert_told(run(*command, "--method", "max"), folder)
        assert contents(folder) == before
    assert run(*command, "--method", "max").exit_code == 0
    assert contents(folder).keys() == before.keys()
    assert contents(folder)["calibration.cache"] != before["calibration.cache"]


@pytest.mark.parametrize("target", ["json", "trtexec", "typed-onnx", "onnxruntime"])
def test_an_export_to_a_full_disk_keeps_the_earlier_file(disk: Path, swept: Path, target: str) -> None:
    out = disk / "exports" / f"{target}.out"
    command = ("export", disk / "first" / "plan.json", "--format", target, "--out", out)
    first = run(*command)
    assert first.exit_code == 0, first.stderr
    before = contents(out.parent)
    with room(disk, 0):
        assert_told(run(*command), out)
        assert contents(out.parent) == before
    assert run(*command).exit_code == 0
    assert contents(out.parent) == before


def test_pages_on_a_full_disk_keep_the_earlier_ones_and_verify_needs_no_room(disk: Path, swept: Path) -> None:
    before = contents(swept)
    with room(disk, 0):
        assert_told(run("report", swept), swept / "report.html")
        assert_told(run("diff", swept, swept, "--html", disk / "diff.html"), disk / "diff.html")
        assert run("verify", swept / "plan.json").exit_code in (0, 1)
        assert contents(swept) == before
        assert not [path for path in disk.iterdir() if path.name.startswith((".", "diff"))]
    assert run("report", swept).exit_code == 0
    assert contents(swept)["report.html"] == before["report.html"]


# Two processes

HOLDER = """
import sys
import tempfile
from pathlib import Path
from precisionlab.system.lock import held_file, held_folder
held = {"folder": held_folder, "file": lambda path, warn: held_file(path, warn, "")}[sys.argv[1]]
with held(Path(sys.argv[2]), print):
    print("held", flush=True)
    sys.stdin.read()
"""


@contextmanager
def holder(path: Path, kind: str = "folder") -> Iterator[subprocess.Popen[str]]:
    """Another process that holds a folder or a file."""
    command = [sys.executable, "-c", HOLDER, kind, str(path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        yield process
        process.kill()


def assert_refused(result: Result, place: Path, pid: int) -> None:
    assert result.exit_code == 2, result.output
    assert f"precisionlab: {place}: in use by process {pid} on {socket.gethostname()} since 20" in result.stderr
    assert "wait until that has ended, or" in result.stderr


def test_what_another_process_writes_to_is_refused_at_once_and_named(tmp_path: Path) -> None:
    swept = tmp_path / "run"
    assert sweep(swept).exit_code == 0
    before = contents(swept)
    with holder(swept) as other:
        assert_refused(sweep(swept), swept, other.pid)
        assert_refused(run("report", swept), swept, other.pid)
        assert_refused(run("calibrate", MODEL, *DATA, "--out", swept), swept, other.pid)
        assert_refused(run("selftest", "--out", swept), swept, other.pid)
        assert run("report", swept, "--out", tmp_path / "page.html").exit_code == 0, "reading needs no lock"
        now = contents(swept)
        assert now.pop(".lock")
        assert now == before
    cache = tmp_path / "x.cache"
    with holder(cache, "file") as other:
        assert_refused(run("calibrate", MODEL, *DATA, "--cache", cache, "--out", tmp_path / "c"), cache, other.pid)
        export = ("export", swept / "plan.json", "--format", "json", "--out", cache)
        assert_refused(run(*export), cache, other.pid)
        assert_refused(run("diff", swept, swept, "--html", cache), cache, other.pid)
        assert run(*export[:-1], tmp_path / "y.json").exit_code == 0
    assert not (tmp_path / "c").exists(), "a folder made for nothing"
    assert run(*export).exit_code == 0, "a lock dies with its process, however that ends"


def test_the_shards_of_one_calibration_are_merged_by_one_process(tmp_path: Path) -> None:
    for shard in ("1/2", "2/2"):
        out = tmp_path / shard[0]
        assert run("calibrate", MODEL, *DATA, "--shard", shard, "--out", out).exit_code == 0
    merge = (
        "calibrate",
        MODEL,
        "--data",
        DIGITS,
        "--threads",
        "1",
        "--merge",
        tmp_path / "1",
        "--merge",
        tmp_path / "2",
    )
    with holder(tmp_path / "merged") as other:
        assert_refused(run(*merge, "--out", tmp_path / "merged"), tmp_path / "merged", other.pid)
    assert run(*merge, "--out", tmp_path / "merged").exit_code == 0


@pytest.mark.thorough
def test_of_two_sweeps_of_one_folder_one_works_undisturbed_and_the_other_says_so(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "precisionlab", "sweep", MODEL, *DATA, "--precisions", "int8", "--out"]
    swept = tmp_path / "run"
    with subprocess.Popen([*command, str(swept)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as first:
        while not (swept / ".lock").exists() or not (swept / ".lock").stat().st_size:
            assert first.poll() is None
            time.sleep(0.01)
        os.kill(first.pid, signal.SIGSTOP)
        second = sweep(swept)
        os.kill(first.pid, signal.SIGCONT)
    assert second.exit_code == 2
    assert f"in use by process {first.pid} " in second.stderr
    assert second.stderr.count("\n") == 1
    assert first.returncode == 0
    assert sweep(tmp_path / "alone").exit_code == 0
    for name in ("plan.json", "layers.csv", "variants.csv"):
        assert (swept / name).read_bytes() == (tmp_path / "alone" / name).read_bytes()
    assert not [path for path in swept.iterdir() if path.name.startswith(".")]


# Locks and drafts


def test_a_folder_is_held_once_in_a_process_too_and_free_again_afterwards(tmp_path: Path) -> None:
    with (
        held_folder(tmp_path, print),
        pytest.raises(OptionError, match=f"in use by process {os.getpid()} on "),
        held_folder(tmp_path, print),
    ):
        pass
    with held_folder(tmp_path, print):
        pass
    assert not list(tmp_path.iterdir())


def test_where_the_file_system_has_no_locks_work_goes_on_with_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import fcntl

    def none(*_: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", none)
    said: list[str] = []
    with held_folder(tmp_path / "run", said.append), held_file(tmp_path / "run" / "x", said.append, ""):
        pass
    assert len(said) == 2
    assert f"{tmp_path / 'run'}: no lock can be had there (No locks available)" in said[0]
    assert sweep(tmp_path / "swept").exit_code == 0


def test_a_lock_that_cannot_be_read_still_refuses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "sleep", lambda _: None)
    with holder(tmp_path):
        (tmp_path / ".lock").write_text("")
        with pytest.raises(OptionError, match="in use by another process"), held_folder(tmp_path, print):
            pass


def test_folders_made_for_nothing_go_again_and_others_stay(tmp_path: Path) -> None:
    assert run("sweep", MODEL, "--data", tmp_path / "none", "--out", tmp_path / "a" / "b").exit_code == 2
    assert not (tmp_path / "a").exists()
    (tmp_path / "mine").mkdir()
    assert run("sweep", MODEL, "--data", tmp_path / "none", "--out", tmp_path / "mine").exit_code == 2
    assert (tmp_path / "mine").is_dir()


def test_only_drafts_are_removed_and_of_a_file_only_its_own(tmp_path: Path) -> None:
    mine = (".config.settings", ".plan.json.abcdefgh", "x.part", ".hidden.part", "plan.json.abcdefgh.part")
    drafts = (".plan.json.abcdefgh.part", ".a.csv.ab_d3fgh.part")
    for name in (*mine, *drafts):
        (tmp_path / name).write_text("")
    (tmp_path / ".draft.abcdefgh.part").mkdir()
    (tmp_path / ".draft.abcdefgh.part" / "run.json").write_text("")
    remove_drafts(tmp_path, tmp_path / "plan.json")
    assert not (tmp_path / drafts[0]).exists()
    assert (tmp_path / drafts[1]).exists()
    remove_drafts(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(mine)


def test_drafts_take_their_places_together_or_not_at_all(tmp_path: Path) -> None:
    for name in ("a", "b", "gone"):
        (tmp_path / name).write_text("old")

    def fails() -> None:
        with drafted(tmp_path, "a", ["gone"]) as drafts:
            write_whole(drafts / "a", "new")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fails()
    assert contents(tmp_path) == dict.fromkeys(("a", "b", "gone"), b"old")
    with drafted(tmp_path, "a", ["gone"]) as drafts:
        write_whole(drafts / "a", "new")
        (drafts / "below").mkdir()
        write_whole(drafts / "below" / "c", json.dumps("new"))
    assert contents(tmp_path) == {"a": b"new", "b": b"old", "below/c": b'"new"'}


@pytest.mark.parametrize("name", ["a" * 240, "ä" * 120, "x.json"])
def test_a_name_as_long_as_names_can_be_is_written_whole_and_held(tmp_path: Path, name: str) -> None:
    with held_file(tmp_path / name, print, ""):
        write_whole(tmp_path / name, "text")
    assert contents(tmp_path) == {name: b"text"}


def test_where_no_temporary_file_can_be_made_one_sentence_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = ("fidelity", MODEL, *DATA, "--precisions", "int8", "--out", tmp_path / "run")
    with monkeypatch.context() as patch:
        patch.setattr(tempfile, "tempdir", str(tmp_path / "no such folder"))
        told = run(*command)
    assert told.exit_code == 2
    assert f"precisionlab: {tmp_path / 'no such folder'}: cannot be written (No such file or directory)" in told.stderr
    assert "set TMPDIR to a folder that can be" in told.stderr
    assert not (tmp_path / "run").exists()
    assert run(*command).exit_code in (0, 1)
