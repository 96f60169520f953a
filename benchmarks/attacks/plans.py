"""Plans, run.json, histograms and tables that somebody has edited by their structure."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from test_hostile import PLANS
from test_strange_runs import ODD as SOME

from benchmarks.attacks.attempt import MODEL, REFUSED, RUNS, SWEEP, Attempt, Kind, after, words
from benchmarks.attacks.files import COMMANDS
from benchmarks.attacks.odd import ODD, change, nested, place_of, places

RUN = Path("run")
PLAN = RUN / "plan.fp16.json"
FILES = ("run.json", "plan.fp16.json", "histograms.json")
TABLES = ("layers.csv", "variants.csv", "pareto.csv", "samples.csv")
CELLS = (
    *("", "x", "-1", "1e999", "-1e999", "nan", "True", "9" * 400, '"a,b"', "=pwned()", "\x00", "[]", "0", "\x1b[2J"),
    *('"><pwned onload=pwned()>', "</script><pwned>", "\r", "'", '"', "1_000", "０", "−∞", "x" * 200_000),
)
HERE = ("--model", str(MODEL), "--data", SWEEP[3])
"""verify and export of a plan measure on these; else on what the folder's run.json names."""
MEASURE = ("verify", "run/plan.fp16.json", *HERE, "--threads", "1")
EXPORT = ("export", "run/plan.fp16.json", *HERE, "--format")
FORMATS = ("trtexec", "polygraphy", "modelopt", "json", "typed-onnx", "onnxruntime")


def edited(name: str, edit: Callable[[Any], Any]) -> Callable[[], None]:
    """Change what a JSON file of the run holds."""

    def make() -> None:
        data = json.loads((RUN / name).read_text())
        found = edit(data)
        (RUN / name).write_text(json.dumps(data if found is None else found))

    return make


def drawn(name: str, seed: str, odd: tuple[Any, ...] = ODD) -> Callable[[], None]:
    """One value of a JSON file, drawn, becomes odd or goes."""

    def edit(data: Any) -> None:
        dice = random.Random(seed)
        change(*place_of(data, dice.randrange(sum(1 for _ in places(data)))), dice, odd)

    return edited(name, edit)


def cell(name: str, seed: str) -> Callable[[], None]:
    """One cell of a table becomes odd, and some rows are cut."""

    def make() -> None:
        dice = random.Random(seed)
        lines = (RUN / name).read_text().splitlines()
        row = dice.randrange(len(lines))
        parts = lines[row].split(",")
        parts[dice.randrange(len(parts))] = dice.choice(CELLS)
        if dice.random() < 0.2:
            parts = parts[: dice.randrange(len(parts))]
        lines[row] = ",".join(parts)
        (RUN / name).write_text("\n".join(lines) + "\n")

    return make


def pins(*found: Any, **more: Any) -> Callable[[Any], Any]:
    """A plan with these pins."""
    return lambda plan: {**plan, "pins": list(found), **more}


SQUARE = "/norm/square"
ODD_PLANS: dict[str, Callable[[Any], Any]] = {
    "around int8": lambda plan: {**plan, "around": "int8"},
    "an unknown precision": lambda plan: {**plan, "default": "fp8"},
    "a list for a precision": lambda plan: {**plan, "default": ["fp16"]},
    "a node pinned twice": pins({"nodes": [SQUARE]}, {"nodes": [SQUARE], "precision": "bf16"}),
    "a node of nobody": pins({"nodes": ["/nowhere"]}),
    "a pin without nodes": pins({"layer": SQUARE}),
    "a pin that is a number": pins(3),
    "no nodes": pins({"nodes": []}),
    "a number for a node": pins({"nodes": [3]}),
    "pins that are a word": lambda plan: {**plan, "pins": "all"},
    "another model": lambda plan: {**plan, "model": {"sha256": "0" * 64}},
    "no model": lambda plan: {**plan, "model": None},
    "another schema": lambda plan: {**plan, "schema": 10**300},
    "a list": lambda plan: [plan],
    "nothing": lambda plan: {},
}
SOUND_PLANS: dict[str, Callable[[Any], Any]] = {
    "an unknown key": lambda plan: {**plan, "more": {"a": nested(50)}},
    "a node pinned twice alike": pins({"nodes": [SQUARE]}, {"nodes": [SQUARE]}),
    "a reason that is markup": pins({"nodes": [SQUARE], "reason": "</script><pwned onload=pwned()>"}),
    "pins of all that is there": lambda plan: {**plan, "pins": plan["pins"] * 2},
}


def kinds(dice: random.Random) -> Iterable[Kind]:
    """The attempts of this family."""
    yield Kind(
        "plans from nowhere",
        "`sweep --plan` with JSON nested without end, NaN, doubled keys, devices, pipes, a hole of a TB",
        "refused with the file's name",
        [Attempt(name, make, REFUSED, told) for name, (make, told) in PLANS.items()],
    )
    yield Kind(
        "odd plans",
        "`verify` and `export` of plans with other precisions, pins, nodes, models, schemas",
        "refused with the file's name",
        list(odd_plans()),
    )
    yield Kind(
        "values of a run's JSON files",
        "any one value of run.json, a plan or the histograms becomes odd or goes; `report`, `diff`, `verify`, `export`",
        "a page, figures, or refused; never a traceback",
        list(values(dice)),
    )
    yield Kind(
        "cells of a run's tables",
        "any one cell of a table becomes odd: markup, formulas, numbers beyond floats; `report` and `diff`",
        "a page without markup of theirs, or refused",
        [
            Attempt(f"{command}: a cell of {name}, {seed}", after(cell(name, seed), *COMMANDS[command]), run=True)
            for name, seed, command in tables(dice)
        ],
    )
    yield Kind(
        "files of a run as a whole",
        "cut, empty, other text, holes of GBs, nested without end, digits without end; `report`",
        "refused with the file's name",
        list(whole()),
    )


def odd_plans() -> Iterator[Attempt]:
    """Plans that are no plans of this model, and some that are."""
    yield Attempt("twin of verify", words(*MEASURE), RUNS, run=True, twin=True)
    for name in FORMATS[:4]:
        yield Attempt(f"twin of export as {name}", words(*EXPORT, name), RUNS, run=True, twin=True)
    for name, edit in ODD_PLANS.items():
        make = after(edited(PLAN.name, edit), *MEASURE)
        yield Attempt(f"verify: {name}", make, REFUSED, PLAN.name, run=True)
    for number, (name, edit) in enumerate(ODD_PLANS.items()):
        make = after(edited(PLAN.name, edit), *EXPORT, FORMATS[number % 4])
        yield Attempt(f"export: {name}", make, REFUSED, PLAN.name, run=True)
    for name, edit in SOUND_PLANS.items():
        yield Attempt(f"verify: {name}", after(edited(PLAN.name, edit), *MEASURE), RUNS, run=True)


def values(dice: random.Random) -> Iterator[Attempt]:
    """Odd values where the structure has others; the first are the same whatever the seed."""
    fixed = random.Random("fixed")
    for count, source in ((40, fixed), (24, dice)):
        for _ in range(count):
            name, seed = source.choice(FILES), f"{source.random()}"
            command = source.choice(("report", "report", "diff", "verify", "export"))
            parts = {"verify": MEASURE, "export": (*EXPORT, source.choice(FORMATS[:4]))}.get(
                command, COMMANDS.get(command)
            )
            assert parts is not None
            odd = (*SOME, *ODD)
            yield Attempt(f"{command}: a value of {name}, {seed}", after(drawn(name, seed, odd), *parts), run=True)


def tables(dice: random.Random) -> Iterator[tuple[str, str, str]]:
    """Tables, seeds and commands; the first are the same whatever the seed."""
    fixed = random.Random("fixed")
    for count, source in ((20, fixed), (12, dice)):
        for _ in range(count):
            yield source.choice(TABLES), f"{source.random()}", source.choice(("report", "report", "diff"))


def whole() -> Iterator[Attempt]:
    """Whole files."""
    contents: dict[str, bytes] = {
        "nothing": b"",
        "no text": b"\xff\xfe\0",
        "nested without end": b"[" * 100_000,
        "digits without end": b'{"a": ' + b"9" * 10_000 + b"}",
        "a number beyond floats": b'{"a": 1e999}',
        "another kind": b"[]",
    }
    for name in ("run.json", "plan.fp16.json", "histograms.json"):
        for what, content in contents.items():
            yield Attempt(f"{name} is {what}", after(written(name, content), "report", "run"), REFUSED, name, run=True)
    for name in ("run.json", "layers.csv", "variants.csv"):
        yield Attempt(f"{name} is a hole of 3 GB", after(hole(name), "report", "run"), REFUSED, name, run=True)
        yield Attempt(f"{name} is half there", after(halved(name), "report", "run"), run=True)
        yield Attempt(f"{name} is gone", after((RUN / name).unlink, "report", "run"), REFUSED, name, run=True)


def written(name: str, content: bytes) -> Callable[[], None]:
    """Another content."""
    return lambda: (RUN / name).write_bytes(content) and None


def halved(name: str) -> Callable[[], None]:
    """Half of the content."""

    def make() -> None:
        content = (RUN / name).read_bytes()
        (RUN / name).write_bytes(content[: len(content) // 2])

    return make


def hole(name: str) -> Callable[[], None]:
    """The content, and 3 GB of zeros that take no room."""

    def make() -> None:
        with (RUN / name).open("ab") as stream:
            stream.truncate(3 << 30)

    return make
