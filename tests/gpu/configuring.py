"""What a builder is configured by: it holds flags as TensorRT does, and refuses what TensorRT refuses."""

from __future__ import annotations

import zlib
from collections.abc import Iterable
from typing import Any

Shape = tuple[int, ...]


class TimingCacheValue:
    """What a timing cache has under a key."""

    def __init__(self, tactic: int, milliseconds: float) -> None:
        self.tacticHash, self.timingMSec = tactic, milliseconds


class TimingCache:
    """Kernel timings as TensorRT serialises them: here a header, then lines; the header says the GPU."""

    def __init__(self, gpu: str, timings: frozenset[str]) -> None:
        self.gpu, self.timings = gpu, timings

    def serialize(self) -> bytes:
        return "\n".join([f"timings of {self.gpu}", *sorted(self.timings)]).encode()

    def queryKeys(self) -> list[str]:  # noqa: N802
        return sorted(self.timings)

    def query(self, key: str) -> TimingCacheValue:
        return TimingCacheValue(zlib.crc32(key.encode()), 0.01)

    def combine(self, other: TimingCache, ignore_mismatch: bool) -> bool:
        if other.gpu != self.gpu:
            return False
        self.timings |= other.timings
        return True


class Config:
    """IBuilderConfig. `refuses` is how this version answers a content that is no timing cache."""

    def __init__(self, refuses: str = "empty", flags: Iterable[Any] = ("TF32",)) -> None:
        self.flags = set(flags)
        self.pools: dict[Any, int] = {}
        self.int8_calibrator: Any = None
        self.profiling_verbosity: Any = "LAYER_NAMES_ONLY"
        self.profiles: list[Any] = []
        self.calibration: Any = None
        self.timing_cache: Any = None
        self._refuses = refuses

    def set_flag(self, flag: Any) -> None:
        self.flags.add(flag)

    def clear_flag(self, flag: Any) -> None:
        self.flags.discard(flag)

    def set_memory_pool_limit(self, pool: Any, pool_size: int) -> None:
        self.pools[pool] = pool_size

    def add_optimization_profile(self, profile: Any) -> int:
        self.profiles.append(profile)
        return -1 if any(low > opt for low, opt, _ in profile.shapes.values()) else 0

    def set_calibration_profile(self, profile: Any) -> bool:
        self.calibration = profile
        return True

    def create_timing_cache(self, content: bytes) -> TimingCache | None:
        if not content:
            return TimingCache("this GPU", frozenset())
        header, *lines = content.decode(errors="replace").split("\n")
        if header.startswith("timings of "):
            return TimingCache(header.removeprefix("timings of "), frozenset(lines))
        if self._refuses == "raise":
            raise RuntimeError("factory function returned nullptr")
        return None if self._refuses == "None" else TimingCache("this GPU", frozenset())

    def set_timing_cache(self, timing_cache: TimingCache, ignore_mismatch: bool) -> bool:
        if timing_cache.gpu != "this GPU" and not ignore_mismatch:
            return False
        self.timing_cache = timing_cache
        return True


class OptimizationProfile:
    """IOptimizationProfile."""

    def __init__(self) -> None:
        self.shapes: dict[str, Any] = {}
        self.values: dict[str, Any] = {}

    def set_shape(self, name: str, low: Shape, opt: Shape, high: Shape) -> None:
        self.shapes[name] = (low, opt, high)

    def set_shape_input(self, name: str, low: Shape, opt: Shape, high: Shape) -> None:
        self.values[name] = (low, opt, high)
