"""The calibration table: tensor → range, with how it was found."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from precisionlab.calibration.blocks import Blocks
from precisionlab.precision import Format, Precision
from precisionlab.system.plain import Amount, Count

_SMALLEST_SCALE = 2.0**-126
INT8_LEVELS = 127  # symmetric: −127 … 127 stand for −amax … amax (TensorRT developer guide, INT8)


@dataclass(frozen=True)
class Range:
    """The largest |x| that a tensor's quantized values stand for, and what it is taken from.

    `largest` is the largest finite |x| seen, `count` how many finite values were, `clipped` how many of
    them lie beyond `amax`, `nonfinite` how many NaN and Inf took no part. Nothing at all was seen of a tensor that is
    empty in every sample (see `is_empty`).
    """

    amax: Amount
    method: str = "max"
    largest: Amount = 0.0
    count: Count = 0
    clipped: Count = 0
    nonfinite: Count = 0

    def scale(self, number_format: Format) -> float:
        """The step of the format: amax / its largest value; that of 1 for a tensor that was zero throughout.

        Never below the smallest normal float32, which is what scales are kept in.
        """
        return max((self.amax or 1.0) / number_format.largest, _SMALLEST_SCALE)

    @property
    def is_empty(self) -> bool:
        """Whether the tensor never held an element in the samples: then it has no range, and no scale is of it."""
        return not (self.count or self.nonfinite or self.amax)

    @property
    def clipped_share(self) -> float:
        """Between 0 and 1."""
        return self.clipped / self.count if self.count else 0.0


@dataclass(frozen=True)
class CalibrationTable:
    """Tensor name → range, over `samples` samples, found for the values of a quantized `precision`.

    `others` are the tables of other precisions that a plan has beside it. That of a precision for weights alone has no
    ranges, and says in `blocks` how these are quantised.
    """

    ranges: Mapping[str, Range]
    samples: int
    precision: Precision = Precision.INT8
    others: tuple[CalibrationTable, ...] = field(default=())
    blocks: Blocks | None = None

    def of(self, precision: Precision) -> CalibrationTable:
        """The table of a quantized precision. Raises KeyError where there is none."""
        found = next((table for table in (self, *self.others) if table.precision is precision), None)
        if found is None:
            raise KeyError(precision.value)
        return found

    def scale(self, tensor: str, precision: Precision) -> float:
        """The step of a tensor's values in a quantized precision. Raises KeyError where it has no range."""
        return self.of(precision).ranges[tensor].scale(precision.number_format)

    @property
    def scales(self) -> dict[str, float]:
        """Tensor name → scale, of those that have a range; in this table's own precision."""
        number_format = self.precision.number_format
        return {name: found.scale(number_format) for name, found in self.ranges.items() if not found.is_empty}

    @property
    def methods(self) -> dict[str, int]:
        """Method → how many tensors have their range by it, the most frequent first."""
        return dict(Counter(found.method for found in self.ranges.values() if not found.is_empty).most_common())

    @property
    def digest(self) -> str:
        """SHA-256 over the tensors and their ranges: two tables with the same one quantise alike."""
        lines = [f"{name}\0{found.amax.hex()}" for name, found in sorted(self.ranges.items())]
        lines += [f"{self.precision}"] if self.precision is not Precision.INT8 else []
        lines += [self.blocks.digest] if self.blocks is not None else []
        lines += [f"{table.precision}\0{table.digest}" for table in self.others]
        return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def block_table(blocks: Blocks, precision: Precision = Precision.INT4) -> CalibrationTable:
    """What a precision for weights alone has in the place of ranges."""
    return CalibrationTable({}, 0, precision, blocks=blocks)


def tables_in(table: CalibrationTable | None) -> tuple[CalibrationTable, ...]:
    """The table and those beside it, one of each precision; none of None."""
    return () if table is None else (table, *table.others)


def network_scales(table: CalibrationTable, gone: Mapping[str, str | None]) -> dict[str, float]:
    """Tensor → int8 scale, for a network that TensorRT parses from the model's file.

    `gone` are the file's tensors that the loaded model has not (`Model.gone`): those that hold what another does have
    its scale.
    """
    scales = table.scales
    return scales | {name: scales[kept] for name, kept in gone.items() if kept in scales}


def weight_scales(weight: NDArray[np.float32], axis: int | None, number_format: Format) -> NDArray[np.float32]:
    """Scale of each channel along `axis`, float32 (channels,), or of the whole tensor, float32 ().

    scale = max |w| / the format's largest value (127 of int8); that of 1 for a channel of zeros. (TensorRT: weights are
    quantised symmetrically, per output channel.)
    """
    magnitude = np.abs(weight)
    amax = magnitude.max(initial=0) if axis is None else magnitude.max(
        axis=tuple(i for i in range(weight.ndim) if i != axis), initial=0
    )  # fmt: skip
    return np.asarray(np.where(amax == 0, 1.0, amax) / number_format.largest, np.float32)
