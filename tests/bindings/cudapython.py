"""Downloads cuda-python: the oldest that we take, the last of CUDA 12, one of CUDA 13. They import without a driver.

`python -m bindings.cudapython` in `tests/` prints where.
"""

from __future__ import annotations

import platform
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from bindings.index import home

PACKAGES = {
    "12.1.0": ("cuda-python==12.1.0",),
    "12.9.7": ("cuda-bindings==12.9.7", "cuda-pathfinder==1.9.0"),
    "13.3.1": ("cuda-bindings==13.3.1", "cuda-pathfinder==1.9.0"),
}
"""Version → the packages on PyPI."""


def unsupported() -> str | None:
    """Why there is no such package for this machine; None where there is."""
    here = (sys.platform, platform.machine(), sys.implementation.name, sys.version_info[:2])
    if here == ("linux", "x86_64", "cpython", (3, 11)):
        return None
    return (
        f"the cuda-python tested is for CPython 3.11 on Linux x86_64, this is {' '.join(map(str, here[:3]))} {here[3]}"
    )


def cuda_python(version: str) -> Path:
    """The folder that makes `import cuda` work in a process of its own; downloaded once."""
    folder = home() / f"cuda-python-{version}"
    if not folder.is_dir():
        home().mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=home(), prefix="making-") as temporary:
            made = Path(temporary) / "made"
            command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary", ":all:", "--quiet"]
            command += ["--disable-pip-version-check", "--dest", temporary, *PACKAGES[version]]
            done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
            assert done.returncode == 0, f"{' '.join(command)} failed:\n{done.stdout}{done.stderr}"
            for wheel in Path(temporary).glob("*.whl"):
                with zipfile.ZipFile(wheel) as archive:
                    # Their libraries alone, not the sources that they were compiled from.
                    archive.extractall(made, [n for n in archive.namelist() if n.endswith((".so", ".py"))])
            try:
                made.rename(folder)
            except OSError:  # another test has made it meanwhile
                if not folder.is_dir():
                    raise
    return folder


if __name__ == "__main__":
    for wanted in sys.argv[1:] or PACKAGES:
        print(cuda_python(wanted))
