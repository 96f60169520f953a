"""Steps one after the other in one process, as an emulated Python takes long to start: reads them from a file.

Each is a module with arguments, as `python -m` takes it. What it prints goes to a log, and its exit code to a file that
says that it is done; what ended in an error is not done.
"""

from __future__ import annotations

import json
import os
import platform
import runpy
import sys
import time
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path


@dataclass(frozen=True)
class Step:
    """`python -m` these `arguments`; the file `done` is written behind it, and a log beside that."""

    done: str
    arguments: tuple[str, ...]


def write_steps(steps: Sequence[Step], path: Path) -> None:
    path.write_text(json.dumps([asdict(step) for step in steps]))


def main(path: str) -> None:
    for entry in json.loads(Path(path).read_text()):
        step = Step(entry["done"], tuple(entry["arguments"]))
        if not Path(step.done).exists():
            _do(step)


def _do(step: Step) -> None:
    done = Path(step.done)
    done.parent.mkdir(parents=True, exist_ok=True)
    started = time.process_time()
    with _printing_to(done.with_name(f"{done.name}.log")):
        code = _exit_code(step.arguments)
    seconds = time.process_time() - started
    print(f"{platform.machine()}, {seconds:.0f} s, exit code {code}: {' '.join(step.arguments)[:150]}", flush=True)
    if code in (0, 1, 5):  # 1: a tolerance that is not met, tests that fail; 5: a module of slow tests alone
        done.write_text(json.dumps({"code": code, "seconds": round(seconds), "arguments": step.arguments}) + "\n")


def _exit_code(arguments: Sequence[str]) -> int:
    sys.argv = list(arguments)
    try:
        runpy.run_module(arguments[0], run_name="__main__", alter_sys=True)
    except SystemExit as ended:
        return ended.code if isinstance(ended.code, int) else int(ended.code is not None)
    except BaseException:  # whatever it is, the other steps are to be done
        traceback.print_exc()
        return 3
    return 0


@contextmanager
def _printing_to(log: Path) -> Iterator[None]:
    sys.stdout.flush()
    sys.stderr.flush()
    kept = [os.dup(number) for number in (1, 2)]
    with log.open("wb") as file:
        for number in (1, 2):
            os.dup2(file.fileno(), number)
        try:
            yield
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            for number, old in zip((1, 2), kept, strict=True):
                os.dup2(old, number)
                os.close(old)


if __name__ == "__main__":
    main(sys.argv[1])
