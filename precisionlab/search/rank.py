"""Puts the layers that a precision touches in order, the worst first."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate

from precisionlab.compare.errors import ErrorSums
from precisionlab.compare.sensitivity import Sensitivities, Sensitivity, gain_of
from precisionlab.model import Layer
from precisionlab.search.carriers import tied

Measure = Callable[[Mapping[str, Sensitivity]], float]
"""How much harm a layer does, by the final outputs' sensitivities to it: more is worse, NaN is worst."""


@dataclass(frozen=True)
class Ranking:
    """Layer names, the worst first, and those among them that must be pinned whatever else is."""

    order: tuple[str, ...]
    required: tuple[str, ...]


def rank(layers: Sequence[Layer], introduced: Mapping[str, ErrorSums]) -> Ranking:
    """Rank by the error that each layer introduces on its own.

    Layers that give NaN or Inf from the reference's finite inputs, or hold them in their bodies, come first, the
    earliest first, and are required pins. Then by SQNR, the lowest first; ties by place.
    """
    required = {layer.name for layer in layers if any(e.nonfinite for e in _of(layer.watched, introduced))}
    keys = {layer.name: (0, 0.0) if layer.name in required else (1, _sqnr(layer, introduced)) for layer in layers}
    order = sorted(keys, key=keys.__getitem__)
    return Ranking(tuple(order), tuple(name for name in order if name in required))


def relative_error(outputs: Mapping[str, Sensitivity]) -> float:
    """Σerr² / Σref² of the output or part that the layer alone harms most, as `worst_sqnr` has it in dB.

    0 where it harms none, NaN where one holds NaN that the reference does not have.
    """
    judged = (errors for sensitivity in outputs.values() for errors, _ in sensitivity.judged.values())
    shares = [errors.rel_l2 for errors in judged if errors.elements]
    return math.nan if any(math.isnan(share) for share in shares) else max(shares, default=0.0) ** 2


def relative_gain(outputs: Mapping[str, Sensitivity]) -> float:
    """The squared error that should go with the layer's, relative to the reference, summed over all that is judged.

    Where the whole variant's error is not finite, so that nothing can be said of its direction, the layer's own
    squared error alone. NaN where that is not finite either.
    """
    total = 0.0
    for errors, along in (judged for sensitivity in outputs.values() for judged in sensitivity.judged.values()):
        if not errors.ref2:
            continue
        gain = gain_of(errors, along) if math.isfinite(along) else errors.err2
        total += gain / errors.ref2 if math.isfinite(gain) else math.nan
    return total


ALONE: Measure = relative_error
"""What layers are ranked by; benchmarks/ranking.py has it beside others."""


def rank_by_sensitivity(
    first: Ranking,
    sensitivities: Sensitivities,
    weights: Mapping[str, float] | None = None,
    measure: Measure = ALONE,
    cost: Callable[[str], float] = lambda name: 0.0,
) -> Ranking:
    """Rank anew by what each layer alone does to the final outputs.

    Required pins stay in front. Then layers that alone make a final output NaN or Inf, then by harm, the largest first.
    Of layers that it does not tell apart (see `carriers.tied`) the one whose pin costs least, by `cost`, comes first:
    of pins that do the same the others are released. What is still equal, does no harm or was not measured stands in
    the order of `first`. `weights` divide the harm: what pinning each layer costs.
    """
    place = {name: i for i, name in enumerate(first.order)}
    divided = weights or {}
    harms = {name: measure(sensitivities[name]) / divided.get(name, 1.0) for name in place if name in sensitivities}

    def key(name: str) -> tuple[int, float, int]:
        if name in first.required:
            return 0, 0.0, place[name]
        if name not in harms:
            return 3, 0.0, place[name]
        return (1, 0.0, place[name]) if math.isnan(harms[name]) else (2, -harms[name], place[name])

    order = sorted(place, key=key)
    for name in first.required:
        harms.pop(name, None)
    for start, end in tied(order, harms):
        order[start:end] = sorted(order[start:end], key=lambda name: (cost(name), place[name]))
    return Ranking(tuple(order), first.required)


def output_shares(sensitivities: Sensitivities) -> dict[str, float]:
    """Layer → its share of the final outputs' error, of those that were measured alone.

    That is its Σerr² / Σref² of the output or part that it alone harms most, of the sum of these over all layers: 0 to
    1. NaN for a layer that alone makes an output NaN, or Inf where the reference is finite: no share says how bad that
    is. 0 where no layer does any harm.
    """
    return shares_of({name: relative_error(outputs) for name, outputs in sensitivities.items()})


def shares_of(harms: Mapping[str, float]) -> dict[str, float]:
    """The same of each layer's Σerr² / Σref²; what is not finite breaks an output."""
    total = sum(harm for harm in harms.values() if math.isfinite(harm))
    return {name: (harm / total if harm else 0.0) if math.isfinite(harm) else math.nan for name, harm in harms.items()}


def sums_of_shares(shares: Mapping[str, float]) -> dict[str, float]:
    """Layer → its share and all that are larger, or as large and before it; NaN for one that has none."""
    finite = {name: share for name, share in shares.items() if math.isfinite(share)}
    order = sorted(finite, key=lambda name: -finite[name])
    sums = dict(zip(order, accumulate(finite[name] for name in order), strict=True))
    return {name: sums.get(name, math.nan) for name in shares}


def by_share(
    order: Sequence[str], shares: Mapping[str, float], broken: Collection[str], absorbed: Collection[str] = ()
) -> tuple[str, ...]:
    """The layers as people are shown them, the worst first; `shares` are their `output_shares`.

    First those that alone make an output NaN or Inf, and those of the `broken` ones, which give NaN or Inf themselves,
    that were not measured alone. Then by share of the outputs' error, the largest first; then those that were not
    measured; last those of them whose NaN or Inf is `absorbed` behind them. Ties, and what was not measured, in the
    given order.
    """

    def key(name: str) -> tuple[int, float]:
        share = shares.get(name)
        if share is None:
            return 3 if name in absorbed else 0 if name in broken else 2, 0.0
        return (0, 0.0) if math.isnan(share) else (1, -share)

    return tuple(sorted(order, key=key))


def _of(names: Iterable[str], introduced: Mapping[str, ErrorSums]) -> list[ErrorSums]:
    return [introduced[name] for name in names if name in introduced]


def _sqnr(layer: Layer, introduced: Mapping[str, ErrorSums]) -> float:
    return min((e.sqnr for e in _of(layer.outputs, introduced) if not math.isnan(e.sqnr)), default=math.inf)
