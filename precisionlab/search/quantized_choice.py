"""Which quantized precision each layer is more exact in, and why: INT8's steps are all of one size, FP8's grow.

So what decides is how far a tensor's largest value lies beyond its usual ones. Rounding to steps of one size loses
step² / 12 wherever a value is; with step = amax / 127 that is 20·log10(127 · rms / amax) + 10.8 dB. Rounding to E4M3
loses 31.6 dB whatever the values are (`docs/how-to/fp8.md`), and both meet where amax is 11.6 times the rms.

A layer has two operands, and the noise of a product is the sum of theirs: in FP8 28.6 dB. In INT8 a weight with a scale
for each channel has about 42 (a normal one, 4 times its rms), so that the other operand may have 28.8 dB before the sum
is as much: there both meet where its amax is 16 times its rms.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from precisionlab.precision import Precision
from precisionlab.system.wording import counted

ALIKE = 1.0
"""dB; a difference within it says nothing of a layer."""

EVEN = 11.6
"""amax over rms where an operand loses as much in both."""

EVEN_OF_LAYER = 16.0
"""amax over rms of the operand with the longest tail where a layer does."""

_SHORT, _LONG = Precision.INT8.value, Precision.FP8.value
"""What short tails and long ones speak for."""


@dataclass(frozen=True)
class LayerChoice:
    """One layer: its own SQNR in each precision, in dB by name; the better one, and what its operands' tails are.

    `better` is empty where they differ by less than ALIKE. `tail` is the largest amax over rms of its operands, None
    where that is not known.
    """

    layer: str
    kind: str
    own: Mapping[str, float]
    better: str
    tail: float | None

    @property
    def apart(self) -> float:
        """How far apart their noise is, of the layer's signal."""
        shares = [10 ** (-sqnr / 10) for sqnr in self.own.values()]
        return max(shares) - min(shares)

    @property
    def why(self) -> str:
        """What its operands' tails have to do with it; "though" where they would have it otherwise.

        So it is where INT8's range clips what lies far out, or where weights or small values decide.
        """
        if self.tail is None:
            return ""
        is_long = self.tail > EVEN_OF_LAYER
        speaks_for = _LONG if is_long else _SHORT
        though = "though " if self.better and self.better != speaks_for else ""
        return f"{though}its operands reach {self.tail:.3g} times their rms: {'long' if is_long else 'short'} tails"


@dataclass(frozen=True)
class QuantizedChoice:
    """The layers that all of these precisions can have, in the model's order; `titles` are those of the precisions."""

    titles: Mapping[str, str]
    layers: tuple[LayerChoice, ...]

    def count(self, name: str) -> int:
        """How many layers are more exact in this one."""
        return sum(layer.better == name for layer in self.layers)

    @property
    def question(self) -> str:
        """`INT8 or FP8?`."""
        return f"{' or '.join(self.titles.values())}?"

    @property
    def sentence(self) -> str:
        """Which is more exact in how many layers, each by itself, and what they have where their noise differs most.

        One layer whose noise is all over may outweigh all others: so the outputs may speak for what few layers do.
        """
        said = ", ".join(f"{title} in {self.count(name)}" for name, title in self.titles.items())
        alike = sum(not layer.better for layer in self.layers)
        more = f"; {alike} within {ALIKE:g} dB" if alike else ""
        widest = max(self.layers, key=lambda layer: layer.apart)
        most = ", ".join(f"{title} {widest.own[name]:.1f}" for name, title in self.titles.items())
        apart = f"; where they differ most, in dB: {most}" if widest.better else ""
        return f"of {counted(len(self.layers), 'layer')} by themselves, more exact: {said}{more}{apart}"


def quantized_choice(
    titles: Mapping[str, str],
    own: Mapping[str, Mapping[str, float]],
    kinds: Mapping[str, str],
    tails: Mapping[str, float],
) -> QuantizedChoice | None:
    """The choice between the precisions named in `titles`; None for fewer than two, or where no layer has all of them.

    `own` has by precision each layer's own SQNR in dB, of the layers that run in it; `kinds` and `tails` are by layer.
    """
    if len(titles) < 2:
        return None
    names = list(titles)
    both = [layer for layer in own[names[0]] if all(layer in own[name] for name in names)]
    found = tuple(
        LayerChoice(layer, kinds.get(layer, ""), figures, _better(figures), tails.get(layer))
        for layer in both
        for figures in [{name: own[name][layer] for name in names}]
    )
    return QuantizedChoice(dict(titles), found) if found else None


def tail_of(amax: float, squares: float, count: int) -> float | None:
    """amax over rms; None for values that are all 0."""
    return amax / math.sqrt(squares / count) if count and squares > 0 else None


def _better(own: Mapping[str, float]) -> str:
    first, second, *_ = sorted(own, key=own.__getitem__, reverse=True)
    return first if own[first] - own[second] >= ALIKE else ""
