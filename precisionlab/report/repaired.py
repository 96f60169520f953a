"""What the files of a run say of a plan's repairs: their proof, and the part of the graph that each changes."""

from __future__ import annotations

from typing import Any

from precisionlab.report.subgraph import changed_part
from precisionlab.rewrite.repairs import repaired_graph
from precisionlab.search.certificate import json_number, plain_left_out
from precisionlab.search.outcome import PrecisionResult, Repaired


def repaired_facts(repaired: Repaired) -> dict[str, Any]:
    """The repaired model, and how it lies beside the original in float32: in the plan's file."""
    return {
        "sha256": repaired.model.content,
        "float32": {
            "bitwise": repaired.same.is_bitwise,
            "largest_difference": json_number(repaired.same.largest),
            "samples": repaired.same.samples,
        },
    }


def repairs_drawn(result: PrecisionResult) -> dict[str, Any] | None:
    """The same, with each repair's proof and graphs, for `run.json`; None where nothing was repaired."""
    found = result.repaired
    if found is None:
        return None
    proofs = [] if result.certificate is None else [plain_left_out(one) for one in result.certificate.repairs]
    original, repairs = (found.model.original or found.model).onnx, found.repairs
    graph, drawn = original.graph, []
    for place, repair in enumerate(repairs, 1):
        after = repaired_graph(original, repairs[:place]).graph
        without = proofs[place - 1] if place <= len(proofs) else None
        head = {"kind": repair.kind, "node": repair.nodes[0], "left_out": without}
        drawn.append({**head, "graph": changed_part(graph, after)})
        graph = after
    return {**repaired_facts(found), "repairs": drawn, "released": list(map(str, found.released))}
