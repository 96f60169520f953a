"""Limits of the operating system: memory, files, sizes of files, and a disk that is full."""

from __future__ import annotations

import random
import shutil
import subprocess
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

from benchmarks.attacks.attempt import ANY, RUNS, SWEEP, Attempt, Kind, words
from benchmarks.attacks.streams import SMALL

MEMORY = (300, 400, 500, 700, 900, 1100, 1300, 1500, 1800, 2200, 2600, 3200, 4000)
"""MB of addresses. With fewer Python does not start; with 550 to 650 the C library ends the process by itself
("cannot allocate memory for thread-local data"), or SciPy's OpenBLAS waits for ever while it is loaded."""

FRESH = words(*SWEEP, "--seed", "1")
"""Another run in the folder of the first: nothing is taken from its journal."""


def kinds(dice: random.Random) -> Iterable[Kind]:
    """The attempts of this family."""
    sizes = [*MEMORY, *(dice.choice((dice.randrange(300, 540), dice.randrange(700, 3000))) for _ in range(6))]
    yield Kind(
        "little memory",
        "a sweep under `ulimit -v` of 300 MB to 4 GB, and the same where a run goes on",
        "figures, or refused in a sentence; never 130, never a traceback",
        [
            Attempt("twin without limits", SMALL, RUNS, shell="{}", twin=True),
            *(Attempt(f"{size} MB", SMALL, ANY, shell=f"ulimit -v {size * 1024}; {{}}") for size in sizes),
            *(
                Attempt(f"{size} MB, going on", words(*SWEEP), ANY, shell=f"ulimit -v {size * 1024}; {{}}", run=True)
                for size in (700, 1100, 1500)
            ),
        ],
    )
    yield Kind(
        "other limits",
        "`ulimit` of open files, of the size of files, of the stack, of processor time, of locked memory",
        "figures, or refused in a sentence",
        [
            *(Attempt(f"{count} files", SMALL, ANY, shell=f"ulimit -n {count}; {{}}") for count in (10, 16, 24, 48)),
            *(Attempt(f"files of {size} KB", SMALL, ANY, shell=f"ulimit -f {size}; {{}}") for size in (1, 16, 100)),
            *(
                Attempt(
                    f"files of {size} KB, going on",
                    FRESH,
                    ANY,
                    shell=f"ulimit -f {size}; {{}}",
                    run=True,
                )
                for size in (1, 64)
            ),
            Attempt("a stack of 256 KB", SMALL, ANY, shell="ulimit -s 256; {}"),
        ],
    )
    yield Kind(
        "a full disk",
        "a sweep into a tmpfs with 0 to 400 KB left",
        "figures, or refused in a sentence; the results before stay whole",
        list(full()),
    )


def full() -> Iterator[Attempt]:
    """A small disk with so much left, in a name space of its own, which goes with the attempt."""
    if not can_mount():
        return
    same = "for name in run.json report.html plan.fp16.json; do cmp -s run/$name run/disk/$name || code=99; done"
    for left in (0, 4, 16, 64, 128, 250, 400):
        lines = [
            "mkdir run/disk; mount -t tmpfs -o size=2m none run/disk; cp run/*.* run/disk",
            f'head -c $(( $(stat -f -c "%a*%S" run/disk) - {left * 1024} )) /dev/zero > run/disk/ballast',
            f'"$@"; code=$?; if [ $code = 2 ]; then {same}; fi; exit $code',
        ]
        line = f"unshare -m bash -c '{'; '.join(lines)}' bash {{}}"
        yield Attempt(f"{left} KB left", words(*SWEEP[:-1], "run/disk", "--seed", "1"), ANY, shell=line, run=True)


def can_mount() -> bool:
    """Whether a small disk can be mounted here."""
    if shutil.which("unshare") is None:
        return False
    with tempfile.TemporaryDirectory() as folder:
        line = f"mount -t tmpfs -o size=1m none {Path(folder)}"
        return subprocess.run(["unshare", "-m", "bash", "-c", line], capture_output=True, check=False).returncode == 0
