"""How a tensor's error spreads over the samples: what one figure over all of them hides."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import astuple, dataclass

import numpy as np
from numpy.typing import NDArray

from precisionlab.compare.errors import ErrorTable
from precisionlab.system.plain import Count


@dataclass(frozen=True)
class Spread:
    """The SQNR of a tensor sample by sample, in dB: the least, the quartiles, the greatest; and who is worst.

    Quartiles are values that occur (the lower one of two). A NaN counts as the least of all and `low` is then NaN;
    +inf are samples without any error. `worst` is the place of the first sample with the least, from 0.
    """

    low: float
    quarter: float
    median: float
    three_quarters: float
    high: float
    worst: Count

    def to_list(self) -> list[float]:
        """Plain values, for the journal; read back by `of_plain`."""
        return list(astuple(self))


def sqnr_of_rows(table: ErrorTable) -> NDArray[np.float32]:
    """The SQNR of each row of one sample's statistics, float32 (rows,), in dB; as `ErrorSums.sqnr` has it.

    +inf where the reference holds no number at all: a sample that judges nothing is nobody's worst.
    """
    signal, noise = table.sums[:, 0], table.sums[:, 1]
    with np.errstate(divide="ignore", invalid="ignore"):
        found = 10 * (np.log10(signal) - np.log10(noise))
    found = np.where((signal == 0) | np.isinf(noise), -np.inf, found)
    found = np.where(noise == 0, np.inf, found)
    found = np.where((table.counts[:, 0] == 0) | np.isnan(noise), np.nan, found)
    judges_nothing = (table.counts[:, 0] == 0) & (table.counts[:, 3] > 0) & (table.counts[:, 7] == 0)
    return np.where(judges_nothing, np.inf, found).astype(np.float32)


def spread_of(values: Sequence[float] | NDArray[np.float32]) -> Spread | None:
    """The spread of one tensor's SQNR over the samples, in their order; None where no sample has one."""
    found = np.asarray(values, np.float64)
    if np.isnan(found).all():
        return None
    # NaN stands below −inf: numpy sorts it to the end, from where it is taken to the front.
    order = np.argsort(found, kind="stable")
    order = np.roll(order, int(np.isnan(found).sum()))
    low, quarter, median, upper, high = (float(found[order[(found.size - 1) * part // 4]]) for part in range(5))
    return Spread(low, quarter, median, upper, high, int(order[0]))
