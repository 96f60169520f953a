"""Repairs as the report shows them: what each is for, what speaks for it, and the part of the graph that it changes."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from precisionlab.backends.equivalence import Equivalence
from precisionlab.compare.tolerance import Bound
from precisionlab.model.repair import Exactness, Repair
from precisionlab.plan.arithmetic import Constants
from precisionlab.report.cells import ABSENT, value_text
from precisionlab.report.subgraph_drawing import DrawnNode, PartDrawing, draw_part, nodes_of
from precisionlab.rewrite.repairs import PASSES
from precisionlab.system.wording import counted

EXACTNESS: Mapping[Exactness, str] = {
    Exactness.BITWISE: "the same bits",
    Exactness.ROUNDING: "rounds elsewhere, to 1e-5",
}
"""What each kind does in float32."""


_CHANNELS = re.compile(r"\d{1,9}(-\d{1,9})?(,\d{1,9}(-\d{1,9})?)*")
_HALF_A_PAGE = 540
"""Pixels."""
_MOST_CHANGES = 6


@dataclass(frozen=True)
class RepairView:
    """One repair of a plan.

    `scales` are the powers of two that it computes at, `left_out` is what becomes of the plan without it, and `nan` in
    how many tensors there is a new NaN or Inf then; `together` counts those that were left out with it;
    `hangs_on_clamping`: that is so where constants are not clamped, and not where TensorRT clamps them. `before` and
    `after` are drawings; None where the run has none. `changes` are the first nodes that came, went or changed, `more`
    counts the others.
    """

    kind: str
    title: str
    layer: str
    reason: str
    nodes: tuple[str, ...]
    scales: tuple[str, ...]
    conditions: tuple[str, ...]
    exactness: str
    left_out: str
    nan: int
    together: int = 1
    hangs_on_clamping: bool = False
    changes: tuple[str, ...] = ()
    more: int = 0
    hidden: int = 0
    before: PartDrawing | None = None
    after: PartDrawing | None = None

    @property
    def is_wide(self) -> bool:
        """Whether its drawings need the page's whole width each."""
        return any(one is not None and one.width > _HALF_A_PAGE for one in (self.before, self.after))


@dataclass(frozen=True)
class RepairedView:
    """All repairs of a plan. `same` says how float32 lies beside the original; `released` were found and left out."""

    repairs: tuple[RepairView, ...]
    same: str
    released: tuple[str, ...] = ()

    @property
    def are_joint(self) -> bool:
        """Whether they were left out all at once, as channels are, to prove that they are needed."""
        return any(one.together > 1 for one in self.repairs)

    @property
    def _joint(self) -> int:
        """How many were left out all at once; 0 where each was by itself."""
        return sum(one.together > 1 for one in self.repairs)

    @property
    def left_out_words(self) -> str:
        """When the figures beside them are so: `left out`, `all are left out`, or of channels and others both."""
        if not self._joint:
            return "left out"
        return "all are left out" if self._joint == len(self.repairs) else "left out, of channels all"

    @property
    def proof_words(self) -> str:
        """How they were left out for the proof, as a sentence."""
        if not self._joint:
            return "Each was, alone"
        if self._joint == len(self.repairs):
            return f"All {self._joint} of them were, at once, as each does little by itself"
        return f"All {self._joint} of channels were, at once, as each does little by itself, and any other alone"

    @property
    def hangs_on_clamping(self) -> bool:
        """Whether some are needed for constants that are not clamped alone."""
        return any(one.hangs_on_clamping for one in self.repairs)

    @property
    def lost(self) -> str:
        """What becomes of the plan without it, in words."""
        hang = [one.hangs_on_clamping for one in self.repairs]
        only = "the tolerance holds only as TensorRT clamps constants"
        if hang and all(hang):
            return only
        return "the tolerance does not hold, or more than a decibel is lost" + (
            f", or {only}" if self.hangs_on_clamping else ""
        )

    @property
    def without(self) -> str:
        """What was left out for the proof: `all 12 of them`, `all 11 of channels or any other`, `it`, `any one`."""
        if self._joint:
            return f"all {self._joint} of {'them' if self._joint == len(self.repairs) else 'channels or any other'}"
        return "it" if len(self.repairs) == 1 else "any one of them"


def repair_title(kind: str) -> str:
    """A kind of repair in words; its own name where this version does not know it."""
    return PASSES[kind].title if kind in PASSES else kind


def scale_texts(repair: Repair) -> tuple[str, ...]:
    """The powers of two that it computes at: `x: 2^-9`, and of channels `12 channels: 2^-2`."""
    return tuple(f"{_scaled(name)}: 2^{exponent}" for name, exponent in repair.scales)


def _scaled(name: str) -> str:
    """What a scale is for: a plan lists channels, hundreds of them, as `0-3,7`."""
    if not _CHANNELS.fullmatch(name):
        return name
    ends = [part.split("-") for part in name.split(",")]
    count = sum(int(part[-1]) - int(part[0]) + 1 for part in ends)
    return f"channel {name}" if count == 1 else f"{count} channels"


def repaired_view(
    repairs: Sequence[Repair], facts: Mapping[str, Any] | None, bound: Bound | None, drawn: bool
) -> RepairedView:
    """The repairs of a plan, with what `run.json` says of them; drawings only where `drawn`."""
    told = {} if facts is None else facts
    entries = list(told.get("repairs", ()))
    fitting = [entry for entry, one in zip(entries, repairs, strict=False) if _is_of(entry, one)]
    known: Sequence[Mapping[str, Any]] = fitting if len(fitting) == len(repairs) else [{}] * len(repairs)
    views = tuple(_view(one, entry, bound, drawn) for one, entry in zip(repairs, known, strict=True))
    return RepairedView(views, _same(told), tuple(map(str, told.get("released", ()))))


def _is_of(entry: Mapping[str, Any], repair: Repair) -> bool:
    return bool((entry["kind"], entry["node"]) == (repair.kind, repair.nodes[0]))


def _same(facts: Mapping[str, Any]) -> str:
    if not facts:
        return ""
    found = facts["float32"]
    return Equivalence(int(found["samples"]), bool(found["bitwise"]), float(found["largest_difference"])).words


def _view(repair: Repair, entry: Mapping[str, Any], bound: Bound | None, drawn: bool) -> RepairView:
    left_out, nan = _left_out(entry.get("left_out"), bound)
    view = RepairView(
        kind=repair.kind,
        title=repair_title(repair.kind),
        layer=repair.layer,
        reason=repair.reason,
        nodes=repair.nodes,
        scales=scale_texts(repair),
        conditions=repair.conditions,
        exactness=EXACTNESS[repair.exactness],
        left_out=left_out,
        nan=nan,
        together=int((entry.get("left_out") or {}).get("together", 1)),
        hangs_on_clamping=(entry.get("left_out") or {}).get("constants") == Constants.ROUNDED.value,
    )
    part = entry.get("graph")
    return _with_drawings(view, part) if drawn and part else view


def _left_out(proof: Mapping[str, Any] | None, bound: Bound | None) -> tuple[str, int]:
    """What is left of the figure without the repair, and how many tensors have a new NaN or Inf then."""
    if proof is None:
        return ABSENT, 0
    if "nonfinite_tensors" not in proof:
        return "the others need it", 0
    figure = None if bound is None else proof.get(bound.figure)
    text = ABSENT if figure is None or bound is None else value_text(bound, float(figure))
    return text, int(proof["nonfinite_tensors"])


def _with_drawings(view: RepairView, part: Mapping[str, Any]) -> RepairView:
    before, after = nodes_of(part["before"]), nodes_of(part["after"])
    changes = tuple(_changes(before, after))
    said = "; ".join(changes)
    return replace(
        view,
        changes=changes[:_MOST_CHANGES],
        more=len(changes[_MOST_CHANGES:]),
        hidden=int(part["hidden"]),
        before=draw_part(before, f"The graph as it is: {counted(len(before), 'node')} from top to bottom"),
        after=draw_part(after, f"The graph as it is repaired. {said}"[:500]),
    )


def _changes(before: Sequence[DrawnNode], after: Sequence[DrawnNode]) -> Iterable[str]:
    """What came, went and changed, a line for each node."""
    old = {node.name: node for node in before}
    yield from (f"gone: {node.words}" for node in before if node.state == "gone")
    yield from (f"new: {node.words}" for node in after if node.state == "new")
    for node in after:
        if node.state == "changed" and node.name in old:
            texts = (", ".join(one.constants) for one in (old[node.name], node))
            yield f"changed: {node.kind} {node.name}, {' → '.join(texts)}"
