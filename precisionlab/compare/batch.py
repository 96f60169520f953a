"""Error sums of many small tensors in one call of the compiled loop: calling it takes longer than what they take."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from precisionlab.compare.errors import ErrorTable
from precisionlab.precision import Format

_SMALL = 8192
"""Elements up to which a tensor waits; with more of them the sums take longer than a call."""

_TOGETHER = 1 << 16
"""Elements that wait at most: their copies fit into a core's cache."""

_FLOAT32 = np.dtype(np.float32)


class ErrorBatch:
    """As `ErrorTable`. Small pairs wait until `settle`, which takes them all at once, in their order.

    To the same bits where a row has one pair, or all of them small.
    """

    def __init__(self, formats: Sequence[Format]) -> None:
        """`formats` says for each row what its outputs are held in."""
        self._table = ErrorTable(len(formats), formats)
        self._pairs: list[tuple[int, NDArray[np.float32], NDArray[np.float32]]] = []
        self._counted: list[tuple[int, NDArray[np.float32]]] = []
        self._waiting = 0

    def add(self, row: int, reference: NDArray[Any], output: NDArray[Any]) -> None:
        """Add one float tensor against its reference to a row."""
        if _is_small(reference) and _is_small(output) and reference.shape == output.shape:
            self._wait(reference)
            self._pairs.append((row, reference, output))
        else:
            self._table.add(row, reference, output)

    def count_nonfinite(self, row: int, output: NDArray[Any]) -> None:
        """Add only how many values of a float tensor are NaN or Inf."""
        if _is_small(output):
            self._wait(output)
            self._counted.append((row, output))
        else:
            self._table.count_nonfinite(row, output)

    def _wait(self, array: NDArray[Any]) -> None:
        if self._waiting + array.size > _TOGETHER:
            self.settle()
        self._waiting += array.size

    def settle(self) -> None:
        """Take what waits; then it may be freed."""
        from precisionlab.compare import kernel  # numba takes a while: not before it is needed

        table = self._table
        if self._pairs:
            rows, references, outputs = zip(*self._pairs, strict=True)
            kernel.many_error_sums(rows, references, outputs, table.sums, table.counts, table.limits)
        if self._counted:
            rows, tensors = zip(*self._counted, strict=True)
            kernel.many_nonfinite(rows, tensors, table.counts)
        self._pairs, self._counted, self._waiting = [], [], 0

    def result(self) -> ErrorTable:
        """The table."""
        self.settle()
        return self._table


def _is_small(array: NDArray[Any]) -> bool:
    return array.size <= _SMALL and array.dtype == _FLOAT32
