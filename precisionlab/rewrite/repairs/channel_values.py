"""What the channels of activations hold, over samples: what scales are chosen from."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from precisionlab.rewrite.repairs.profiles import Profile, of_rank

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class ChannelValues:
    """By channel: the largest |x| of all samples, the mean of each sample's largest, and the mean of x²."""

    largest: Floats
    typical: Floats
    power: Floats


Observed = Callable[[Mapping[str, Profile]], Mapping[str, ChannelValues]]
"""What the tensors of these names hold by the channels of their profiles, on the samples that choose."""


class ChannelWatch:
    """Takes what tensors hold by the channels of their profiles, sample by sample; NaN and Inf take no part."""

    def __init__(self, profiles: Mapping[str, Profile]) -> None:
        self._profiles = profiles
        self._sums: dict[str, list[Floats]] = {}
        self._samples: dict[str, int] = {}

    def add(self, name: str, tensor: NDArray[np.float32]) -> None:
        """Take one sample's values of a tensor; of others nothing is kept."""
        profile = self._profiles.get(name)
        if profile is None or not tensor.size or tensor.dtype != np.float32:
            return
        profile = of_rank(profile, tensor.ndim)
        others = tuple(axis for axis, length in enumerate(profile.shape) if length == 1)
        magnitude = np.abs(tensor)
        if not np.isfinite(magnitude.max()):
            magnitude = np.where(np.isfinite(magnitude), magnitude, 0)
        place = np.abs(profile.reshape(-1)) - 1
        largest, power = np.zeros((2, place.size))
        largest[place] = magnitude.max(others).reshape(-1)
        power[place] = np.square(magnitude, dtype=np.float64).mean(others).reshape(-1)
        if name not in self._sums:
            self._sums[name] = [largest, largest.copy(), power]
        else:
            known = self._sums[name]
            known[0] = np.maximum(known[0], largest)
            known[1] += largest
            known[2] += power
        self._samples[name] = self._samples.get(name, 0) + 1

    def found(self) -> dict[str, ChannelValues]:
        """What was seen, of the tensors that were."""
        return {
            name: ChannelValues(largest, typical / self._samples[name], power / self._samples[name])
            for name, (largest, typical, power) in self._sums.items()
        }
