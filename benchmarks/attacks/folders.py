"""The folder of an attempt: what lies beside it, and what it holds before and after."""

from __future__ import annotations

import hashlib
import json
import os
import stat
from pathlib import Path

import numpy as np

from precisionlab.report.written import altered

_READ = 64 << 20  # bytes of a file that are looked at: holes of GBs are known by their size


def make_outside(folder: Path) -> None:
    """Files that no attempt may change, and that would be of use to one that reads them."""
    (folder / "outside" / "folder").mkdir(parents=True)
    (folder / "outside" / "secret").write_text("not for others\n")
    (folder / "outside" / "folder" / "file").write_text("nor this\n")
    np.save(folder / "outside.npy", np.ones((1, 4), np.float32))  # the names that `test_hostile` has for them
    (folder / "outside.csv").write_text("path\na.npy\n")
    (folder / "outside.bin").write_bytes(bytes(24))
    (folder / "outside.toml").write_text('name = "outside"\n')


def look(folder: Path) -> dict[str, str]:
    """Every name below the folder, with what it is and a digest of what it holds; no link is followed."""
    found = {}
    for place, folders, files in os.walk(folder):
        for name in (*folders, *files):
            path = Path(place, name)
            found[str(path.relative_to(folder))] = what_is(path)
    return found


def what_is(path: Path) -> str:
    """Kind, mode, size and digest."""
    facts = path.lstat()
    if stat.S_ISLNK(facts.st_mode):
        return f"a link to {path.readlink()}"
    if not stat.S_ISREG(facts.st_mode):
        return stat.filemode(facts.st_mode)
    with path.open("rb") as stream:
        digest = hashlib.sha256(stream.read(_READ)).hexdigest()
    return f"{stat.filemode(facts.st_mode)} {facts.st_size} {digest[:16]}"


def mixed(run: Path) -> tuple[str, ...]:
    """The results of a run that were not written together; ("run.json",) where that is none."""
    try:
        return altered(json.loads((run / "run.json").read_text()), run)
    except (OSError, ValueError, AttributeError):
        return ("run.json",)


def texts_of(folder: Path) -> dict[str, str]:
    """The pages and tables below the folder, by name."""
    names = sorted(path for path in folder.rglob("*") if path.suffix in (".html", ".csv", ".md", ".svg"))
    return {
        str(path.relative_to(folder)): path.read_text("utf-8", "replace")
        for path in names
        if not path.is_symlink() and path.is_file() and path.stat().st_size < _READ
    }
