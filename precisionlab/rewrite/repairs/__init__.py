"""Equivalent graphs in which a layer does not break: one file a kind of repair."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import onnx_ir as ir
from onnx_ir.passes import common as passes

from precisionlab.errors import PlanError
from precisionlab.model import Model
from precisionlab.model.load import with_graph
from precisionlab.model.repair import Repair
from precisionlab.precision import Precision
from precisionlab.rewrite.repairs.base import Proposal, RepairPass, Sight
from precisionlab.rewrite.repairs.channel_starts import copies_in
from precisionlab.rewrite.repairs.clamp_constant import ClampConstant
from precisionlab.rewrite.repairs.log_hypot import LogHypot
from precisionlab.rewrite.repairs.migrate_channels import MigrateChannels
from precisionlab.rewrite.repairs.quantized import Quantized
from precisionlab.rewrite.repairs.reduce_mean import ReduceMean
from precisionlab.rewrite.repairs.scale_pair import ScalePair
from precisionlab.rewrite.repairs.scale_product import ScaleProduct
from precisionlab.rewrite.repairs.shift_exponential import ShiftExponential
from precisionlab.rewrite.repairs.sum_of_squares import SumOfSquares

__all__ = [
    "MIGRATE",
    "PASSES",
    "RepairPass",
    "Sight",
    "found_repairs",
    "is_repairable",
    "repaired_graph",
    "repaired_model",
    "repaired_precisions",
    "why_left_alone",
]

MIGRATE = MigrateChannels()

PASSES: Mapping[str, RepairPass] = {
    one.name: one
    for one in (
        ClampConstant(),
        LogHypot(),
        ShiftExponential(),
        SumOfSquares(),
        ReduceMean(),
        ScalePair(),
        ScaleProduct(),
        MIGRATE,
    )
}
"""The kinds, in the order in which they are tried: those that change least come first."""


def repaired_precisions() -> tuple[Precision, ...]:
    """The precisions that there are repairs of their own for: floats, and what channels leave few levels of.

    Not FP8: it has as many digits in a small channel as in a large one, down to 2⁻¹⁵ of that (on minilm_l3 and orient
    no channel's power of two brings more than 0.6 dB, in either direction).
    """
    return tuple(one for one in Precision.low() if one.number_format.is_uniform or not one.is_quantized)


def is_repairable(model: Model, precision: Precision, around: Precision = Precision.FP32) -> bool:
    """Whether there are repairs for the precision at all, and for the model; see `why_left_alone`.

    Of a quantized one those of the floats `around` too.
    """
    has_some = not {precision, around}.isdisjoint(repaired_precisions())
    return has_some and not why_left_alone(model)


def why_left_alone(model: Model) -> str:
    """Why a model is never repaired, as the end of a sentence; empty where it may be.

    What it has in half is rounded wherever a repair rounds otherwise. Where it has Q/DQ nodes of its own, the part of
    it that they leave in float may be repaired; see `Quantized`.
    """
    if model.halves or any(layer.own or layer.has_own_inside for layer in model.layers):
        return "computes in half itself"
    return ""


def found_repairs(sight: Sight) -> tuple[Repair, ...]:
    """All that could help; of those that mend the same the first kind alone, and none that mends less than another.

    A quantized precision breaks by its channels alone. What would change what a model's own Q/DQ nodes take is none.
    """
    if sight.number_format.is_quantized:
        return tuple(proposal.repair for proposal in MIGRATE.find(sight))
    kept: list[Proposal] = []
    is_quantized = Quantized.of(sight.model.onnx.graph) is not None
    for one in PASSES.values():
        for proposal in one.find(sight):
            if any(proposal.mends <= other.mends for other in kept):
                continue
            if is_quantized and not _can_be_carried_out(sight.model.onnx, proposal.repair):
                continue
            kept = [other for other in kept if not other.mends < proposal.mends] + [proposal]
    return tuple(proposal.repair for proposal in kept)


def repaired_model(model: Model, repairs: tuple[Repair, ...]) -> Model:
    """The model with these repairs in the place of those that it has, its layers as our patterns fuse them.

    Raises PlanError where one of them cannot be carried out, or the model is left alone.
    """
    original = model.original or model
    if repairs and (why := why_left_alone(original)):
        raise PlanError(f"{original.path} {why}, and is not repaired; sweep it anew")
    if not repairs:
        return original
    graph = repaired_graph(original.onnx, repairs)
    return with_graph(original, graph, repairs, copies_in(graph.graph, original))


def _can_be_carried_out(model: ir.Model, repair: Repair) -> bool:
    try:
        repaired_graph(model, (repair,))
    except PlanError:
        return False
    return True


def repaired_graph(model: ir.Model, repairs: Iterable[Repair]) -> ir.Model:
    """A copy of the model with these repairs.

    Raises PlanError where one cannot be carried out, or changes what the model's own Q/DQ nodes compute with.
    """
    copy = model.clone()
    for repair in repairs:
        if repair.kind not in PASSES:
            raise PlanError(f"repair {repair}: of no kind that this version knows")
        quantized = Quantized.of(copy.graph)
        PASSES[repair.kind].apply(copy.graph, repair)
        if quantized is not None:
            quantized.check(copy.graph, repair)
    passes.RemoveUnusedNodesPass()(copy)  # what nothing takes any more
    return copy
