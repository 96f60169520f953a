"""Whether a region gives the same in float32 at another power of two, as far as histograms tell."""

from __future__ import annotations

import math

import numpy as np
import onnx_ir as ir

from precisionlab.calibration.coarse import CoarseHistogram
from precisionlab.rewrite.repairs.base import Sight
from precisionlab.rewrite.repairs.passing import is_constant, scalar_of
from precisionlab.rewrite.repairs.region import Region
from precisionlab.rewrite.repairs.scaling import power

_SPARE, _LARGEST, _LEAST = -100, 127, -126
"""Powers of two: below the first float32 may lose bits of a sum to its subnormal numbers; its own largest, and least
with all bits."""
_TERMS = 24
"""A sum is of 2^24 terms at most."""
_FLOORS = frozenset({"Add", "Max", "Clip"})


def keeps_float32(region: Region, sight: Sight, exponent: int) -> bool:
    """Whether nothing leaves float32's normal numbers, neither before nor with the scale."""
    return (
        _keeps_constants(region, exponent)
        and _keeps_epsilons(region, exponent)
        and _is_finite(region, sight)
        and not _may_vanish(region, sight, exponent)
        and all(
            not seen.amax or math.log2(seen.amax) + min(0, power(exponent, degree)) >= _SPARE
            for value, degree in region.values.items()
            if (seen := _seen(value, sight)) is not None
        )
    )


def is_steep(value: ir.Value) -> bool:
    """Whether it is a sum of squares, is divided by, or a root taken of it, and nothing keeps it from 0."""
    made = value.producer()
    is_sum = made is not None and made.op_type.startswith("Reduce")
    is_root = any(use.node.op_type == "Sqrt" or _divides(*use) for use in value.uses())
    return not _has_floor(value) and (is_sum or is_root)


def _has_floor(value: ir.Value) -> bool:
    made = value.producer()
    return made is not None and made.op_type in _FLOORS and any(map(is_constant, made.inputs))


def _divides(node: ir.Node, index: int) -> bool:
    power = scalar_of(node.inputs[1]) if node.op_type == "Pow" else None
    return node.op_type == "Reciprocal" or (node.op_type == "Div" and index == 1) or (power is not None and power < 0)


def _keeps_constants(region: Region, exponent: int) -> bool:
    for (node, index), degree in region.scaled_constants.items():
        value = node.inputs[index]
        assert value is not None
        assert value.const_value is not None
        numbers, by = value.const_value.numpy(), power(exponent, degree)
        with np.errstate(over="ignore", under="ignore"):
            back = np.ldexp(np.ldexp(numbers, by), -by)
        if not np.array_equal(back, numbers, equal_nan=True):
            return False
    return True


def _keeps_epsilons(region: Region, exponent: int) -> bool:
    for node, degree in region.epsilons.items():
        attribute = node.attributes.get("epsilon")
        epsilon = 1e-5 if attribute is None else attribute.as_float()
        if epsilon > 0 and not _LEAST <= math.log2(epsilon) + power(exponent, degree) < _LARGEST:
            return False
    return True


def _may_vanish(region: Region, sight: Sight, exponent: int) -> bool:
    """Whether what is divided by may be so small that float32 has it as 0 with the scale alone, or without alone."""
    for value in region.values:
        seen = _seen(value, sight)
        is_small = seen is not None and (seen.below > 0 or (exponent > 0 and seen.zeros > 0))
        if is_small and not _has_floor(value) and any(_divides(*use) for use in value.uses()):
            return True
    return False


def _is_finite(region: Region, sight: Sight) -> bool:
    """Whether no float32 value of the region overflows but where the samples hold Inf themselves."""
    sources = [seen for node in region.seeding for value in node.inputs if (seen := _seen(value, sight)) is not None]
    if not any(seen.nonfinite for seen in sources):
        return not any(map(sight.has_nonfinite, region.degrees))
    most = max((float(abs(degree)) for degree in region.degrees.values()), default=1.0)
    return all(not seen.amax or most * math.log2(seen.amax) + _TERMS < _LARGEST for seen in sources)


def _seen(value: ir.Value | None, sight: Sight) -> CoarseHistogram | None:
    return None if value is None or is_constant(value) else sight.histograms.get(str(value.name))
