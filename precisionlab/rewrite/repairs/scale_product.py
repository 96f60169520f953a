"""A product of two activations, one of them scaled by a power of two.

q · kᵀ leaves float16 before 1/√d makes scores of it, and Σa·b before it is divided by two norms. With q · 2^-k in the
place of q the constant behind takes 2^k back, or a norm of it cancels the scale.
"""

from __future__ import annotations

import onnx_ir as ir

from precisionlab.rewrite.repairs.region import Use, squared
from precisionlab.rewrite.repairs.scaled_region import ScaledRegion

_KINDS = frozenset({"MatMul", "Mul"})


class ScaleProduct(ScaledRegion):
    """An operand · 2^-k in the place of it."""

    name = "scale_product"
    title = "an operand scaled before it is multiplied"
    scale = "operand"
    lacking = "multiplies no two activations"
    may_restore = True

    def starts(self, node: ir.Node) -> tuple[Use, ...]:
        """The first operand, of two that are no constants."""
        is_product = node.domain in ("", "ai.onnx") and node.op_type in _KINDS and not squared(node)
        if not is_product or any(value is None or value.const_value is not None for value in node.inputs):
            return ()
        return ((node, 0),)
