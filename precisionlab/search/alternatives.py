"""What a verdict hangs on of the kernels' own arithmetic: variants measured again under another."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import Enum

from precisionlab.backends.tensorrt.tactics import LayerSum
from precisionlab.compare.comparison import Comparison
from precisionlab.compare.tolerance import Tolerance, meets
from precisionlab.model import Model
from precisionlab.model.layers import constants_of
from precisionlab.plan.arithmetic import Arithmetic, Constants, Kernels, Sums
from precisionlab.plan.assign import precision_of
from precisionlab.plan.plan import PrecisionPlan
from precisionlab.rewrite.constants import is_clamped
from precisionlab.rewrite.sums import adds_up


class AlternativeKind(str, Enum):
    """What is other in the arithmetic."""

    HALF_SUMS = "half_sums"
    ROUNDED_CONSTANTS = "rounded_constants"
    ENGINE_SUMS = "engine_sums"

    @property
    def words(self) -> str:
        """In words, as behind a figure."""
        return _WORDS[self]


_WORDS = {
    AlternativeKind.HALF_SUMS: "with sums in half",
    AlternativeKind.ROUNDED_CONSTANTS: "with constants not clamped",
    AlternativeKind.ENGINE_SUMS: "emulated with the sums of the engine's own kernels",
}


@dataclass(frozen=True)
class Alternative:
    """A variant under another arithmetic than the one that it is judged by, on the samples that choose.

    `kind` is what is other, `met` says whether the tolerance holds there too.
    """

    kind: AlternativeKind
    arithmetic: Arithmetic
    comparison: Comparison
    met: bool

    @classmethod
    def of(
        cls, kind: AlternativeKind, arithmetic: Arithmetic, comparison: Comparison, tolerance: Tolerance
    ) -> Alternative:
        """With its verdict."""
        return cls(kind, arithmetic, comparison, meets(comparison, tolerance))

    @property
    def is_half_sums(self) -> bool:
        """Whether its sums are what is other."""
        return self.kind is AlternativeKind.HALF_SUMS


def alternatives(
    model: Model, plan: PrecisionPlan, arithmetic: Arithmetic, *, typed: bool
) -> dict[AlternativeKind, Arithmetic]:
    """What else kernels may do with a plan that is judged by this arithmetic, where that can change a figure.

    Sums in half, where a layer adds products up in half; constants that are not clamped, where one is, but for
    engines that are strongly `typed`: these compute with what our file holds, which is clamped.
    """
    if arithmetic.kernels is not Kernels.TENSORRT:
        return {}
    others = {}
    if arithmetic.sums is Sums.FLOAT32 and _adds_in_half(model, plan):
        others[AlternativeKind.HALF_SUMS] = replace(arithmetic, sums=Sums.HALF)
    if not typed and arithmetic.constants is Constants.CLAMPED and _clamps(model, plan):
        others[AlternativeKind.ROUNDED_CONSTANTS] = replace(arithmetic, constants=Constants.ROUNDED)
    return others


def engine_arithmetic(arithmetic: Arithmetic, sums: Mapping[str, LayerSum]) -> Arithmetic | None:
    """The arithmetic with each layer's sums as the names of an engine's kernels tell them; those not told in float32.

    None where no layer adds up in half, and where one does so by a transform (Winograd), which is not emulated.
    """
    layers = []
    for name, found in sums.items():
        if "half" not in found.accumulators:
            continue
        if not _EMULATED.issuperset(found.orders):
            return None
        layers.append((name, Sums.HALF_SINGLE if "single products" in found.orders else Sums.HALF))
    return replace(arithmetic, layers=tuple(layers)) if layers else None


_EMULATED = frozenset({"tensor cores", "single products", "depthwise"})


def _adds_in_half(model: Model, plan: PrecisionPlan) -> bool:
    return any(
        precision_of(layer, plan).number_format.sums_in_itself
        and any(adds_up(model.node[name]) for name in layer.nodes)
        for layer in model.layers
    )


def _clamps(model: Model, plan: PrecisionPlan) -> bool:
    return any(
        is_clamped(value, precision_of(layer, plan)) for layer in model.layers for value in constants_of(model, layer)
    )
