"""Journals that somebody has edited: with digests that do not fit, and with digests made anew that do."""

from __future__ import annotations

import copy
import json
import os
import random
from collections.abc import Callable, Iterable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

from benchmarks.attacks.attempt import ANY, REFUSED, RUNS, SWEEP, Attempt, Kind, after, words
from benchmarks.attacks.odd import change, place_of, places
from precisionlab.evaluate.journal import digest_of

JOURNAL = Path("run", "journal.jsonl")
Lines = list[bytes]
"""A journal's, with their ends."""


def edited(edit: Callable[[Lines], Iterable[bytes]]) -> Callable[[], None]:
    """Change the journal's lines."""

    def make() -> None:
        lines = JOURNAL.read_bytes().splitlines(keepends=True)
        JOURNAL.write_bytes(b"".join(edit(lines)))

    return make


def signed(context: str, entry: dict[str, Any]) -> bytes:
    """A line with a digest that fits, as whoever reads our source can make it."""
    digest = digest_of([context, entry["key"], entry["value"]])[:16]
    return (json.dumps({"key": entry["key"], "value": entry["value"], "sha256": digest}) + "\n").encode()


def forged(edit: Callable[[int, Any], Any]) -> Callable[[], None]:
    """Change the values of all lines, `edit(place of the line, value)`, and make their digests anew."""

    def make(lines: Lines) -> Iterator[bytes]:
        context = json.loads(lines[0])["context"]
        yield lines[0]
        for place, line in enumerate(lines[1:]):
            entry = json.loads(line)
            yield signed(context, {**entry, "value": edit(place, entry["value"])})

    return edited(make)


def one_value(dice_seed: str, line: int) -> Callable[[], None]:
    """One value of a line, drawn, becomes odd, or goes."""

    def edit(place: int, value: Any) -> Any:
        if place != line:
            return value
        value = copy.deepcopy(value)
        dice = random.Random(dice_seed)
        change(*place_of(value, dice.randrange(sum(1 for _ in places(value)))), dice)
        return value

    return forged(edit)


def all_of(kind: type, odd: Any) -> Callable[[int, Any], Any]:
    """Every value of a kind becomes another."""

    def edit(_: int, value: Any) -> Any:
        if isinstance(value, dict):
            return {key: edit(_, inner) for key, inner in value.items()}
        if isinstance(value, list):
            return [edit(_, inner) for inner in value]
        return odd if type(value) is kind else value

    return edit


def within(value: Any, edit: Callable[[str, Any], Any]) -> Any:
    """The value with what stands under each key changed, inside first."""
    if isinstance(value, dict):
        return {key: edit(key, within(inner, edit)) for key, inner in value.items()}
    return [within(inner, edit) for inner in value] if isinstance(value, list) else value


def field(name: str, odd: Any) -> Callable[[int, Any], Any]:
    """What stands under one key becomes another thing."""
    return lambda _, value: within(value, lambda key, inner: odd if key == name else inner)


def renamed(_: int, value: Any) -> Any:
    """All names in a mapping are others'."""
    if isinstance(value, dict):
        plain = {"samples", "inherited", "introduced", "outputs", "each", "broken", "spreads", "methods", "histograms"}
        return {key if key in plain else f"{key}<pwned>": renamed(_, inner) for key, inner in value.items()}
    return [renamed(_, inner) for inner in value] if isinstance(value, list) else value


BROKEN: dict[str, Callable[[Lines], Iterable[bytes]]] = {
    "nothing": lambda lines: (),
    "its first line gone": lambda lines: lines[1:],
    "its last line cut": lambda lines: [*lines[:-1], lines[-1][: len(lines[-1]) // 2]],
    "every line cut": lambda lines: [lines[0], *(line[:-20] + b"\n" for line in lines[1:])],
    "its lines in reverse": lambda lines: [lines[0], *lines[:0:-1]],
    "its lines twice": lambda lines: [*lines, *lines[1:]],
    "its first line twice": lambda lines: [lines[0], *lines],
    "numbers changed": lambda lines: [lines[0], *(line.replace(b"8", b"9") for line in lines[1:])],
    "words for numbers": lambda lines: [lines[0], *(line.replace(b": 0", b': "0"') for line in lines[1:])],
    "nulls for numbers": lambda lines: [lines[0], *(line.replace(b" 0,", b" null,") for line in lines[1:])],
    "keys exchanged": lambda lines: [
        lines[0],
        *(b.replace(b[:76], a[:76]) for a, b in pairwise(lines[1:])),
    ],
    "another context": lambda lines: [b'{"context": "' + b"0" * 64 + b'"}\n', *lines[1:]],
    "a context that is a list": lambda lines: [b'{"context": []}\n', *lines[1:]],
    "nested without end": lambda lines: [*lines, b'{"key": "a", "value": ' + b"[" * 100_000 + b"\n"],
    "digits without end": lambda lines: [*lines, b'{"key": "a", "value": ' + b"9" * 10_000 + b"}\n"],
    "bytes that are no text": lambda lines: [lines[0], b"\xff\xfe\0" * 1000 + b"\n", *lines[1:]],
    "Windows' line ends": lambda lines: [line.replace(b"\n", b"\r\n") for line in lines],
    "a byte order mark": lambda lines: [b"\xef\xbb\xbf" + lines[0], *lines[1:]],
    "NaN and 1e999": lambda lines: [lines[0], *(line.replace(b": 0.0", b": 1e999") for line in lines[1:])],
}

NAN = float("nan")
ALL_OF: dict[type, tuple[Any, ...]] = {
    float: ("x", None, [], True, NAN, -1.0),
    int: ("x", None, -1, 0.5, 10**18),
    str: (1, None, "\x1b[2J<pwned>"),
    bool: ("x", None),
}
"""What every value of a kind becomes."""

FIELDS: dict[str, tuple[Any, ...]] = {
    "samples": ("8", 8.0, 3, -8, 10**15),
    "outputs": ({}, "x", {"logits": []}, {"other": None}),
    "each": ({}, {"logits": []}, {"logits": "x"}),
    "inherited": ({}, {"x": {}}, {"x": []}),
    "broken": ("abc", ["x"], [1]),
    "metric": ("0.9", True, NAN),
    "metric_name": (1, "<pwned>"),
    "seconds": ("x", -1.0),
    "spreads": ([], [{"x": [0] * 6}] * 2),
    "bins": ([], [1] * 41, ["x"], [-1] * 40),
    "exponent": ("x", 10**9, 1.5),
    "methods": ({}, {"entropy": {}}),
    "amax": ("x", -1.0, 0.0, NAN, 1e400),
    "place": (-1, 10**9),
}
"""What stands under a key, in all lines."""

VALUES: tuple[Any, ...] = (None, [], {}, 1, "x", [[]])


def forgeries() -> Iterator[Attempt]:
    """Each of these in all lines."""
    edits = [
        *(
            (f"each {kind.__name__} is {shown(odd)}", all_of(kind, odd))
            for kind, odds in ALL_OF.items()
            for odd in odds
        ),
        *((f"{name} is {shown(odd)}", field(name, odd)) for name, odds in FIELDS.items() for odd in odds),
        *((f"every value is {shown(odd)}", instead(odd)) for odd in VALUES),
        ("all names are others'", renamed),
    ]
    for name, edit in edits:
        yield Attempt(name, after(forged(edit), *SWEEP), ANY, run=True)


def instead(odd: Any) -> Callable[[int, Any], Any]:
    """Another value altogether."""
    return lambda *_: odd


def shown(odd: Any) -> str:
    """In short."""
    return json.dumps(odd)[:20]


def hole() -> None:
    os.truncate(JOURNAL, 5 << 30)


def kinds(dice: random.Random) -> Iterable[Kind]:
    """The attempts of this family."""
    yield Kind(
        "journals that do not fit their digests",
        "lines cut, doubled, exchanged, edited; contexts of others, nested without end, no text",
        "the lines are dropped and measured again: the same plans",
        [
            Attempt("twin", words(*SWEEP), RUNS, run=True, same=True, twin=True),
            *(Attempt(n, after(edited(e), *SWEEP), RUNS, run=True, same=True) for n, e in BROKEN.items()),
            Attempt("a hole of 5 GiB", after(hole, *SWEEP), REFUSED, "journal.jsonl", run=True),
        ],
    )
    yield Kind(
        "journals with digests made anew",
        "values of other kinds, signs and sizes, other names, other numbers of samples in all lines",
        "what is of a wrong kind is measured again; a page, or one sentence",
        list(forgeries()),
    )
    drawn = [(f"{dice.random()}", dice.randrange(10)) for _ in range(30)]
    yield Kind(
        "journals with one value drawn",
        "any one value of any one line becomes odd or goes, under a digest that fits",
        "as above",
        [Attempt(f"line {line}, {seed}", after(one_value(seed, line), *SWEEP), ANY, run=True) for seed, line in drawn],
    )
