"""What two runs were not given alike."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from precisionlab.report.cells import is_quantized
from precisionlab.report.redraw import RunFiles


@dataclass(frozen=True)
class Setting:
    """Something that the runs were not given alike."""

    name: str
    before: str
    after: str


def settings_between(before: RunFiles, after: RunFiles) -> Iterable[Setting]:
    """All that differs between what the runs were given, and what made them."""
    old, new = _given(before), _given(after)
    for name in dict.fromkeys([*old, *new]):
        a, b = old.get(name, "–"), new.get(name, "–")
        if a != b:
            yield Setting(name, a, b)


def _given(files: RunFiles) -> dict[str, str]:
    """What the run was given, and by what it was made; not where and when."""
    run, data = files.run, files.run["data"]
    engines = run["engines"] or {}
    given = {
        "model sha256": str(run["model"]["sha256"])[:16],
        "layers": str(run["model"]["layers"]),
        "layers from": run["layers"]["from"],
        "data": data["name"] or "unnamed",
        "data sha256": str(data["sha256"] or "–")[:16],
        "random data": data["random"],
        "samples that chose": data["choosing"],
        "samples held out": data["held_out"],
        "seed": data["seed"],
        "metric": data.get("metric"),
        "figures": run["figures"],
        "backend": run["backend"],
        **{f"emulated {key}": (run.get("arithmetic") or {}).get(key) for key in ("kernels", "sums", "constants")},
        "target": run["target"]["title"],
        **{f"engines: {key}": value for key, value in engines.items() if isinstance(value, (str, bool))},
        **{f"tolerance of {name}": value for name, value in run["tolerance"].items()},
        **{f"around {name}": plan.around for name, plan in files.plans.items() if is_quantized(name)},
        **{f"block of {name}": plan.block for name, plan in files.plans.items() if plan.block},
        **{f"ranges of {name}": plan.calibration for name, plan in files.plans.items() if plan.calibration},
        "precisionlab": run["precisionlab"],
        **{name: version for name, version in run["versions"].items() if name != "precisionlab"},
    }
    return {name: "–" if value is None else str(value) for name, value in given.items()}
