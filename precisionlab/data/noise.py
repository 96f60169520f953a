"""Random inputs, for want of data."""

from __future__ import annotations

import math
import shlex
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from precisionlab.data.conform import check_batch, dims, fits, is_float
from precisionlab.data.sample import Entry, Sample
from precisionlab.errors import DataError
from precisionlab.model import Model, TensorInfo

RANDOM_SAMPLES = 8

_CHANNELS = (1, 3, 4)
_MOST_VALUES = 1 << 30  # 4 GiB of float32, as for arrays from files


@dataclass(frozen=True)
class Noise:
    """The source of standard normal inputs (0 or 1 for integers) of the given shapes."""

    inputs: tuple[TensorInfo, ...]
    shapes: Mapping[str, tuple[int, ...]]
    seed: int

    origin = "random inputs"
    repeatable = True
    remarks = ()

    @property
    def names(self) -> tuple[str, ...]:
        """The names of all samples."""
        return tuple(f"random {index}" for index in range(RANDOM_SAMPLES))

    def entries(self) -> Generator[Entry, None, None]:
        """All samples, drawn when they are asked for."""
        for index, name in enumerate(self.names):
            yield Entry(name, partial(self._sample, index, name))

    def sha256(self, names: Sequence[str], digests: Mapping[str, str], labels: Mapping[str, str]) -> str:
        """Not a hash, but what the inputs follow from."""
        shapes = ",".join(f"{name}:{'x'.join(map(str, shape))}" for name, shape in self.shapes.items())
        return f"random-{self.seed}-{shapes}"

    def _sample(self, index: int, name: str) -> Sample:
        generator = np.random.default_rng((self.seed, index))
        inputs: dict[str, NDArray[Any]] = {}
        for info in self.inputs:
            shape = self.shapes[info.name]
            dtype = np.dtype(np.float32) if info.dtype is None else info.dtype.numpy()
            if is_float(dtype):
                inputs[info.name] = generator.standard_normal(shape, np.float32).astype(dtype)
            else:
                inputs[info.name] = generator.integers(0, 2, shape).astype(dtype)
        return Sample(name, inputs)


def noise(model: Model, shapes: Mapping[str, tuple[int, ...]], seed: int) -> Noise:
    """Random inputs for a model; `shapes` gives the shape of inputs with dynamic dimensions.

    Raises DataError where one is missing or does not fit.
    """
    names = [info.name for info in model.inputs]
    unknown = sorted(set(shapes) - set(names))
    if unknown:
        raise DataError(f"--shape {unknown[0]}: the model has no such input; it has {', '.join(names)}")
    for info in model.inputs:
        if info.dtype == ir.DataType.STRING:
            raise DataError(f"{model.path}: input {info.name!r} takes strings, not noise; give samples with --data")
    examples = example_shapes(model.inputs)
    _check_missing(model, [info for info in model.inputs if info.name not in shapes and _is_open(info)], examples)
    known = {}
    for info in model.inputs:
        given = shapes.get(info.name, tuple(dim if isinstance(dim, int) else 1 for dim in info.shape or ()))
        known[info.name] = tuple(given)
        if not fits(given, info):
            text = "x".join(map(str, given))
            raise DataError(
                f"--shape {info.name}:{text} does not fit: the model wants {dims(info)}, such as "
                f"--shape {info.name}:{examples[info.name]}"
            )
        if math.prod(given) > _MOST_VALUES or any(dim < 0 for dim in given):
            raise DataError(f"--shape {info.name}: {math.prod(given):,} values make no sample")
    check_batch(known, model.inputs, "--shape")
    return Noise(model.inputs, known, seed)


def example_shapes(inputs: Sequence[TensorInfo]) -> dict[str, str]:
    """For each input a shape that it can have, as it is written behind `--shape NAME:`.

    The same name of a dimension is the same number everywhere: 1 for batches, 224 for the sides of images, 3 for
    channels, 128 for any other length.
    """
    sizes: dict[str, int] = {}
    found = {}
    for info in inputs:
        shape = (None, 3, None, None) if info.shape is None else info.shape
        example = [
            dim if isinstance(dim, int) else sizes.setdefault(dim or f"{info.name}/{axis}", _usual(axis, shape))
            for axis, dim in enumerate(shape)
        ]
        found[info.name] = "x".join(map(str, example))
    return found


def _usual(axis: int, shape: Sequence[int | str | None]) -> int:
    if axis == 0:
        return 1
    if len(shape) != 4:
        return 128
    channels_last = shape[3] in _CHANNELS and shape[1] not in _CHANNELS
    return 3 if axis == (3 if channels_last else 1) else 224


def _is_open(info: TensorInfo) -> bool:
    """Whether an input has a dimension, beside the batch, that somebody must name."""
    return info.shape is None or not all(isinstance(dim, int) for dim in info.shape[1:])


def _check_missing(model: Model, missing: Sequence[TensorInfo], examples: Mapping[str, str]) -> None:
    if missing:
        which = ", ".join(f"{info.name!r} ({dims(info)})" for info in missing)
        options = " ".join("--shape " + shlex.quote(f"{info.name}:{examples[info.name]}") for info in missing)
        one = len(missing) == 1
        raise DataError(
            f"{model.path}: {'input' if one else 'inputs'} {which} {'has' if one else 'have'} dynamic dimensions; give "
            f"samples with --data, or {'its shape' if one else 'their shapes'}, such as: precisionlab sweep "
            f"{shlex.quote(str(model.path))} {options}"
        )
