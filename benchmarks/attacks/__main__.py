"""Makes the attempts, prints what did not hold, and writes the table of docs/attacks.md."""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.attacks import ROOT, codes, data, files, journals, limits, models, options, plans, streams
from benchmarks.attacks.attempt import SWEEP, Attempt, Family, Kind, words
from benchmarks.attacks.execute import execute, forked, load
from benchmarks.attacks.judge import faults

FAMILIES: Sequence[Family] = (
    *(files.kinds, journals.kinds, plans.kinds, codes.kinds),
    *(models.kinds, data.kinds, options.kinds, streams.kinds, limits.kinds),
)
TABLE = ROOT / "docs" / "attacks.md"


@dataclass
class Row:
    """What came of a kind."""

    kind: Kind
    made: int = 0
    held: int = 0
    twins: int = 0
    twins_held: int = 0
    broken: list[str] = field(default_factory=list)


def main() -> int:
    """0 where all held."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.attacks", description=__doc__)
    parser.add_argument("--only", default="", metavar="WORD", help="kinds and attempts with this word in their name")
    parser.add_argument("--seed", type=int, default=0, help="of the attempts that are drawn")
    parser.add_argument("--drawn", action="store_true", help="those alone that another seed has not")
    parser.add_argument("--write", action="store_true", help="write the table to docs/attacks.md")
    given = parser.parse_args()
    load()
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="attacks-") as folder:
        template = swept(Path(folder))
        rows = [row for row in tried(Path(folder), template, wanted(given)) if row.made]
    made, held = sum(row.made for row in rows), sum(row.held for row in rows)
    table = table_of(rows)
    print(table)
    print(f"{held} of {made} held; {time.monotonic() - started:.0f} s")
    if given.write:
        TABLE.parent.mkdir(exist_ok=True)
        TABLE.write_text(PAGE.format(table=table, seed=given.seed, made=made, held=held, drawn=len(drawn(given.seed))))
    return 0 if all(row.made == row.held and row.twins == row.twins_held for row in rows) else 1


def swept(folder: Path) -> Path:
    """The run that many attempts begin with."""
    (folder / "template" / "here").mkdir(parents=True)
    code = forked(Attempt("the run", words(*SWEEP)), list(SWEEP), folder / "template")
    if code not in (0, 1):
        raise RuntimeError((folder / "template.err").read_text())
    return folder / "template" / "here" / "run"


def every(seed: int) -> Iterator[Kind]:
    """All kinds, with what this seed draws."""
    for family in FAMILIES:
        yield from family(random.Random(f"{family.__module__} {seed}"))


def drawn(seed: int) -> set[tuple[str, str]]:
    """Kind and name of the attempts that another seed has not."""
    mine, others = ({(k.name, a.name) for k in every(one) for a in k.attempts} for one in (seed, seed + 1))
    return mine - others


def wanted(given: argparse.Namespace) -> Iterator[tuple[Kind, list[Attempt]]]:
    """The kinds, and of each the attempts that are asked for."""
    own = drawn(given.seed) if given.drawn else set()
    for kind in every(given.seed):
        attempts = [a for a in kind.attempts if given.only in kind.name or given.only in a.name]
        yield kind, [a for a in attempts if (kind.name, a.name) in own or not given.drawn]


def tried(folder: Path, template: Path, asked: Iterable[tuple[Kind, list[Attempt]]]) -> Iterator[Row]:
    """Make the attempts, kind by kind."""
    for kind, attempts in asked:
        row = Row(kind)
        for attempt in attempts:
            one(row, attempt, folder / "attempt", template)
        if attempts:
            print(f"{kind.name}: {row.held} of {row.made}, twins {row.twins_held} of {row.twins}", file=sys.stderr)
        yield row


def one(row: Row, attempt: Attempt, folder: Path, template: Path) -> None:
    """Make one attempt, and note what came of it."""
    found = execute(attempt, folder, template)
    wrong = faults(attempt, found)
    for fault in wrong:
        print(f"  {row.kind.name}: {attempt.name}: {fault}", file=sys.stderr)
    if wrong:
        for line in found.said.splitlines()[-3:]:
            print(f"    | {line[:400]}", file=sys.stderr)
    if attempt.twin:
        row.twins += 1
        row.twins_held += not wrong
    else:
        row.made += 1
        row.held += not wrong


def table_of(rows: Sequence[Row]) -> str:
    """The table in Markdown."""
    lines = [
        "| kind | what is tried | attempts | what must come of it | held | sound twins, held |",
        "|---|---|--:|---|--:|--:|",
    ]
    for row in rows:
        kind = row.kind
        twins = f"{row.twins}, {row.twins_held}" if row.twins else "–"
        lines.append(f"| {kind.name} | {kind.tried} | {row.made} | {kind.must} | {row.held} | {twins} |")
    return "\n".join(lines)


PAGE = """# Attempts to break it: `python -m benchmarks.attacks`

{made} commands on files, options and surroundings that somebody made to do harm, {drawn} of them drawn by seed (here
{seed}); {held} held. Most are tried on sound input too ("twins"), which has to end in 0 or 1.

Of every attempt this must hold, and is checked: it ends in a minute, with an exit code that the README has (0, 1, 2;
141 where a reader has gone, 130 and 143 after a signal alone; never 70, no death by a signal, no traceback); a refusal
is one sentence on standard error, without control characters, and names the file where there is one; nothing but the
run's folder has changed, and what links lead to is as it was; the files of an earlier run are as they were, unless a
new one has taken their place; no name has become markup in a page, or a formula in a table.

{table}

What is not among them: with 550 to 650 MB of addresses (`ulimit -v`) the C library ends the process by itself ("cannot
allocate memory for thread-local data"), or SciPy's OpenBLAS waits for ever while it is loaded. Both happen inside of
the system's loader, where no program has a say.

Beside these, `tests/fuzz` mutates the files that are read.
"""

if __name__ == "__main__":
    sys.exit(main())
