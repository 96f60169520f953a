"""What engines of a plan do that speaks against it: pins that they do not keep to, types that nobody asked for."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from precisionlab.report.hazard import DANGER, NOTE, WARNING, Hazard, capital, linked
from precisionlab.report.inside import missed_text, strays_text, unfused_text
from precisionlab.report.section import PrecisionSection
from precisionlab.report.views import LayerView


def of_engines(section: PrecisionSection, place: int) -> Iterable[Hazard]:
    """The hazards of one precision; `place` is that of its table on the page, counted from 1."""
    rows = {view.layer: view for view in section.layers}
    for what, facts in _engines(section):
        if facts.get("refused"):
            yield Hazard(
                DANGER,
                section.title,
                f"No engine of {what}: the compiler refused",
                str(facts["refused"]),
                "Without that, nothing is known of its kernels. Fix the model as the compiler says, or pin the layer.",
            )
        for verdict, severity, why in _PIN_VERDICTS:
            pins = [pin for pin in facts.get("pins", ()) if _EARLIER.get(pin["verdict"], pin["verdict"]) == verdict]
            advice = dict.fromkeys(str(pin["advice"]) for pin in pins if pin["advice"])
            if pins:
                known = [rows[pin["layer"]] for pin in pins if pin["layer"] in rows]
                yield Hazard(
                    severity,
                    section.title,
                    f"{len(pins)} of {len(facts['pins'])} pins {verdict} in the engine of {what}",
                    why,
                    capital("; ".join(list(advice)[:3])) or "Look at the table of pins in the engine.",
                    **linked(known, place),
                )
        if said := strays_text(facts):
            yield Hazard(
                WARNING,
                section.title,
                capital(said),
                "TensorRT may run any layer in INT8 that has scales on both sides; the emulation had these in float.",
                "Where the measured error is right, it is faster so. Else hold them: --hold-float.",
                **linked([rows[name] for name in map(str, facts["strays"]["layers"]) if name in rows], place),
            )
        if said := missed_text(facts):
            yield Hazard(
                WARNING,
                section.title,
                f"{capital(said)} in the engine of {what}",
                "The compiler has no such kernel for them: their operands are rounded, and nothing is won by that.",
                "Pin them to the precision around: it costs no time, and is more exact.",
                **linked([rows[name] for name in map(str, facts["missed"]) if name in rows], place),
            )
        if said := unfused_text(facts):
            views = [rows[name] for name in map(str, facts["unfused"]) if name in rows]
            yield _unfused(section.title, f"{capital(said)} in the engine of {what}", views, place)
        for note in facts.get("notes", ()):
            yield Hazard(
                WARNING,
                section.title,
                capital(str(note)),
                "What was measured layer by layer may not be what the engine does that you will ship.",
                "Trust the errors of the final outputs first; they were measured on the engine itself.",
            )
        for text in facts.get("warnings", ()):
            yield Hazard(
                NOTE,
                section.title,
                f"TensorRT on {what}: {text}",
                "The compiler warned while it built this engine.",
                "Look whether it names a layer that stands among the worst.",
            )


def _unfused(precision: str, title: str, views: Sequence[LayerView], place: int) -> Hazard:
    return Hazard(
        WARNING,
        precision,
        title,
        "A kernel of its own writes the whole weight in floats, and the product reads it from there: the engine is "
        "smaller, and each run moves more bytes than without.",
        "Pin them to the precision around, or make the number of columns even: an odd one is never fused.",
        **linked(views, place),
    )


_EARLIER = {"taken": "honoured", "swallowed": "overridden"}
"""What the words were in earlier runs."""

_PIN_VERDICTS = (
    (
        "overridden",
        DANGER,
        "These layers run in a lower precision than was asked for: a fused kernel took the pin away.",
    ),
    ("not found", WARNING, "No kernel is known to run these layers, so that nobody knows what their pins became."),
    ("unknown", WARNING, "The engine does not tell in which precision these layers run."),
)


def _engines(section: PrecisionSection) -> Iterable[tuple[str, Mapping[str, Any]]]:
    """Each engine's name and facts: the one that ran on the GPU, and those compiled for others."""
    if section.engine is not None:
        yield section.title, section.engine
    for compiled in section.compiled:
        yield f"{compiled['variant']}, compiled for {compiled['target']}", compiled
