"""A disk that fails at the nth call that writes: `python -m benchmarks.fulldisk [--most 60] [--seed 0] [--only WORD]`.

A small library (`fulldisk.c`, built by the system's compiler, loaded with LD_PRELOAD) counts the calls that write below
a folder: to open a file to create it, write, truncate, sync, rename, link, make a folder. For every n from 1 to the
calls of an undisturbed command, or for `--most` of them, the command is run with the nth call failing: with "no space
left", that one alone or all that come after it too; with the quota's end; and with a broken disk. Half of the tries
find the results of an earlier command in the folder. Checked are

- the exit code is 2, and standard error has one sentence, with a path of that folder; or what failed does not matter,
  and all is as undisturbed;
- nothing is half written or left over, and the earlier results are there as they were, or the new ones all of them.
  Where renaming itself fails, and goes on failing, old and new may lie side by side; then what says that they belong
  together is missing;
- with the disk sound again the same command ends in the files of an undisturbed run, to the byte.

Each try is a fork of one process that has everything imported.
"""

from __future__ import annotations

import ctypes
import errno
import importlib
import os
import pkgutil
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import click

from benchmarks.kills.folder import BrokenError, check_folder, contents, differing
from benchmarks.kills.jobs import DIGITS, ROOT

_FOLDER = "FULLDISK_FOLDER"
_SOURCE = Path(__file__).with_suffix(".c")
_OLD = "old"
_GROWING = ("journal.jsonl", "histograms.npz", "best.")
"""What a run adds to on its way: it has no earlier state to come back to."""


class Failure(NamedTuple):
    """What fails: the nth call, with an error, and with `lasting` all that come after it."""

    error: int
    lasting: bool

    def __str__(self) -> str:
        return f"{errno.errorcode[self.error]}, {'all from there' if self.lasting else 'one call'}"


FAILURES = [Failure(e, lasting) for e in (errno.ENOSPC, errno.EIO, errno.EDQUOT) for lasting in (True, False)]


@dataclass(frozen=True)
class Job:
    """A command that writes to the folder `out`, below the one that is watched.

    `earlier` makes that folder with results of an earlier command; where there is none, all of its own files hold
    something else. `last` names the files that say which belong together,
    the last ones to come. `reads` says that the
    command needs what lies there.
    """

    name: str
    words: tuple[str, ...]
    last: str
    earlier: Callable[[], None] | None = None
    reads: bool = False


@dataclass
class Found:
    """What was counted of one job."""

    calls: int = 0
    tries: int = 0
    told: int = 0
    mattered_not: int = 0
    spoilt: int = 0
    failed: Counter[str] = field(default_factory=Counter)


def jobs(work: Path) -> list[Job]:
    """All commands that write."""
    data = ("--data", str(DIGITS), "--samples", "4", "--threads", "1")
    model = str(DIGITS / "digits.onnx")
    sweep = (
        "sweep",
        model,
        *data,
        "--holdout",
        "0",
        "--precisions",
        "int8",
        "--tolerance",
        "sqnr>=40",
        "--max-evaluations",
        "4",
    )
    calibrate, plan = ("calibrate", model, *data), str(work / "given" / "plan.json")

    def ran(*words: str) -> Callable[[], None]:
        return lambda: _expect(run(words, work), (0, 1))

    def laid() -> None:
        shutil.copytree(work / "given", work / "out")
        (work / "out" / "report.html").write_text("<html>old</html>")

    out, given = str(work / "out"), str(work / "given")
    page, cache = f"{out}/page.html", f"{out}/x.cache"
    to, coarse = ("--out", out), ("--method", "max")
    found = [
        Job("sweep", (*sweep, *to), "run.json", ran(*sweep[:-3], "sqnr>=10", *to)),
        Job("sweep --plan", (*sweep[:-4], "--plan", plan, *to), "run.json", ran(*sweep, *to)),
        Job("calibrate", (*calibrate, *to), "calibration.cache.json calibration.html", ran(*calibrate, *coarse, *to)),
        Job(
            "calibrate --cache",
            (*calibrate, *to, "--cache", cache),
            "x.cache.json calibration.html",
            ran(*calibrate, *coarse, *to, "--cache", cache),
        ),
        Job("report", ("report", out), "report.html", laid, reads=True),
        Job("report --out", ("report", given, "--out", page), "page.html"),
        Job("diff --html", ("diff", given, given, "--html", page), "page.html"),
        Job("fidelity", ("fidelity", model, *data, "--precisions", "int8", *to), "fidelity.json"),
        Job("verify", ("verify", f"{out}/plan.json", "--threads", "1"), "run.json", laid, reads=True),
    ]
    for target in ("json", "trtexec", "polygraphy", "modelopt", "onnxruntime", "typed-onnx"):
        name = f"x.{'py' if target == 'polygraphy' else 'onnx' if 'onnx' in target else 'txt'}"
        words = ("export", plan, "--format", target, "--threads", "1", "--out", f"{out}/{name}")
        found.append(Job(f"export {target}", words, name))
    return found


class Ended(NamedTuple):
    """How a command has ended: its exit code, what it said on standard error, the calls, and which failed first."""

    code: int
    said: str
    calls: int
    failed: str


def run(words: tuple[str, ...], work: Path, nth: int = 0, failure: Failure = FAILURES[0]) -> Ended:
    """Run a command in a fork of this process, with the nth call failing; 0 for none."""
    said, told = work.parent / "said", work.parent / "told"
    sys.stdout.flush()
    if (child := os.fork()) == 0:
        code = 99
        try:
            for number, path in ((1, os.devnull), (2, str(said))):
                os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
            code = _in_child(words, told, nth, failure)
        finally:
            os._exit(code)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    calls, _, failed = told.read_text().partition(" ")
    return Ended(code, said.read_text(), int(calls), failed)


def _in_child(words: tuple[str, ...], told: Path, nth: int, failure: Failure) -> int:
    from precisionlab.cli import main

    library = ctypes.CDLL(None)
    library.fulldisk_failed.restype = ctypes.c_char_p
    library.fulldisk_calls.restype = ctypes.c_long
    sys.argv = ["precisionlab", *words]
    library.fulldisk_set(ctypes.c_long(nth), failure.error, int(failure.lasting))
    try:
        main()
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 98
    calls, failed = library.fulldisk_calls(), library.fulldisk_failed().decode()
    told.write_text(f"{calls} {failed}")
    sys.stderr.flush()
    return code


def disturb(job: Job, work: Path, most: int, drawn: random.Random, found: Found) -> None:
    """Let each call of a job fail, or so many of each kind of failure, and count. Raises BrokenError."""
    out = work / "out"
    starts = [_start(job, work, has_earlier) for has_earlier in ((True, True) if job.reads else (False, True))]
    for kind, failure in enumerate(FAILURES):
        calls = starts[0][1].calls
        tries = list(range(1, calls + 1))
        share = most if kind == 0 else most // 4
        for nth in sorted(tries if calls <= share else drawn.sample(tries, share)):
            start, *undisturbed = starts[drawn.randrange(2)]
            _one_try(job, out, start, *undisturbed, nth, failure, found)
    found.calls = starts[0][1].calls


def _start(job: Job, work: Path, has_earlier: bool) -> tuple[Path, Ended, dict[str, Any]]:
    """A copy of the folder before the command, without or with earlier results; and what the command comes to there."""
    out, start = work / "out", work.parent / f"start{has_earlier:d}"
    for folder in (out, start):
        shutil.rmtree(folder, ignore_errors=True)
    if job.last == "page.html":
        out.mkdir()  # a page's folder must be there
    if has_earlier and job.earlier is not None:
        job.earlier()
    elif has_earlier:
        _expect(run(job.words, work), (0, 1))
        for path in [path for path in out.rglob("*") if path.is_file()]:
            path.write_text(_OLD)
    if out.exists():
        shutil.copytree(out, start)
    ended = run(job.words, work)
    _expect(ended, (0, 1))
    return start, ended, contents(out)


def _one_try(
    job: Job,
    out: Path,
    start: Path,
    ended: Ended,
    expected: dict[str, Any],
    nth: int,
    failure: Failure,
    found: Found,
) -> None:
    shutil.rmtree(out, ignore_errors=True)
    if start.exists():
        shutil.copytree(start, out)
    before = contents(out)
    broken = run(job.words, out.parent, nth, failure)
    where = f"{job.name}, call {nth} ({broken.failed}; {failure}), {'after another' if before else 'in a new folder'}"
    try:
        _check(job, out, before, expected, ended, broken, failure, found)
        again = run(job.words, out.parent)
        if again.code != ended.code:
            raise BrokenError(f"given again it ends with {again.code}: {again.said[-300:]}")
        if names := differing(out, expected):
            raise BrokenError(f"given again it comes to something else: {names}")
    except BrokenError as error:
        raise BrokenError(f"{where}: {error}") from None
    found.tries += 1
    found.failed[broken.failed.partition(" ")[0]] += 1


def _check(
    job: Job,
    out: Path,
    before: Mapping[str, Any],
    expected: Mapping[str, Any],
    ended: Ended,
    broken: Ended,
    failure: Failure,
    found: Found,
) -> None:
    """What has to hold after a failure."""
    now = _settled(contents(out))
    left = [name for name in now if any(part.startswith(".") for part in Path(name).parts)]
    if left:
        raise BrokenError(f"is left over: {left}")
    is_new = now == _settled(expected)
    if broken.code == ended.code and is_new:
        found.mattered_not += 1
        return
    lines = [line for line in broken.said.splitlines() if line.startswith("precisionlab: ")]
    if broken.code != 2 or len(lines) != 1 or str(out.parent) not in lines[0] or "Traceback" in broken.said:
        raise BrokenError(f"ends with {broken.code}: {broken.said[-1500:]}")
    found.told += 1
    if job.earlier is not None:
        check_folder(out)
    if now == _settled(before) or is_new:
        return
    if not failure.lasting or all(name in now for name in job.last.split()):
        changed = sorted(name for name in now.keys() | before.keys() if now.get(name) != before.get(name))
        raise BrokenError(f"the earlier results are not what they were: {changed}")
    found.spoilt += 1


def _settled(files: Mapping[str, Any]) -> dict[str, Any]:
    return {name: text for name, text in files.items() if not name.startswith(_GROWING)}


def _expect(ended: Ended, codes: tuple[int, ...]) -> None:
    if ended.code not in codes:
        raise BrokenError(f"undisturbed it ends with {ended.code}: {ended.said[-500:]}")


def _import_all() -> None:
    """Everything that a command may import, so that forks need not."""
    import precisionlab

    for module in pkgutil.walk_packages(precisionlab.__path__, "precisionlab."):
        if not any(part in module.name for part in ("tensorrt", "cuda", "__main__", "_gpu")):
            importlib.import_module(module.name)


def _given(work: Path) -> None:
    """A finished run that other commands read."""
    model = str(DIGITS / "digits.onnx")
    words = ("sweep", model, "--data", str(DIGITS), "--samples", "4", "--threads", "1", "--holdout", "0")
    _expect(run((*words, "--precisions", "int8", "--out", str(work / "given")), work), (0, 1))


def _preloaded(arguments: list[str]) -> int:
    """Build the library, and start this again with it; the exit code."""
    with tempfile.TemporaryDirectory(prefix="fulldisk") as made:
        library, work = Path(made) / "fulldisk.so", Path(made) / "work"
        subprocess.run(["gcc", "-shared", "-fPIC", "-O2", "-o", library, _SOURCE, "-ldl"], check=True)
        for folder in (work, work / "home", work / "tmp"):
            folder.mkdir()
        environment = {
            **os.environ,
            "LD_PRELOAD": str(library),
            _FOLDER: str(work),
            "HOME": str(work / "home"),
            "TMPDIR": str(work / "tmp"),
            "PYTHONPATH": str(ROOT),
            **dict.fromkeys(("OMP_NUM_THREADS", "NUMBA_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1"),
        }
        command = [sys.executable, "-m", "benchmarks.fulldisk", *arguments]
        return subprocess.run(command, env=environment, cwd=ROOT, check=False).returncode


@click.command()
@click.option("--most", default=60, show_default=True, help="Calls of a command that fail for want of room.")
@click.option("--seed", default=0, show_default=True, help="Of the calls, where there are more.")
@click.option("--only", multiple=True, metavar="WORD", help="Only commands with one of these in their name.")
def main(most: int, seed: int, only: tuple[str, ...]) -> None:
    """Let the disk fail under commands that write, and tell what came of it."""
    if _FOLDER not in os.environ:
        raise SystemExit(_preloaded(sys.argv[1:]))
    work, drawn, began, tries = Path(os.environ[_FOLDER]), random.Random(seed), time.monotonic(), 0
    _import_all()
    _given(work)
    for job in [job for job in jobs(work) if not only or any(word in job.name for word in only)]:
        found = Found()
        try:
            disturb(job, work, most, drawn, found)
        except BrokenError as error:
            raise click.ClickException(str(error)) from error
        tries += found.tries
        click.echo(
            f"{job.name}: {found.calls} calls, {found.tries} tries: {found.told} told, {found.mattered_not} mattered "
            f"not, {found.spoilt} showed that results are gone; "
            f"{', '.join(f'{name} {count}' for name, count in sorted(found.failed.items()))}"
        )
    click.echo(f"{tries} tries, {(time.monotonic() - began) / 60:.1f} min: nothing lost")


if __name__ == "__main__":
    main()
