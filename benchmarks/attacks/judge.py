"""What must hold of every attempt, whatever it tries."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterator
from html.parser import HTMLParser

from benchmarks.attacks.attempt import Attempt
from benchmarks.attacks.execute import LATE, Outcome

MARK = "pwned"
"""The element, attribute, function and formula that hostile names would bring into a report."""

RESULTS = ("run.json", "report.html", "summary.md", "layers.csv", "variants.csv", "plan.fp16.json", "plan.int8.json")
_INSIDE = "here/run/"
_SIGNALS = (129, 130, 143)
_LONGEST = 2100  # characters of a sentence
_CODE = re.compile(r"(?<!`)(`+)(?!`).*?(?<!`)\1(?!`)")  # in Markdown: nothing within is markup
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def faults(attempt: Attempt, found: Outcome) -> list[str]:
    """What did not hold; nothing where all did."""
    said = found.said
    return [
        *([f"not ended after {attempt.seconds:.0f} s"] if found.code == LATE else _code(attempt, found)),
        *(f"{word} on standard error" for word in ("Traceback", "internal error", "Segmentation") if word in said),
        *(["a traceback on standard output"] if "Traceback" in found.output else []),
        *_sentence(attempt, found),
        *_outside(found),
        *_result(attempt, found),
        *unescaped(found.texts),
    ]


def _code(attempt: Attempt, found: Outcome) -> Iterator[str]:
    if found.code not in attempt.codes:
        yield f"exit code {found.code}, not one of {sorted(attempt.codes)}"


def _sentence(attempt: Attempt, found: Outcome) -> Iterator[str]:
    if (control := _CONTROL.search(found.said + found.output)) is not None:
        yield f"the control character {control.group()!r} in what is printed"
    if found.code != 2 or "2>" in attempt.shell:
        return
    last = next((line for line in reversed(found.said.splitlines()) if line.strip()), "")
    if not last.startswith(("precisionlab: ", "Error: ")):  # click's own begin with the latter
        yield f"refused without a sentence: {last[:200]!r}"
    if attempt.names not in last:
        yield f"the refusal does not name {attempt.names!r}: {last[:300]!r}"
    if len(last) > _LONGEST:
        yield f"a sentence of {len(last)} characters"


def _outside(found: Outcome) -> Iterator[str]:
    names = sorted(found.before.keys() | found.after.keys())
    for name in names:
        before, after = found.before.get(name, "nothing"), found.after.get(name, "nothing")
        if before != after and not name.startswith(_INSIDE) and (name, before) != ("here/run", "nothing"):
            yield f"{name} was {before}, is {after}"


def _result(attempt: Attempt, found: Outcome) -> Iterator[str]:
    if not attempt.run:
        return
    for name in (_INSIDE + name for name in RESULTS):
        before, after = found.before.get(name, "nothing"), found.after.get(name, "nothing")
        if found.code in (0, 1) and name.startswith("plan") and attempt.same and before != after:
            yield f"{name} is another"
        replaced = found.code in _SIGNALS and not found.mixed  # by a whole new result, before the signal came
        if found.code not in (0, 1) and before != after and not replaced:
            yield f"{name} was {before}, is {after} after exit code {found.code}"


# Pages


class _Reader(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.bad: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if MARK in tag:
            self.bad.append(f"the element <{tag}>")
        for name, value in attrs:
            if MARK in name or (name.startswith("on") and MARK in (value or "")):
                self.bad.append(f"the attribute {name} of <{tag}>")
            if name in ("href", "src") and (value or "").strip().lower().startswith("javascript:"):
                self.bad.append(f"a script in {name} of <{tag}>")


def unescaped(texts: dict[str, str]) -> list[str]:
    """Where names have become markup, or formulas."""
    found = []
    for name, text in texts.items():
        if name.endswith((".html", ".svg", ".md")):
            reader = _Reader()
            reader.feed(_CODE.sub("", text) if name.endswith(".md") else text)
            found += [f"{name}: {bad}" for bad in dict.fromkeys(reader.bad)]
        if name.endswith(".csv"):
            cells = {cell for row in csv.reader(io.StringIO(text)) for cell in row}
            found += [f"{name}: the formula {c!r}" for c in sorted(cells) if c[:1] in "=+-@\t\r" and MARK in c]
    return found
