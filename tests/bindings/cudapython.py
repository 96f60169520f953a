"""Downloads cuda-python: the oldest that we take, the last of CUDA 12, one of CUDA 13. They import without a driver.

`python -m bindings.cudapython` in `tests/` prints where.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

PACKAGES = {
    "12.1.0": ("cuda-python==12.1.0",),
    "12.9.7": ("cuda-bindings==12.9.7", "cuda-pathfinder==1.9.0"),
    "13.3.1": ("cuda-bindings==13.3.1", "cuda-pathfinder==1.9.0"),
}
"""Version → the packages on PyPI."""


def cuda_python(version: str) -> Path:
    """The folder that makes `import cuda` work in a process of its own; downloaded once."""
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "precisionlab-tests"
    folder = home / f"cuda-python-{version}"
    if not folder.is_dir():
        home.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=home, prefix="making-") as temporary:
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
