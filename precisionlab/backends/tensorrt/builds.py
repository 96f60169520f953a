"""Which CUDA the installed TensorRT was built for, as its packages say: nothing is loaded."""

from __future__ import annotations

import importlib.metadata
import re
import shutil
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass

_PATIENCE = 20.0  # seconds
_DEBIAN = re.compile(r"^libnvinfer[0-9]*\s+\S*\+cuda([0-9]+)", re.MULTILINE)


@dataclass(frozen=True)
class Build:
    """TensorRT for one major version of CUDA; `packages` are those of Python that it came in, none where of Debian."""

    cuda: int
    packages: tuple[str, ...] = ()


def installed_builds(module: str) -> tuple[Build, ...]:
    """The builds of `tensorrt` or `tensorrt_rtx` that are installed, by CUDA; none where the packages do not say.

    Two of Python's lie in the same folder, and the later has overwritten files of the earlier. Where no package of
    Python says, Debian's are asked, which JetPack and NVIDIA's containers have; of several there it is not known which
    one Python loads.
    """
    return builds_among(module, _names()) or _of_debian(module)


def builds_among(module: str, names: Iterable[str]) -> tuple[Build, ...]:
    """The builds of a module that the packages of these names are."""
    pattern = re.compile(rf"{module.replace('_', '-')}-cu([0-9]{{2}})(-bindings|-libs)?")
    found: dict[int, list[str]] = {}
    for name in sorted({re.sub(r"[-_.]+", "-", name).lower() for name in names}):  # as PyPI compares names
        if match := pattern.fullmatch(name):
            found.setdefault(int(match[1]), []).append(name)
    return tuple(Build(cuda, tuple(packages)) for cuda, packages in sorted(found.items()))


def _names() -> list[str]:
    """Of all packages of Python; a broken one has none."""
    found = (distribution.metadata["Name"] for distribution in importlib.metadata.distributions())
    return [name for name in found if name]


def _of_debian(module: str) -> tuple[Build, ...]:
    if module != "tensorrt" or shutil.which("dpkg-query") is None:
        return ()
    command = ["dpkg-query", "-W", "-f", "${Package} ${Version}\\n", "libnvinfer*"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=_PATIENCE)
    except (OSError, subprocess.TimeoutExpired):
        return ()
    found = {int(cuda) for cuda in _DEBIAN.findall(done.stdout)}
    return tuple(map(Build, found)) if len(found) == 1 else ()
