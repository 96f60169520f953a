"""What is asked of the process that TensorRT runs in, and what it answers: plain values that can be sent."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from precisionlab.backends.tuning import UNTUNED, Tuning
from precisionlab.precision import Precision
from precisionlab.system.wording import counted

Arrays = Mapping[str, NDArray[Any]]
Shape = tuple[int, ...]


@dataclass(frozen=True)
class LayerPin:
    """One layer of a plan that TensorRT is to run in `precision`.

    `nodes` are the names of its ONNX nodes (as the model is loaded: `node_of_<first output>` where a node had none),
    `tensors` all float tensors that these nodes give, by which they are found first.
    """

    layer: str
    nodes: tuple[str, ...]
    tensors: tuple[str, ...]
    precision: Precision


@dataclass(frozen=True)
class Profile:
    """The shapes of one dynamic input that an engine is built for."""

    min: Shape
    opt: Shape
    max: Shape

    def __str__(self) -> str:
        return f"{self.min},{self.opt},{self.max}"


@dataclass(frozen=True)
class Watch:
    """Which debug tensors a run lets see: those `marked` in the network, or the engine's own `unfused` ones.

    Only `tensors` are copied; all where it is empty.
    """

    marked: bool = False
    unfused: bool = False
    tensors: frozenset[str] = frozenset()


NOTHING = Watch()
"""No debug tensors."""


@dataclass(frozen=True)
class BuildJob:
    """One engine to be built.

    `model` is the ONNX file, `content` a digest of all that it holds. `enabled` are the low precisions that kernels may
    have (empty: FP32 alone, and no TF32); with a strongly typed TensorRT it is empty, and the file itself says the
    types. `pins` are held to by `obey` (else only preferred). `cache` is a calibration cache for INT8; with None and
    INT8 enabled, TensorRT calibrates itself, on samples that it asks for. `profiles` has each dynamic input,
    `more_profiles` the same once more for each further profile. `marked`
    are tensors to become outputs, so that they can be looked at, `debug` those to be looked at as debug tensors (from
    10.0 on). `workspace` is in bytes, None for TensorRT's own limit. `timing_cache` is the file that kernel timings are
    kept in between builds. `engine` is where the engine is written. `compute` is the compute capability to compile for,
    such as `SM89` (TensorRT-RTX alone); None for the GPU that is here. `label` is what a typed model is called, whose
    plan the job does not tell. `strict_nans` keeps TensorRT from folding what would hide a NaN. `marked_as` are the
    half precisions that marked tensors are to be stored in; others stay as the network has them, float32 by default,
    which would let a kernel write what it has not rounded. `plugins` are the SHA-256 of the libraries of plugins that
    its process has loaded. `unfused` lets the engine show its own tensors that no fusion took (from 10.12 on).
    `tuning` is what the user asks of the build beside. `typed` asks a TensorRT that has both for a strongly typed
    network: types are the model's.
    """

    model: Path
    engine: Path
    content: str = ""
    enabled: frozenset[Precision] = frozenset()
    pins: tuple[LayerPin, ...] = ()
    obey: bool = True
    cache: bytes | None = None
    profiles: Mapping[str, Profile] = field(default_factory=dict)
    more_profiles: tuple[Mapping[str, Profile], ...] = ()
    marked: tuple[str, ...] = ()
    debug: tuple[str, ...] = ()
    workspace: int | None = None
    timing_cache: Path | None = None
    compute: str | None = None
    label: str = ""
    strict_nans: bool = False
    marked_as: Mapping[str, Precision] = field(default_factory=dict)
    typed: bool = False
    plugins: tuple[str, ...] = ()
    unfused: bool = False
    tuning: Tuning = UNTUNED

    @property
    def calibrates(self) -> bool:
        """Whether TensorRT finds the INT8 ranges by itself."""
        return any(p.is_quantized for p in self.enabled) and self.cache is None

    @property
    def title(self) -> str:
        """What the engine is called while it is built: `digits (fp16, 4 pins)`."""
        if not self.enabled and self.label:
            return self.label
        parts = [" + ".join(sorted(p.value for p in self.enabled)) or "fp32"]
        parts += [counted(len(self.pins), "pin")] * bool(self.pins)
        shown = len(self.marked) + len(self.debug)
        parts += [f"{counted(shown, 'tensor')} shown"] * bool(shown)
        parts += ["unfused tensors shown"] * self.unfused
        return f"{self.model.stem} ({', '.join(parts)})"

    def into(self, engine: Path) -> BuildJob:
        """The same job, with its engine written there."""
        return replace(self, engine=engine)


@dataclass(frozen=True)
class PinOutcome:
    """What became of one pin in the network, before the build.

    `network_layers` are the layers that were given the precision, `skipped` those of the pin's that must be left
    alone, each with the reason. `unmatched` says why no layer of the network belongs to the pin; None where one does.
    """

    layer: str
    network_layers: tuple[str, ...]
    skipped: Mapping[str, str]
    unmatched: str | None


@dataclass(frozen=True)
class EngineTensor:
    """What one layer of an engine takes or gives.

    `dtype` is `fp32`, `fp16`, `bf16`, `int8`, `int32`, …; it and `shape` are None where the engine does not tell,
    and so is whether it `is_linear`: stored row by row, with nothing between.
    """

    name: str
    dtype: str | None
    shape: Shape | None
    is_linear: bool | None = None


@dataclass(frozen=True)
class EngineLayer:
    """One layer of a built engine, as the inspector or the builder's log describes it.

    `nodes` are the ONNX nodes that its metadata names (several where they were fused; none for reformats and helpers).
    `profile` is the optimization profile that it is compiled for: an engine has layers of its own for each.
    `constants` are those that the builder's log tells of; None where nothing does.
    """

    name: str
    kind: str
    nodes: tuple[str, ...]
    inputs: tuple[EngineTensor, ...]
    outputs: tuple[EngineTensor, ...]
    tactic: str | None = None
    profile: int = 0
    constants: tuple[EngineTensor, ...] | None = None


@dataclass(frozen=True)
class Tactics:
    """How many choices of kernels the editable timing cache held in a build, changed all the same, and got anew."""

    held: int
    changed: int
    new: int


@dataclass(frozen=True)
class Built:
    """A built engine: where it lies, and what is known of it.

    `layers` is empty where TensorRT does not tell them. `seconds` is the build's wall time, `size` the engine's bytes.
    `outcomes` is what became of each pin in the network. `warnings` are TensorRT's own warnings and errors.
    `unmarked` are the tensors that TensorRT did not mark as debug tensors, though the job asks for them.
    `tactics` is None without an editable timing cache.
    """

    engine: Path
    seconds: float
    size: int
    outcomes: tuple[PinOutcome, ...]
    layers: tuple[EngineLayer, ...]
    warnings: tuple[str, ...]
    unmarked: tuple[str, ...] = ()
    tactics: Tactics | None = None

    @property
    def by_profile(self) -> tuple[tuple[EngineLayer, ...], ...]:
        """The layers of each optimization profile."""
        count = 1 + max((layer.profile for layer in self.layers), default=0)
        return tuple(tuple(layer for layer in self.layers if layer.profile == index) for index in range(count))

    @property
    def is_read(self) -> bool:
        """Whether what is inside is known: no engine is without layers. Else `warnings` say why it is not."""
        return bool(self.layers)


@dataclass(frozen=True)
class EngineTimes:
    """How long an engine takes, in milliseconds: as a whole, and while it is watched.

    `layers` has each layer of the model that runs in kernels of its own, `kernels` each of the engine's own layers by
    its name; both are empty where TensorRT does not tell them.
    """

    latency: Latency
    layers: Mapping[str, float]
    kernels: Mapping[str, float]


@dataclass(frozen=True)
class Latency:
    """How long an engine takes for one sample, milliseconds, of `runs` warm runs; measured by CUDA events."""

    median: float
    low: float
    high: float
    runs: int
