"""What an engine was found to be inside: facts for run.json, and the sentences that pages and the terminal have."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from precisionlab.backends.tensorrt.tactics import count_sums, sums_text

if TYPE_CHECKING:
    from precisionlab.backends.tensorrt.backend import Inside


def inside_facts(inside: Inside) -> dict[str, Any]:
    """What stands in run.json of an engine's inside."""
    pins = [
        {
            "layer": pin.layer,
            "asked": pin.asked.value,
            "got": list(pin.got),
            "verdict": pin.verdict,
            "fused_with": list(pin.fused_with),
            "reformats": pin.reformats,
            "advice": pin.advice,
        }
        for pin in inside.pins
    ]
    return {"warnings": list(inside.built.warnings), "pins": pins, "sums": count_sums(inside.sums)}


def inside_lines(facts: Mapping[str, Any]) -> tuple[str, ...]:
    """What is to be said of an engine beside its pins; nothing of runs by older versions, which do not tell."""
    return tuple(filter(None, [sums_text(facts["sums"]) if "sums" in facts else ""]))
