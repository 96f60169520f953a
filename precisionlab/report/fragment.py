"""What a notebook shows of a result: a verdict and small tables, whatever style the notebook's own page has.

JupyterLab gives tables in outputs a style of its own, by selectors such as
`:not(.jp-RenderedMarkdown).jp-RenderedHTMLCommon td`: two classes and an element, more than `.pl td` has. So every
`.pl` of our style stands there three times, which counts as three classes. Its dark theme is told by an attribute of
the page, and not by what the browser prefers. (JupyterLab 4, packages/rendermime/style/base.css.)
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from precisionlab.report.cells import show
from precisionlab.report.html import load_template
from precisionlab.search.verdict import Tone

if TYPE_CHECKING:
    from precisionlab.report.diff import Change, RunDiff
    from precisionlab.results.calibration import CalibrationFindings
    from precisionlab.results.extract import Extract
    from precisionlab.results.fidelity import FidelityFindings, Goal

_STYLE = re.compile(r"<style>(.*?)</style>", re.S)
_DARK = re.compile(r"@media \(prefers-color-scheme:dark\)\{\.pl\{(.*?)\}\}", re.S)
_LIGHT = re.compile(r"^\s*\.pl\{(.*?)\}", re.S)
_OURS = re.compile(r"\.pl(?![\w-])")
_RESET = (
    ".pl table{table-layout:auto}.pl thead{border:0;vertical-align:inherit}"
    ".pl tr{vertical-align:inherit;text-align:inherit}"
    ".pl tr,.pl th,.pl td{line-height:inherit;white-space:inherit;padding:0}.pl th{font-weight:inherit}"
    ".pl h2,.pl h3,.pl h4{line-height:inherit}"
    ".pl code{color:inherit;background:none;padding:0;white-space:inherit}"
)
"""What the notebook's style says and ours, which comes behind, does not."""
_WORST = 10


@dataclass(frozen=True)
class Table:
    """A table: its heads, and rows of text; the columns of `text` stand to the left."""

    title: str
    heads: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    text: tuple[int, ...] = (0,)


@dataclass(frozen=True)
class Card:
    """What is said of a result: a title, a mark with its tone, a sentence, and tables."""

    title: str
    mark: str
    tone: str
    sentence: str
    tables: tuple[Table, ...] = ()
    notes: tuple[str, ...] = ()


def drawn(card: Card) -> str:
    """The card as HTML for a notebook."""
    page = load_template().environment.get_template("fragment.html.j2")
    return in_notebook_style(page.render(card=card).encode("utf-8", "backslashreplace").decode("utf-8"))


def in_notebook_style(fragment: str) -> str:
    """The fragment with a style that a notebook's page does not reach into, light and dark as the notebook is."""

    def stronger(match: re.Match[str]) -> str:
        style = match[1]
        light, dark = _LIGHT.search(style), _DARK.search(style)
        themes = [
            f'[data-jp-theme-light="{is_light}"] .pl{{{found[1]}}}'
            for is_light, found in (("true", light), ("false", dark))
            if found is not None
        ]
        return f"<style>{_OURS.sub('.pl.pl.pl', _RESET + style + ''.join(themes))}</style>"

    return _STYLE.sub(stronger, fragment)


def calibration_card(found: CalibrationFindings) -> str:
    """The ranges of a calibration: how many, by which method, and the tensors of which most is clipped."""
    ranges = found.table.ranges
    clipped = sorted(ranges, key=lambda name: -ranges[name].clipped_share)[:_WORST]
    rows = tuple(
        (name, show(r.amax, ".4g"), show(r.largest, ".4g"), f"{show(100 * r.clipped_share, '.3g')} %")
        for name in clipped
        if (r := ranges[name]).clipped
    )
    methods = ", ".join(dict.fromkeys(r.method for r in ranges.values())) or "none"
    where = "a shard: merge it with the others" if found.cache is None else f"cache: {found.cache}"
    sentence = f"{len(ranges)} ranges by {methods}, from {found.table.samples} samples"
    tables = (Table("what is clipped most", ("Tensor", "Range", "Largest", "Clipped"), rows),) if rows else ()
    return drawn(Card(f"INT8 ranges of {found.model.path.name}", "", Tone.OPEN.value, sentence, tables, (where,)))


def fidelity_card(found: FidelityFindings) -> str:
    """Each precision's goals, and whether they are met."""
    goals = [goal for one in found.found for goal in one.goals]
    missed = sum(goal.met is False for goal in goals)
    tone = Tone.BAD if missed else Tone.GOOD
    tables = tuple(
        Table(
            f"{one.precision} on {one.device}",
            ("Figure", "Found", "Wanted", "Goal"),
            tuple((goal.name, show(goal.figure, ".4g"), _wanted(goal), _met(goal)) for goal in one.goals),
            (0, 3),
        )
        for one in found.found
    )
    sentence = f"{missed} of {len(goals)} goals missed" if missed else f"all {len(goals)} goals met"
    title = f"Fidelity of the emulation: {found.model}"
    return drawn(Card(title, "goals missed" if missed else "goals met", tone.value, sentence, tables))


def _wanted(goal: Goal) -> str:
    return f"≥ {goal.least:g}" if goal.least is not None else f"≤ {goal.most:g}"


def _met(goal: Goal) -> str:
    return {True: "met", False: "MISSED", None: "no figure"}[goal.met]


def verification_card(
    sentence: str,
    holds: bool,
    rows: Sequence[tuple[str, str, Mapping[str, float]]],
    claimed: Mapping[str, Mapping[str, float]],
    overridden: Sequence[str],
) -> str:
    """A plan's figures, and those without each pin, beside what its file claims.

    `rows` are a title, the claim's name, and figures by name.
    """
    names = list(rows[0][2])
    heads = ("", *(head for name in names for head in (name, "claimed")))
    cells = tuple(
        (title, *(show(x, ".4f") for n in names for x in (figures.get(n), claimed.get(claim, {}).get(n))))
        for title, claim, figures in rows
    )
    tone = Tone.GOOD if holds else Tone.BAD
    table = Table("figures measured now", heads, cells)
    return drawn(Card("A plan, measured again", "verified" if holds else "NOT verified", tone.value, sentence, (table,),
                      tuple(f"the engine overrides {text}" for text in overridden)))  # fmt: skip


def extract_card(found: Extract) -> str:
    """What was cut out, and whether it shows the fault."""
    tone = Tone.GOOD if found.shown else Tone.BAD
    rows = tuple((name,) for name in found.files)
    mark = "shown" if found.shown else "NOT shown"
    return drawn(Card(found.model, mark, tone.value, found.sentence, (Table(str(found.folder), ("File",), rows),)))


def diff_card(diff: RunDiff) -> str:
    """What each run ships, and the figures of the plans found."""
    tables = tuple(
        Table(
            f"{one.name}: {one.trend}; {' → '.join(str(v.mark) for v in one.verdicts)}",
            ("The plan found", "A", "B", "B − A", "So B is"),
            tuple((change.label, *change.texts, _trend(change)) for change in one.shown),
            (0, 4),
        )
        for one in diff.precisions
    )
    sentence = diff.failures[0] if diff.failures else "B is not worse than A allows"
    notes = tuple(
        f"{letter}: {files.folder}. {advice.sentence}"
        for letter, files, advice in zip("AB", (diff.before, diff.after), diff.advice, strict=True)
    )
    tone = Tone.BAD if diff.failures else Tone.GOOD
    mark = "worse" if diff.failures else "not worse"
    return drawn(Card("Two runs compared", mark, tone.value, sentence, tables, notes))


def _trend(change: Change) -> str:
    return "same, within the interval" if change.is_within and change.texts[2] else change.trend
