"""One start of a command, killed at a moment of it; and what is left of its processes then."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from benchmarks.kills.folder import BrokenError
from benchmarks.kills.jobs import ROOT, Job

TAKEN = "taken from the journal of an earlier run"
_LOOK = 0.002  # seconds
_PATIENCE = 20.0  # seconds that orphans may take on a busy machine
_BESIDE = re.compile(rf" \(\d+ (?:samples?|layers?)\)(?: · .+)?|: {TAKEN}")


@dataclass(frozen=True)
class Moment:
    """When to kill, and whom: so many seconds after the start, after a line was said, or after drafts lay there."""

    seconds: float
    line: str | None = None
    drafts: bool = False
    everyone: bool = False


@dataclass(frozen=True)
class Ended:
    """How a start has ended: its exit code, what it said on standard error, and when (seconds) things were seen.

    `lines` has for each line when it came, `drafts` from when to when drafts of results lay in the folder. `session`
    is what the processes of this start have in common.
    """

    code: int
    said: str
    seconds: float
    lines: dict[str, float]
    drafts: tuple[float, float] | None
    session: int

    @property
    def last(self) -> str:
        """The last line."""
        return list(self.lines)[-1]


def start(job: Job, work: Path, threads: int, moment: Moment | None) -> Ended:
    """Run the job in a folder; killed at a moment of it."""
    command = [sys.executable, "-m", "precisionlab", *job.words, "--threads", str(threads), "--out", str(work / "out")]
    path, began = work / "stderr", time.monotonic()
    with path.open("wb") as said:
        process = subprocess.Popen(
            command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=said, start_new_session=True, env=_environment()
        )
    lines: dict[str, float] = {}
    drafts: tuple[float, float] | None = None
    try:
        while process.poll() is None:
            now = time.monotonic() - began
            for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
                lines.setdefault(title(line), now)
            if any(work.glob("out/.draft.*.part")):
                drafts = (drafts[0] if drafts else now, now)
            if moment is not None and now >= _when(moment, lines, drafts):
                kill(process.pid, everyone=moment.everyone)
                process.wait()
                break
            time.sleep(_LOOK)
    except BaseException:
        kill(process.pid, everyone=True)
        raise
    text = path.read_text(encoding="utf-8", errors="replace")
    return Ended(process.returncode, text, time.monotonic() - began, lines, drafts, process.pid)


def title(line: str) -> str:
    """What a line is of, whether that was worked or taken from the journal."""
    return _BESIDE.sub("", line)


def kill(pid: int, *, everyone: bool) -> None:
    """SIGKILL for a process that leads a group, or for the group."""
    (os.killpg if everyone else os.kill)(pid, signal.SIGKILL)


def wait_for_orphans(session: int) -> float:
    """Wait until no process of a session is left; the seconds that took. Raises BrokenError where it takes too long."""
    began = time.monotonic()
    while left := _of_session(session):
        if time.monotonic() - began > _PATIENCE:
            os.killpg(session, signal.SIGKILL)
            raise BrokenError(f"after {_PATIENCE:.0f} s there still is {', '.join(left)}")
        time.sleep(_LOOK)
    return time.monotonic() - began


def _of_session(session: int) -> list[str]:
    """The processes of a session, zombies aside, by their command lines."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            _, _, facts = stat.read_text().rpartition(") ")
            state, _, _, of = facts.split()[:4]
            if int(of) == session and state != "Z":
                words = (stat.parent / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                found.append(f"{stat.parent.name} {words}")
        except OSError:  # it has just ended
            continue
    return found


def _when(moment: Moment, lines: dict[str, float], drafts: tuple[float, float] | None) -> float:
    began = 0.0 if moment.line is None else lines.get(moment.line, float("inf"))
    if moment.drafts:
        began = drafts[0] if drafts else float("inf")
    return began + moment.seconds


def _environment() -> dict[str, str]:
    """This process's, with the package that it has: the project's own folder may not be the one that is installed."""
    return {**os.environ, "PYTHONPATH": str(ROOT)}
