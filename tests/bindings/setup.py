"""Downloads the bindings of one TensorRT version, and gives them empty libraries, so that they can be imported.

The wheels come from PyPI through pip, and are kept unpacked in the user's cache folder: `python -m bindings.setup` in
`tests/` prints where. What each needs of its libraries is told in stubs.c.
"""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from hashlib import sha256
from pathlib import Path

STUBS = Path(__file__).with_name("stubs.c")
PACKAGES = {
    "8.6.1": "tensorrt-bindings",
    "10.0.1": "tensorrt-cu12-bindings",
    "10.9.0.34": "tensorrt-cu12-bindings",
    "10.13.3.9": "tensorrt-cu12-bindings",
    "10.14.1.48.post1": "tensorrt-cu12-bindings",
    "10.16.1.11": "tensorrt-cu12-bindings",
}
"""Version → the package on PyPI, of the weakly typed TensorRT: with calibrators and precision flags."""
STRONGLY_TYPED = {"11.4.0.106": "tensorrt-cu12-bindings"}
"""The same for the versions that have neither."""


def unsupported() -> str | None:
    """Why there are no bindings for this machine; None where there are."""
    here = (sys.platform, platform.machine(), sys.implementation.name, sys.version_info[:2])
    if here == ("linux", "x86_64", "cpython", (3, 11)):
        return None
    return f"the bindings tested are for CPython 3.11 on Linux x86_64, this is {' '.join(map(str, here[:3]))} {here[3]}"


def bindings(version: str) -> Path:
    """The folder that makes `import tensorrt_bindings` work in a process of its own; downloaded once."""
    stubs = sha256(STUBS.read_bytes()).hexdigest()[:12]
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "precisionlab-tests"
    folder = home / f"tensorrt-bindings-{version}-{stubs}"
    if not folder.is_dir():
        home.mkdir(parents=True, exist_ok=True)
        # Made beside, then moved: a test that is killed, or another at the same time, finds all of it or nothing.
        with tempfile.TemporaryDirectory(dir=home, prefix="making-") as temporary:
            made = Path(temporary) / "made"
            _unpack(version, Path(temporary), made)
            _compile_stubs(made / "tensorrt_bindings")
            try:
                made.rename(folder)
            except OSError:
                if not folder.is_dir():
                    raise
    return folder


def _unpack(version: str, downloads: Path, target: Path) -> None:
    package = f"{(PACKAGES | STRONGLY_TYPED)[version]}=={version}"
    options = [
        "--no-deps",
        "--only-binary",
        ":all:",
        "--disable-pip-version-check",
        "--quiet",
        "--dest",
        str(downloads),
    ]
    _run([sys.executable, "-m", "pip", "download", *options, package])
    (wheel,) = downloads.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(target)


def _compile_stubs(folder: Path) -> None:
    """One library with all that is wanted, under each name that `tensorrt.so` asks for; its rpath is its own folder."""
    names = sorted(set(re.findall(rb"libnv[a-z_]+\.so\.[0-9]+", (folder / "tensorrt.so").read_bytes())))
    assert names, f"{folder / 'tensorrt.so'} names no TensorRT library"
    first, *others = (folder / name.decode() for name in names)
    compiler = next(filter(None, map(shutil.which, ("cc", "gcc", "clang"))), None)
    assert compiler is not None, "a C compiler is needed for the stubs"
    _run([compiler, "-shared", "-fPIC", "-O1", "-Wall", "-o", str(first), str(STUBS)])
    for other in others:
        shutil.copy(first, other)


def _run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, f"{' '.join(command)} failed:\n{done.stdout}{done.stderr}"


if __name__ == "__main__":
    for wanted in sys.argv[1:] or PACKAGES | STRONGLY_TYPED:
        print(bindings(wanted))
