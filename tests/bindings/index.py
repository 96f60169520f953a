"""Which of TensorRT's Python bindings the package index has for this Python: asked of pip, once a day.

No version is named here: a new one is found when it comes out. `python -m bindings.index` in `tests/` prints them.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from packaging.version import Version

PACKAGES = ("tensorrt-bindings", "tensorrt-cu12-bindings", "tensorrt-cu13-bindings")
OLDEST, BEYOND = Version("8.6.1"), Version("12.dev0")
"""The first that is supported, and the first that is not."""

_LASTS = 24 * 3600
_FAILURE_LASTS = 60  # long enough for all processes of a run to see the same, short enough to try again


@dataclass(frozen=True)
class Binding:
    """One release of one of the packages; `version` is as the index has it."""

    package: str
    version: str

    @property
    def number(self) -> Version:
        return Version(self.version)

    def __str__(self) -> str:
        """`8.6.1`, `10.16.1.11-cu13`."""
        build = re.search(r"cu[0-9]+", self.package)
        return f"{self.version}-{build[0]}" if build else self.version


@dataclass(frozen=True)
class Index:
    """What the index has, oldest first; or in `failed` why that could not be learned."""

    bindings: tuple[Binding, ...]
    failed: str | None = None


def home() -> Path:
    """The folder of what the tests download."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "precisionlab-tests"


@cache
def index() -> Index:
    """What the index has. All processes of a test run see the same: the first one asks, the others wait for it."""
    import fcntl  # there are no bindings to test where this module is not

    home().mkdir(parents=True, exist_ok=True)
    known = home() / f"tensorrt-bindings-index-{sys.version_info[0]}.{sys.version_info[1]}.json"
    with open(home() / f"{known.stem}.lock", "w") as lock:  # noqa: PTH123 – what flock wants
        fcntl.flock(lock, fcntl.LOCK_EX)
        return _read(known) or _asked(known)


def few(bindings: Iterable[Binding]) -> frozenset[Binding]:
    """Those that are tested wherever tests run: of each major version the first and the last."""
    found: dict[int, list[Binding]] = {}
    for binding in sorted(bindings, key=_order):
        found.setdefault(binding.number.major, []).append(binding)
    return frozenset(binding for major in found.values() for binding in (major[0], major[-1]))


def listed(text: str) -> tuple[str, ...]:
    """The versions in what `pip index versions` prints; none where it has not found the package."""
    line = re.search(r"^Available versions: (.+)$", text, re.MULTILINE)
    return tuple(line[1].split(", ")) if line else ()


def in_range(binding: Binding) -> bool:
    """Whether it is of a TensorRT that we support."""
    return OLDEST <= binding.number < BEYOND


def _order(binding: Binding) -> tuple[Version, str]:
    return binding.number, binding.package


def _read(known: Path) -> Index | None:
    """What was learned lately; None where that is too long ago."""
    if not known.is_file():
        return None
    content = json.loads(known.read_text("utf-8"))
    age = time.time() - known.stat().st_mtime
    if not 0 <= age < (_LASTS if content["failed"] is None else _FAILURE_LASTS):
        return None
    return Index(tuple(Binding(*row) for row in content["bindings"]), content["failed"])


def _asked(known: Path) -> Index:
    with ThreadPoolExecutor(len(PACKAGES)) as pool:
        answers = dict(zip(PACKAGES, pool.map(_ask, PACKAGES), strict=True))
    failed = _why_failed(answers)
    every = [Binding(name, version) for name, said in answers.items() for version in listed(said)]
    result = Index(tuple(sorted(filter(in_range, every), key=_order)) if failed is None else (), failed)
    rows = [[binding.package, binding.version] for binding in result.bindings]
    with tempfile.NamedTemporaryFile("w", encoding="utf-8", dir=known.parent, delete=False) as file:
        json.dump({"bindings": rows, "failed": failed}, file)
    Path(file.name).replace(known)
    return result


def _why_failed(answers: Mapping[str, str]) -> str | None:
    """Package → what pip said: None where each has versions, or surely none for this Python, and one has some."""
    for package, said in answers.items():
        lost = re.search(r"(?i)retrying|could not fetch|timed out|error: (?!no matching distribution).*", said)
        if not listed(said) and (lost or "No matching distribution" not in said):
            return f"the package index could not be asked for {package}: pip said {lost[0] if lost else said[-200:]!r}"
    if not any(map(listed, answers.values())):
        return "the package index has no TensorRT bindings for this Python"
    return None


def _ask(package: str) -> str:
    """What pip says of a package's wheels for this Python, betas too."""
    command = [sys.executable, "-m", "pip", "index", "versions", package, "--pre", "--only-binary", ":all:"]
    command += ["--retries", "1", "--timeout", "20", "--disable-pip-version-check"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"{error}"
    return done.stdout if listed(done.stdout) else done.stdout + done.stderr


if __name__ == "__main__":
    every = index()
    print(every.failed or "\n".join(f"{'*' if b in few(every.bindings) else ' '} {b}" for b in every.bindings))
