"""What keeps TensorRT from running here, and the one command that mends it.

The driver must be able to do the CUDA that TensorRT and cuda-python were built for: an older one is refused by both,
a newer one serves both. The builds of TensorRT for CUDA 12 and 13 are packages of their own that put their files into
the same folder; `tensorrt` on PyPI is the one for CUDA 13 from 10.13.2 on.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from precisionlab.backends.tensorrt.presence import Presence, look

OLDEST_CUDA, NEWEST_CUDA = 12, 13
"""The major versions of CUDA that there is a TensorRT for in our extras."""

_LOOK = "nvidia-smi"
_UPDATE = "update the NVIDIA driver: https://www.nvidia.com/drivers"
_JETSON = Path("/etc/nv_tegra_release")
_PACKAGES = {"tensorrt": '"precisionlab[tensorrt-cu{}]"', "tensorrt_rtx": '--no-build-isolation "tensorrt-rtx-cu{}"'}
_ON_JETSON = 'python3 -m venv --system-site-packages .venv && .venv/bin/pip install "precisionlab[jetson]"'


@dataclass(frozen=True)
class Obstacle:
    """What is wrong, and the command that mends it. `is_harmless`: engines may run all the same."""

    why: str
    remedy: str
    is_harmless: bool = False


def obstacle_of(seen: Presence, *, serious: bool = False) -> Obstacle | None:
    """The first thing that is wrong with an installed TensorRT and what it needs; None where nothing is.

    With `serious`, only what keeps engines from running.
    """
    return next((found for found in _obstacles(seen) if not (serious and found.is_harmless)), None)


def why_not_used() -> str | None:
    """Why engines of an installed TensorRT cannot run here, and what mends it; "" without one, None where they can.

    On a machine without TensorRT no process is started for the answer.
    """
    if importlib.util.find_spec("tensorrt") is None:
        return ""
    found = obstacle_of(look("tensorrt"), serious=True)
    return None if found is None else f"{found.why} (`{found.remedy}`)"


def install_command(module: str, driver: int | None) -> str:
    """What installs `tensorrt` or `tensorrt_rtx` for a driver of this CUDA (12080 for 12.8; None: not known)."""
    if module == "tensorrt" and _JETSON.exists():
        return _ON_JETSON
    before = "pip install wheel setuptools && " if module != "tensorrt" else ""
    return f"{before}pip install {_PACKAGES[module].format(_fitting(driver))}"


def cuda_python_command(major: int) -> str:
    """What installs the cuda-python of this CUDA, in the place of any other."""
    return f'pip install "cuda-python>={major},<{major + 1}"'


def words(version: int | None) -> str:
    """`12.8` of 12080."""
    return "none" if version is None else f"{version // 1000}.{version % 1000 // 10}"


def _obstacles(seen: Presence) -> Iterator[Obstacle]:
    """All that is in the way, what must go first at the front."""
    both = " and ".join(str(build.cuda) for build in seen.builds)
    mixed = f"TensorRT is installed for CUDA {both}, and one overwrites the other's files"
    if seen.broken:
        why = f"TensorRT cannot be loaded ({seen.broken})"
        yield Obstacle(f"{why}: {mixed}" if len(seen.builds) > 1 else why, _swapped(seen))
    if len(seen.builds) > 1:
        yield Obstacle(mixed, _swapped(seen), is_harmless=True)
    wanted = seen.builds[0].cuda if len(seen.builds) == 1 else None
    if seen.driver is not None:
        yield from _behind(seen, seen.driver, wanted)
    for_python = cuda_python_command(_fitting(seen.driver) if wanted is None else wanted)
    if seen.cuda_broken:
        yield Obstacle(seen.cuda_broken, f"{for_python} --force-reinstall")
    elif seen.cuda_python is None:
        too = ", and no NVIDIA driver is here" if seen.driver is None else ""
        yield Obstacle(f"the Python package cuda-python is not installed{too}", for_python)
    elif wanted is not None and wanted != seen.cuda_python // 1000:
        why = f"this TensorRT is for CUDA {wanted}, and this cuda-python for CUDA {seen.cuda_python // 1000}"
        yield Obstacle(why, for_python, is_harmless=True)
    if seen.driver is None:
        yield Obstacle("no NVIDIA driver is here", _LOOK)
    elif seen.gpus == 0:
        yield Obstacle("no NVIDIA GPU can be seen (look at CUDA_VISIBLE_DEVICES too)", _LOOK)


def _behind(seen: Presence, driver: int, wanted: int | None) -> Iterator[Obstacle]:
    """Where the driver is older than the CUDA that something was built for. `wanted` is TensorRT's, where it is known.

    Within a major version an older driver serves (CUDA's minor version compatibility).
    """
    can, major = f"the NVIDIA driver can do CUDA {words(driver)}", driver // 1000
    if major < OLDEST_CUDA and wanted is not None and wanted > major:
        yield Obstacle(f"{can}, and this TensorRT is for CUDA {wanted}", _UPDATE)
    if wanted is not None and wanted > major:
        yield Obstacle(f"{can}, and this TensorRT is for CUDA {wanted}", _swapped(seen))
    if seen.cuda_python is not None and seen.cuda_python // 1000 > major:
        mend = cuda_python_command(major if wanted is None else wanted)
        yield Obstacle(f"{can}, and this cuda-python is for CUDA {seen.cuda_python // 1000}", mend)


def _fitting(driver: int | None) -> int:
    """The newest CUDA that there is a TensorRT for, and that the driver can do."""
    return NEWEST_CUDA if driver is None else max(OLDEST_CUDA, min(NEWEST_CUDA, driver // 1000))


def _swapped(seen: Presence) -> str:
    """The command that puts the TensorRT that fits in the place of what is installed.

    What is there goes first: two builds share a folder, and pip leaves alone what it thinks is installed.
    """
    packages = [name for build in seen.builds for name in build.packages]
    install = install_command(seen.module, seen.driver)
    if not packages or install == _ON_JETSON:
        return install
    meta = ["tensorrt"] if seen.module == "tensorrt" else []
    return f"pip uninstall -y {' '.join(meta + packages)} && {install}"
