"""A run's folder after a kill: whether each file is whole, and whether all is as it was without one."""

from __future__ import annotations

import csv
import io
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from precisionlab.system.runlog import RUN_LOG


class BrokenError(Exception):
    """Something that must hold does not."""


def journal_of(folder: Path) -> tuple[list[str], bool]:
    """The keys of the journal's whole lines, and whether half a line follows. Raises BrokenError."""
    path = folder / "journal.jsonl"
    lines = path.read_bytes().splitlines(keepends=True) if path.exists() else []
    half = bool(lines) and not lines[-1].endswith(b"\n")
    whole = [json.loads(line) for line in lines[: len(lines) - half]]
    if whole and "context" not in whole[0]:
        raise BrokenError("the journal does not begin with its context")
    keys = [entry["key"] for entry in whole[1:]]
    if len(set(keys)) < len(keys):
        raise BrokenError("an evaluation stands in the journal twice")
    return keys, half


def check_whole(path: Path) -> None:
    """Raises whatever reading raises where a file is not whole."""
    if path.suffix == ".json":
        json.loads(path.read_text(encoding="utf-8"))
    elif path.suffix == ".csv":
        text = path.read_bytes().decode("utf-8")
        widths = {len(row) for row in csv.reader(io.StringIO(text, newline=""), strict=True)}
        if len(widths) != 1 or not text.endswith("\n"):
            raise BrokenError(f"{path.name}: rows of {widths} cells")
    elif path.suffix == ".html":
        text = path.read_text(encoding="utf-8")
        HTMLParser().feed(text)
        if not text.rstrip().endswith("</html>"):
            raise BrokenError(f"{path.name}: has no end")
    elif path.suffix == ".npz":
        with np.load(path, allow_pickle=False) as archive:
            for name in archive.files:
                archive[name]
    elif path.suffix == ".onnx":
        onnx.checker.check_model(onnx.load(path))
    elif path.suffix == ".cache" and path.parent.name != "onnxruntime":
        from precisionlab.calibration.cache import read_cache_file

        read_cache_file(path)
    elif path.name != "journal.jsonl" and not path.stat().st_size:
        raise BrokenError(f"{path.name}: is empty")


def check_folder(folder: Path) -> tuple[list[str], bool, int]:
    """The journal's keys, whether it ends in half a line, and the number of drafts. Raises BrokenError."""
    drafts = 0
    for path in sorted(folder.rglob("*")) if folder.exists() else []:
        hidden = any(part.startswith(".") for part in path.relative_to(folder).parts)
        drafts += hidden and path.name.endswith(".part")
        if path.is_file() and not hidden:
            try:
                check_whole(path)
            except Exception as error:
                raise BrokenError(f"{path}: not whole: {error}") from error
    return *journal_of(folder), drafts


def contents(folder: Path) -> dict[str, Any]:
    """All files by name, without dates, durations, and the path of the folder itself."""
    found: dict[str, Any] = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if path.is_dir() or name == RUN_LOG:  # what each run tells of its own way
            continue
        content = path.read_bytes().replace(str(folder).encode(), b"RUN")
        if path.suffix in (".json", ".jsonl", ".html", ".md"):
            found[name] = _timeless(content.decode("utf-8"))
        else:
            found[name] = content
    return found


def _timeless(text: str) -> str:
    text = re.sub(r"\d{4}-\d\d-\d\d[T ]\d\d:\d\d(:\d\d)?(\+00:00|Z| UTC)?", "TIME", text)
    text = re.sub(r'"seconds": ([0-9.e-]+|\{[^}]*\})', "TIME", text)
    text = re.sub(r'"sha256": "[0-9a-f]{16}"', "DIGEST", text)  # of a journal's line, its seconds included
    return re.sub(r"\b\d+(\.\d+)? (s|min)\b", "TIME", text)


def differing(folder: Path, expected: dict[str, Any]) -> list[str]:
    """The files that differ from what is expected, each with where it first does."""
    now = contents(folder)
    names = sorted(name for name in now.keys() | expected.keys() if now.get(name) != expected.get(name))
    return [f"{name}: {_first(expected.get(name, ''), now.get(name, ''))}" for name in names]


def _first(expected: Any, found: Any) -> str:
    at = next((i for i, (a, b) in enumerate(zip(expected, found, strict=False)) if a != b), -1)
    return f"at {at}: {expected[max(0, at - 60) : at + 60]!r} is now {found[max(0, at - 60) : at + 60]!r}"
