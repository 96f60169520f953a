"""A sum of squares, of values scaled by a power of two before they are squared.

x² leaves float16 beyond |x| = 256, and a sum of squares much earlier, though the mean, the root, or the quotient behind
it is an ordinary number again: LayerNorm, RMSNorm, L2 normalisation. With x · 2^-k squared in the place of x, all is
4^-k as large, until a constant behind (1/N) takes the factor back, a root halves it, or a quotient cancels it. Squares
that are added up (re² + im², E[x²] − E[x]²) are scaled together. Small values are scaled up, so that their squares do
not vanish.
"""

from __future__ import annotations

from collections.abc import Iterator

import onnx_ir as ir

from precisionlab.model.repair import Exactness, Repair
from precisionlab.rewrite.repairs.base import Sight, ends_at, node_of, refused, scale_of, scaled_names
from precisionlab.rewrite.repairs.passing import UnscalableError
from precisionlab.rewrite.repairs.region import Order, region_of, squared
from precisionlab.rewrite.repairs.scaling import apply
from precisionlab.rewrite.repairs.window import window_of

_SCALE = "x"


class SumOfSquares:
    """Squares x · 2^-k in the place of x."""

    name = "scale_sum_of_squares"
    title = "squares scaled before they are summed up"

    def find(self, sight: Sight) -> Iterator[Repair]:
        """One for each square of which something breaks behind."""
        known: set[ir.Node] = set()
        for node in sight.model.onnx.graph:
            uses = squared(node)
            if not uses or node in known:
                continue
            try:
                region = region_of(sight.order, uses, sight.fits)
            except UnscalableError:
                continue
            breaking = sight.breaking(region.nodes)
            window = window_of(region, sight) if breaking else None
            if window is not None:
                known.update(region.seeding)
                exactness = Exactness.BITWISE if region.is_exact else Exactness.ROUNDING
                scales = ((_SCALE, window.taken),)
                yield Repair(self.name, exactness, breaking[0], scaled_names(node, region), scales, (str(window),))

    def apply(self, graph: ir.Graph, repair: Repair) -> None:
        """Scale what is squared. Raises PlanError where the node squares nothing, or the scale cannot be taken back."""
        node = node_of(graph, repair)
        uses = squared(node)
        if not uses:
            raise refused(repair, f"node {node.name!r} ({node.op_type}) squares nothing")
        try:
            region = region_of(Order(graph), uses, ends_at(repair))
        except UnscalableError:
            value = node.inputs[0]
            assert value is not None
            raise refused(repair, f"the scale of {value.name!r} cannot be taken back behind {node.name!r}") from None
        apply(graph, region, scale_of(repair, _SCALE, region.step))
