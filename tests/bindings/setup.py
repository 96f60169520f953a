"""Downloads the bindings of one TensorRT version, and gives them empty libraries, so that they can be imported.

The wheels come from PyPI through pip, and are kept unpacked in the user's cache folder: `python -m bindings.setup` in
`tests/` prints where. What each needs of its libraries is told in stubs.c.
"""

from __future__ import annotations

import platform
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import zipfile
from hashlib import sha256
from pathlib import Path

from bindings.index import Binding, home, index

STUBS = Path(__file__).with_name("stubs.c")


def unsupported() -> str | None:
    """Why there are no bindings for this machine; None where there are."""
    return wrong_machine() or index().failed


def wrong_machine() -> str | None:
    """Why bindings cannot be tested here, wherever they come from."""
    here = (sys.platform, platform.machine(), sys.implementation.name)
    if here != ("linux", "x86_64", "cpython") or sysconfig.get_config_var("Py_GIL_DISABLED"):
        return f"the bindings tested are for ordinary CPython on Linux x86_64, this is {' '.join(here)}"
    return None


def bindings(binding: Binding) -> Path:
    """The folder that makes `import tensorrt_bindings` work in a process of its own; downloaded once."""
    stubs = sha256(STUBS.read_bytes()).hexdigest()[:12]
    python = f"cp{sys.version_info[0]}{sys.version_info[1]}"
    folder = home() / f"{binding.package}-{binding.version}-{python}-{stubs}"
    if not folder.is_dir():
        home().mkdir(parents=True, exist_ok=True)
        # Made beside, then moved: a test that is killed, or another at the same time, finds all of it or nothing.
        with tempfile.TemporaryDirectory(dir=home(), prefix="making-") as temporary:
            made = Path(temporary) / "made"
            _unpack(binding, Path(temporary), made)
            _compile_stubs(made / "tensorrt_bindings")
            try:
                made.rename(folder)
            except OSError:
                if not folder.is_dir():
                    raise
    return folder


def _unpack(binding: Binding, downloads: Path, target: Path) -> None:
    options = ["--no-deps", "--only-binary", ":all:", "--disable-pip-version-check", "--quiet", f"--dest={downloads}"]
    _run([sys.executable, "-m", "pip", "download", *options, f"{binding.package}=={binding.version}"])
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
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, f"{' '.join(command)} failed:\n{done.stdout}{done.stderr}"


if __name__ == "__main__":
    for one in index().bindings:
        print(bindings(one))
