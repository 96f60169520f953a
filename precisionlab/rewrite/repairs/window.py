"""How far a region may be scaled: until nothing over- or underflows, and before what counts of it does."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
import onnx_ir as ir

from precisionlab.calibration.coarse import CoarseHistogram
from precisionlab.rewrite.repairs.base import Sight, bin_start
from precisionlab.rewrite.repairs.float32 import is_steep, keeps_float32
from precisionlab.rewrite.repairs.region import Region, squared

_FURTHEST = 24
"""2^48 below float32's largest square of a float16 number: there is nothing left to repair."""


@dataclass(frozen=True)
class Window:
    """The exponents from `low` to `high`, both included; the middle is taken, or what is nearest to 0 if `is_open`.

    It is open where what is divided by has numbers so small that it is not known where they vanish.
    """

    low: int
    high: int
    step: int
    is_open: bool

    @property
    def taken(self) -> int:
        """The exponent that is taken, a multiple of the step."""
        if self.is_open:
            return self.high if self.high < 0 else self.low
        return -((-self.low - self.high) // 2 // self.step * self.step)

    def __str__(self) -> str:
        taken = "the first is taken, for the sake of small sums" if self.is_open else "the middle is taken"
        first, last = (self.high, self.low) if self.high < 0 else (self.low, self.high)
        return f"nothing over- or underflows from 2^{first} to 2^{last}; {taken}"


def window_of(region: Region, sight: Sight) -> Window | None:
    """The exponents at which all that the region computes is held by the precision; None where there are none.

    At each of them nothing that the samples give, and no constant that is multiplied by, is more than half of the
    precision's largest number, and what counts of it (see `Sight.bulk`) is a normal one, as far as it was. None too
    where nothing needs scaling, and where float32 itself would change.
    """
    amounts = list(_amounts(region, sight))
    largest = math.log2(sight.number_format.largest / 2)
    normal = math.log2(sight.number_format.normal)
    low, high = _bounds((amount.degree, None, largest - amount.most) for amount in amounts)
    counting = [(one.degree, normal - one.bulk) for one in amounts if one.bulk is not None]
    steep = [(one.degree, normal - _ROUGH - one.least) for one in amounts if one.least is not None]
    held = [(degree, bound) for degree, bound in counting if bound <= 0]  # what is not lost already
    loose = [(one.degree, normal - one.bulk - one.spare) for one in amounts if one.bulk is not None]
    least_held = [(degree, bound) for degree, bound in loose if bound <= 0]
    for bounds in (counting + steep, held + steep, held, least_held):
        least, most = _bounds((degree, bound, None) for degree, bound in bounds)
        is_open = any(one.is_open for one in amounts)
        found = _within(max(low, least), min(high, most), region.step, is_open)
        if found is not None:
            is_needed = found.high < 0 or (found.low > 0 and _gains(region, sight))
            return found if is_needed and keeps_float32(region, sight, found.taken) else None
    return None


def _gains(region: Region, sight: Sight) -> bool:
    """Whether it helps to scale up: nothing vanishes that is scaled back, and no larger constant is added to it."""
    for node, index in region.constants:
        value, added = node.inputs[1 - index], node.inputs[index]
        seen = None if value is None else sight.histograms.get(str(value.name))
        if node.op_type not in _ADDING or seen is None or added is None or added.const_value is None:
            continue
        if np.abs(added.const_value.numpy()).max() >= seen.amax:
            return False
    return all(bulk is not None and bulk >= sight.number_format.normal for bulk in map(sight.bulk, region.restored))


_ADDING = frozenset({"Add", "Max"})


@dataclass(frozen=True)
class _Amount:
    """What is scaled by 2^(degree·e): its largest number and the least of it that counts, as logarithms to base 2.

    `least` is its smallest number, where it is known and must not vanish; `is_open`: it must not, and is not known. Of
    what counts `spare` octaves may be lost where there is no other way.
    """

    degree: Fraction
    most: float
    bulk: float | None
    least: float | None = None
    is_open: bool = False
    spare: float = 0.0


def _amounts(region: Region, sight: Sight) -> Iterator[_Amount]:
    for value, degree in region.values.items():
        seen = sight.histograms.get(str(value.name))
        if seen is not None and seen.amax:
            steep = is_steep(value)
            least = _least(seen) if steep else None
            yield _Amount(degree, math.log2(seen.amax), _bulk(value, sight), least, steep and seen.below > 0)
    for numbers, degree in _factors(region):
        sizes = np.abs(numbers[np.isfinite(numbers) & (numbers != 0)]).astype(np.float64)
        if sizes.size:
            mean_square = float(np.square(sizes).mean())
            yield _Amount(degree, math.log2(sizes.max()), math.log2(mean_square) / 2 - _BELOW_MEAN, spare=_BELOW_MEAN)


_ROUGH = 6
"""What must not vanish is 2^-6 of the least normal number, in float16 16 of its smallest."""
_BELOW_MEAN = 6
"""Weights count down to 2^-6 of their root mean square: of normally distributed ones all but 1e-6 of the power."""


def _least(seen: CoarseHistogram) -> float | None:
    first = next((place for place, count in enumerate(seen.bins) if count), None)
    return None if seen.below or first is None else math.log2(bin_start(seen.exponent, first))


def _bulk(value: ir.Value, sight: Sight) -> float | None:
    """What counts of a square is what counts of the sum that it goes into."""
    made = value.producer()
    source = made.inputs[0] if made is not None and made.op_type != "ReduceL2" and squared(made) else None
    bulk = sight.bulk(value if source is None else source)
    return None if not bulk else math.log2(bulk) * (1 if source is None else 2)


def _factors(region: Region) -> Iterator[tuple[np.ndarray, Fraction]]:
    """The constants that are multiplied by, by degree: those that are added vanish where they do not matter."""
    for (node, index), degree in region.scaled_constants.items():
        value = node.inputs[index]
        assert value is not None
        assert value.const_value is not None
        if index < 2 and node.op_type in ("Mul", "MatMul", "Gemm", "Conv", "ConvTranspose", "Div", "Gather"):
            yield value.const_value.numpy(), degree


def _bounds(limits: Iterable[tuple[Fraction, float | None, float | None]]) -> tuple[int, int]:
    """The least and the largest e with `lower` ≤ degree · e ≤ `upper` for all of them."""
    low, high = -_FURTHEST, _FURTHEST
    for degree, lower, upper in limits:
        if degree < 0:
            lower, upper = (None if bound is None else -bound for bound in (upper, lower))
        size = float(abs(degree))
        if lower is not None:
            low = max(low, math.ceil(lower / size))
        if upper is not None:
            high = min(high, math.floor(upper / size))
    return low, high


def _within(low: int, high: int, step: int, is_open: bool) -> Window | None:
    """The multiples of `step` from low to high."""
    low, high = -(-low // step) * step, high // step * step
    return Window(low, high, step, is_open) if low <= high else None
