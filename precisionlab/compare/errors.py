"""Error statistics of one tensor: sums that merge in any order, and the metrics that come out of them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from precisionlab.precision import Format, Precision
from precisionlab.system.plain import Amount, Count

STATISTICS = 4
"""Which meaning the statistics have; of another one a journal is not taken over. 1: overflow was float16's always;
2: the elements of another shape were mismatches;
3: `underflow` had another name."""

SUMS, COUNTS = 6, 12
"""How many of each a row of an `ErrorTable` has, in the order of the fields of `ErrorSums`."""


@dataclass(frozen=True)
class ErrorSums:
    """What a tensor has lost against the reference, over any number of samples.

    Sums are taken over the elements whose reference is finite (`elements` of them); the others are
    counted in `ref_nonfinite`, and in `ref_mismatch` where the output is not the same there.
    A NaN or Inf of the output is not left out: it makes the sums, and so the metrics, NaN or Inf.
    """

    elements: Count = 0
    ref2: Amount = 0.0  # Σ ref²
    err2: Amount = 0.0  # Σ (out − ref)²
    ref_out: float = 0.0  # Σ ref · out
    out2: Amount = 0.0  # Σ out²
    max_error: Amount = 0.0  # max |out − ref|
    max_ref: Amount = 0.0  # max |ref|
    overflow: Count = 0  # |ref| is beyond the largest value of the output's format
    underflow: Count = 0  # out is 0 where ref is not
    ref_nonfinite: Count = 0
    nan: Count = 0
    inf: Count = 0
    new_nonfinite: Count = 0  # out is NaN or Inf where ref is finite
    ref_mismatch: Count = 0
    new_nan: Count = 0  # out is NaN where ref is finite
    ref_nan: Count = 0
    unforced_inf: Count = 0  # out is Inf where ref is so small that no rounding to the output's format gives one
    inf_mismatch: Count = 0  # those of ref_mismatch where ref is no NaN
    reshaped: Count = 0  # samples whose output has another shape, which was not compared

    def __add__(self, other: ErrorSums) -> ErrorSums:
        """The statistics of both sets of samples together."""
        total: dict[str, Any] = {
            name: _max(a, getattr(other, name)) if name.startswith("max_") else a + getattr(other, name)
            for name, a in vars(self).items()
        }
        return ErrorSums(**total)

    @property
    def sqnr(self) -> float:
        """Signal to quantisation-noise ratio, 10·log10(Σref² / Σerr²), in dB.

        +inf where there is no error at all, −inf where the error is infinite or the reference is all
        zero and the output is not, NaN where the output holds NaN, nothing was compared, or the reference's squares
        are beyond float64. No epsilon.
        """
        if self.elements == 0 or math.isnan(self.err2) or math.isinf(self.ref2):
            return math.nan
        if self.err2 == 0:
            return math.inf
        if self.ref2 == 0 or math.isinf(self.err2):
            return -math.inf
        return 10 * (math.log10(self.ref2) - math.log10(self.err2))

    @property
    def cosine(self) -> float:
        """Cosine similarity, Σref·out / √(Σref² · Σout²); NaN where either is all zero or not finite."""
        if math.isnan(self.err2):
            return math.nan
        if self.ref2 == 0 or self.out2 == 0:
            return 1.0 if self.elements and self.ref2 == self.out2 else math.nan
        norm = math.sqrt(self.ref2) * math.sqrt(self.out2)
        return self.ref_out / norm if math.isfinite(norm) else math.nan

    @property
    def rel_l2(self) -> float:
        """Relative L2 error, √(Σerr² / Σref²), without unit."""
        if self.elements == 0:
            return math.nan
        if self.ref2 == 0:
            return math.nan if math.isnan(self.err2) else (math.inf if self.err2 else 0.0)
        return math.sqrt(self.err2 / self.ref2)

    @property
    def nonfinite(self) -> int:
        """NaN and Inf that the reference does not have, and non-finite values it has that changed."""
        return self.new_nonfinite + self.ref_mismatch

    @property
    def judges_nothing(self) -> bool:
        """Whether the reference holds no number that anything could be compared with."""
        return self.elements == 0 and self.ref_nonfinite > 0

    @property
    def extremes(self) -> ErrorSums:
        """The largest value and the counts of what is not finite alone: there is nothing in it that metrics are of."""
        return ErrorSums(
            max_ref=self.max_ref,
            overflow=self.overflow,
            ref_nonfinite=self.ref_nonfinite,
            nan=self.nan,
            inf=self.inf,
            new_nonfinite=self.new_nonfinite,
            ref_mismatch=self.ref_mismatch,
            new_nan=self.new_nan,
            ref_nan=self.ref_nan,
            unforced_inf=self.unforced_inf,
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers, for the journal; read back by `of_plain`."""
        return dict(vars(self))


def _max(a: float, b: float) -> float:
    return math.nan if math.isnan(a) or math.isnan(b) else max(a, b)


class ErrorTable:
    """The statistics of many tensors under construction: rows of sums and counts that add up quickly."""

    def __init__(self, rows: int, formats: Sequence[Format] | None = None) -> None:
        """`formats` says for each row what its outputs are held in; by default float32."""
        self.sums: NDArray[np.float64] = np.zeros((rows, SUMS), np.float64)
        self.counts: NDArray[np.int64] = np.zeros((rows, COUNTS), np.int64)
        self.reshaped: NDArray[np.int64] = np.zeros(rows, np.int64)
        self.limits: NDArray[np.float32] = limits_of(
            [Precision.FP32.number_format] * rows if formats is None else formats
        )

    def add(self, row: int, reference: NDArray[Any], output: NDArray[Any]) -> None:
        """Add one float tensor against its reference to a row; float32 on both sides is the quick way.

        Tensors of different shape, as data-dependent operators may give, have no elementwise error.
        """
        if reference.shape != output.shape:
            self.add_reshaped(row)
            return
        from precisionlab.compare import kernel, wide  # numba takes a while: not before it is needed

        narrow = reference.dtype == np.float32 and output.dtype == np.float32
        sums, counts, limits = self.sums[row], self.counts[row], self.limits[row]
        (kernel if narrow else wide).error_sums(reference, output, sums, counts, limits)

    def add_reshaped(self, row: int) -> None:
        """Add a sample whose output has another shape: no figure can be had of the row then."""
        self.reshaped[row] += 1
        self.sums[row, [1, 4]] = math.nan

    def count_nonfinite(self, row: int, output: NDArray[Any]) -> None:
        """Add only how many values of a float tensor are NaN or Inf; the reference is not looked at."""
        from precisionlab.compare import kernel, wide

        nan, inf = (kernel if output.dtype == np.float32 else wide).nonfinite(output)
        self.counts[row, 4] += nan
        self.counts[row, 5] += inf

    def settle(self) -> None:
        """Nothing waits: values are added up at once."""

    def result(self) -> ErrorTable:
        """Itself; tables of values that lie elsewhere give one like this."""
        return self

    def merge(self, other: ErrorTable) -> None:
        """Add the rows of another table to these. A NaN maximum stays NaN."""
        with np.errstate(invalid="ignore"):  # Inf of both signs
            self.sums[:, :4] += other.sums[:, :4]
        np.maximum(self.sums[:, 4:], other.sums[:, 4:], out=self.sums[:, 4:])
        self.counts += other.counts
        self.reshaped += other.reshaped

    def row(self, row: int) -> ErrorSums:
        """The statistics of one row."""
        counts = [*self.counts[row].tolist(), int(self.reshaped[row])]
        elements, overflow, underflow, ref_nonfinite, nan, inf, new_nonfinite, mismatch, *more = counts
        ref2, err2, ref_out, out2, max_error, max_ref = self.sums[row].tolist()
        return ErrorSums(
            elements, ref2, err2, ref_out, out2, max_error, max_ref, overflow, underflow, ref_nonfinite,
            nan, inf, new_nonfinite, mismatch, *more,
        )  # fmt: skip


def limits_of(formats: Sequence[Format]) -> NDArray[np.float32]:
    """The largest value of each format, and the one from which on it may round to Inf, float32 (formats, 2)."""
    if len(formats) == 1:
        return _limits_alone(formats[0])
    kinds = {id(f): f for f in formats}  # there are few, and a table is made for each sample
    limits = np.array([(f.largest, f.overflowing) for f in kinds.values()], np.float32).reshape(-1, 2)
    place = {kind: at for at, kind in enumerate(kinds)}
    return limits[np.array([place[id(f)] for f in formats], np.intp)]


@cache
def _limits_alone(held_in: Format) -> NDArray[np.float32]:
    limits = np.array([(held_in.largest, held_in.overflowing)], np.float32)
    limits.flags.writeable = False
    return limits


def error_sums(
    reference: NDArray[Any], output: NDArray[Any], held_in: Format = Precision.FP32.number_format
) -> ErrorSums:
    """The statistics of one float tensor, which was held in a format, against its reference."""
    table = ErrorTable(1, [held_in])
    table.add(0, reference, output)
    return table.row(0)


@dataclass(frozen=True)
class Agreement:
    """How often two outputs say the same: the largest along the class axis, or the same integer."""

    agree: Count = 0
    total: Count = 0

    def __add__(self, other: Agreement) -> Agreement:
        return Agreement(self.agree + other.agree, self.total + other.total)

    @property
    def share(self) -> float:
        """Between 0 and 1; NaN where the output has no class axis."""
        return self.agree / self.total if self.total else math.nan


def agreement(reference: NDArray[Any], output: NDArray[Any]) -> Agreement:
    """Top-1 agreement of two outputs.

    The class axis is the last of (batch, classes) and (batch, steps, classes), and axis 1 of a map
    (batch, classes, height, width); other float outputs have none, and give no figure. Integer and
    boolean outputs are compared value by value. A row with NaN or Inf in the output agrees with nothing.
    """
    if reference.shape != output.shape:
        return Agreement(0, max(1, reference.size))
    if reference.dtype.kind in "iub":
        return Agreement(int(np.count_nonzero(reference == output)), reference.size)
    axis = {2: -1, 3: -1, 4: 1}.get(reference.ndim)
    if axis is None or reference.dtype.kind != "f" or reference.shape[axis] < 2:
        return Agreement()
    same = reference.argmax(axis) == output.argmax(axis)
    same &= np.isfinite(output).all(axis) | ~np.isfinite(reference).all(axis)
    return Agreement(int(np.count_nonzero(same)), same.size)
