"""Runs killed at random moments and started again: `python -m benchmarks.kills [--kills 200] [--seed 0]`.

Each job is run once undisturbed. Then it is started again and again, in a fresh folder, and killed with SIGKILL at a
moment drawn evenly over the time that the undisturbed run took, until a start comes through; and again from a fresh
folder, until the job has had its share of the kills. Checked are

- after each kill: every file in the folder is whole (JSON, CSV, HTML, ONNX, caches, histograms), the journal has at
  most one half line, at its end, and begins with what it held before the kill;
- after each start that came through: the same exit code, the same files to the byte (dates and durations aside), the
  same journal, no key in it twice, nothing left over; and of the evaluations no more were worked than the journal has,
  and one for each kill.

What differs ends the benchmark with an error that says where. The last lines are the figures.
"""

from __future__ import annotations

import csv
import io
import json
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import click
import numpy as np
import onnx

ROOT = Path(__file__).parents[1]
DIGITS = ROOT / "calib_data"
PREPARED = ROOT / "examples" / "prepared"
_MOST = 4  # kills of one folder: then it is let through, so that late moments are met too
_TAKEN = "taken from the journal of an earlier run"
_STAGE = re.compile(r"(.+) \(\d+ (?:samples?|layers?)\)")


@dataclass(frozen=True)
class Job:
    """A command, without its `--out`, and its share of the kills."""

    name: str
    words: tuple[str, ...]
    share: int


def jobs() -> list[Job]:
    """Sweeps in both precisions, searches among many layers, and calibrations; few samples each."""

    def prepared(name: str) -> tuple[str, ...]:
        return str(PREPARED / name / f"{name}.onnx"), "--data", str(PREPARED / name / "data")

    few = ("--samples", "1", "--tolerance", "sqnr>=25", "--max-evaluations", "3")
    digits = (str(DIGITS / "digits.onnx"), "--data", str(DIGITS))
    return [
        Job("sweep digits", ("sweep", *digits, "--samples", "12", "--tolerance", "sqnr>=40"), 7),
        Job("sweep magika", ("sweep", *prepared("magika"), "--samples", "4", "--precisions", "fp16"), 4),
        Job(
            "sweep ppocr4_det",
            ("sweep", *prepared("ppocr4_det"), "--precisions", "int8", *few),
            2,
        ),
        Job("calibrate digits", ("calibrate", *digits, "--method", "auto"), 5),
        Job("calibrate ppocr4_det", ("calibrate", *prepared("ppocr4_det"), "--samples", "4"), 2),
    ]


@dataclass
class Found:
    """What was counted of one job."""

    seconds: float = 0.0
    kills: int = 0
    finished: int = 0
    during: Counter[str] = field(default_factory=Counter)
    half_lines: int = 0
    drafts: int = 0
    repeated: int = 0


class BrokenError(Exception):
    """Something that must hold does not."""


def start(job: Job, work: Path, threads: int, moment: float | None) -> tuple[int, str]:
    """Run the job in a folder; killed after `moment` seconds. Its exit code and what it said on standard error."""
    command = [sys.executable, "-m", "precisionlab", *job.words, "--threads", str(threads), "--out", str(work / "out")]
    with (work / "stderr").open("wb") as said:
        process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=said)
        try:
            process.wait(moment)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
    return process.returncode, (work / "stderr").read_text(encoding="utf-8")


def journal_of(folder: Path) -> tuple[list[str], bool]:
    """The keys of the journal's whole lines, and whether half a line follows. Raises BrokenError."""
    path = folder / "journal.jsonl"
    lines = path.read_bytes().splitlines(keepends=True) if path.exists() else []
    half = bool(lines) and not lines[-1].endswith(b"\n")
    whole = [json.loads(line) for line in lines[: len(lines) - half]]
    if whole and "context" not in whole[0]:
        raise BrokenError("the journal does not begin with its context")
    keys = [entry["key"] for entry in whole[1:]]
    if len(set(keys)) < len(keys):
        raise BrokenError("an evaluation stands in the journal twice")
    return keys, half


def check_whole(path: Path) -> None:
    """Raises whatever reading raises where a file is not whole."""
    if path.suffix == ".json":
        json.loads(path.read_text(encoding="utf-8"))
    elif path.suffix == ".csv":
        text = path.read_bytes().decode("utf-8")
        widths = {len(row) for row in csv.reader(io.StringIO(text, newline=""), strict=True)}
        if len(widths) != 1 or not text.endswith("\n"):
            raise BrokenError(f"{path.name}: rows of {widths} cells")
    elif path.suffix == ".html":
        text = path.read_text(encoding="utf-8")
        HTMLParser().feed(text)
        if not text.rstrip().endswith("</html>"):
            raise BrokenError(f"{path.name}: has no end")
    elif path.suffix == ".npz":
        with np.load(path, allow_pickle=False) as archive:
            for name in archive.files:
                archive[name]
    elif path.suffix == ".onnx":
        onnx.checker.check_model(onnx.load(path))
    elif path.suffix == ".cache" and path.parent.name != "onnxruntime":
        from precisionlab.calibration.cache import read_cache_file

        read_cache_file(path)
    elif path.name != "journal.jsonl" and not path.stat().st_size:
        raise BrokenError(f"{path.name}: is empty")


def check_folder(folder: Path) -> tuple[list[str], bool, int]:
    """The journal's keys, whether it ends in half a line, and the number of drafts. Raises BrokenError."""
    drafts = 0
    for path in sorted(folder.rglob("*")) if folder.exists() else []:
        hidden = any(part.startswith(".") for part in path.relative_to(folder).parts)
        drafts += hidden and path.name.endswith(".part")
        if path.is_file() and not hidden:
            try:
                check_whole(path)
            except Exception as error:
                raise BrokenError(f"{path}: not whole: {error}") from error
    return *journal_of(folder), drafts


def contents(folder: Path) -> dict[str, Any]:
    """All files by name, without dates, durations, and the path of the folder itself."""
    found: dict[str, Any] = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if path.is_dir():
            continue
        content = path.read_bytes().replace(str(folder).encode(), b"RUN")
        if path.suffix in (".json", ".jsonl", ".html", ".md"):
            found[name] = _timeless(content.decode("utf-8"))
        else:
            found[name] = content
    return found


def _timeless(text: str) -> str:
    text = re.sub(r"\d{4}-\d\d-\d\d[T ]\d\d:\d\d(:\d\d)?(\+00:00|Z| UTC)?", "TIME", text)
    text = re.sub(r'"seconds": [0-9.e-]+', "TIME", text)
    text = re.sub(r'"sha256": "[0-9a-f]{16}"', "DIGEST", text)  # of a journal's line, its seconds included
    return re.sub(r"\b\d+(\.\d+)? (s|min)\b", "TIME", text)


def stages(said: str) -> list[str]:
    """The titles of the stages begun."""
    return [match[1] for line in said.splitlines() if (match := _STAGE.fullmatch(line))]


def disturb(job: Job, kills: int, drawn: random.Random, threads: int, work: Path, found: Found) -> None:
    """Run one job undisturbed, and then with so many kills, and count in `found`. Raises BrokenError."""
    whole = work / "run"
    whole.mkdir()
    began = time.monotonic()
    code, said = start(job, whole, threads, None)
    found.seconds = time.monotonic() - began
    if code not in (0, 1):
        raise BrokenError(f"{job.name}: {said[-300:]}")
    expected, (keys, _) = contents(whole / "out"), journal_of(whole / "out")
    again, replayed = start(job, whole, threads, None)
    # What a finished run does not do again is an evaluation.
    titles = frozenset(stages(said)) - frozenset(stages(replayed))
    if replayed.count(_TAKEN) != len(keys):
        raise BrokenError(f"{job.name}: {replayed.count(_TAKEN)} taken from a journal of {len(keys)}")
    if again != code or contents(whole / "out") != expected:
        raise BrokenError(f"{job.name}: a finished run started again is another: {_differing(whole / 'out', expected)}")
    while found.kills < kills:
        shutil.rmtree(whole)
        whole.mkdir()  # under the same path, which the files name
        _one_folder(job, found, min(kills - found.kills, _MOST), drawn, threads, whole, (code, expected, keys, titles))


def _one_folder(
    job: Job,
    found: Found,
    most: int,
    drawn: random.Random,
    threads: int,
    folder: Path,
    undisturbed: tuple[int, dict[str, Any], list[str], frozenset[str]],
) -> None:
    code, expected, keys, titles = undisturbed
    killed = begun = 0
    before: list[str] = []
    while True:
        moment = drawn.uniform(0, found.seconds) if killed < most else None
        began = time.monotonic()
        ended, said = start(job, folder, threads, moment)
        if ended != -signal.SIGKILL and not killed:
            # Undisturbed too, and the first one may have compiled, or shared the machine: most draws would lie behind.
            found.seconds = min(found.seconds, time.monotonic() - began)
        begun += sum(title in titles for title in stages(said))
        now, half, drafts = check_folder(folder / "out")
        if now[: len(before)] != before or keys[: len(now)] != now:
            raise BrokenError(f"{job.name}: the journal is not that of the undisturbed run: {before} {now}")
        if ended != -signal.SIGKILL:
            break
        before = now
        killed += 1
        found.kills += 1
        found.half_lines += half
        found.drafts += drafts
        found.during[_where(said)] += 1
    if ended != code:
        raise BrokenError(f"{job.name}: exit code {ended} in place of {code}: {said[-300:]}")
    if differing := _differing(folder / "out", expected):
        raise BrokenError(f"{job.name}: not the result of the undisturbed run: {differing}")
    if not len(now) <= begun <= len(now) + killed:
        raise BrokenError(f"{job.name}: {begun} evaluations for a journal of {len(now)} and {killed} kills")
    found.repeated += begun - len(now)
    found.finished += 1


def _where(said: str) -> str:
    """Roughly what a run was at when it was killed."""
    begun = stages(said)
    if not begun:
        return "start"
    return "search" if ", plan " in begun[-1] else "samples" if "reading" in begun[-1] else "passes"


def _differing(folder: Path, expected: dict[str, Any]) -> list[str]:
    """The files that differ, each with where it first does."""
    now = contents(folder)
    names = sorted(name for name in now.keys() | expected.keys() if now.get(name) != expected.get(name))
    return [f"{name}: {_first(expected.get(name, ''), now.get(name, ''))}" for name in names]


def _first(expected: Any, found: Any) -> str:
    at = next((i for i, (a, b) in enumerate(zip(expected, found, strict=False)) if a != b), -1)
    return f"at {at}: {expected[max(0, at - 60) : at + 60]!r} is now {found[max(0, at - 60) : at + 60]!r}"


@click.command()
@click.option("--kills", default=200, show_default=True, help="Over all jobs.")
@click.option("--seed", default=0, show_default=True, help="Of the moments.")
@click.option("--threads", default=1, show_default=True, help="Of each run.")
@click.option("--only", default="", metavar="WORD", help="Only jobs with this in their name.")
def main(kills: int, seed: int, threads: int, only: str) -> None:
    """Kill runs and start them again, and tell what came of it."""
    chosen = [job for job in jobs() if only in job.name]
    total = sum(job.share for job in chosen)
    drawn, began, every = random.Random(seed), time.monotonic(), Found()
    for job, part in zip(chosen, _parts(kills, [job.share for job in chosen], total), strict=True):
        with tempfile.TemporaryDirectory(prefix="kills") as work:
            found = Found()
            try:
                disturb(job, part, drawn, threads, Path(work), found)
            except BrokenError as error:
                raise click.ClickException(f"after {every.kills + found.kills} kills: {error}") from error
        every.kills += found.kills
        every.finished += found.finished
        click.echo(
            f"{job.name}: {found.kills} kills over {found.seconds:.1f} s, {found.finished} runs came through to the "
            f"same files; {found.repeated} evaluations done again, {found.half_lines} half lines, {found.drafts} "
            "drafts left behind; "
            f"killed during {', '.join(f'{name} {count}' for name, count in sorted(found.during.items()))}"
        )
    click.echo(f"{every.kills} kills, {every.finished} runs, {(time.monotonic() - began) / 60:.1f} min: all the same")


def _parts(kills: int, shares: Sequence[int], total: int) -> Iterator[int]:
    given = 0
    for index, share in enumerate(shares):
        part = kills - given if index == len(shares) - 1 else round(kills * share / total)
        given += part
        yield part


if __name__ == "__main__":
    main()
