"""What a user may ask of an engine's build beside precisions: one value from the command line to the builder."""

from __future__ import annotations

from dataclasses import dataclass

AUTOMATIC = -1
"""A budget for weight streaming that TensorRT finds itself."""


@dataclass(frozen=True)
class Tuning:
    """How an engine is built and loaded; None and False leave it to TensorRT.

    `optimization_level` is 0 (quickest build) to 5, `avg_timing` how many runs a kernel's time is averaged over. `dla`
    is the core of the deep learning accelerator that layers run on; what it cannot run falls back to the GPU.
    `weight_streaming` lets weights stay in host memory, so many bytes of them on the GPU (`AUTOMATIC`: TensorRT's own
    choice). `version_compatible` engines load with later versions, `refit` ones can get other weights.
    """

    optimization_level: int | None = None
    avg_timing: int | None = None
    dla: int | None = None
    weight_streaming: int | None = None
    version_compatible: bool = False
    refit: bool = False

    @property
    def key(self) -> dict[str, int | bool]:
        """What is not TensorRT's own, and makes another engine: how much of its weights is streamed does not."""
        found: dict[str, int | bool] = {}
        for name in ("optimization_level", "avg_timing", "dla"):
            if (value := getattr(self, name)) is not None:
                found[name] = value
        for name in ("version_compatible", "refit"):
            if getattr(self, name):
                found[name] = True
        return {**found, "weight_streaming": True} if self.weight_streaming is not None else found

    @property
    def facts(self) -> dict[str, str]:
        """What is not TensorRT's own as text, for run.json."""
        found = {name: "yes" if value is True else str(value) for name, value in self.key.items()}
        if self.weight_streaming is not None:
            budget = self.weight_streaming
            found["weight_streaming"] = "automatic" if budget == AUTOMATIC else f"{budget} bytes of weights on the GPU"
        return found


UNTUNED = Tuning()
"""All is TensorRT's own."""
