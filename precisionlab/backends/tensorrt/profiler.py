"""How long each layer of an engine takes, as TensorRT reports it."""

from __future__ import annotations

from typing import Any


def make_profiler(trt: Any) -> Any:
    """A `trt.IProfiler` that sums each layer's milliseconds.

    `runs` counts the runs, by how often the layer that was reported first came again. `layers()` is each layer's mean
    milliseconds a run, in the order of execution; several layers of one name count together, and a layer in a branch
    counts as 0 in the runs that leave it out.
    """

    class Profiler(trt.IProfiler):  # type: ignore[misc]
        """TensorRT's profiler, for one execution context."""

        def __init__(self) -> None:
            trt.IProfiler.__init__(self)
            self.runs = 0
            self._first: str | None = None
            self._sums: dict[str, float] = {}

        def report_layer_time(self, layer_name: str, ms: float) -> None:
            """Called by TensorRT for each layer of each run."""
            if self._first is None:
                self._first = layer_name
            self.runs += layer_name == self._first
            self._sums[layer_name] = self._sums.get(layer_name, 0.0) + ms

        def layers(self) -> dict[str, float]:
            """Layer name → mean milliseconds a run; empty before the first run."""
            return {name: total / self.runs for name, total in self._sums.items()}

    return Profiler()
