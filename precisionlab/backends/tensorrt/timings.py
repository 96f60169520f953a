"""The timings of kernels, kept between builds: what kernel is taken goes by them, so they hold later engines to it.

An ordinary timing cache spares time, and "the selected tactics and formats may vary" (NvInfer.h, `ITimingCache`). With
`EDITABLE_TIMING_CACHE` (10.8 on) an entry is a choice, which the next build keeps to: an engine that is looked at then
has the kernels of the one that nobody looks at, wherever it has the same layers.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from precisionlab.backends.tensorrt.jobs import Tactics
from precisionlab.system.disk import write_whole_bytes
from precisionlab.system.reading import UnreadableError, read_inside

_LARGEST_TIMINGS = 1 << 30  # bytes


def choices(timing_cache: Any) -> dict[str, int]:
    """The hash of the kernel that an editable timing cache chooses, by the text of each of its keys."""
    return {str(key): int(timing_cache.query(key).tacticHash) for key in timing_cache.queryKeys()}


def compared(before: Mapping[str, int], after: Mapping[str, int]) -> Tactics:
    """What a build has made of the choices that were there before."""
    held = sum(after.get(key) == choice for key, choice in before.items())
    return Tactics(held, len(before) - held, len(after.keys() - before.keys()))


def load_timings(config: Any, path: Path) -> tuple[Any, tuple[str, ...]]:
    """Give the build the kernel timings of earlier ones, from this file; an empty timing cache where there is none.

    A file that TensorRT refuses (another version's, another GPU's, a broken one) is set aside under
    `<name>.refused`: the answer has a warning that says so.
    """
    content = _read(path)
    if content:
        timing_cache = _accepted(config, content)
        if timing_cache is not None:
            return timing_cache, ()
        aside = path.with_name(f"{path.name}.refused")
        path.replace(aside)
        warnings: tuple[str, ...] = (
            f"{path}: TensorRT does not take these kernel timings (of another version or GPU, or broken); they are "
            f"now in {aside.name}, and kernels are timed anew",
        )
    else:
        warnings = ()
    timing_cache = config.create_timing_cache(b"")
    config.set_timing_cache(timing_cache, False)
    return timing_cache, warnings


def save_timings(config: Any, timing_cache: Any, path: Path) -> tuple[str, ...]:
    """Write the timings for later builds, with those that another process has written meanwhile.

    A file that cannot be written is a warning in the answer: the engine is there all the same.
    """
    content = _read(path)
    if content:
        other = _loaded(config, content)
        if other is not None and hasattr(timing_cache, "combine"):
            # False where the other is of another GPU: then ours alone is written.
            timing_cache.combine(other, False)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole_bytes(path, bytes(timing_cache.serialize()))
    except OSError as error:
        return (f"{path}: the kernel timings cannot be kept: {error.strerror}",)
    return ()


def _read(path: Path) -> bytes:
    try:
        return read_inside(path.parent, path.name, _LARGEST_TIMINGS)
    except UnreadableError:
        return b""


def _accepted(config: Any, content: bytes) -> Any | None:
    """The timing cache with this content, in use by the build; None where TensorRT refuses it."""
    timing_cache = _loaded(config, content)
    if timing_cache is None or not config.set_timing_cache(timing_cache, False):
        return None
    return timing_cache


def _loaded(config: Any, content: bytes) -> Any | None:
    """The timing cache with this content; None where TensorRT refuses it.

    Some versions answer a content that they cannot read with an empty cache and a mere warning.
    """
    try:
        timing_cache = config.create_timing_cache(content)
    except (RuntimeError, TypeError, ValueError):
        return None
    if timing_cache is None:
        return None
    nothing = bytes(config.create_timing_cache(b"").serialize())
    return None if bytes(timing_cache.serialize()) == nothing != content else timing_cache
