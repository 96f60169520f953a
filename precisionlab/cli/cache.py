"""`precisionlab cache`: look into calibration caches, compare them, and find what is wrong with them."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterable, Sequence
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from precisionlab.calibration.cache import CalibrationCache
    from precisionlab.calibration.lint import Finding

_WIDTH = 80
_EACH_KIND = 5  # findings of one kind that are printed; a model without scales has one for every tensor
_STYLES = {"error": "bold red", "warning": "bold yellow", "note": "dim"}


@click.group("cache")
def cache_commands() -> None:
    """Show, compare and check TensorRT calibration caches."""


@cache_commands.command("show")
@click.argument("file", type=click.Path(path_type=Path))
@click.option(
    "--sort", type=click.Choice(["name", "scale"]), default="name", show_default=True, help="What to sort by."
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def show_command(file: Path, sort: str, as_json: bool) -> None:
    """Print the header of the calibration cache FILE, and the scale and range of each tensor."""
    from precisionlab.calibration.cache import read_cache_file

    cache = read_cache_file(file)
    names = sorted(cache.scales)
    if sort == "scale":
        names.sort(key=lambda name: _size(cache.scales[name]), reverse=True)
    if as_json:
        tensors = [
            {"name": name, "scale": _json_number(cache.scales[name]), "amax": _json_number(_amax(cache.scales[name]))}
            for name in names
        ]
        _print_json({"file": str(file), **_header_facts(cache), "tensors": tensors})
        return
    console = _console()
    console.print(f"{_printable(str(file))}: {_header_of(cache)}, {_count(len(names), 'tensor')}", soft_wrap=True)
    if names:
        rows = [(name, f"{cache.scales[name]:.6g}", f"{_amax(cache.scales[name]):.6g}") for name in names]
        console.print()
        console.print(_table(("scale", "amax"), rows, console.width))


@cache_commands.command("diff")
@click.argument("a", type=click.Path(path_type=Path))
@click.argument("b", type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.pass_context
def diff_command(ctx: click.Context, a: Path, b: Path, as_json: bool) -> None:
    """Compare the calibration caches A and B: tensors added, removed, and changed, the largest change first.

    Exits with 0 where they say the same, 1 where they differ, 2 where one cannot be read.
    """
    from precisionlab.calibration.cache import read_cache_file

    first, second = read_cache_file(a), read_cache_file(b)
    old, new = first.scales, second.scales
    added = sorted(new.keys() - old.keys())
    removed = sorted(old.keys() - new.keys())
    changed = sorted(name for name in old.keys() & new.keys() if not _same(old[name], new[name]))
    changed.sort(key=lambda name: _change(old[name], new[name]), reverse=True)
    same_header = (first.version, first.algorithm) == (second.version, second.algorithm)
    differ = bool(added or removed or changed) or not same_header
    if as_json:
        _print_json(
            {
                "a": {"file": str(a), **_header_facts(first)},
                "b": {"file": str(b), **_header_facts(second)},
                "differ": differ,
                "added": [{"name": name, "scale": _json_number(new[name])} for name in added],
                "removed": [{"name": name, "scale": _json_number(old[name])} for name in removed],
                "changed": [
                    {
                        "name": name,
                        "a": _json_number(old[name]),
                        "b": _json_number(new[name]),
                        "ratio": _ratio(old[name], new[name]),
                    }
                    for name in changed
                ],
            }
        )
        ctx.exit(int(differ))
    console = _console()
    for side, file, cache in (("a", a, first), ("b", b, second)):
        tensors = _count(len(cache.scales), "tensor")
        console.print(f"{side}: {_printable(str(file))}: {_header_of(cache)}, {tensors}", soft_wrap=True)
    if not differ:
        console.print("no difference")
        ctx.exit(0)
    if not same_header:
        console.print("the headers differ")
    if changed:
        rows = [(name, f"{old[name]:.6g}", f"{new[name]:.6g}", _ratio_text(old[name], new[name])) for name in changed]
        console.print()
        console.print(f"changed: {len(changed)}")
        console.print(_table(("scale a", "scale b", "b / a"), rows, console.width))
    for title, names, scales in (("only in b", added, new), ("only in a", removed, old)):
        if names:
            rows_of_one = [(name, f"{scales[name]:.6g}", f"{_amax(scales[name]):.6g}") for name in names]
            console.print()
            console.print(f"{title}: {len(names)}")
            console.print(_table(("scale", "amax"), rows_of_one, console.width))
    ctx.exit(1)


@cache_commands.command("lint")
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--model", type=click.Path(path_type=Path), help="The ONNX model that the cache is for.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON, with all findings.")
@click.pass_context
def lint_command(ctx: click.Context, file: Path, model: Path | None, as_json: bool) -> None:
    """Say what is wrong with the calibration cache FILE; with FILE.json, if it is there, and --model, more.

    Exits with 0 where no error was found (there may be warnings), 1 where one was, 2 where the input cannot be
    read.
    """
    from precisionlab.calibration.cache import read_cache_file
    from precisionlab.calibration.fingerprint import fingerprint_path, read_fingerprint

    cache = read_cache_file(file)
    beside = fingerprint_path(file)
    fingerprint = read_fingerprint(beside) if beside.is_file() else None

    from precisionlab.calibration.lint import Severity, lint  # not before it is needed: onnx-ir takes half a second

    if model is not None:
        from precisionlab.model import load_model

        findings = lint(cache, load_model(model), fingerprint)
    else:
        findings = lint(cache, None, fingerprint)
    counts = {str(severity): sum(f.severity is severity for f in findings) for severity in Severity}
    if as_json:
        _print_json(
            {
                "file": str(file),
                **_header_facts(cache),
                "model": str(model) if model else None,
                "fingerprint": str(beside) if fingerprint else None,
                "counts": counts,
                "findings": [
                    {"severity": str(f.severity), "kind": f.kind, "tensor": f.tensor, "text": f.text} for f in findings
                ],
            }
        )
        ctx.exit(int(counts["error"] > 0))
    console = _console()
    tensors = _count(len(cache.scales), "tensor")
    console.print(f"{_printable(str(file))}: {_header_of(cache)}, {tensors}", soft_wrap=True)
    if fingerprint is None:
        console.print(f"no fingerprint ({_printable(beside.name)}): what it was made from is not known", soft_wrap=True)
    if model is None:
        console.print("no --model: whether names and tensors are the model's was not checked")
    _print_findings(console, findings)
    console.print()
    if findings:
        console.print(", ".join(_count(number, severity) for severity, number in counts.items() if number))
    else:
        console.print("nothing to object to")
    ctx.exit(int(counts["error"] > 0))


def _print_findings(console: Console, findings: Iterable[Finding]) -> None:
    from rich.padding import Padding
    from rich.text import Text

    kinds: dict[str, list[Finding]] = {}
    for finding in findings:
        kinds.setdefault(finding.kind, []).append(finding)
    for found in kinds.values():
        shown = found[:_EACH_KIND]
        for text, alike in groupby(shown, key=lambda finding: finding.text):
            console.print()
            for finding in alike:
                severity = str(finding.severity)
                head = Text(severity, style=_STYLES[severity])
                if finding.tensor is not None:
                    name = _shortened(finding.tensor, console.width - len(severity) - 1)
                    head.append(f" {name}", style="default not dim")
                console.print(head)
            console.print(Padding(_printable(text), (0, 0, 0, 2)))
        if len(found) > len(shown):
            console.print(f"… and {len(found) - len(shown)} more like this ({found[0].kind}); --json prints all")


def _console() -> Console:
    """Standard output: 80 columns and no colour where it is no terminal."""
    from precisionlab.cli.console import Console

    return Console(file=sys.stdout, width=None if sys.stdout.isatty() else _WIDTH, highlight=False, markup=False)


def _table(columns: tuple[str, ...], rows: Sequence[tuple[str, ...]], width: int) -> Table:
    """A table of tensors whose names take what the other columns leave."""
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("tensor", no_wrap=True)
    others = 0
    for index, column in enumerate(columns, 1):
        table.add_column(column, justify="right", no_wrap=True)
        others += 2 + max(len(column), *(len(row[index]) for row in rows))
    for name, *cells in rows:
        table.add_row(Text(_shortened(name, width - others)), *cells)
    return table


def _shortened(name: str, width: int) -> str:
    """The end of a long name, which tells more than its beginning; in cells, as some characters take two."""
    from rich.cells import cell_len

    name = _printable(name)
    if cell_len(name) <= width:
        return name
    start = 0
    while cell_len(name[start:]) > width - 1:
        start += max(1, (cell_len(name[start:]) - width) // 2)
    return "…" + name[start:]


def _printable(text: str) -> str:
    """Control characters as escapes: a cache that somebody sent must not steer the terminal."""
    return "".join(sign if sign.isprintable() else sign.encode("unicode_escape").decode() for sign in text)


def _header_of(cache: CalibrationCache) -> str:
    return f"TensorRT {cache.tensorrt}, {cache.algorithm}"


def _header_facts(cache: CalibrationCache) -> dict[str, Any]:
    return {
        "version": cache.version,
        "tensorrt": cache.tensorrt,
        "algorithm": cache.algorithm,
        "count": len(cache.scales),
    }


def _amax(scale: float) -> float:
    from precisionlab.calibration.table import INT8_LEVELS

    return scale * INT8_LEVELS


def _size(scale: float) -> float:
    """To sort by; NaN is larger than everything, so that it is seen first."""
    return math.inf if math.isnan(scale) else scale


def _same(a: float, b: float) -> bool:
    return a == b or (math.isnan(a) and math.isnan(b))


def _ratio(a: float, b: float) -> float | None:
    """b / a, where both are scales."""
    return b / a if min(a, b) > 0 and math.isfinite(a) and math.isfinite(b) else None


def _ratio_text(a: float, b: float) -> str:
    ratio = _ratio(a, b)
    return "–" if ratio is None else f"{ratio:.4g}"


def _change(a: float, b: float) -> float:
    """How large the change is; where it is no ratio, larger than any."""
    ratio = _ratio(a, b)
    return math.inf if ratio is None else abs(math.log(ratio))


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _json_number(value: float) -> float | str:
    """JSON has no NaN and no infinities: they are written as text."""
    return value if math.isfinite(value) else str(value)


def _print_json(data: dict[str, Any]) -> None:
    click.echo(json.dumps(data, indent=1, allow_nan=False))
