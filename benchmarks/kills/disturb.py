"""A job with its share of the kills."""

from __future__ import annotations

import random
import re
import shutil
import signal
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.kills.folder import BrokenError, check_folder, contents, differing, journal_of
from benchmarks.kills.jobs import Job
from benchmarks.kills.process import TAKEN, Ended, Moment, start, wait_for_orphans

_MOST = 4  # kills of one folder: then it is let through, so that late moments are met too
_MOST_WRITING = 8  # only the first start of a folder works, those behind it have but to write
_STAGE = re.compile(r"(.+) \(\d+ (?:samples?|layers?)\)(?: · .+)?")


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
    everyone: int = 0
    orphans: float = 0.0
    """The longest time, in seconds, that a worker has outlived its main process."""


@dataclass
class _Undisturbed:
    """A run without kills: what it comes to, and how long its end takes (seconds)."""

    code: int
    files: dict[str, Any]
    keys: list[str]
    titles: frozenset[str]
    """The stages that a finished run does not do again: the evaluations."""
    last: str
    """The last line that it says."""
    tail: float
    """From that line to the end."""
    drafts: float
    """For how long drafts lie in the folder."""


def stages(said: str) -> list[str]:
    """The titles of the stages begun."""
    return [match[1] for line in said.splitlines() if (match := _STAGE.fullmatch(line))]


def disturb(job: Job, kills: int, drawn: random.Random, threads: int, work: Path, found: Found) -> None:
    """Run one job undisturbed, and then with so many kills, and count in `found`. Raises BrokenError."""
    whole = work / "run"
    whole.mkdir()
    undisturbed = _undisturbed(job, threads, whole, found)
    while found.kills < kills:
        shutil.rmtree(whole)
        whole.mkdir()  # under the same path, which the files name
        most = min(kills - found.kills, _MOST_WRITING if job.writing else _MOST)
        _one_folder(job, found, most, drawn, threads, whole, undisturbed)


def _undisturbed(job: Job, threads: int, whole: Path, found: Found) -> _Undisturbed:
    first = start(job, whole, threads, None)
    found.seconds = first.seconds
    if first.code not in (0, 1):
        raise BrokenError(f"{job.name}: {first.said[-300:]}")
    expected, (keys, _) = contents(whole / "out"), journal_of(whole / "out")
    again = start(job, whole, threads, None)
    titles = frozenset(stages(first.said)) - frozenset(stages(again.said))
    if again.said.count(TAKEN) != len(keys):
        raise BrokenError(f"{job.name}: {again.said.count(TAKEN)} taken from a journal of {len(keys)}")
    if again.code != first.code or contents(whole / "out") != expected:
        raise BrokenError(f"{job.name}: a finished run started again is another: {differing(whole / 'out', expected)}")
    for ended in (first, again):
        wait_for_orphans(ended.session)
    tail = min(ended.seconds - ended.lines[first.last] for ended in (first, again) if first.last in ended.lines)
    laid = [ended.drafts[1] - ended.drafts[0] for ended in (first, again) if ended.drafts]
    return _Undisturbed(first.code, expected, keys, titles, first.last, tail, min(laid, default=0.0))


def _one_folder(
    job: Job,
    found: Found,
    most: int,
    drawn: random.Random,
    threads: int,
    folder: Path,
    undisturbed: _Undisturbed,
) -> None:
    killed = begun = 0
    before: list[str] = []
    unwatched: list[int] = []
    while True:
        moment = _moment(job, drawn, found, undisturbed) if killed < most else None
        ended = start(job, folder, threads, moment)
        if ended.code != -signal.SIGKILL and not killed:
            # Undisturbed too, and the first one may have compiled, or shared the machine: most draws would lie behind.
            found.seconds = min(found.seconds, ended.seconds)
        begun += sum(name in undisturbed.titles for name in stages(ended.said))
        now, half, drafts = check_folder(folder / "out")
        if now[: len(before)] != before or undisturbed.keys[: len(now)] != now:
            raise BrokenError(f"{job.name}: the journal is not that of the undisturbed run: {before} {now}")
        if job.has_workers and moment is not None and drawn.random() < 0.5:
            found.orphans = max(found.orphans, wait_for_orphans(ended.session))
        else:
            unwatched.append(ended.session)
        if ended.code != -signal.SIGKILL:
            break
        before = now
        killed += 1
        found.kills += 1
        found.half_lines += half
        found.drafts += drafts
        found.everyone += moment is not None and moment.everyone
        found.during[_where(ended, drafts, undisturbed)] += 1
    for session in unwatched:
        wait_for_orphans(session)
    _check_end(job, ended, folder / "out", undisturbed)
    if not len(now) <= begun <= len(now) + killed:
        raise BrokenError(f"{job.name}: {begun} evaluations for a journal of {len(now)} and {killed} kills")
    found.repeated += begun - len(now)
    found.finished += 1


def _moment(job: Job, drawn: random.Random, found: Found, undisturbed: _Undisturbed) -> Moment:
    everyone = job.has_workers and drawn.random() < 0.5
    if not job.writing:
        return Moment(drawn.uniform(0, found.seconds), everyone=everyone)
    if drawn.random() < 0.5:
        return Moment(drawn.uniform(0, undisturbed.tail), line=undisturbed.last, everyone=everyone)
    return Moment(drawn.uniform(0, undisturbed.drafts), drafts=True, everyone=everyone)


def _check_end(job: Job, ended: Ended, out: Path, undisturbed: _Undisturbed) -> None:
    if ended.code != undisturbed.code:
        raise BrokenError(f"{job.name}: exit code {ended.code} in place of {undisturbed.code}: {ended.said[-300:]}")
    if names := differing(out, undisturbed.files):
        raise BrokenError(f"{job.name}: not the result of the undisturbed run: {names}")


def _where(ended: Ended, drafts: int, undisturbed: _Undisturbed) -> str:
    """Roughly what a run was at when it was killed."""
    begun = stages(ended.said)
    if drafts and ended.drafts:
        return "drafts"
    if undisturbed.last in ended.lines:
        return "end"
    if not begun:
        return "start"
    return "search" if ", plan " in begun[-1] else "samples" if "reading" in begun[-1] else "passes"
