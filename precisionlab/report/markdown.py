"""The result in Markdown, for a pull request: `summary.md`.

Names come from strangers' models. Those stand as code, in which nothing is markup, a link or a mention; other text is
escaped sign by sign. Control characters are shown as their pictures, so that no name ends a row or a line.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable, Mapping, Sequence
from itertools import groupby
from pathlib import PurePath
from typing import Any

from precisionlab.compare.metrics import SQNR, Metric, brief_metrics
from precisionlab.plan.plan import PrecisionPlan
from precisionlab.report.cells import Row, figure_cell, percent, show, value_text, visible
from precisionlab.report.commands import next_command
from precisionlab.report.each_layer import told_in_words
from precisionlab.report.hazard import capital
from precisionlab.report.inside import emulated_words, engines_line
from precisionlab.report.quantized_choice import choice_of, tails_of
from precisionlab.report.repair_views import RepairView
from precisionlab.report.section import PrecisionSection, Tables, metric_name, section_of
from precisionlab.report.shipping import recommendation
from precisionlab.report.views import OutputFigures, PinView, VariantView, variant_view
from precisionlab.search.alternatives import AlternativeKind
from precisionlab.search.grounds import steadiness_text
from precisionlab.search.undefined import Undefined
from precisionlab.search.verdict import Mark, Tone
from precisionlab.system.wording import counted

_LONGEST = 120  # letters of a name; the plan has all of them
_MOST = 500  # letters of a reason, which may hold names
_OPEN_PINS = 15  # more are folded away
_EMOJI = {Tone.GOOD: "✅", Tone.BAD: "❌", Tone.OPEN: "⚪"}
_SPECIAL = re.compile(r"[\\`*_{}\[\]|~<>&$@#]|:(?=[\w+-]+:)")  # the last is an emoji's name
_HTML = {"<": "&lt;", ">": "&gt;", "&": "&amp;"}
_BREAK = "&#8203;"  # between a sign and what would make it a mention, a reference or a link


def text(value: Any) -> str:
    """Foreign text as Markdown that shows exactly that: no markup, no link, nobody mentioned."""
    shown = visible(value).strip()
    if len(shown) > _MOST:
        shown = shown[: _MOST - 1] + "…"
    escaped = _SPECIAL.sub(lambda match: _HTML.get(match[0], "\\" + match[0]), shown)
    # GitHub and GitLab look for mentions, references and addresses after they have undone the escapes.
    return re.sub(r"[@#](?=\w)|:(?=//)|\bwww(?=\.)", rf"\g<0>{_BREAK}", escaped, flags=re.I)


def code(value: Any) -> str:
    """A foreign name as code, in a table or outside one; the end of a long one, which tells more than its beginning."""
    name = visible(value)
    if len(name) > _LONGEST:
        name = "…" + name[1 - _LONGEST :]
    if not name.strip():
        return f"“{text(name)}”" if name else "“”"
    fence = "`" * (max(map(len, re.findall("`+", name)), default=0) + 1)
    blank = " " if name[0] in "` " or name[-1] in "` " else ""
    return f"{fence}{blank}{name}{blank}{fence}"


def render_markdown(run: Mapping[str, Any], tables: Tables, plans: Mapping[str, PrecisionPlan]) -> str:
    """The whole summary: verdicts, variants, pins with their reasons, and how to get the same again.

    `run` is what `run.json` holds, `tables` are the rows of the CSV files.
    """
    sections = [section_of(name, run, tables, plans, charted=False) for name in run["precisions"]]
    advice = recommendation(run, tables.variants, sections)
    parts = [
        f"## precisionlab: {code(PurePath(str(run['model']['path'])).name)}",
        f"**{text(advice.sentence)}**",
        *_warnings(run),
        "\n".join(_verdict(section, run) for section in sections),
        _variants(tables.variants, bool(run["data"]["held_out"]), any(section.repaired for section in sections)),
        *_choice(run, tables),
        *_each_layer(run, tables),
        *(part for section in sections for part in (*_repairs(section), *_pins(section))),
        *_reproduce(run),
        *_next(run, [section for section in sections if section.name == advice.taken]),
    ]
    # A path on a POSIX system may hold bytes that are not UTF-8, as lone surrogates that no file can take.
    return ("\n\n".join(parts) + "\n").encode("utf-8", "backslashreplace").decode("utf-8")


def _choice(run: Mapping[str, Any], tables: Tables) -> list[str]:
    choice = choice_of(run["precisions"], tables.layers, tails_of(tables.histograms))
    return [] if choice is None else [f"**{text(choice.question)}** {text(capital(choice.sentence))}."]


def _each_layer(run: Mapping[str, Any], tables: Tables) -> Iterable[str]:
    """What each layer does by itself, where that was asked for."""
    for name, facts in run["precisions"].items():
        rows = [row for row in tables.layers if row["precision"] == name]
        if said := told_in_words(facts.get("each_layer"), rows, name.upper()):
            yield f"**Each layer by itself:** {text(said)}."


def _warnings(run: Mapping[str, Any]) -> list[str]:
    found = []
    if run.get("altered"):
        found.append(f"> **Not as written by precisionlab:** {', '.join(map(code, run['altered']))}.")
    if run["data"]["random"]:
        found.append("> **Random data.** It is likely to find the wrong layers: use none of this.")
    reference = run.get("reference") or {}
    found += [f"> **{text(Undefined.from_dict(one).text)}.**" for one in reference.get("undefined", ())]
    if (reference.get("steadiness") or {}).get("limits"):  # else it is a detail, which the report has
        found.append(f"> {text(steadiness_text(reference['steadiness']))}.")
    engines = run["engines"]
    if engines is None or not engines["measured"]:
        how = f"{text(run['figures'])}** {text(emulated_words(run))}".rstrip()
        found.append(f"> Figures **{how} by {text(run['backend'])}, not measured on a GPU.")
    else:
        found.append(f"> Rows with “engine” were **measured** on {text(engines['device'])}; others were emulated.")
    if engines is not None and (said := engines_line(engines)):
        found.append(f"> {text(said)}.")
    for precision, why in run.get("not_swept", {}).items():  # runs of older versions do not say
        found.append(f"> **{text(precision.upper())}:** {text(why)}.")
    if note := run["layers"].get("note"):
        found.append(f"> {text(note)}.")
    if held := run["layers"].get("held"):  # runs of older versions do not say
        found.append(f"> {text(held)}.")
    found += [f"> {text(note)}." for note in run.get("judging", ())]
    return found


def _verdict(section: PrecisionSection, run: Mapping[str, Any]) -> str:
    mark = section.verdict.mark
    before, after = section.low, section.mixed or section.low
    said = f"{_EMOJI[mark.tone]} **{text(section.title)}: {text(mark)}.** {text(section.headline)}."
    said += f" Asked: {text(section.tolerance)}."
    if section.bound is not None and before is not None and after is not None:
        figures = [value_text(section.bound, variant.of(section.bound)[0]) for variant in (before, after)]
        halves = after.alternatives.get(AlternativeKind.HALF_SUMS) if section.bound.figure == SQNR else None
        under = f", {value_text(section.bound, halves.sqnr)} {AlternativeKind.HALF_SUMS.words}" if halves else ""
        said += " " + text(f"{section.released}: " + " → ".join(dict.fromkeys(figures)) + under) + "."
    if section.cost:
        said += f" Cost: {text(section.cost)}, for {text(run['target']['title'])}."
    if section.repairs:
        said += f" A repair may do without pins, and was not tried: {', '.join(map(text, section.repairs))}."
    if section.remark:
        said += f" {text(section.remark)}."
    if section.carriers is not None and section.carriers.is_diffuse:
        said += f" {text(section.spread)}"
    said += "".join(f" {text(line)}." for line in (*section.picked, *section.inside))
    for doubt in section.doubts:
        said += f" ⚠ The verdict is inconclusive: {text(doubt.figure)} {text(doubt.low)} to {text(doubt.high)}."
    return f"- {said}"


def _variants(rows: Sequence[Row], held_out: bool, repaired: bool) -> str:
    variants = [variant_view(list(found)) for _, found in groupby(rows, key=lambda row: row["variant"])]
    metric = metric_name(rows)
    head = ["Variant", "Figures", "Pins", *(["Repairs"] if repaired else [])]
    for found in brief_metrics():
        head += [found.brief_label, *(["held out"] if held_out and found.name == SQNR else [])]
    head += [*([code(metric)] if metric else []), "Cost, % of FP32", "Tolerance"]
    body = [_variant(variant, held_out, repaired, bool(metric)) for variant in variants]
    return _table(head, body, left=(0, 1, len(head) - 1))


def _variant(variant: VariantView, held_out: bool, repaired: bool, metric: bool) -> list[str]:
    worst = variant.worst
    return [
        text(variant.name),
        text(variant.figures),
        "–" if variant.reference else show(variant.pins, ".0f"),
        *(["–" if variant.reference else show(variant.repairs, ".0f")] if repaired else []),
        *(cell for m in brief_metrics() for cell in _figures(m, worst, held_out)),
        *([show(variant.metric, ".3f")] if metric else []),
        percent(variant.cost).removesuffix(" %"),
        "reference" if variant.reference else _marked(variant.mark),
    ]


def _figures(metric: Metric, worst: OutputFigures, held_out: bool) -> list[str]:
    """A metric of the worst output; of the headline that on the samples held out too."""
    cells = [figure_cell(worst.of(metric.name), metric)]
    return [*cells, figure_cell(worst.held_out.of(metric.name), metric)] if held_out and metric.name == SQNR else cells


def _marked(mark: Mark) -> str:
    words = text(mark)
    return f"{_EMOJI[mark.tone]} {f'**{words}**' if mark.tone is Tone.BAD else words}"


def _repairs(section: PrecisionSection) -> Iterable[str]:
    found = section.repaired_parts
    if found is None:
        return
    yield f"### {text(section.title)}: {counted(len(found.repairs), 'repair')}"
    proven = f"Proven: with {found.without} left out, {found.lost}." if section.proven else ""
    same = f"In float32 the repaired model gives what the original gives, {text(found.same)}." if found.same else ""
    if proven or same:
        yield f"{proven} {same}".strip()
    head = [
        "Repair",
        "For the layer",
        "Why",
        "At",
        "In float32",
        f"{text(section.released)} if {found.left_out_words}",
    ]
    yield _folded(_table(head, [_repair(one) for one in found.repairs], left=(0, 1, 2, 3, 4)), len(found.repairs))


def _repair(view: RepairView) -> list[str]:
    broken = f", NaN or Inf in {counted(view.nan, 'tensor')}" if view.nan else ""
    cells = (view.title, view.reason or "–", ", ".join(view.scales) or "–", view.exactness, view.left_out + broken)
    title, why, scales, exactness, left_out = map(text, cells)
    return [title, code(view.layer), why, scales, exactness, left_out]


def _folded(table: str, rows: int) -> str:
    """The table, folded away where it is long."""
    return table if rows <= _OPEN_PINS else f"<details><summary>All {rows}</summary>\n\n{table}\n\n</details>"


def _pins(section: PrecisionSection) -> Iterable[str]:
    if not section.pins:
        return
    yield f"### {text(section.title)}: {counted(len(section.pins), 'pinned layer')}"
    if section.proven:
        yield f"Proven: with any one of them released, {text(section.tolerance)} without a new NaN or Inf is not met."
    head = ["Layer", "Pinned to", "Why", *([f"{text(section.released)} if released"] if _released(section) else [])]
    yield _folded(_table(head, [_pin(pin, section) for pin in section.pins], left=(0, 1, 2)), len(section.pins))


def _released(section: PrecisionSection) -> bool:
    return any(pin.measured is not None and pin.measured.released_nonfinite is not None for pin in section.pins)


def _pin(pin: PinView, section: PrecisionSection) -> list[str]:
    cells = [code(pin.layer), text(pin.precision), text(pin.reason or "–")]
    if _released(section):
        layer = pin.measured
        figure = None if layer is None or layer.released_nonfinite is None else layer.released
        cells.append(value_text(section.bound, figure) if section.bound else show(figure, ".3g"))
    return cells


def _next(run: Mapping[str, Any], taken: Sequence[PrecisionSection]) -> Iterable[str]:
    """How to export the plan that is taken."""
    for section in taken:
        if (command := next_command(run, section)) is not None:
            yield f"{text(command.words)}:\n\n{_fenced(command.text)}"


def _fenced(command: str) -> str:
    shown = visible(command)
    fence = "`" * max(3, 1 + max(map(len, re.findall("`+", shown)), default=0))
    return f"{fence}sh\n{shown}\n{fence}"


def _reproduce(run: Mapping[str, Any]) -> list[str]:
    data = run["data"]
    versions = ", ".join(f"{name} {version}" for name, version in run["versions"].items())
    samples = f"{data['choosing']} samples chose, {data['held_out'] or 'none'} held out; seed {data['seed']}"
    return [
        "### Reproduce",
        _fenced(shlex.join(map(str, run["command"]))),
        f"Model sha256 {code(run['model']['sha256'])}; data {text(data['name'] or 'unnamed')}, "
        f"sha256 {code(data['sha256'] or '–')}, {text(samples)}. {text(versions)}.",
    ]


def _table(head: Sequence[str], body: Iterable[Sequence[str]], left: Sequence[int]) -> str:
    """A table; a pipe that stands in a cell's code is escaped, those in text are already."""
    rule = ["---" if column in left else "---:" for column in range(len(head))]
    rows = [map(_cell, head), rule, *(map(_cell, row) for row in body)]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _cell(cell: str) -> str:
    return cell.replace("|", r"\|") if cell.startswith("`") else cell
