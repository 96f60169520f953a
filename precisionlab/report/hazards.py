"""What can go wrong with the plans of a run: what was found, why it matters, what to do.

Everything is read from `run.json` and the tables, as the sections of the page hold them; nothing is measured here.
The worst stands first. What the plan found already deals with is a note: it is worth knowing before the model, its
data or its precision is changed.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from precisionlab.data.inspect import FEW
from precisionlab.precision import Precision
from precisionlab.report.cells import is_quantized, needs_ranges, percent, show
from precisionlab.report.engine_hazards import of_engines
from precisionlab.report.hazard import DANGER, NOTE, WARNING, Hazard, capital, linked
from precisionlab.report.histograms import RunHistograms
from precisionlab.report.section import PrecisionSection
from precisionlab.report.sum_hazards import of_sums
from precisionlab.report.views import LayerView, VariantView
from precisionlab.search.causes import CauseKind
from precisionlab.search.undefined import Undefined
from precisionlab.search.verdict import State, Tone

_ORDER = (DANGER, WARNING, NOTE)
_LOST = frozenset({CauseKind.CONSTANT_OVERFLOWS.value, CauseKind.CONSTANT_UNDERFLOWS.value})
_CONSTANTS = _LOST | {CauseKind.CONSTANT_CLAMPED.value}
_OVERFLOWS = frozenset({CauseKind.OVERFLOW.value, CauseKind.INPUT_OVERFLOWS.value})


def hazards(
    run: Mapping[str, Any], sections: Sequence[PrecisionSection], histograms: RunHistograms | None = None
) -> tuple[Hazard, ...]:
    """All hazards of a run, the worst first, else in the order of the page."""
    calibrated = [section.title for section in sections if needs_ranges(section.name)]
    found = list(_of_data(run, " and ".join(calibrated)))
    found += _of_reference(run)
    found += _of_tensorrt(run)
    for place, section in enumerate(sections, 1):
        found += _of_values(section, place)
        found += _of_verdict(section, run)
        found += of_sums(section, place)
        found += of_engines(section, place)
        if needs_ranges(section.name) and histograms is not None:
            found += _of_channels(section, place, histograms)
    found += _of_cost(sections)
    return tuple(sorted(found, key=lambda hazard: _ORDER.index(hazard.severity)))


def _layers(number: int) -> str:
    return f"{number} layer{'' if number == 1 else 's'}"


# The data


def _of_data(run: Mapping[str, Any], calibrated: str) -> Iterable[Hazard]:
    data = run["data"]
    if data["random"]:
        yield Hazard(
            DANGER,
            "",
            "The samples are random numbers",
            "They reach other values than real inputs do, so that other layers break, and quantized ranges are wrong.",
            "Run it again with a folder of real samples (--data).",
        )
    for finding in (data.get("look") or {}).get("findings", ()):
        about = f"Input {finding['input']}: " if finding["input"] else ""
        yield Hazard(
            WARNING if finding["severity"] == "warning" else NOTE,
            "",
            f"{about}{finding['text']}" if about else capital(str(finding["text"])),
            "All figures, the choice of pins and quantized ranges rest on these samples.",
            "Look at the samples, and fix them or dataset.toml where they are not what the model sees in use.",
        )
    choosing = int(data["choosing"])
    if calibrated and choosing < FEW <= int(data["samples"]):
        yield Hazard(
            WARNING,
            calibrated,
            f"Only {choosing} samples calibrated",
            "The others were held out. Real inputs will go beyond ranges that so few samples reach.",
            f"Give more samples: {FEW} at the least that calibrate, some hundreds where there are any.",
        )
    if not data["held_out"] and not data["random"]:
        yield Hazard(
            NOTE,
            "",
            "No sample was held out",
            "The pins were chosen and judged on the same samples: others may need other pins.",
            "Give 32 samples or more, a quarter of which is then held out, or verify the plan on other data.",
        )


def _of_reference(run: Mapping[str, Any]) -> Iterable[Hazard]:
    """Where the float32 reference has no number. Runs of older versions do not tell."""
    for facts in (run.get("reference") or {}).get("undefined", ()):
        undefined = Undefined.from_dict(facts)
        yield Hazard(
            DANGER if undefined.blank else WARNING,
            "",
            capital(undefined.text),
            "Where the reference has no number there is nothing to be right about: figures and verdicts leave it out.",
            "Look whether anybody reads these values (rows of padding are nobody's), and fix the samples or the model "
            "where somebody does.",
        )


# What TensorRT has not, or reads otherwise


def _of_tensorrt(run: Mapping[str, Any]) -> Iterable[Hazard]:
    for note in run["model"].get("tensorrt", ()):  # not there in runs of earlier versions
        yield Hazard(
            DANGER if note["silent"] else WARNING,
            "",
            capital(str(note["text"])),
            "All figures that are emulated are of what the model says."
            if note["silent"]
            else "An engine of this model cannot be built as it is.",
            "Change the model before engines are built of it.",
        )


# What breaks


def _of_values(section: PrecisionSection, place: int) -> Iterable[Hazard]:
    """Overflow, constants that underflow or overflow, and other NaN and Inf."""
    touched = [view for view in section.layers if view.rank is not None]
    # What a clamped constant keeps finite does not overflow, whatever the reference has there: a mask of −3.4e38.
    over = [view for view in touched if view.over and view.inherited_nonfinite != 0]
    kept_finite = {view.layer for view in touched if view.over and view.inherited_nonfinite == 0}
    constants = [view for view in touched if view.cause_kinds & _CONSTANTS]
    sums = [view for view in touched if CauseKind.SUM_OVERFLOWS.value in view.cause_kinds]
    explained = kept_finite.union(view.layer for view in (*over, *constants, *sums))
    others = [
        view for view in touched if view.nonfinite and view.layer not in explained and not view.cause_kinds & _OVERFLOWS
    ]
    severity = NOTE if section.met else DANGER
    dealt = f" The plan found deals with it: {section.kept_words}." if section.met else ""
    if over:
        over.sort(key=lambda view: -(view.ref_max or 0))
        held_in = over[0].held_in
        yield Hazard(
            severity,
            section.title,
            f"Overflow: {_layers(len(over))} {'reaches' if len(over) == 1 else 'reach'} values beyond "
            f"{held_in.largest:.5g}, up to {show(over[0].ref_max, '.3g')}",
            f"{held_in.title} ends there; what lies beyond becomes Inf, and Inf − Inf or Inf / Inf behind it NaN.",
            f"Keep these layers in {'BF16 or ' if held_in.title == 'FP16' else ''}FP32, or scale the values before "
            "them down." + dealt,
            **linked(over, place),
        )
    yield from _of_constants(section, touched, place, severity, dealt)
    if others:
        yield Hazard(
            severity,
            section.title,
            f"NaN or Inf in {_layers(len(others))} without an overflow of its own",
            "They break on what earlier layers hand them, such as a value that was rounded to zero.",
            "Look at their causes in the table of all layers, and at the layers before them." + dealt,
            **linked(others, place),
        )
    if section.absorbed:
        yield Hazard(
            NOTE,
            section.title,
            f"Inf on the way in {section.absorbed} tensor{'' if section.absorbed == 1 else 's'} of the plan found",
            "The layers behind make it finite again and the outputs are right, but the plan hangs on that.",
            "Where that is too little for you, ask for nonfinite<=0 in the tolerance.",
        )


def _of_constants(
    section: PrecisionSection, touched: Sequence[LayerView], place: int, severity: str, dealt: str
) -> Iterable[Hazard]:
    """Constants that the precision cannot hold: those that it loses, and those that are clamped."""
    if lost := [view for view in touched if view.cause_kinds & _LOST]:
        yield Hazard(
            severity,
            section.title,
            f"A constant of {_layers(len(lost))} does not fit {section.title}",
            "A small epsilon becomes 0, a large mask Inf: then what it prevents happens, such as a division by zero.",
            "Export the model with a constant that fits, or keep these layers in FP32." + dealt,
            **linked(lost, place),
        )
    if clamped := [view for view in touched if CauseKind.CONSTANT_CLAMPED.value in view.cause_kinds]:
        yield Hazard(
            severity,
            section.title,
            f"Clamped constants in {_layers(len(clamped))}: the figures rest on what TensorRT's builder makes of them",
            "FP16 cannot hold them, and the builder takes the nearest number that it can: −65504 for a mask, 6e-8 for "
            "an epsilon (logs of 8.x say so; in 10.x it is likely). Elsewhere a Cast makes Inf and 0 of them.",
            "Export the model with a constant that fits, such as −1e4 and 1e-5: then nothing hangs on that."
            + (dealt if all(view.pinned for view in clamped) else ""),
            **linked(clamped, place),
        )


def _of_channels(section: PrecisionSection, place: int, histograms: RunHistograms) -> Iterable[Hazard]:
    """Operands of quantized layers whose outlier channels leave the others few levels."""
    found, precision = [], Precision(section.name)
    for view in section.layers:
        kept = not needs_ranges(view.runs_in) or view.pinned or view.index is None
        for name, values in () if kept or view.index is None else histograms.uneven_of(int(view.index), precision):
            if values.channels is not None:
                found.append((values.channels.levels(values.ranges[precision].amax), view, name, values.channels))
    if not found:
        return
    found.sort(key=lambda one: one[0])
    levels, _, name, channels = found[0]
    views = list({view.layer: view for _, view, _, _ in found}.values())
    yield Hazard(
        NOTE if section.met else WARNING,
        section.title,
        f"Outlier channels at the input of {_layers(len(views))}",
        f"{section.title} has one scale for the whole tensor. In {name} channel {channels.place} of "
        f"{channels.channels} reaches {show(channels.largest, '.3g')}, the median one "
        f"{show(channels.median, '.3g')}: that one is left {show(levels, '.1f')} of 127 levels.",
        "Move the scale into the weights (SmoothQuant does), quantise-aware train, or pin these layers where their "
        "errors are high." + (" The plan found holds the tolerance all the same." if section.met else ""),
        **linked(views, place),
    )


def _of_verdict(section: PrecisionSection, run: Mapping[str, Any]) -> Iterable[Hazard]:
    for doubt in section.doubts:
        yield Hazard(
            WARNING,
            section.title,
            f"The verdict is inconclusive: {doubt.figure} would lie between {doubt.low} and {doubt.high}",
            f"With other samples of the same kind (95 %) it may stand on the other side of {doubt.bound}.",
            "Give more samples.",
        )
    if section.remark:
        yield Hazard(
            WARNING,
            section.title,
            capital(section.remark),
            "The pins are not simply the fewest that meet the tolerance on the samples that chose them.",
            "Give more samples, and verify the plan on other data.",
        )
    if section.verdict.overridden:
        return  # the engine's own hazard says which pins, and what they need
    if not section.met:
        title, action = _OF_STATES[section.verdict.state]
        yield Hazard(
            WARNING if section.verdict.mark.tone is Tone.OPEN else DANGER,
            section.title,
            title,
            f"{capital(section.verdict.sentence)}. Asked: {section.tolerance}.",
            action,
        )
    elif section.proven is False:
        yield Hazard(
            NOTE,
            section.title,
            f"Not proven that every {'pin and repair' if section.repaired else 'pin'} is needed",
            "The search was cut short, or one proved needless: more than needed may be kept back, or changed.",
            "Run it again with more time (--budget) or evaluations (--max-evaluations).",
        )


_OF_STATES = {
    State.NOT_MET: (
        "No plan meets the tolerance",
        "Do not ship it. Allow more pins or precisions, fix the samples, or ask for less if the task allows it.",
    ),
    State.NOT_COMPILED: (
        "There is no engine of the plan",
        "Change what the compiler names, or take another backend or target; for others the plan stands as it is.",
    ),
    State.ONLY_FP32: (
        "The tolerance is met only as float32",
        "Nothing is gained over FP32: stay there, or ask for less if the task allows it.",
    ),
    State.NOT_KNOWN: (
        "Whether the tolerance is met is not known",
        "Use none of it: what the sentence names must be fixed first, or another figure be asked for (a task metric).",
    ),
    State.NOT_FINISHED: (
        "The search was cut short, and no plan meets the tolerance so far",
        "Give the same command with more: it goes on from its journal.",
    ),
}


# Cost


def _of_cost(sections: Sequence[PrecisionSection]) -> Iterable[Hazard]:
    last = {section.name: section.mixed or section.low for section in sections}
    for section in sections:
        plan = last[section.name]
        if plan is None or plan.cost is None or section.touched == 0:
            continue
        if plan.cost >= 1:
            yield _no_gain(section, plan, "FP32", 1.0)
        elif is_quantized(section.name):
            others = ((name, other.cost) for name, other in last.items() if other and not is_quantized(name))
            for name, cost in others:
                if cost is not None and plan.cost >= cost:
                    yield _no_gain(section, plan, name.upper(), cost)
                    break


def _no_gain(section: PrecisionSection, plan: VariantView, other: str, cost: float) -> Hazard:
    around = f" Layers that {section.title} does not take run in {section.around}." if section.around else ""
    try_this = " Try --around fp16." if section.around == "FP32" else ""
    return Hazard(
        WARNING,
        section.title,
        f"{section.title} is no cheaper than {other}: {percent(plan.cost)} against {percent(cost)} of FP32, "
        f"{plan.cost_figures}",
        f"It costs accuracy and wins nothing: conversions and pins eat up what the layers save.{around}",
        f"Take {other} instead, or measure the time on the GPU before you decide.{try_this}",
    )
