"""The few small inputs that reach as much of precisionlab as a whole folder of them.

`python -m tests.fuzz.minimise READER FOLDER …` puts them into `corpus/READER/`, in place of those that are there (which
are chosen from as well). An input is called after the hash of its content. Files called `seed-…` are whole files as
people have them, for mutations to begin with: they stay, and the others add to them.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Callable, Collection, Iterable
from pathlib import Path
from types import FrameType
from typing import Any

import precisionlab
from tests.fuzz.readers import READERS, survives

CORPUS = Path(__file__).parent / "corpus"
MOST_FILES = 30
LARGEST = 8192  # bytes

_OURS = str(Path(precisionlab.__file__).parent)

Step = tuple[str, int, int]
"""A file, and two lines of it that are run one after the other."""


def reached(read: Callable[[bytes], None], content: bytes) -> frozenset[Step]:
    """The steps within precisionlab that reading the content takes."""
    found: set[Step] = set()

    def enter(frame: FrameType, event: str, argument: Any) -> Any:
        file = frame.f_code.co_filename
        if not file.startswith(_OURS):
            return None
        before = 0

        def step(frame: FrameType, event: str, argument: Any) -> Any:
            nonlocal before
            if event == "line":
                found.add((file, before, frame.f_lineno))
                before = frame.f_lineno
            return step

        return step

    sys.settrace(enter)
    try:
        survives(read, content)
    finally:
        sys.settrace(None)
    return frozenset(found)


def fewest(contents: Iterable[bytes], seeds: Collection[bytes], read: Callable[[bytes], None]) -> list[bytes]:
    """Of the contents the one that adds most to the seeds, then again, until nothing is added; of equals the smallest.

    With the seeds they are no more than `MOST_FILES`.
    """
    steps = {content: reached(read, content) for content in sorted(contents, key=len)}
    chosen: list[bytes] = []
    known: frozenset[Step] = frozenset().union(*(reached(read, seed) for seed in seeds))
    while steps and len(seeds) + len(chosen) < MOST_FILES:
        best = max(steps, key=lambda content: (len(steps[content] - known), -len(content)))
        if not steps[best] - known:
            break
        chosen.append(best)
        known |= steps.pop(best)
    return chosen


def main(reader: str, *folders: str) -> None:
    """Choose, and replace the corpus."""
    corpus = CORPUS / reader
    corpus.mkdir(parents=True, exist_ok=True)
    files = [file for folder in (corpus, *map(Path, folders)) for file in sorted(folder.iterdir())]
    contents = {content for file in files if len(content := file.read_bytes()) <= LARGEST}
    seeds = {file.read_bytes() for file in corpus.glob("seed-*")}
    survives(READERS[reader], b"")  # what is done once only is nobody's merit
    chosen = fewest(contents - seeds, seeds, READERS[reader])
    for file in corpus.iterdir():
        if not file.name.startswith("seed-"):
            file.unlink()
    for content in chosen:
        (corpus / hashlib.sha256(content).hexdigest()[:16]).write_bytes(content)
    print(f"{reader}: {len(seeds)} seeds, {len(chosen)} of {len(contents)} inputs with {sum(map(len, chosen))} bytes")


if __name__ == "__main__":
    main(*sys.argv[1:])
