"""How engines are built and looked at."""

from __future__ import annotations

from dataclasses import dataclass

from precisionlab.backends.tuning import UNTUNED, Tuning


@dataclass(frozen=True)
class EngineOptions:
    """How TensorRT's engines are built and looked at, where they are.

    `shapes` are `--shapes` texts for dynamic inputs; empty: as the data has them. `workspace` and `observe` are bytes:
    what TensorRT may use in a build (None: its own limit), and what may be looked at in one engine (0: nothing).
    `prefer` makes pins wishes. `calibrate` lets TensorRT find the INT8 ranges by itself. `builds` is how many engines
    of a precision are built at most. `store` is where engines are kept between runs; None: in the run's folder.
    `compute` is the compute capability that is compiled for where no GPU is here, such as `SM80`. `hold_float` holds in
    float what the plan has so beside int8: TensorRT may else run any layer in it that has scales on both sides.
    `plugins` are libraries of plugins that TensorRT is to load, `tuning` what else is asked of a build. `typed` asks
    for strongly typed networks where TensorRT has both kinds: each layer has the type that the plan gives it.
    """

    shapes: tuple[str, ...] = ()
    workspace: int | None = None
    observe: int = 256 * 1024**2
    prefer: bool = False
    calibrate: bool = False
    builds: int = 8
    store: str | None = None
    compute: str | None = None
    hold_float: bool = False
    plugins: tuple[str, ...] = ()
    tuning: Tuning = UNTUNED
    typed: bool = False
