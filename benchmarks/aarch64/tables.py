"""What the folder of `benchmarks.aarch64` holds, in Markdown."""

from __future__ import annotations

import json
import math
import struct
import xml.etree.ElementTree as ET
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pandas as pd
from numpy.typing import NDArray
from onnx import numpy_helper

NAMES = ("x86-64", "aarch64")
_HALF = "half"  # the folder of the small models


def tables(results: Path) -> Iterator[str]:
    """All tables of what both machines have."""
    yield from _kernels(results)
    yield from _half(results)
    yield from _models(results)
    yield from _tests(results / "tests")


def _kernels(results: Path) -> Iterator[str]:
    logs = [results / name / "kernels.log" for name in NAMES]
    if not all(log.with_suffix("").exists() for log in logs):
        return
    first, second = (_hashes(log.read_text()) for log in logs)
    yield "| compiled loops and roundings | same bytes |"
    yield "|---|---|"
    for title, digest in first.items():
        yield f"| {title} | {'yes' if second.get(title) == digest else '**no**'} |"
    yield ""


def _hashes(log: str) -> dict[str, str]:
    """Title → hash, of the lines that have one."""
    pairs = (line.split(" ", 1) for line in log.splitlines())
    return {pair[1]: pair[0] for pair in pairs if len(pair) == 2 and len(pair[0]) == 16}


def _half(results: Path) -> Iterator[str]:
    sums = [results / name / _HALF / "runtime.log" for name in NAMES]
    if all(log.exists() for log in sums):
        said = ", ".join(f"{n}: {log.read_text().split()[-1]}" for n, log in zip(NAMES, sums, strict=True))
        yield f"60000 + 60000 − 60000 in float16 by ONNX Runtime itself: {said}"
        yield ""
    yield from _swept(results, [f"{_HALF}/{path.name}" for path in sorted((results / "half models").glob("*"))])


def _models(results: Path) -> Iterator[str]:
    models = sorted(path.name for path in (results / NAMES[0]).glob("*") if (path / "calibrated").exists())
    yield from _swept(results, models)
    rows = [row for name in models if (row := _files(results, name))]
    if rows:
        yield "| model | lines of the cache alike | most apart | typed fp16 | typed int8 |"
        yield "|---|---|---|---|---|"
        yield from rows
        yield ""


def _swept(results: Path, models: list[str]) -> Iterator[str]:
    """SQNR without pins and with, pins and layers' errors, of the models that both have swept."""
    rows = []
    for name in models:
        first, second = (results / machine / name / "sweep" for machine in NAMES)
        if all((place.parent / "swept").exists() for place in (first, second)):
            rows += list(_rows(name, first, second))
    if rows:
        yield f"| model | variant | SQNR dB {' / '.join(NAMES)} | verdict | pins | layers' errors, most apart |"
        yield "|---|---|---|---|---|---|"
        yield from rows
        yield ""


def _rows(name: str, first: Path, second: Path) -> Iterator[str]:
    variants = [pd.read_csv(place / "variants.csv") for place in (first, second)]
    ours, theirs = (table[table.part_of.isna()].set_index("variant") for table in variants)
    for variant in dict.fromkeys((*ours.index, *theirs.index)):
        if variant == "fp32":
            continue
        if variant not in ours.index or variant not in theirs.index:
            yield f"| {name} | {variant} | on one alone | | | |"
            continue
        a, b = ours.loc[variant], theirs.loc[variant]
        precision = str(a.precision)
        verdict = a.verdict if a.verdict == b.verdict else f"**{a.verdict} / {b.verdict}**"
        pins = [_pins(place, precision) if "mixed" in variant else {} for place in (first, second)]
        told = f"{len(pins[0])}, the same" if pins[0] == pins[1] else f"**{len(pins[0])} / {len(pins[1])}**"
        apart = "" if "mixed" in variant else _layers_apart(first, second, precision)
        yield f"| {name} | {variant} | {_db(a.sqnr_db)} / {_db(b.sqnr_db)} | {verdict} | {told} | {apart} |"


def _pins(sweep: Path, precision: str) -> dict[str, str]:
    path = sweep / f"plan.{precision}.json"
    path = path if path.exists() else sweep / "plan.json"  # of a sweep of one precision
    return {pin["layer"]: pin["precision"] for pin in json.loads(path.read_text())["pins"]}


def _layers_apart(first: Path, second: Path, precision: str) -> str:
    """The largest difference of a layer's own error and of what it inherits, in dB; layers with NaN or Inf on one."""
    tables = [pd.read_csv(place / "layers.csv") for place in (first, second)]
    a, b = (table[table.precision == precision].set_index("layer") for table in tables)
    found = []
    for column, word in (("introduced_sqnr_db", "own"), ("inherited_sqnr_db", "so far")):
        x, y = a[column].to_numpy(float), b[column].reindex(a.index).to_numpy(float)
        both = np.isfinite(x) & np.isfinite(y)
        odd = int(np.sum(~both & ~((x == y) | (np.isnan(x) & np.isnan(y)))))
        apart = float(np.abs(x[both] - y[both]).max(initial=0))
        found.append(f"{word} {apart:.3f} dB" + (f", {odd} finite on one alone" if odd else ""))
    return "; ".join(found)


def _db(value: float) -> str:
    return f"{value:.3f}" if math.isfinite(value) else {math.inf: "∞", -math.inf: "−∞"}.get(value, "NaN")


def _files(results: Path, name: str) -> str:
    """The row of a model's calibration cache and typed models; empty where one machine has not got them yet."""
    first, second = (results / machine / name for machine in NAMES)
    if not (second / "calibrated").exists():
        return ""
    cells = [_typed(first / f"{precision}.onnx", second / f"{precision}.onnx") for precision in ("fp16", "int8")]
    return f"| {name} | {_caches(first / 'calibration.cache', second / 'calibration.cache')} | {' | '.join(cells)} |"


def _caches(first: Path, second: Path) -> str:
    a, b = _scales(first), _scales(second)
    if a.keys() != b.keys():
        return "**other tensors** | "
    same = sum(a[name] == b[name] for name in a)
    apart = max((abs(a[name] - b[name]) / a[name] for name in a), default=0.0)
    return f"{same} of {len(a)} | {apart:.2g}"


def _scales(path: Path) -> dict[str, float]:
    """Tensor → scale, as TensorRT reads a cache: eight hexadecimal digits behind the last colon."""
    pairs = (line.rsplit(": ", 1) for line in path.read_text().splitlines()[1:] if line)
    return {name: struct.unpack(">f", bytes.fromhex(digits))[0] for name, digits in pairs}


def _typed(first: Path, second: Path) -> str:
    """Whether two typed models are the same bytes; else what differs."""
    if not (first.exists() and second.exists()):
        return "–"
    if first.read_bytes() == second.read_bytes():
        return "same bytes"
    a, b = (onnx.load(path) for path in (first, second))
    if [n.SerializeToString() for n in a.graph.node] != [n.SerializeToString() for n in b.graph.node]:
        return "**other nodes**"
    x, y = _arrays(a), _arrays(b)
    other = [name for name in x if not np.array_equal(x[name], y[name])]
    if any(x[name].dtype.kind != "f" for name in other):
        return f"**{len(other)} of {len(x)} constants differ, weights among them**"
    apart = max(float(np.max(np.abs(x[n] - y[n]) / np.abs(x[n]))) for n in other)
    return f"{len(other)} of {len(x)} constants differ, all scales, by {apart:.2g} at most"


def _arrays(model: onnx.ModelProto) -> Mapping[str, NDArray[Any]]:
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}


def _tests(place: Path) -> Iterator[str]:
    reports = sorted(place.glob("*.xml"))
    if not reports:
        return
    total: dict[str, int] = {"tests": 0, "failures": 0, "errors": 0, "skipped": 0}
    failed = []
    for report in reports:
        root = ET.parse(report).getroot()
        for suite in root.iter("testsuite"):
            for key in total:
                total[key] += int(suite.get(key, 0))
        failed += [f"{c.get('classname')}::{c.get('name')}" for c in root.iter("testcase") if _is_failed(c)]
    yield f"{len(reports)} modules of tests: " + ", ".join(f"{count} {key}" for key, count in total.items())
    yield from (f"- {name}" for name in failed)
    yield ""


def _is_failed(case: ET.Element) -> bool:
    return case.find("failure") is not None or case.find("error") is not None
