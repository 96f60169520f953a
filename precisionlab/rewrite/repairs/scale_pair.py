"""Two products, the first scaled down by a power of two and the second up.

What the first gives leaves float16, though what the second makes of it does not. The first one's weights and bias times
2^-k give 2^-k of it, through activations and pooling that are homogeneous, and a constant behind (the weights of the
next, a factor) takes it back. What is added on the way (a residual) has its own weights scaled alike. Nothing is added
to the graph.
"""

from __future__ import annotations

from collections.abc import Iterator

import onnx_ir as ir

from precisionlab.model.repair import Exactness, Repair
from precisionlab.rewrite.repairs.base import Sight, ends_at, node_of, refused, scale_of, scaled_names
from precisionlab.rewrite.repairs.passing import UnscalableError
from precisionlab.rewrite.repairs.region import Order, region_of, weights_of
from precisionlab.rewrite.repairs.scaling import apply
from precisionlab.rewrite.repairs.window import window_of

_SCALE = "weights"


class ScalePair:
    """Weights of a product times 2^-k, and what stands behind times 2^k."""

    name = "scale_pair"
    title = "one product scaled down, and the next up"

    def find(self, sight: Sight) -> Iterator[Repair]:
        """One for each product with constant weights behind which something breaks until the scale is taken back."""
        known: set[ir.Node] = set()
        for node in sight.model.onnx.graph:
            weights = weights_of(node)
            if weights is None or node in known:
                continue
            try:
                region = region_of(sight.order, [(node, weights)], sight.fits, may_restore=False)
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
        """Scale weights. Raises PlanError where the node has none, or the scale is not taken back behind it."""
        node = node_of(graph, repair)
        weights = weights_of(node)
        if weights is None:
            raise refused(repair, f"node {node.name!r} ({node.op_type}) has no constant weights")
        try:
            region = region_of(Order(graph), [(node, weights)], ends_at(repair), may_restore=False)
        except UnscalableError:
            raise refused(repair, f"the scale of node {node.name!r} cannot be taken back behind it") from None
        apply(graph, region, scale_of(repair, _SCALE, region.step))
