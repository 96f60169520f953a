"""The comparison for other programs."""

from __future__ import annotations

from typing import Any

from precisionlab.report.diff.compare import RunDiff
from precisionlab.report.diff.figures import Change
from precisionlab.report.diff.plans import RepairChange
from precisionlab.search.certificate import json_number


def diff_to_dict(diff: RunDiff) -> dict[str, Any]:
    """The object that `--json` prints; NaN and infinities are the words "nan", "inf" and "-inf"."""
    return {
        "a": str(diff.before.folder),
        "b": str(diff.after.folder),
        "worse": bool(diff.failures),
        "failures": list(diff.failures),
        "ships": {
            side: {"precision": advice.taken, "sentence": advice.sentence}
            for side, advice in zip("ab", diff.advice, strict=True)
        },
        "settings": [{"name": s.name, "a": s.before, "b": s.after} for s in diff.settings],
        "precisions": [
            {
                "precision": p.name,
                "trend": p.trend,
                "met": {"a": p.met[0], "b": p.met[1]},
                "verdict": {"a": p.verdicts[0].to_dict(), "b": p.verdicts[1].to_dict()},
                "pins": [
                    {"layer": pin.layer, "a": pin.before or None, "b": pin.after or None, "reason": pin.reason}
                    for pin in p.pins
                ],
                "repairs": [_repair_dict(change) for change in p.repairs],
                "plans": {"a": p.variants[0], "b": p.variants[1]},
                "figures": [_change_dict(change) for change in p.found],
            }
            for p in diff.precisions
        ],
        "variants": [
            {"variant": v.name, "met": {"a": v.met[0], "b": v.met[1]}, "figures": [_change_dict(c) for c in v.changes]}
            for v in diff.variants
        ],
        "layers": [
            {
                "precision": layer.precision,
                "layer": layer.layer,
                "introduced_sqnr_db": _change_dict(layer.introduced),
                "inherited_sqnr_db": _change_dict(layer.inherited),
            }
            for layer in diff.layers
        ],
        "only": [{"what": what, "a": list(a), "b": list(b)} for what, a, b in diff.only],
    }


def _repair_dict(change: RepairChange) -> dict[str, Any]:
    """A repair that differs: its powers of two in each plan; null where there is none."""
    of = change.repair
    a, b = (None if one is None else dict(one.scales) for one in (change.before, change.after))
    return {"kind": of.kind, "node": of.nodes[0], "for": of.layer, "a": a, "b": b, "reason": of.reason}


def _change_dict(change: Change) -> dict[str, Any]:
    a, b = (None if value is None else json_number(value) for value in (change.before, change.after))
    within = {"within_interval": True} if change.is_within else {}
    return {"figure": change.name, "held_out": change.held_out, "a": a, "b": b, "trend": change.trend, **within}
