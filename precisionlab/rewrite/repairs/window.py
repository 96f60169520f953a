"""How far a region may be scaled: until nothing over- or underflows, and before what counts of it does."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
import onnx_ir as ir

from precisionlab.calibration.coarse import CoarseHistogram
from precisionlab.rewrite.repairs.base import Sight
from precisionlab.rewrite.repairs.passing import is_constant
from precisionlab.rewrite.repairs.region import Region, squared
from precisionlab.rewrite.repairs.scaling import power

_FURTHEST = 24
"""2^48 below float32's largest square of a float16 number: there is nothing left to repair."""
_SPARE, _LARGEST, _LEAST = -100, 127, -126
"""Powers of two: below the first float32 may lose bits of a sum to its subnormal numbers; its own largest, and least
with all bits."""
_TERMS = 24
"""A sum is of 2^24 terms at most."""


@dataclass(frozen=True)
class Window:
    """The exponents from `low` to `high`, both included, and which of them is taken: one near the middle."""

    low: int
    high: int
    taken: int

    def __str__(self) -> str:
        return f"nothing over- or underflows from 2^{self.high} to 2^{self.low}; the middle is taken"


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
    counting = [(one, normal - one.bulk) for one in amounts if one.bulk is not None]
    for bounds in (counting, [(one, bound) for one, bound in counting if bound <= 0]):  # or what is lost already
        least, most = _bounds((one.degree, bound, None) for one, bound in bounds)
        found = _within(max(low, least), min(high, most), region.step)
        if found is not None:
            return found if not found.low <= 0 <= found.high and _keeps_float32(region, sight, found.taken) else None
    return None


@dataclass(frozen=True)
class _Amount:
    """What is scaled by 2^(degree·e): its largest number and the least of it that counts, as logarithms to base 2."""

    degree: Fraction
    most: float
    bulk: float | None


def _amounts(region: Region, sight: Sight) -> Iterator[_Amount]:
    for value, degree in _values(region).items():
        seen = sight.histograms.get(str(value.name))
        if seen is not None and seen.amax:
            yield _Amount(degree, math.log2(seen.amax), _bulk(value, sight))
    for numbers, degree in _factors(region):
        sizes = np.abs(numbers[np.isfinite(numbers) & (numbers != 0)]).astype(np.float64)
        if sizes.size:
            mean_square = float(np.square(sizes).mean())
            yield _Amount(degree, math.log2(sizes.max()), math.log2(mean_square) / 2 - _BELOW_MEAN)


_BELOW_MEAN = 6
"""Weights count down to 2^-6 of their root mean square: of normally distributed ones all but 1e-6 of the power."""


def _bulk(value: ir.Value, sight: Sight) -> float | None:
    """What counts of a square is what counts of the sum that it goes into."""
    made = value.producer()
    source = made.inputs[0] if made is not None and made.op_type != "ReduceL2" and squared(made) else None
    bulk = sight.bulk(value if source is None else source)
    return None if not bulk else math.log2(bulk) * (1 if source is None else 2)


def _values(region: Region) -> Mapping[ir.Value, Fraction]:
    """All that is scaled, and is no constant, by degree."""
    seeds = (node.inputs[index] for node, index in region.seeds)
    return {**{v: Fraction(1) for v in seeds if v is not None and not is_constant(v)}, **region.degrees}


def _factors(region: Region) -> Iterator[tuple[np.ndarray, Fraction]]:
    """The constants that are multiplied by, by degree: those that are added vanish where they do not matter."""
    for (node, index), degree in _constants(region).items():
        value = node.inputs[index]
        assert value is not None
        assert value.const_value is not None
        if index < 2 and node.op_type in ("Mul", "MatMul", "Gemm", "Conv", "ConvTranspose", "Div", "Gather"):
            yield value.const_value.numpy(), degree


def _constants(region: Region) -> Mapping[tuple[ir.Node, int], Fraction]:
    seeds = {(node, index): Fraction(1) for node, index in region.seeds if is_constant(node.inputs[index])}
    return {**seeds, **region.constants}


def _bounds(limits: Iterator[tuple[Fraction, float | None, float | None]]) -> tuple[int, int]:
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


def _within(low: int, high: int, step: int) -> Window | None:
    """The multiples of `step` from low to high."""
    low, high = -(-low // step) * step, high // step * step
    return Window(low, high, -((-low - high) // 2 // step * step)) if low <= high else None


def _keeps_float32(region: Region, sight: Sight, exponent: int) -> bool:
    """Whether nothing leaves float32's normal numbers, as far as histograms tell, neither before nor with the scale."""
    for (node, index), degree in _constants(region).items():
        value = node.inputs[index]
        assert value is not None
        assert value.const_value is not None
        numbers, by = value.const_value.numpy(), power(exponent, degree)
        scaled = np.ldexp(numbers, by)
        if not np.array_equal(np.ldexp(scaled, -by), numbers, equal_nan=True):
            return False
    for node, degree in region.epsilons.items():
        attribute = node.attributes.get("epsilon")
        epsilon = 1e-5 if attribute is None else attribute.as_float()
        if epsilon and math.log2(epsilon) + power(exponent, degree) < _LEAST:
            return False
    return _is_finite(region, sight) and all(
        not seen.amax or math.log2(seen.amax) + min(0, power(exponent, degree)) >= _SPARE
        for value, degree in _values(region).items()
        if (seen := sight.histograms.get(str(value.name))) is not None
    )


def _is_finite(region: Region, sight: Sight) -> bool:
    """Whether no float32 value of the region overflows but where the samples hold Inf themselves."""
    sources = [seen for node in region.seeding for value in node.inputs if (seen := _seen(value, sight)) is not None]
    if not any(seen.nonfinite for seen in sources):
        return not any(
            seen.nonfinite for value in region.degrees if (seen := sight.histograms.get(str(value.name))) is not None
        )
    most = max((float(abs(degree)) for degree in region.degrees.values()), default=1.0)
    return all(not seen.amax or most * math.log2(seen.amax) + _TERMS < _LARGEST for seen in sources)


def _seen(value: ir.Value | None, sight: Sight) -> CoarseHistogram | None:
    return None if value is None or is_constant(value) else sight.histograms.get(str(value.name))
