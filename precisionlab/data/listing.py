"""Listings and labels: CSV and JSONL files that say which samples there are, and what they are."""

from __future__ import annotations

import csv
import json
import posixpath
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path, PurePosixPath, PureWindowsPath

from precisionlab.data.manifest import MANIFEST, Manifest, inside
from precisionlab.errors import DataError
from precisionlab.system.reading import UnreadableError, file_size, parse_json

LISTINGS = ("samples.csv", "samples.jsonl")
"""The names under which a listing is found without a manifest."""
MOST_LINES = 1_000_000
"""The most samples that a listing may name."""
_LARGEST = 1 << 28  # bytes: a million lines of 250


@dataclass(frozen=True)
class Line:
    """One sample of a listing: its path relative to the folder, its label, and where that stands."""

    path: str
    label: str | None
    where: str


def find_listing(folder: Path, manifest: Manifest) -> Path | None:
    """The folder's listing: the one that the manifest names, or one with a usual name.

    Raises DataError where there is more than one, or it lies outside the folder.
    """
    if manifest.samples_file is not None:
        path = inside(folder, manifest.samples_file, str(folder / MANIFEST))
        if path.suffix.lower() not in (".csv", ".jsonl"):
            raise DataError(f"{folder / MANIFEST}: samples.file must be a .csv or a .jsonl file")
        return path
    found = [folder / name for name in LISTINGS if name != manifest.labels_file and (folder / name).is_file()]
    if len(found) > 1:
        raise DataError(
            f"{folder}: both {' and '.join(LISTINGS)}; keep one, or name it in {MANIFEST}: [samples] file = …"
        )
    return inside(folder, found[0].name, str(folder)) if found else None


def read_listing(listing: Path, folder: Path) -> list[Line]:
    """The samples of a listing, in its order. Raises DataError with the line's number."""
    with _readable(listing, "the listing"):
        found = _csv_lines(listing) if listing.suffix.lower() == ".csv" else _json_lines(listing)
        lines = list(islice(found, MOST_LINES + 1))
    if not lines:
        raise DataError(f"{listing}: lists no sample")
    if len(lines) > MOST_LINES:
        raise DataError(f"{listing}: lists more than {MOST_LINES:,} samples; choose among them")
    seen: dict[str, str] = {}
    listed = []
    for line in lines:
        path = _relative(line, folder)
        if path in seen:
            raise DataError(f"{line.where}: {path!r} is listed a second time (first in {seen[path]})")
        seen[path] = line.where.rpartition(", ")[2]
        listed.append(Line(path, line.label, line.where))
    return listed


def read_labels(folder: Path, manifest: Manifest) -> dict[str, str]:
    """Sample name → label, from the file that the manifest names. Raises DataError."""
    if manifest.labels_file is None:
        return {}
    path = inside(folder, manifest.labels_file, str(folder / MANIFEST))
    with _readable(path, "labels"), path.open(newline="", encoding="utf-8-sig") as stream:
        rows = csv.DictReader(stream)
        if not {"sample", "label"} <= set(rows.fieldnames or ()):
            raise DataError(f"{path}: the first line must be the header sample,label")
        _check_header(rows, path)
        labels: dict[str, str] = {}
        for row in rows:
            sample, label = row["sample"], row["label"]
            if sample is None or label is None:
                raise DataError(f"{path}: the line of sample {sample!r} has no label; give each line all columns")
            _check_width(row, f"{path}, line {rows.line_num}")
            if labels.setdefault(sample, label) != label:
                raise DataError(
                    f"{path}, line {rows.line_num}: sample {sample!r} has another label before; keep one of the two"
                )
        if not labels:
            raise DataError(f"{path}: labels no sample; write a line for each, or take labels.file out of {MANIFEST}")
    return labels


def _csv_lines(listing: Path) -> Iterator[Line]:
    with listing.open(newline="", encoding="utf-8-sig") as stream:  # spreadsheets write a byte order mark
        rows = csv.DictReader(stream, skipinitialspace=True)
        if "path" not in (rows.fieldnames or ()):
            raise DataError(f"{listing}, line 1: must be the header path or path,label")
        _check_header(rows, listing)
        for row in rows:
            where = f"{listing}, line {rows.line_num}"
            _check_width(row, where)
            if not row["path"]:
                raise DataError(f"{where}: no path")
            if "label" in row and row["label"] is None:
                raise DataError(f"{where}: no label; give each line all columns")
            yield Line(row["path"], row.get("label") or None, where)


def _check_header(rows: csv.DictReader[str], path: Path) -> None:
    names = list(rows.fieldnames or ())
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise DataError(f"{path}, line 1: has two columns {twice!r}; keep one of them")


def _check_width(row: Mapping[str | None, object], where: str) -> None:
    """Raises DataError where a line has more cells than the header: a label such as [1, 2] would lose its end."""
    if None in row:
        raise DataError(f'{where}: has more cells than the header; write a text with commas in quotes: "[1, 2]"')


def _json_lines(listing: Path) -> Iterator[Line]:
    with listing.open(encoding="utf-8-sig") as stream:
        for number, text in enumerate(stream, 1):
            where = f"{listing}, line {number}"
            if not text.strip():
                continue
            try:
                row = parse_json(text)
            except ValueError as error:
                raise DataError(f"{where}: not JSON: {error}") from None
            if not isinstance(row, dict) or not isinstance(row.get("path"), str) or not row["path"]:
                raise DataError(f'{where}: write {{"path": "a.png", "label": …}}')
            label = row.get("label")
            yield Line(row["path"], label if isinstance(label, str | None) else json.dumps(label), where)


def _relative(line: Line, folder: Path) -> str:
    """The path as the samples are named: relative, with slashes, without detours."""
    if PurePosixPath(line.path).is_absolute() or PureWindowsPath(line.path).drive:
        raise DataError(f"{line.where}: {line.path!r} is absolute; write paths relative to {folder}")
    inside(folder, line.path, line.where)
    return posixpath.normpath(line.path)


@contextmanager
def _readable(path: Path, what: str) -> Iterator[None]:
    try:
        if file_size(path) > _LARGEST:
            raise DataError(f"{path}: {what}: larger than {_LARGEST >> 20} MiB")
        yield
    except UnreadableError as error:
        raise DataError(f"{path}: {what}: {error}") from None
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path}: {what} cannot be read: {error}") from None
