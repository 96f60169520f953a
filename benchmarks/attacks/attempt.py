"""What an attempt is: files that are made in an empty folder, a command, and what may come of it."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.attacks import ROOT

MODEL = ROOT / "calib_data" / "digits.onnx"
DATA = ROOT / "calib_data"
SWEEP = (
    *("sweep", str(MODEL), "--data", str(DATA), "--precisions", "fp16,int8", "--samples", "8"),
    *("--max-evaluations", "4", "--threads", "1", "--out", "run"),
)
"""What has made the run that many attempts begin with; the same command goes on from it."""

OUTSIDE = Path("..", "outside")
"""Where the files lie that no attempt may change, seen from where the command runs."""

REFUSED = frozenset({2})
RUNS = frozenset({0, 1})
ANY = frozenset({0, 1, 2})

Words = Sequence[str]
Make = Callable[[], Words]
"""Makes the files of an attempt in the current folder, and says the command."""


@dataclass(frozen=True)
class Attempt:
    """One command on files of its own.

    `shell` is a line of bash with {} for the command, for what only a process of its own can show: streams, signals,
    limits. `names` has to stand in the refusal. `run` says that the folder begins with the run of `SWEEP`, and `same`
    that its plans must be the same at the end.
    """

    name: str
    make: Make
    codes: frozenset[int] = ANY
    names: str = ""
    shell: str = ""
    run: bool = False
    same: bool = False
    twin: bool = False
    seconds: float = 60.0


@dataclass(frozen=True)
class Kind:
    """A row of the table. `twins` are the same commands on sound input, which must end in 0 or 1."""

    name: str
    tried: str
    must: str
    attempts: Sequence[Attempt] = field(default_factory=tuple)


Family = Callable[[random.Random], Iterable[Kind]]


def words(*parts: object) -> Make:
    """A command that needs no files but those that are there."""
    return lambda: [str(part) for part in parts]


def after(change: Callable[[], object], *parts: object) -> Make:
    """A command after a change."""

    def make() -> Words:
        change()
        return [str(part) for part in parts]

    return make


def named(prefix: str, attempts: Iterable[Attempt]) -> Iterator[Attempt]:
    """The attempts, with longer names."""
    for attempt in attempts:
        yield Attempt(**{**attempt.__dict__, "name": f"{prefix}: {attempt.name}"})
