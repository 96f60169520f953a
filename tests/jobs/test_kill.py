"""A run that is killed, at any moment and at each of its steps on disk, goes on to what it would have come to."""

from __future__ import annotations

import errno
import json
import os
import random
import subprocess
import sys
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from models import DIGITS

from benchmarks.kills.disturb import Found, disturb
from benchmarks.kills.folder import BrokenError, check_folder, journal_of
from benchmarks.kills.jobs import Job
from precisionlab.calibration.state import STATE_FILE, read_state
from precisionlab.errors import DataError
from precisionlab.evaluate.run_folder import RunFolder
from precisionlab.jobs.calibrate import calibrate, merge
from precisionlab.system.disk import drafted, write_whole
from precisionlab.system.lock import held_folder

pytestmark = pytest.mark.skipif(os.name != "posix", reason="SIGKILL and fork are POSIX's")

MODEL = DIGITS / "digits.onnx"
DATA = (str(DIGITS / "digits.onnx"), "--data", str(DIGITS), "--samples", "4")


def test_a_sweep_killed_at_random_moments_comes_to_the_same_files_and_does_nothing_twice(tmp_path: Path) -> None:
    """Of a calibration: `test_calibrate.py`; of all commands, hundreds of times: `benchmarks.kills`."""
    job = Job("sweep", ("sweep", *DATA, "--precisions", "int8", "--tolerance", "sqnr>=40"), 2)
    found = Found()
    disturb(job, job.share, random.Random(3), 1, tmp_path, found)
    assert found.kills == job.share
    assert found.finished >= 1


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("run.json", b'{"a": 1'),
        ("t.csv", b"a,b\n1,2\n3"),
        ("p.html", b"<html><p>"),
        ("m.onnx", b"\x08"),
        ("summary.md", b""),
    ],
)
def test_the_check_sees_a_file_that_is_cut_short(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(BrokenError, match=name):
        check_folder(tmp_path)


# Each step on disk

# Works in folder after folder, and dies before the first, the second, … call that changes something on disk.
STEPS = """
import os, signal, sys
from pathlib import Path
from precisionlab.system.disk import write_whole
from precisionlab.jobs.calibrate import calibrate, merge
from precisionlab.calibration.state import STATE_FILE, read_state
from precisionlab.errors import DataError
from precisionlab.system.lock import held_folder
from precisionlab.evaluate.run_folder import RunFolder

def work(folder):
    with held_folder(folder, print):
        run = RunFolder(folder, {"model": "abc"}, print)
        run.record({"second": 2}, 2)
        run.record({"third": 3}, 3)
        with run.results(["plan.int8.json"]) as drafts:
            for name in ("plan.json", "layers.csv", "run.json"):
                write_whole(drafts / name, "new")

def dying(function, left):
    def instead(*args, **kwargs):
        left[0] -= 1
        if left[0] < 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*args, **kwargs)
    return instead

root, step = Path(sys.argv[1]), 0
while True:
    folder = root / str(step)
    with_old(folder)
    if (child := os.fork()) == 0:
        left = [step]
        for name in ("fsync", "replace", "unlink", "mkdir", "rmdir", "open", "chmod", "link"):
            setattr(os, name, dying(getattr(os, name), left))
        work(folder)
        os._exit(0)
    if os.waitpid(child, 0)[1] == 0:
        break
    step += 1
"""
OLD = """
def with_old(folder):
    with held_folder(folder, print):
        RunFolder(folder, {"model": "abc"}, print).record({"first": 1}, 1)
    with (folder / "journal.jsonl").open("a") as journal:
        journal.write('{"key": "half a li')
    for name in ("plan.json", "plan.int8.json", "layers.csv", "run.json"):
        (folder / name).write_text("old")
"""
NAMES = ("plan.json", "layers.csv", "run.json")


def test_a_kill_at_any_step_leaves_the_old_results_or_the_new_and_never_both(tmp_path: Path) -> None:
    script = STEPS.replace("\ndef dying", OLD + "\ndef dying")
    subprocess.run([sys.executable, "-c", script, str(tmp_path)], check=True)
    folders = sorted(tmp_path.iterdir(), key=lambda path: int(path.name))
    assert len(folders) > 20
    seen = set()
    for folder in folders:
        found = tuple((folder / name).read_text() if (folder / name).exists() else "–" for name in NAMES)
        # Without run.json nothing says that the others belong together: only then may they be of two runs.
        assert found in (("old",) * 3, ("new",) * 3) or found[-1] == "–", folder
        seen.add(found)
        keys, _ = journal_of(folder)
        with held_folder(folder, print):
            assert not list(folder.glob(".*.part")), "what was half written is still there"
            run = RunFolder(folder, {"model": "abc"}, print)
            values = [run.known(key) for key in ({"first": 1}, {"second": 2}, {"third": 3})]
        assert values == [1, 2, 3][: len(keys)] + [None] * (3 - len(keys))
        assert keys, "what was there before is lost"
        lines = (folder / "journal.jsonl").read_text().splitlines()
        assert all(json.loads(line) for line in lines)
        assert not [path.name for path in folder.iterdir() if path.name.startswith(".")]
    assert {("old",) * 3, ("new",) * 3} < seen


def test_the_histograms_of_a_shard_that_was_killed_are_not_merged_as_if_they_were_whole(tmp_path: Path) -> None:
    for shard in (1, 2):
        calibrate(MODEL, DIGITS, samples=4, shard=(shard, 2), out=tmp_path / str(shard))
    path = tmp_path / "2" / STATE_FILE
    whole = read_state(path)
    path.write_bytes(replace(whole, samples=whole.samples[:1]).to_bytes())  # as it is saved on the way
    shards = [tmp_path / "1", tmp_path / "2"]
    with pytest.raises(DataError, match="or not all of them, as after a kill"):
        merge(MODEL, shards, DIGITS, out=tmp_path / "merged")
    assert not (tmp_path / "merged").exists()
    calibrate(MODEL, DIGITS, samples=4, shard=(2, 2), out=tmp_path / "2")
    assert read_state(path).samples == whole.samples


# Each step on disk fails

FILES = ("a.csv", "below/b", "last.json")
OLD_TEXTS = ("old",) * 4
NEW_TEXTS = ("new", "new", "new", None)  # what is not to be there any more is gone
CALLS = ("fsync", "replace", "mkdir", "open", "chmod", "link")  # what makes room again goes well on a full disk too


def failing(monkeypatch: pytest.MonkeyPatch, nth: int, lasting: bool) -> list[int]:
    """Let the nth call that changes something on disk fail, and with `lasting` those after it too."""
    left = [nth]

    def instead(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            if function is not opened or args[1] & os.O_CREAT:
                left[0] -= 1
                if left[0] == 0 or (left[0] < 0 and lasting):
                    raise OSError(errno.EIO, "broken")
            return function(*args, **kwargs)

        return call

    opened = os.open
    for name in CALLS:
        monkeypatch.setattr(os, name, instead(getattr(os, name)))
    return left


@pytest.mark.parametrize("lasting", [False, True], ids=["one step", "all from there"])
def test_where_a_step_fails_the_old_results_come_back_or_it_shows_that_they_are_gone(
    tmp_path: Path, lasting: bool
) -> None:
    kept = spoilt = 0
    for nth in range(1, 1000):
        one, other = tmp_path / f"{nth}", tmp_path / f"{nth} beside"
        for folder in (one, other):
            (folder / "below").mkdir(parents=True)
            for name in (*FILES, "gone"):
                (folder / name).write_text("old")
        with pytest.MonkeyPatch.context() as patch:
            left = failing(patch, nth, lasting)
            is_done = exchanged(one, other)
        if left[0] > 0:
            break
        assert not list(tmp_path.rglob("*.part"))
        texts = [tuple(read(folder / name) for name in (*FILES, "gone")) for folder in (one, other)]
        if is_done or texts == [OLD_TEXTS] * 2:
            kept += not is_done
        else:
            assert lasting, f"step {nth} has spoilt the old results: {texts}"
            for found in texts:
                assert found[2] is None or found in (OLD_TEXTS, NEW_TEXTS), texts
            spoilt += 1
    assert kept > 30
    assert bool(spoilt) == lasting
    assert [read(folder / FILES[0]) for folder in (one, other)] == ["new", "new"]


def exchanged(one: Path, other: Path) -> bool:
    """Put new files in two folders; whether that was done."""
    try:
        with (
            ExitStack() as together,
            drafted(other, FILES[-1], ["gone"], together=together) as besides,
            drafted(one, FILES[-1], ["gone"], together=together) as drafts,
        ):
            for draft in (drafts, besides):
                (draft / "below").mkdir()
                for name in FILES:
                    write_whole(draft / name, "new")
    except OSError:
        return False
    return True


def read(path: Path) -> str | None:
    return path.read_text() if path.exists() else None
