"""Random inputs, for want of data."""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from precisionlab.data.fit import dims, fits, is_float
from precisionlab.data.sample import Entry, Sample
from precisionlab.errors import DataError
from precisionlab.model import Model, TensorInfo

RANDOM_SAMPLES = 8


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
        return tuple(f"random {index}" for index in range(RANDOM_SAMPLES))

    def entries(self) -> Generator[Entry, None, None]:
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
    known = {}
    for info in model.inputs:
        if info.dtype == ir.DataType.STRING:
            raise DataError(f"{model.path}: input {info.name!r} takes strings, not noise; give samples with --data")
        shape = shapes.get(info.name, info.shape)
        if shape is None or not all(isinstance(dim, int) for dim in shape[1:]):
            raise DataError(
                f"{model.path}: input {info.name!r} has dynamic dimensions {list(shape or ())}; "
                f"give samples with --data, or its shape with --shape {info.name}:1x3x224x224"
            )
        known[info.name] = tuple(dim if isinstance(dim, int) else 1 for dim in shape)
        if not fits(known[info.name], info):
            given = "x".join(map(str, shape))
            raise DataError(f"--shape {info.name}:{given} does not fit; the model wants {dims(info)}")
    unknown = sorted(set(shapes) - set(known))
    if unknown:
        raise DataError(f"--shape {unknown[0]}: the model has no such input; it has {', '.join(known)}")
    return Noise(model.inputs, known, seed)
