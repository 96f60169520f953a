"""What a user may ask of an engine's build beside precisions: one value from the command line to the builder."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass

from precisionlab.errors import OptionError

AUTOMATIC = -1
"""A budget for weight streaming that TensorRT finds itself."""


@dataclass(frozen=True)
class Tuning:
    """How an engine is built and loaded; None and False leave it to TensorRT.

    `optimization_level` is 0 (quickest build) to 5, `avg_timing` how many runs a kernel's time is averaged over. `dla`
    is the core of the deep learning accelerator that layers run on; what it cannot run falls back to the GPU.
    `weight_streaming` lets weights stay in host memory, so many bytes of them on the GPU (`AUTOMATIC`: TensorRT's own
    choice). `version_compatible` engines load with later versions, `refit` ones can get other weights.
    `formats` says how inputs and outputs are stored: (name, TensorRT's name of the format, such as `HWC`).
    """

    optimization_level: int | None = None
    avg_timing: int | None = None
    dla: int | None = None
    weight_streaming: int | None = None
    version_compatible: bool = False
    refit: bool = False
    formats: tuple[tuple[str, str], ...] = ()

    @property
    def key(self) -> dict[str, int | bool | str]:
        """What is not TensorRT's own, and makes another engine: how much of its weights is streamed does not."""
        found: dict[str, int | bool | str] = {f"format of {name}": form for name, form in self.formats}
        for name in ("optimization_level", "avg_timing", "dla"):
            if (value := getattr(self, name)) is not None:
                found[name] = value
        for name in ("version_compatible", "refit"):
            if getattr(self, name):
                found[name] = True
        return {**found, "weight_streaming": True} if self.weight_streaming is not None else found

    @property
    def options(self) -> str:
        """The options of the command line that were given; empty where all is TensorRT's own."""
        names = [f"--{name.replace('_', '-')}" for name in self.key if not name.startswith("format of ")]
        return ", ".join([*names, *["--io-format"] * bool(self.formats)])

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


def parse_formats(texts: Iterable[str]) -> tuple[tuple[str, str], ...]:
    """The formats of `NAME:FORMAT`, sorted; `chw` is what TensorRT calls LINEAR. Raises OptionError."""
    found: dict[str, str] = {}
    for text in texts:
        name, _, form = text.rpartition(":")  # names contain colons
        if not name or not form:
            raise OptionError(f"--io-format {text!r}: write NAME:FORMAT, as in --io-format image:hwc")
        if name in found:
            raise OptionError(f"--io-format {text!r}: the format of {name} is given twice; give it once")
        found[name] = "LINEAR" if form.lower() == "chw" else form.upper()
    return tuple(sorted(found.items()))


def check_formats(formats: Iterable[tuple[str, str]], names: Collection[str]) -> None:
    """Raises OptionError for a format of what is no input or output of the model."""
    for name, _ in formats:
        if name not in names:
            raise OptionError(f"--io-format {name}: the model has no such input or output; it has {', '.join(names)}")
