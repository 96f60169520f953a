"""A sum of squares, of values scaled by a power of two before they are squared.

x² leaves float16 beyond |x| = 256, and a sum of squares much earlier, though the mean, the root, or the quotient behind
it is an ordinary number again: LayerNorm, RMSNorm, L2 normalisation. With x · 2^-k squared in the place of x, all is
4^-k as large, until a constant behind (1/N) takes the factor back, a root halves it, or a quotient cancels it. Squares
that are added up (re² + im², E[x²] − E[x]²) are scaled together.
"""

from __future__ import annotations

import onnx_ir as ir

from precisionlab.rewrite.repairs.region import Use, squared
from precisionlab.rewrite.repairs.scaled_region import ScaledRegion


class SumOfSquares(ScaledRegion):
    """Squares x · 2^-k in the place of x."""

    name = "scale_sum_of_squares"
    title = "squares scaled before they are summed up"
    scale = "x"
    lacking = "squares nothing"
    may_restore = True

    def starts(self, node: ir.Node) -> tuple[Use, ...]:
        """What the node squares."""
        return squared(node)
