"""Fuzz a reader with atheris: `python -m tests.fuzz.run READER --seconds N`; or `all`, at the same time.

Begins with the corpus beside this file. What is found on the way goes to `--corpus`, and to nowhere without it; an
input that ends in anything but a result or a PrecisionLabError goes to `crashes/READER/`. The exit status is then 77,
or 70 or 71 where it takes too long or too much memory, as libFuzzer has it.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

HERE = Path(__file__).parent
ALL = "all"
LONGEST = 20  # seconds for one input, on a machine that does other things
FEWEST = 30  # inputs, whatever the time
MOST_MEMORY = 3072  # MiB; a quarter of that is Python with its libraries
LARGEST = {"model": 1 << 15, "state": 1 << 15, "arrays": 1 << 14}  # bytes of an input; 4 KiB for the others
_INSTRUMENTED = ("precisionlab", "numpy.lib", "PIL", "zipfile", "tomllib", "json", "csv")


def main() -> int:
    """Fuzz in a process for each reader: libFuzzer ends its own. Returns the first bad exit status."""
    import atheris

    # Once, before the processes are forked: it takes longer than a short run.
    with atheris.instrument_imports(include=list(_INSTRUMENTED)):
        from tests.fuzz import readers

    parser = argparse.ArgumentParser(prog="python -m tests.fuzz.run")
    parser.add_argument("reader", choices=[ALL, *readers.READERS])
    parser.add_argument("--seconds", type=int, default=60)
    parser.add_argument("--seed", type=int, default=0, help="0: another one each time")
    parser.add_argument("--corpus", type=Path, help="folder for what is found on the way, to go on from")
    parser.add_argument("--crashes", type=Path, help="folder for inputs that break a reader")
    options = parser.parse_args()
    names = list(readers.READERS) if options.reader == ALL else [options.reader]
    folder = Path(tempfile.mkdtemp(prefix="fuzz-", dir=readers.fastest_folder()))
    tempfile.tempdir = str(folder)
    running = {}
    for name in names:
        process = os.fork()
        if process == 0:
            _fuzz(atheris, name, options, folder)
        running[name] = process
    statuses = {name: os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) for name, process in running.items()}
    for name, status in statuses.items():
        print(f"=== {name}: exit status {status}", flush=True)
        sys.stdout.buffer.write((folder / f"{name}.log").read_bytes())
        sys.stdout.flush()
    shutil.rmtree(folder, ignore_errors=True)  # here, and not in the processes, whose ends are libFuzzer's
    return next(filter(None, statuses.values()), 0)


def _fuzz(atheris: Any, reader: str, options: argparse.Namespace, folder: Path) -> NoReturn:
    from tests.fuzz.mutate import MUTATIONS
    from tests.fuzz.readers import READERS

    with (folder / f"{reader}.log").open("wb") as log:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
    grown, crashes = (
        folder / "corpus" / reader if options.corpus is None else options.corpus / reader,
        (options.crashes or HERE / "crashes") / reader,
    )
    for made in (grown, crashes):
        made.mkdir(parents=True, exist_ok=True)
    arguments = [
        sys.argv[0],
        f"-timeout={LONGEST}",
        f"-rss_limit_mb={MOST_MEMORY}",
        f"-max_len={LARGEST.get(reader, 1 << 12)}",
        f"-seed={options.seed}",
        f"-artifact_prefix={crashes}/",
        str(grown),
        *(str(found) for name in ("corpus", "crashes") if (found := HERE / name / reader).is_dir()),
    ]
    one_input = _until(options.seconds, READERS[reader])
    mutation = MUTATIONS.get(reader)
    if mutation is None:
        atheris.Setup(arguments, one_input)
    else:

        def mutator(content: bytes, most: int, seed: int) -> bytes:
            return mutation(content, most, random.Random(seed), atheris.Mutate)

        atheris.Setup(arguments, one_input, custom_mutator=mutator)
    atheris.Fuzz()
    raise AssertionError("libFuzzer ends the process")


def _until(seconds: int, read: Callable[[bytes], None]) -> Callable[[bytes], None]:
    """Reads, and ends the process when the time is over.

    libFuzzer's own end would wait for threads of ONNX Runtime, which a fork does not have.
    """
    from tests.fuzz.readers import survives

    started, executions = 0.0, 0

    def one_input(content: bytes) -> None:
        nonlocal started, executions
        survives(read, content)
        started = started or time.monotonic()  # not before the first: it imports, and makes what all others use
        executions += 1
        if (taken := time.monotonic() - started) > seconds and executions >= FEWEST:
            print(f"{executions} executions in {taken:.0f} s", flush=True)
            os._exit(0)

    return one_input


if __name__ == "__main__":
    sys.exit(main())
