"""Which precision of a run to ship, from what its folder holds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from precisionlab.report.cells import Row, is_quantized, show
from precisionlab.report.commands import longer_command, next_command, open_command, seen_from
from precisionlab.report.section import Doubt, PrecisionSection, Tables, metric_name, section_of
from precisionlab.report.variant_rows import variant_rows
from precisionlab.report.views import VariantView, variant_view
from precisionlab.results.sweep import SweepFindings
from precisionlab.search.alternatives import AlternativeKind
from precisionlab.search.recommendation import Candidate, Recommendation, how_right, recommend
from precisionlab.search.verdict import State, Tone

_ENGINES = ("repaired engine", "mixed engine", "engine")
"""What engines of a precision are called behind its name; the first that there is was taken."""


def recommendation(
    run: Mapping[str, Any], variants: Sequence[Row], sections: Sequence[PrecisionSection]
) -> Recommendation:
    """What to ship; `variants` are the rows of `variants.csv`. Where somebody changed a file, nothing is."""
    if run.get("altered"):
        changed = "Take none yet: the run's files are not as precisionlab wrote them."
        return Recommendation((changed, "verify measures a plan again."), None, Tone.OPEN)
    candidates = [_candidate(run, variants, section) for section in sections]
    return recommend(candidates, int(run["data"]["held_out"]))


def recommendation_of(result: SweepFindings) -> Recommendation:
    """The same of a result that is at hand."""
    rows = variant_rows(result)
    return recommendation(result.run, rows, _sections(result, rows))


def next_commands(result: SweepFindings, advice: Recommendation) -> tuple[str, ...]:
    """What to type next here: the export of the plan that is taken, else what goes on; and what opens the report."""
    sections, run = _sections(result, variant_rows(result)), seen_from(Path.cwd(), result.run)
    exports = [next_command(run, section) for section in sections if section.name == advice.taken]
    is_open = any(section.verdict.state is State.NOT_FINISHED for section in sections)
    longer = longer_command(run) if is_open and advice.taken is None else ""
    return (*filter(None, (longer, *(one.text for one in exports if one))), open_command(run).text)


def _sections(result: SweepFindings, rows: Sequence[Row]) -> list[PrecisionSection]:
    return [section_of(name, result.run, Tables(rows, [], []), result.plans, False) for name in result.plans]


def _candidate(run: Mapping[str, Any], variants: Sequence[Row], section: PrecisionSection) -> Candidate:
    taken = _taken(variants, section)
    fp32 = _engine(variants, "fp32 engine")
    times = (taken.latency, fp32.latency) if taken and fp32 else (None, None)
    share, milliseconds = taken.cost if taken else None, None
    if times[0] and times[1]:
        share, milliseconds = times[0] / times[1], times[0]
    return Candidate(
        name=section.name,
        title=section.title,
        verdict=section.verdict,
        how=how_right(len(section.pins), section.repaired),
        changes=len(section.pins) + section.repaired,
        touched=section.touched,
        is_quantized=is_quantized(section.name),
        figures=str(run["figures"]) if section.engine is None else f"measured on {run['engines']['device']}",
        share=share,
        cost_figures=taken.cost_figures if taken else "",
        milliseconds=milliseconds,
        metric=_metric(metric_name(variants), taken),
        doubt="; ".join(map(_doubt, section.doubts)),
        caveat=_caveat(section.title, taken),
        sqnr=None if taken is None else taken.worst.sqnr,
    )


def _caveat(title: str, taken: VariantView | None) -> str:
    """What else is assumed of TensorRT, where the figures do not hold without it."""
    other = None if taken is None else taken.alternatives.get(AlternativeKind.ROUNDED_CONSTANTS)
    if other is None or other.mark.state is State.MET:
        return ""
    return f"That hangs on TensorRT clamping constants that {title} cannot hold, as its builder's logs say it does"


def _taken(variants: Sequence[Row], section: PrecisionSection) -> VariantView | None:
    """The variant that the verdict is about: the engine that was taken, where engines were measured."""
    engines = (_engine(variants, f"{section.name} {kind}") for kind in _ENGINES)
    return next(filter(None, engines), section.mixed or section.low)


def _engine(variants: Sequence[Row], name: str) -> VariantView | None:
    rows = [row for row in variants if row["variant"] == name]
    return variant_view(rows) if rows else None


def _metric(name: str, taken: VariantView | None) -> str:
    """`accuracy 0.979, FP32's 0.979`; nothing where no task was measured."""
    if not name or taken is None or taken.metric is None or taken.reference_metric is None:
        return ""
    return f"{name} {show(taken.metric, '.3f')}, FP32's {show(taken.reference_metric, '.3f')}"


def _doubt(doubt: Doubt) -> str:
    return f"with other samples {doubt.figure} would lie between {doubt.low} and {doubt.high}"
