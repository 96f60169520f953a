"""A calibration's answer in the terminal: where the cache is, and which ranges deserve a look."""

from __future__ import annotations

import math
from typing import TextIO

import pandas as pd
from rich.table import Table

from precisionlab.cli.console import shortened
from precisionlab.cli.summary import console_for
from precisionlab.jobs.result import CalibrationResult

_ROWS = 8
_OTHER_COLUMNS = 46  # what the table needs beside the names
_FEW_SAMPLES = 16


def print_calibration(result: CalibrationResult, stream: TextIO) -> None:
    """Print what was found, in 80 columns where there is no terminal."""
    console = console_for(stream)
    samples = result.facts["samples"] if result.cache is None else result.table.samples
    if result.cache is None:
        console.print(f"{samples} samples counted for {len(result.histograms)} tensors; merge the shards with --merge")
        console.print(f"Shard: {result.folder}")
        return
    ranges = result.ranges
    console.print(
        f"{result.model.path.name}: ranges of {len(ranges)} tensors by {result.facts['method']} "
        f"over {samples} samples; "
        f"{int(ranges['operand'].sum())} of them taken by int8 layers"
    )
    if samples < _FEW_SAMPLES:
        console.print(
            f"WARNING: {samples} samples are few; a range rests on what they happen to hold.", style="bold red"
        )
    bad = int((ranges["nonfinite"] > 0).sum())
    if bad:
        console.print(f"WARNING: {bad} tensors hold NaN or Inf in float32, which took no part.", style="bold red")
    never = list(ranges["tensor"][(ranges["count"] == 0) & (ranges["nonfinite"] == 0)])
    if never:
        told = ", ".join(never[:3]) + (f" and {len(never) - 3} more" if len(never) > 3 else "")
        console.print(
            f"WARNING: {told} never held an element in the samples: no range, and no scale in the cache; layers that "
            "take such a tensor run without INT8.",
            style="bold red",
        )
    console.print()
    console.print(_disagreements(ranges, console.width - _OTHER_COLUMNS))
    console.print()
    console.print(f"Cache:  {result.cache}")
    console.print(f"Report: {result.folder / 'calibration.html'}")


def _disagreements(ranges: pd.DataFrame, width: int) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold", title="where the methods disagree most")
    table.title_justify = "left"
    table.add_column("tensor", no_wrap=True)
    for name in ("range", "largest", "clipped", "levels", "ratio"):
        table.add_column(name, justify="right", no_wrap=True)
    worst = ranges.sort_values(["operand", "disagreement"], ascending=False).head(_ROWS)
    for row in worst.itertuples():
        table.add_row(
            shortened(str(row.tensor), width),
            "–" if math.isnan(row.amax) else f"{row.amax:.3g}",
            f"{row.largest:.3g}",
            f"{row.clipped_share:.3%}",
            str(row.levels_used),
            "–" if math.isnan(row.disagreement) else f"{row.disagreement:.2f}",
        )
    return table
