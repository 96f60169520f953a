"""What sums that are kept in half do to a plan: those that overflow on the way, and verdicts that hang on them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from precisionlab.report.cells import show
from precisionlab.report.hazard import DANGER, NOTE, WARNING, Hazard, capital, linked
from precisionlab.report.section import PrecisionSection
from precisionlab.search.alternatives import AlternativeKind
from precisionlab.search.causes import CauseKind
from precisionlab.search.unscaled import REMEDY

_REMEDY = (
    "Pin to BF16 or FP32, whose kernels add up in float32; for a strongly typed network --ladder fp16-sums32,bf16,fp32 "
    "beside --sums half leaves matrix products in FP16, with Casts that have them added up in float32."
)


def of_sums(section: PrecisionSection, place: int) -> Iterable[Hazard]:
    """The hazards of one precision; `place` is that of its table on the page, counted from 1."""
    if section.verdict.needs_float32_sums:
        yield _needs_float32(section)
    if section.unscaled is not None:
        yield _unscaled(section, section.unscaled, place)
    passing = [view for view in section.layers if CauseKind.SUM_OVERFLOWS.value in view.cause_kinds]
    if not passing:
        return
    passing.sort(key=lambda view: -(view.running_sum or 0))
    largest, end = passing[0].running_sum, passing[0].held_in.largest
    left = [view for view in passing if not view.pinned]
    what = "The sum of 1 layer passes" if len(passing) == 1 else f"The sums of {len(passing)} layers pass"
    dealt = "" if left else f" The plan found keeps {'it' if len(passing) == 1 else 'all of them'} out of it."
    yield Hazard(
        NOTE if not left else WARNING if section.met and not section.verdict.needs_float32_sums else DANGER,
        section.title,
        f"{what} {end:.5g} on the way, up to {show(largest, '.3g')}, although results fit",
        "Where a kernel keeps its sums in half, such a sum is infinite, and stays so. Most FP16 kernels of weakly "
        "typed TensorRT do; others add up in float32, and nothing happens.",
        f"{_REMEDY} Or scale the layer's values down.{dealt}",
        **linked(passing, place),
    )


def _unscaled(section: PrecisionSection, facts: Mapping[str, Any], place: int) -> Hazard:
    """Sums in steps that other tools' models have in half."""
    return Hazard(
        WARNING,
        section.title,
        capital(str(facts["title"])),
        f"{capital(str(facts['why']))}.",
        f"{capital(REMEDY)}. With other tools give each weight one scale, or leave float32 around {section.title}.",
        **linked([view for view in section.layers if view.layer in facts["layers"]], place),
    )


def _needs_float32(section: PrecisionSection) -> Hazard:
    """The plan is right with sums in float32 alone."""
    plan = section.mixed or section.low
    half = None if plan is None else plan.alternatives.get(AlternativeKind.HALF_SUMS)
    figures = ""
    if plan is not None and half is not None:
        figures = f" The worst output has {show(plan.worst.sqnr, '.1f')} dB, and {show(half.sqnr, '.1f')} dB then."
    return Hazard(
        WARNING,
        section.title,
        f"{section.title} is right only where kernels add up in float32",
        "Most FP16 kernels of weakly typed TensorRT keep their sums in half, by their names." + figures,
        f"Search again with --sums half, for a plan that holds then too. {_REMEDY}",
    )
