"""The layers of one precision, the worst first: the one order of terminal, report and tables.

A layer is as bad as what it does, alone, to the final outputs. That is only measured where pins are searched for, or
where each layer was asked for by itself; else layers stand by the error that they introduce themselves, which says
less: what a layer loses the layers behind may swallow. Where an Inf is seen to be absorbed so, as the plan found is
right with it, the layer does not stand in front.
"""

from __future__ import annotations

from precisionlab.model import Model
from precisionlab.search.outcome import PrecisionResult
from precisionlab.search.rank import by_share


def absorbed_layers(model: Model, outcome: PrecisionResult) -> frozenset[str]:
    """The layers whose NaN or Inf do no harm: they hold them under the plan found too, and its outputs are right."""
    mixed = outcome.mixed
    if not mixed.met:
        return frozenset()
    held_out = mixed.held_out.nonfinite if mixed.held_out else ()
    broken = {*mixed.comparison.nonfinite, *held_out}
    return frozenset(layer.name for layer in model.layers if not broken.isdisjoint(layer.watched))


def worst_first(model: Model, outcome: PrecisionResult) -> tuple[str, ...]:
    """The names of all layers that the precision touches, in the order of `by_share`."""
    introduced = outcome.low.comparison.introduced
    broken = {
        layer.name
        for layer in model.layers
        if any(introduced[name].nonfinite for name in layer.watched if name in introduced)
    }
    return by_share(outcome.ranked, outcome.output_shares, broken, absorbed_layers(model, outcome))


def order_words(measured: int, touched: int) -> str:
    """What the order goes by, in a sentence without a full stop: so many of the touched layers were measured alone."""
    own = "by the error that each introduces itself; last those whose Inf the layers behind absorb"
    if not measured:
        return f"{own} (what each does to the outputs is measured where pins are searched for, and by --each-layer)"
    alone = "by share of the output error: what a layer alone does to the worst output, of the sum over all layers"
    return alone if measured >= touched else f"{alone}; behind these, and not measured so, {own}"
