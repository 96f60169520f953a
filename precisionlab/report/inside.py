"""What an engine was found to be inside: facts for run.json, and the sentences that pages and the terminal have."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from precisionlab.backends.tensorrt.pin_report import reformats_of
from precisionlab.backends.tensorrt.tactics import count_sums, sums_text
from precisionlab.system.wording import counted

_NAMED = 4

if TYPE_CHECKING:
    from precisionlab.backends.tensorrt.backend import Inside
    from precisionlab.backends.tensorrt.jobs import Built


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
    return {
        "warnings": list(inside.built.warnings),
        "pins": pins,
        "sums": count_sums(inside.sums),
        "strays": {"layers": list(inside.strays), "held": inside.held},
        "missed": list(inside.missed),
        "unfused": list(inside.unfused),
    }


def kernel_facts(built: Built) -> dict[str, Any]:
    """What stands in run.json of the kernels of a compiled engine; null where it could not be read."""
    return {
        "kernels": len(built.layers) if built.is_read else None,
        "kernels_by_profile": [len(layers) for layers in built.by_profile] if built.is_read else None,
        "reformats": reformats_of(built.layers) if built.is_read else None,
    }


def kernels_text(facts: Mapping[str, Any]) -> str:
    """How many kernels a compiled engine has, by its `kernel_facts`."""
    if facts["kernels"] is None:
        return "its kernels are not known"
    profiles = facts.get("kernels_by_profile") or []
    each = f" for {len(profiles)} profiles ({', '.join(map(str, profiles))})" if len(profiles) > 1 else ""
    return f"{counted(facts['kernels'], 'kernel')}{each}, {counted(facts['reformats'], 'reformat')}"


def emulated_words(run: Mapping[str, Any]) -> str:
    """What is unlike in a run's arithmetic, as words behind "emulated"; empty for the usual, and in older runs."""
    arithmetic = run.get("arithmetic")
    return str(arithmetic.get("words", "")) if isinstance(arithmetic, Mapping) else ""


def engines_line(engines: Mapping[str, Any]) -> str:
    """What all engines of a run, `run["engines"]`, have in common: their network's kind, and whether NaN is seen."""
    typed = engines.get("network") == "strongly typed"
    kind = "Engines are strongly typed: each layer has the type that its model gives it" if typed else ""
    return ". ".join(filter(None, [kind, nans_line(engines)]))


def nans_line(engines: Mapping[str, Any]) -> str:
    """Whether a NaN is seen in a run's engines, `run["engines"]`; empty of runs by older versions, which do not tell.

    What is folded is in NvInfer.h, `BuilderFlag::kSTRICT_NANS`.
    """
    if "nans" not in engines:
        return ""
    if engines["nans"] == "kept":
        return "Engines keep every NaN (STRICT_NANS); one that is built without that flag may hide some"
    return (
        "Engines may hide a NaN: this TensorRT may fold 0·x to 0, x − x to 0 and x / x to 1, and has no STRICT_NANS, "
        "which 10.6 and later have"
    )


def inside_lines(facts: Mapping[str, Any]) -> tuple[str, ...]:
    """What is to be said of an engine beside its pins; nothing of runs by older versions, which do not tell."""
    sums = sums_text(facts["sums"]) if "sums" in facts else ""
    return tuple(filter(None, [sums, strays_text(facts), missed_text(facts), unfused_text(facts)]))


def missed_text(facts: Mapping[str, Any]) -> str:
    """Which layers ran in floats though the plan quantises them; empty where none did, or an older run is silent."""
    names = [str(name) for name in facts.get("missed") or ()]
    are = "layer that the plan quantises was" if len(names) == 1 else "layers that the plan quantises were"
    return f"{len(names)} {are} computed in floats: {_some(names)}" if names else ""


def unfused_text(facts: Mapping[str, Any]) -> str:
    """Which weights are dequantised by a kernel of their own; empty where none is, or an older run is silent."""
    names = [str(name) for name in facts.get("unfused") or ()]
    whose = "layer whose weight is" if len(names) == 1 else "layers whose weights are"
    return f"{len(names)} {whose} dequantised ahead of the product: {_some(names)}" if names else ""


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(names[:_NAMED]) + more


def strays_text(facts: Mapping[str, Any]) -> str:
    """Which layers ran in INT8 against the plan; empty where none did, or a run by an older version does not tell."""
    found = facts.get("strays") or {"layers": []}
    names = [str(name) for name in found["layers"]]
    if not names:
        return ""
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    advice = "though it was to hold them" if found["held"] else "--hold-float holds them"
    return (
        f"{counted(len(names), 'layer')} that the plan has in float ran in INT8: {', '.join(names[:_NAMED])}{more}; "
        f"{advice}"
    )
