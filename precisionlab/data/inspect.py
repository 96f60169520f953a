"""A look at the data before the work: what is in it beside what the model wants, and what seems wrong with it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

import numpy as np
from numpy.typing import NDArray

from precisionlab.data.conform import dims, is_float, shape_text
from precisionlab.data.sample import Remark, Sample, Skipped, digest, some
from precisionlab.model import Model, TensorInfo

FEW = 16
"""Fewer samples than this are called few."""

_BLOCK = 1 << 18  # values that are widened to float64 at a time


class Severity(str, Enum):
    """How much a finding matters."""

    WARNING = "warning"
    """Probably wrong, or it makes the figures weak."""
    NOTE = "note"
    """Right for some models and wrong for others: only the user can tell."""

    def __str__(self) -> str:
        return self.value


@dataclass(frozen=True)
class Finding:
    """Something about the data that the user should know, in a sentence. `input` is None where it is about all."""

    severity: Severity
    input: str | None
    text: str


@dataclass(frozen=True)
class InputLook:
    """What the samples hold for one input, beside what the model wants.

    `shapes` counts the samples of each shape. `minimum`, `maximum`, `mean` and `std` are over all finite
    values of all samples, in float64; NaN where there is none. `whole` says that every finite value is a
    whole number. `constant` are the samples with more than one value of which all are equal. `fixed_batch`
    says that the model's first axis is fixed.
    """

    name: str
    dtype: str
    wanted_dtype: str
    wanted_shape: str
    shapes: Mapping[tuple[int, ...], int]
    values: int
    nonfinite: int
    minimum: float
    maximum: float
    mean: float
    std: float
    whole: bool
    constant: tuple[str, ...] = ()
    fixed_batch: bool = False

    @property
    def is_float(self) -> bool:
        """Whether the values are floating-point numbers."""
        return self.dtype.startswith(("float", "bfloat"))

    @property
    def is_image(self) -> bool:
        """Whether it is shaped like images: four axes, with 1 or 3 channels first or last."""
        return self.is_float and all(len(s) == 4 and (s[1] in (1, 3) or s[3] in (1, 3)) for s in self.shapes)

    @property
    def one_value(self) -> bool:
        """Whether all values of all samples are the same."""
        return self.values > 0 and not self.nonfinite and self.minimum == self.maximum

    @property
    def largest_batch(self) -> int:
        """The longest first axis."""
        return max((shape[0] for shape in self.shapes if shape), default=1)


@dataclass(frozen=True)
class Look:
    """What a pass over the samples has shown.

    `duplicates` are pairs of a sample and the earlier one that it equals, `remarks` what was done to which samples.
    """

    samples: int
    inputs: tuple[InputLook, ...]
    duplicates: tuple[tuple[str, str], ...] = ()
    skipped: tuple[Skipped, ...] = ()
    remarks: Mapping[Remark, tuple[str, ...]] = field(default_factory=dict)

    @property
    def findings(self) -> tuple[Finding, ...]:
        """What seems wrong, warnings first."""
        return findings(self)

    def to_dict(self) -> dict[str, Any]:
        """For JSON: NaN stands as None."""
        return {
            "samples": self.samples,
            "inputs": [_input_dict(found) for found in self.inputs],
            "duplicates": [list(pair) for pair in self.duplicates],
            "skipped": [{"sample": name, "reason": reason} for name, reason in self.skipped],
            "findings": [{"severity": f.severity.value, "input": f.input, "text": f.text} for f in self.findings],
        }


def look(samples: Iterable[Sample], model: Model) -> Look:
    """Read the samples once, and say what is in them. `Dataset.checked` does the same in its own pass."""
    collector = Collector(model.inputs)
    for sample in samples:
        collector.add(sample, digest(sample.inputs))
    return collector.look()


class Collector:
    """Takes samples one after the other, and keeps sums and hashes of them only."""

    def __init__(self, inputs: Sequence[TensorInfo]) -> None:
        self._inputs = [(info, _Sums()) for info in inputs]
        self._first: dict[str, str] = {}
        self._duplicates: list[tuple[str, str]] = []
        self._remarks: dict[Remark, list[str]] = {}
        self._count = 0

    def add(self, sample: Sample, digest: str) -> None:
        """Count one sample in; `digest` is the hash of its inputs."""
        self._count += 1
        earlier = self._first.setdefault(digest, sample.name)
        if earlier != sample.name:
            self._duplicates.append((sample.name, earlier))
        for remark in sample.remarks:
            self._remarks.setdefault(remark, []).append(sample.name)
        for info, sums in self._inputs:
            sums.add(sample.inputs[info.name], sample.name)

    def look(self, skipped: Sequence[Skipped] = (), general: Sequence[Remark] = ()) -> Look:
        """What has been seen so far, and what is said of no sample by itself."""
        inputs = tuple(sums.result(info) for info, sums in self._inputs)
        remarks = {**dict.fromkeys(general, ()), **{remark: tuple(names) for remark, names in self._remarks.items()}}
        return Look(self._count, inputs, tuple(self._duplicates), tuple(skipped), remarks)


def findings(look: Look) -> tuple[Finding, ...]:
    """What the statistics say, in plain words, warnings first. It depends on the numbers alone.

    1. Samples that were left out, that are the same as another, that hold one value throughout.
    2. Too few samples.
    3. Values that are NaN or Inf, which only types without a check can still hold.
    4. What was done to samples on the way: types, orientation, transparency, rows left out.
    5. Images whose pixels look as they come from the file, or lie in [0, 1].
    """
    found = [*_about_samples(look), *_about_remarks(look)]
    for seen in look.inputs:
        found += _about_values(seen, look.samples)
        if seen.is_image and not seen.one_value and seen.values > seen.nonfinite:
            found += _about_pixels(seen)
    return tuple(sorted(found, key=lambda f: f.severity is not Severity.WARNING))


def _about_samples(look: Look) -> Iterable[Finding]:
    if look.skipped:
        names = some([name for name, _ in look.skipped])
        yield Finding(Severity.WARNING, None, f"{_count(len(look.skipped), 'bad sample')} left out: {names}")
    if look.samples < FEW:
        yield Finding(
            Severity.WARNING,
            None,
            f"few: ranges and verdicts rest on {_count(look.samples, 'sample')}{_of_batches(look)}; "
            "some hundred that look like real use are common",
        )
    if look.duplicates:
        pairs = some([f"{name} = {earlier}" for name, earlier in look.duplicates])
        yield Finding(
            Severity.WARNING,
            None,
            f"{_count(len(look.duplicates), 'sample')} the same as an earlier one, counted twice: {pairs}",
        )


def _of_batches(look: Look) -> str:
    """That samples hold batches; nothing where first axes of their inputs differ, as of a graph's nodes and edges."""
    stacked = [seen for seen in look.inputs if seen.largest_batch > 1]
    batches = {seen.largest_batch for seen in stacked}
    if len(batches) != 1:
        return ""
    if any(seen.fixed_batch for seen in stacked):
        return f" (each a batch of {batches.pop()}, as the model is made for)"
    return f" (one holds a batch of {batches.pop()}: a file is one sample where the model's batch is dynamic)"


def _about_remarks(look: Look) -> Iterable[Finding]:
    for remark, names in look.remarks.items():
        which = "all samples: " if len(names) == look.samples else f"{some(names)}: " if names else ""
        yield Finding(Severity.NOTE, remark.input, f"{which}{remark.text}")


def _about_values(seen: InputLook, samples: int) -> Iterable[Finding]:
    if seen.nonfinite:
        yield Finding(
            Severity.WARNING, seen.name, f"{_count(seen.nonfinite, 'value')} NaN or Inf; fix or remove the samples"
        )
    if seen.is_float and seen.constant and seen.one_value and samples > 1:
        yield Finding(
            Severity.NOTE,
            seen.name,
            f"every value of every sample is {seen.minimum:g}: right for a mask or a setting, not for data",
        )
    elif seen.is_float and seen.constant:
        names = some(seen.constant)
        yield Finding(
            Severity.WARNING,
            seen.name,
            f"{_count(len(seen.constant), 'sample')} constant, all values equal: {names}; "
            "an empty image, or one that failed to load?",
        )


def _about_pixels(seen: InputLook) -> Iterable[Finding]:
    low, high = seen.minimum, seen.maximum
    between = f"values from {low:g} to {high:g}"
    if low >= 0 and 200 < high <= 255:
        whole = ", all whole numbers," if seen.whole else ""
        yield Finding(
            Severity.WARNING,
            seen.name,
            f"{between}{whole} look like raw pixels: right only if the model was trained on pixels that were neither "
            "divided by 255 nor normalised; otherwise the ranges will be wrong",
        )
    elif seen.whole and high - low > 16:
        yield Finding(
            Severity.NOTE,
            seen.name,
            f"{between}, all whole numbers, look like pixels that were not normalised: "
            "right only if the model was trained on such",
        )
    elif low >= 0 and high <= 1:
        yield Finding(
            Severity.NOTE,
            seen.name,
            f"{between} lie in [0, 1]: right if the model was trained on pixels divided by 255, "
            "not if mean and std were taken off as well",
        )


class _Sums:
    """The statistics of one input. Mean and variance merge block by block (Chan, Golub, LeVeque 1983)."""

    def __init__(self) -> None:
        self.dtype = ""
        self.shapes: dict[tuple[int, ...], int] = {}
        self.constant: list[str] = []
        self.values = self.finite = 0
        self.minimum, self.maximum = math.inf, -math.inf
        self.whole = True
        self._mean = self._squares = 0.0

    def add(self, array: NDArray[Any], sample: str) -> None:
        self.dtype = self.dtype or array.dtype.name
        self.shapes[array.shape] = self.shapes.get(array.shape, 0) + 1
        if array.dtype.kind not in "biuf" and not is_float(array.dtype):
            return  # text and the like have no range
        self.values += array.size
        before = self.finite
        low, high = math.inf, -math.inf
        flat = array.reshape(-1)
        for start in range(0, flat.size, _BLOCK):
            block = flat[start : start + _BLOCK].astype(np.float64)
            block = block[np.isfinite(block)]
            if block.size:
                low, high = min(low, float(block.min())), max(high, float(block.max()))
                self._merge(block)
        self.minimum, self.maximum = min(self.minimum, low), max(self.maximum, high)
        if array.size > 1 and self.finite - before == array.size and low == high:
            self.constant.append(sample)

    def _merge(self, block: NDArray[np.float64]) -> None:
        count = self.finite + block.size
        mean = float(block.mean())
        apart = mean - self._mean
        with np.errstate(over="ignore"):  # a float64 input beyond 1e154 has a spread that is Inf, and shown as such
            self._squares += float(np.square(block - mean).sum()) + apart * apart * self.finite * block.size / count
        self._mean += apart * block.size / count
        self.finite = count
        self.whole = self.whole and bool((np.trunc(block) == block).all())

    def result(self, info: TensorInfo) -> InputLook:
        nan = math.nan
        return InputLook(
            name=info.name,
            dtype=self.dtype,
            wanted_dtype="any" if info.dtype is None else info.dtype.numpy().name,
            wanted_shape=dims(info),
            shapes=dict(self.shapes),
            values=self.values,
            nonfinite=self.values - self.finite,
            minimum=self.minimum if self.finite else nan,
            maximum=self.maximum if self.finite else nan,
            mean=self._mean if self.finite else nan,
            std=math.sqrt(self._squares / self.finite) if self.finite else nan,
            whole=self.whole and self.finite > 0,
            constant=tuple(self.constant),
            fixed_batch=bool(info.shape) and isinstance((info.shape or (None,))[0], int),
        )


def _input_dict(found: InputLook) -> dict[str, Any]:
    numbers = {key: getattr(found, key) for key in ("minimum", "maximum", "mean", "std")}
    return {
        "name": found.name,
        "dtype": found.dtype,
        "wanted_dtype": found.wanted_dtype,
        "wanted_shape": found.wanted_shape,
        "shapes": {shape_text(shape): count for shape, count in found.shapes.items()},
        "values": found.values,
        "nonfinite": found.nonfinite,
        **{key: value if math.isfinite(value) else None for key, value in numbers.items()},
        "whole": found.whole,
        "constant": list(found.constant),
    }


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"
