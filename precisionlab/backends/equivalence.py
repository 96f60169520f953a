"""Whether two graphs give the same in float32, to the bit or nearly: both run, side by side, on every sample.

They run node by node, as they are written. Else ONNX Runtime would look for patterns in each of them, and round in
another place wherever it knows one form and not the other (1/√mean · x becomes one kernel, 2^-k/√mean · x does not).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from precisionlab.backends.beside import side_by_side
from precisionlab.backends.session import AS_WRITTEN
from precisionlab.data import Dataset
from precisionlab.system.plain import of_kind
from precisionlab.system.wording import counted


@dataclass(frozen=True)
class Equivalence:
    """How a graph's outputs lie beside the original's over `samples` samples.

    `is_bitwise`: every output of every sample has the same bits (NaN where NaN is). `largest` is the largest difference
    of a float, as a share of the largest finite float of that output in that sample; infinite where NaN or Inf stand in
    other places, where anything but floats differs, or a shape does.
    """

    samples: int
    is_bitwise: bool
    largest: float

    def to_plain(self) -> dict[str, Any]:
        """Plain values, for the journal."""
        return {"samples": self.samples, "is_bitwise": self.is_bitwise, "largest": self.largest}

    @classmethod
    def from_plain(cls, data: Any) -> Equivalence:
        """What `to_plain` wrote. Raises ValueError where it is something else."""
        found: Equivalence = of_kind(Equivalence, data)
        return found

    @property
    def words(self) -> str:
        """`bit for bit, on 48 samples`."""
        how = "bit for bit" if self.is_bitwise else f"to {self.largest:.2g} of an output's largest number"
        return f"{how}, on {counted(self.samples, 'sample')}"


def equivalence(
    original: ir.Model, other: ir.Model, samples: Dataset, threads: int, advance: Callable[[int], None]
) -> Equivalence:
    """Run both on all samples. Raises ModelError where one cannot be run."""
    is_bitwise, largest = True, 0.0
    for done, both in enumerate(side_by_side(original, other, samples, threads, AS_WRITTEN), 1):
        for name, wanted in both.wanted.items():
            same, off = _beside(wanted, both.given[name])
            is_bitwise, largest = is_bitwise and same, max(largest, off)
        advance(done)
    return Equivalence(len(samples), is_bitwise, largest)


def _beside(wanted: Any, given: Any) -> tuple[bool, float]:
    """Whether two outputs are the same, and how far apart they are."""
    if isinstance(wanted, list):
        pairs = [_beside(*pair) for pair in zip(wanted, given, strict=True)] if len(wanted) == len(given) else []
        return (
            (all(same for same, _ in pairs), max((off for _, off in pairs), default=0.0))
            if len(pairs) == len(wanted)
            else (False, np.inf)
        )
    if wanted is None or given is None:
        return wanted is given, 0.0 if wanted is given else np.inf
    if wanted.shape != given.shape or wanted.dtype != given.dtype:
        return False, np.inf
    is_float = wanted.dtype.kind == "f"
    if np.array_equal(wanted, given, equal_nan=is_float):
        return True, 0.0
    if not is_float:
        return False, np.inf
    finite = np.isfinite(wanted)
    if not np.array_equal(wanted[~finite], given[~finite], equal_nan=True) or not np.isfinite(given[finite]).all():
        return False, np.inf
    true = wanted[finite].astype(np.float64)
    return False, float(np.abs(given[finite] - true).max() / max(float(np.abs(true).max()), np.finfo(np.float32).tiny))
