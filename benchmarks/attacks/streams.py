"""Signals at moments drawn, and standard streams that are closed, full, or whose reader has gone."""

from __future__ import annotations

import random
from collections.abc import Iterable

from benchmarks.attacks.attempt import DATA, MODEL, RUNS, SWEEP, Attempt, Kind, words

FEW = ("sweep", MODEL, "--data", DATA, "--precisions", "fp16", "--samples", "4", "--max-evaluations", "2")
SMALL = words(*FEW, "--threads", "1", "--out", "run")
PIPES = frozenset({0, 1, 141})
EITHER = frozenset({0, 1, 130, 143})
REPORT = words("report", "run")
STOPPED = "{} & child=$!; sleep %s; kill -%s $child; wait $child"
"""The signal comes after so many seconds; a command that has ended by then has its own exit code."""


def kinds(dice: random.Random) -> Iterable[Kind]:
    """The attempts of this family."""
    closed = {
        "{} 2>&-": RUNS,
        "{} 2>/dev/full": RUNS,
        "{} <&-": RUNS,
        "{} 2> >(head -n 1 >/dev/null)": RUNS,
        "{} >&-": frozenset({2}),
        "{} >/dev/full": frozenset({2}),
        "{} >&- 2>&-": frozenset({2}),
        "{} >/dev/full 2>/dev/full": frozenset({2}),
        "{} | head -c 1 >/dev/null; exit ${{PIPESTATUS[0]}}".replace("{{", "{").replace("}}", "}"): PIPES,
        "{} | true; exit ${PIPESTATUS[0]}": PIPES,
    }
    yield Kind(
        "streams",
        "standard output, error and input closed or full, or with a reader who has gone; sweep, help and report",
        "0 or 1 where nothing was lost, 2 where the result could not be printed, 141 for a reader who has gone",
        [
            Attempt("twin of all", SMALL, RUNS, shell="{}", twin=True),
            *(Attempt(line, SMALL, codes, shell=line) for line, codes in closed.items()),
            *(Attempt(f"report: {line}", REPORT, codes, shell=line, run=True) for line, codes in closed.items()),
            Attempt("help >&-", words("--help"), frozenset({2}), shell="{} >&-"),
            Attempt("help | true", words("--help"), PIPES, shell="{} | true; exit ${PIPESTATUS[0]}"),
        ],
    )
    signals = {"INT": frozenset({0, 1, 130}), "TERM": frozenset({0, 1, 143})}
    drawn = [(dice.choice(["INT", "TERM"]), round(dice.uniform(0.6, 6), 2)) for _ in range(8)]
    fixed = [(name, moment) for name in signals for moment in (1.0, 2.0, 3.5)]
    more = ("--processes", "2")
    yield Kind(
        "signals",
        "SIGINT and SIGTERM at moments drawn, once or thrice, with one process and with two; a run from before goes on",
        "130 and 143, or what the command came to before; the results of the run before are whole",
        [
            *(signalled(name, moment, signals[name], SWEEP) for name, moment in fixed),
            *(signalled(name, moment, signals[name], (*SWEEP, *more)) for name, moment in drawn),
            Attempt("INT thrice", words(*SWEEP), signals["INT"], shell=thrice("INT"), run=True),
            Attempt("TERM, then INT", words(*SWEEP), EITHER, shell=thrice("TERM", "INT"), run=True),
            Attempt("HUP is not ours", words(*SWEEP), frozenset({0, 1, 129}), shell=STOPPED % (2.0, "HUP"), run=True),
        ],
    )


def signalled(name: str, moment: float, codes: frozenset[int], command: Iterable[object]) -> Attempt:
    """One signal at one moment, to a sweep that begins afresh in the folder of another."""
    fresh = (*command, "--seed", "1")
    line = STOPPED % (moment, name)
    return Attempt(f"{name} after {moment} s, {len(fresh)} words", words(*fresh), codes, shell=line, run=True)


def thrice(first: str, then: str = "") -> str:
    """Three signals, quickly."""
    then = then or first
    kills = f"kill -{first} $child; sleep 0.05; kill -{then} $child; sleep 0.05; kill -{then} $child"
    return "{} & child=$!; sleep 2.5; " + kills + "; wait $child"
