"""What the repairs have in common that compute a part of the graph at another power of two."""

from __future__ import annotations

from collections.abc import Iterator

import onnx_ir as ir

from precisionlab.model.repair import Exactness, Repair
from precisionlab.rewrite.repairs.base import Proposal, Sight, node_of, proposed, refused
from precisionlab.rewrite.repairs.passing import UnscalableError
from precisionlab.rewrite.repairs.region import Ends, Order, Region, Use, region_of
from precisionlab.rewrite.repairs.scaling import apply
from precisionlab.rewrite.repairs.window import window_of


class ScaledRegion:
    """Repairs of one kind: where they start is for each kind to say.

    `scale` is what the repair calls its power of two, `lacking` what is said of a node where none starts; the scale may
    be taken back by a Mul where the kind `may_restore`.
    """

    name: str
    title: str
    scale: str
    lacking: str
    may_restore = False

    def starts(self, node: ir.Node) -> tuple[Use, ...]:
        """The inputs of the node that are scaled; none where it is no such node."""
        raise NotImplementedError

    def find(self, sight: Sight) -> Iterator[Proposal]:
        """One for each place from which something breaks until the scale has come to an end."""
        known: set[ir.Node] = set()
        for node in sight.model.onnx.graph:
            uses = self.starts(node)
            if not uses or node in known or not all(sight.is_held(one.inputs[index]) for one, index in uses):
                continue
            try:
                region = region_of(sight.order, uses, sight.ends, may_restore=self.may_restore)
            except UnscalableError:
                continue
            window = window_of(region, sight) if sight.breaking(region.nodes) else None
            if window is not None:
                known.update(region.seeding)
                exactness = Exactness.BITWISE if region.is_exact else Exactness.ROUNDING
                names = tuple(str(one.name) for one in (node, *region.ends))
                scales = ((self.scale, window.taken),)
                yield from proposed(sight, _mended(sight, region), self.name, exactness, names, scales, (str(window),))

    def apply(self, graph: ir.Graph, repair: Repair) -> None:
        """Scale the region. Raises PlanError where none starts at the node, or its scale is not taken back."""
        node = node_of(graph, repair)
        uses = self.starts(node)
        if not uses:
            raise refused(repair, f"node {node.name!r} ({node.op_type}) {self.lacking}")
        try:
            region = region_of(Order(graph), uses, _ends_at(repair), may_restore=self.may_restore)
        except UnscalableError:
            raise refused(repair, f"the scale of node {node.name!r} cannot be taken back behind it") from None
        apply(graph, region, self._exponent(repair, region.step))

    def _exponent(self, repair: Repair, step: int) -> int:
        exponent = dict(repair.scales).get(self.scale)
        if not isinstance(exponent, int) or abs(exponent) > 126 or exponent % step:
            what = "power of two" if step == 1 else f"power of 2^{step}"
            raise refused(repair, f"it needs `{self.scale}`, a {what} from −126 to 126")
        return exponent


def _mended(sight: Sight, region: Region) -> tuple[ir.Node, ...]:
    """The nodes that break by themselves, where there are such: others may have inherited what another repair mends."""
    overflowing = tuple(node for node in region.nodes if not all(map(sight.fits, node.outputs)))
    return overflowing if sight.breaking(overflowing) else region.nodes


def _ends_at(repair: Repair) -> Ends:
    """Has a region end where it did when the repair was found: at the nodes behind its first."""
    ends = frozenset(repair.nodes[1:])

    def fits(value: ir.Value) -> bool:
        made = value.producer()
        return made is not None and made.name in ends

    return Ends(fits, fits)
