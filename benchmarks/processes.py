"""Measurements in processes of their own, so that memory and failures stay apart."""

from __future__ import annotations

import gc
import multiprocessing
import resource
import time
from collections.abc import Callable
from typing import Any


def in_process(function: Callable[..., dict[str, Any]], *arguments: Any, seconds: float = 3600) -> dict[str, Any]:
    """Run a measurement in a fresh process; {"failed": why} where it takes longer, or dies."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        try:
            return pool.apply_async(function, arguments).get(seconds)
        except multiprocessing.TimeoutError:
            return {"failed": f"over {seconds:.0f} s"}


def timed(function: Callable[[], Any]) -> float:
    """Seconds of one call."""
    gc.collect()
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def cpu_timed(function: Callable[[], Any]) -> float:
    """Processor seconds of one call, of all threads together."""
    gc.collect()
    start = time.process_time()
    function()
    return time.process_time() - start


def peak_megabytes() -> float:
    """The most memory that this process has held."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
