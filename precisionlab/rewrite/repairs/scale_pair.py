"""Two products, the first scaled down by a power of two and the second up.

What the first gives leaves float16, though what the second makes of it does not. The first one's weights and bias times
2^-k give 2^-k of it, through activations and pooling that are homogeneous, and a constant behind (the weights of the
next, a factor), a normalisation, or a quotient takes it back. What is added on the way (a residual) has its own weights
scaled alike. No product is added to the graph.
"""

from __future__ import annotations

import onnx_ir as ir

from precisionlab.rewrite.repairs.region import Use, weights_of
from precisionlab.rewrite.repairs.scaled_region import ScaledRegion


class ScalePair(ScaledRegion):
    """Weights of a product times 2^-k, and what stands behind times 2^k."""

    name = "scale_pair"
    title = "one product scaled down, and the next up"
    scale = "weights"
    lacking = "has no constant weights"

    def starts(self, node: ir.Node) -> tuple[Use, ...]:
        """The node's constant weights."""
        weights = weights_of(node)
        return () if weights is None else ((node, weights),)
