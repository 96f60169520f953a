"""Two machines to run the checkout on: this one, and an aarch64 that QEMU emulates."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
PYTHON = "3.11"  # of Debian 12
PROCESSOR = "neoverse-n1"

# Debian's Python and what the wheels link to; which builds of them, the folder's `versions` says.
_DEBIAN = (
    *("python3.11-minimal", "libpython3.11-minimal", "libpython3.11-stdlib", "libc6", "libstdc++6", "libgcc-s1"),
    *("zlib1g", "libexpat1", "libssl3", "libffi8", "libbz2-1.0", "liblzma5", "libuuid1", "libcrypt1", "libgomp1"),
    *("libsqlite3-0", "media-types"),
)
_EMULATOR = "qemu-user-static"
# ONNX Runtime 1.32 does not start under QEMU 7.2.
_WHEELS = (
    *("numpy==2.4.6", "onnx==1.23.2", "onnxruntime==1.27.0", "onnx-ir==1.1.0", "ml_dtypes==0.6.0", "pandas==3.1.1"),
    *("numba==0.68.1", "llvmlite==0.50.0", "protobuf==7.36.2", "typing_extensions==4.16.0", "flatbuffers==25.12.19"),
    *("pillow==13.0.0", "rich==15.0.0", "click==8.5.1", "jinja2==3.1.6", "pygal==3.1.3", "markupsafe==3.0.4"),
    *("python-dateutil==4.0.0", "markdown-it-py==4.3.0", "mdurl==0.1.2", "pygments==2.21.0", "six==1.17.0"),
    *("importlib_metadata==10.2.0", "zipp==4.1.2", "lazy-importer==0.1.0", "packaging==26.4", "sympy==1.14.0"),
    *("mpmath==1.4.1", "pytest==9.2.0", "iniconfig==2.3.1", "pluggy==1.7.0", "hypothesis==6.170.17"),
    *("sortedcontainers==2.4.0", "scipy==1.17.1", "lxml==6.1.3", "tokenizers==0.23.3"),
)
_GLIBC = ("2_28", "2_27", "2_26", "2_24", "2_17")


class SetupError(Exception):
    """The machines cannot be had here."""


@dataclass(frozen=True)
class Machine:
    """Where the checkout is run: `python` there, and what its environment has besides."""

    name: str
    python: Path
    environment: Mapping[str, str]

    def run(self, arguments: Sequence[str]) -> int:
        """The exit code of Python with these arguments, in the checkout."""
        environment = {**os.environ, **self.environment}
        return subprocess.run([self.python, *arguments], cwd=ROOT, env=environment, check=False).returncode


def machines(folder: Path) -> tuple[Machine, Machine]:
    """x86-64 and aarch64, set up in the folder. Raises SetupError where they cannot be."""
    folder.mkdir(parents=True, exist_ok=True)
    found = "{}.{}".format(*sys.version_info)
    if found != PYTHON or os.uname().machine != "x86_64":
        raise SetupError(f"Python {PYTHON} on x86-64 is needed, as Debian 12 has it; this is {found}")
    _once(folder / "root", _debian)
    _once(folder / "emulator", _emulator)
    for architecture in ("x86_64", "aarch64"):
        _once(folder / f"site-{architecture}", lambda site, of=architecture: _site(site, of))
    host = Machine("x86-64", Path(sys.executable), _environment(folder, "x86_64"))
    return host, Machine("aarch64", _launcher(folder), _environment(folder, "aarch64"))


def _environment(folder: Path, architecture: str) -> dict[str, str]:
    """The pinned packages before any others, and nothing that is compiled or found written into the checkout."""
    kept = folder / f"kept-{architecture}"
    return {
        "PYTHONPATH": os.pathsep.join([str(ROOT), str(folder / f"site-{architecture}")]),
        "PYTHONNOUSERSITE": "1",
        "PYTHONPYCACHEPREFIX": str(kept / "pycache"),
        "NUMBA_CACHE_DIR": str(kept / "numba"),
        "HYPOTHESIS_STORAGE_DIRECTORY": str(kept / "hypothesis"),
        "HOME": str(kept),
    }


def _launcher(folder: Path) -> Path:
    """A script that is the emulated Python's `sys.executable` too, so that its children are emulated as well."""
    script, root = folder / "python", folder / "root"
    script.write_text(
        "#!/bin/sh\n"
        f'export PYTHONHOME="{root}/usr" QEMU_LD_PREFIX="{root}"\n'
        f'exec "{folder}/emulator/usr/bin/qemu-aarch64-static" -cpu {PROCESSOR} -0 "{script}" '
        f'"{root}/usr/bin/python{PYTHON}" "$@"\n'
    )
    script.chmod(0o755)
    return script


def _once(target: Path, fill: Callable[[Path], None]) -> None:
    """Fill the folder, if it is not there: under another name, which it loses when it is complete."""
    if target.exists():
        return
    draft = target.with_name(f"{target.name}.draft")
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir()
    fill(draft)
    draft.rename(target)


def _debian(root: Path) -> None:
    _unpacked(root, _DEBIAN, ("-o", "APT::Architecture=arm64", "-o", "APT::Architectures=arm64"))


def _emulator(root: Path) -> None:
    _unpacked(root, (_EMULATOR,), ())


def _unpacked(root: Path, packages: Sequence[str], options: Sequence[str]) -> None:
    """Download Debian's packages, by lists of their own, and unpack them; nothing is installed."""
    work = root / "debs"
    (work / "lists" / "partial").mkdir(parents=True)
    for path in (work, work / "lists", work / "lists" / "partial"):
        path.chmod(0o777)  # apt lets a user of its own download
    apt = ["apt-get", "-qq", *options, "-o", f"Dir::State::Lists={work}/lists"]
    _done([*apt, "update"], work)
    _done([*apt, "download", *packages], work)
    names = sorted(path.name for path in work.glob("*.deb"))
    for name in names:
        _done(["dpkg", "-x", name, str(root)], work)
    shutil.rmtree(work)
    (root / "versions").write_text("\n".join(names) + "\n")


def _site(site: Path, architecture: str) -> None:
    platforms = [f"--platform=manylinux_{glibc}_{architecture}" for glibc in _GLIBC]
    choice = ["--no-deps", "--only-binary=:all:", f"--python-version={PYTHON}", "--implementation=cp", "--no-compile"]
    pip = [sys.executable, "-m", "pip", "install", "-q", "--disable-pip-version-check", "--target", str(site)]
    _done([*pip, *choice, *platforms, f"--platform=manylinux2014_{architecture}", *_WHEELS], site)


def _done(command: Sequence[str], cwd: Path) -> None:
    try:
        done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)
    except OSError as error:
        raise SetupError(f"{command[0]}: {error}") from None
    if done.returncode:
        raise SetupError(f"{' '.join(command)}:\n{done.stderr.strip()}")
