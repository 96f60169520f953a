"""A sum of squares, of values scaled down by a power of two before they are squared.

x² leaves float16 beyond |x| = 256, and a sum of squares much earlier, though the mean, the root, or the quotient behind
it is an ordinary number again: LayerNorm, RMSNorm, L2 normalisation. With x · 2^-k squared in the place of x, all is
4^-k as large, until a constant behind (1/N) takes the factor back, a root halves it, or a quotient cancels it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator

import onnx_ir as ir

from precisionlab.model.names import all_names, new_name
from precisionlab.model.repair import Exactness, Repair
from precisionlab.rewrite.repairs.base import Sight, ends_at, node_of, refused, scale_of
from precisionlab.rewrite.repairs.region import Region, UnscalableError, Use, apply, ends_of, region_of, scalar_of

_FURTHEST = 24  # 2^48 below float32's largest square of a float16 number, there is nothing left to repair
_SCALE = "x"


class SumOfSquares:
    """Squares x · 2^-k in the place of x."""

    name = "scale_sum_of_squares"
    title = "squares scaled down before they are summed up"

    def find(self, sight: Sight) -> Iterator[Repair]:
        """One for each square of which something breaks behind."""
        graph = sight.model.onnx.graph
        for node in graph:
            if uses := squared(node):
                found = _window(graph, node, uses, sight)
                if found is not None:
                    low, high, region = found
                    breaking = [n for n in region.nodes if sight.layer_of(n) in sight.broken]
                    if breaking:
                        yield Repair(
                            self.name,
                            Exactness.BITWISE,
                            sight.layer_of(breaking[0]),
                            (str(node.name), *(str(n.name) for n in ends_of(region))),
                            ((_SCALE, -((low + high) // 2)),),
                            (f"nothing over- or underflows from 2^-{low} to 2^-{high}; the middle is taken",),
                        )

    def apply(self, graph: ir.Graph, repair: Repair) -> None:
        """Scale what is squared. Raises PlanError where the node squares nothing, or the scale cannot be taken back."""
        node = node_of(graph, repair)
        uses = squared(node)
        if not uses:
            raise refused(repair, f"node {node.name!r} ({node.op_type}) squares nothing")
        value = node.inputs[0]
        assert value is not None
        try:
            region = region_of(graph, value, scale_of(repair, _SCALE), uses, ends_at(repair))
        except UnscalableError:
            raise refused(repair, f"the scale of {value.name!r} cannot be taken back behind {node.name!r}") from None
        apply(graph, region, new_name(f"{value.name}~scaled", set(all_names(graph))))


def squared(node: ir.Node) -> tuple[Use, ...]:
    """The inputs by which a node takes what it squares; none for a node that does not."""
    if node.domain not in ("", "ai.onnx") or not node.inputs or node.inputs[0] is None:
        return ()
    if node.op_type == "Mul" and node.inputs[0] is node.inputs[1]:
        return ((node, 0), (node, 1))
    if node.op_type in ("ReduceSumSquare", "ReduceL2"):
        return ((node, 0),)
    if node.op_type == "Pow" and scalar_of(node.inputs[1]) == 2:
        return ((node, 0),)
    return ()


def _window(graph: ir.Graph, node: ir.Node, uses: Iterable[Use], sight: Sight) -> tuple[int, int, Region] | None:
    """The least and the most that x may be scaled down by, and what the middle entails; None where there is no window.

    From the least on nothing overflows; up to the most all that counts of the squares is a normal number.
    """
    value = node.inputs[0]
    assert value is not None
    bulk = sight.bulk(value)
    if bulk is None:
        return None
    most = math.floor(math.log2(bulk) - math.log2(sight.number_format.normal) / 2)
    for low in range(1, min(most, _FURTHEST) + 1):
        try:
            region = region_of(graph, value, -low, uses, sight.fits)
        except UnscalableError:
            return None
        if all(sight.fits(inner, exponent) for inner, exponent in region.exponents.items()):
            return low, most, region_of(graph, value, -((low + most) // 2), uses, sight.fits)
    return None
