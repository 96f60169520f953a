"""Samples as they were read: of small ones, opening the file again takes as long as running the model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from precisionlab.data.sample import Sample

_ROOM = 16 * 1024**2
"""Bytes of inputs that are kept at most; what does not fit is read anew."""


class KeptSamples:
    """The first samples that were read, by name, as long as they fit. Threads may share it; copies of it are empty."""

    def __init__(self) -> None:
        self._room = _ROOM
        self._samples: dict[str, Sample] = {}

    def __reduce__(self) -> tuple[Any, ...]:
        return KeptSamples, ()

    def of(self, name: str, read: Callable[[], Sample]) -> Sample:
        """The sample of this name, with arrays of its own: as it is kept, or read."""
        if name not in self._samples:
            sample = read()
            size = sum(array.nbytes for array in sample.inputs.values())
            if size > self._room or any(array.dtype.hasobject for array in sample.inputs.values()):
                return sample
            self._room -= size
            self._samples[name] = sample
        sample = self._samples[name]
        return replace(sample, inputs={key: array.copy() for key, array in sample.inputs.items()})
