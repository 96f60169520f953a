"""How a backend's engines are built: one value, for every engine of a run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from precisionlab.backends.tensorrt.jobs import Profile
from precisionlab.backends.tensorrt.plugins import Plugins
from precisionlab.backends.tuning import UNTUNED, Tuning


@dataclass(frozen=True)
class EngineSettings:
    """How engines are built. `folder` is where they are kept, `observe` the bytes of tensors looked at in one engine.

    `obey` is false where pins are only preferred. `calibrate` lets TensorRT calibrate INT8 by itself. `compute`
    is the compute capability to compile for, where the GPU is not here. `hold_float` holds what the plan has in float
    beside int8, whatever has scales. `plugins` are the libraries that were loaded for them, `tuning`
    what is asked beside.
    """

    folder: Path
    profiles: Mapping[str, Profile] = field(default_factory=dict)
    more_profiles: tuple[Mapping[str, Profile], ...] = ()
    obey: bool = True
    calibrate: bool = False
    workspace: int | None = None
    observe: int = 256 * 1024**2
    compute: str | None = None
    hold_float: bool = False
    plugins: tuple[Plugins, ...] = ()
    tuning: Tuning = UNTUNED

    @property
    def digests(self) -> tuple[str, ...]:
        """What the libraries of plugins hold, for an engine's key."""
        return tuple(library.sha256 for library in self.plugins)

    @property
    def facts(self) -> dict[str, str]:
        """These settings as text, for run.json."""
        sets = (self.profiles, *self.more_profiles)
        profiles = {name: "; ".join(map(str, (found[name] for found in sets))) for name in self.profiles}
        return {
            "constraints": "obey" if self.obey else "prefer",
            "float_layers": "held beside int8" if self.hold_float else "free beside int8",
            "int8_ranges": "TensorRT's own calibration" if self.calibrate else "calibration cache",
            "workspace": "TensorRT's own limit" if self.workspace is None else f"{self.workspace} bytes",
            "observed_in_one_engine": f"{self.observe} bytes",
            **({"plugins": ", ".join(map(str, self.plugins))} if self.plugins else {}),
            **self.tuning.facts,
            **{f"shapes of {name}": text for name, text in profiles.items()},
        }
