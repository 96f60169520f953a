"""How the error of the final outputs spreads over the samples, drawn small: one row for each variant and output."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

from precisionlab.report.cells import Row, as_flag, as_number, show
from precisionlab.report.drawing import SETTLED

COLUMNS = 40


@dataclass(frozen=True)
class Spread:
    """The SQNR of one output of one variant, sample by sample.

    `path` draws how many samples lie where on the axis that all rows of the page share, an SVG path in a box of
    `WIDTH` × `HEIGHT`; nothing where no sample has a finite one. `words` say the same. The figures are texts; `broken`
    counts the samples with NaN or −∞, `exact` those without any error.
    """

    WIDTH = 4 * COLUMNS
    HEIGHT = 26

    variant: str
    output: str
    path: str
    words: str
    samples: int
    worst: str
    worst_sample: str
    low: str
    median: str
    best: str
    broken: int
    exact: int


@dataclass(frozen=True)
class Spreads:
    """All of a page, and the ends of the axis that they share, in dB; `beyond`: its last bar has all above too."""

    rows: tuple[Spread, ...]
    low: float
    high: float
    beyond: bool


def spreads_of(rows: Sequence[Row]) -> Spreads | None:
    """The drawing of `samples.csv`; None where there is nothing to draw. The fp32 variant has no error, and no row."""
    values = [float(value) for row in rows if (value := as_number(row, "sqnr_db")) is not None]
    finite = [value for value in values if math.isfinite(value)]
    if not finite:
        return None
    low, high = 10 * math.floor(min(finite) / 10), 10 * math.ceil(min(max(finite), SETTLED) / 10)
    high = max(high, low + 10)
    found = []
    for (variant, output), group in groupby(rows, key=lambda row: (str(row["variant"]), str(row["output"]))):
        found.append(_spread(variant, output, list(group), low, high))
    return Spreads(tuple(found), low, high, max(finite) > high)


def _spread(variant: str, output: str, rows: Sequence[Row], low: float, high: float) -> Spread:
    # An empty cell is a NaN: a sample without a figure has no row.
    values = [(math.nan if (v := as_number(row, "sqnr_db")) is None else v, row) for row in rows]
    ordered = sorted(values, key=lambda pair: -math.inf if math.isnan(pair[0]) else pair[0])
    figures = [value for value, _ in ordered]
    worst = ordered[0][1]
    finite = [value for value in figures if math.isfinite(value)]
    ends = f"from {show(finite[0], '.1f')} to {show(finite[-1], '.1f')} dB" if finite else "none with a finite SQNR"
    return Spread(
        variant=variant,
        output=output,
        path=_path(finite, low, high),
        words=f"{len(finite)} of {len(figures)} samples {ends}" if finite else f"{len(figures)} samples, {ends}",
        samples=len(figures),
        worst=show(figures[0], ".1f"),
        worst_sample=_name(worst) + (", held out" if as_flag(worst, "held_out") else ""),
        low=show(figures[len(figures) // 20], ".1f"),
        median=show(figures[len(figures) // 2], ".1f"),
        best=show(figures[-1], ".1f"),
        broken=sum(math.isnan(value) or value == -math.inf for value in figures),
        exact=sum(value == math.inf for value in figures),
    )


def _name(row: Row) -> str:
    """What the data calls the sample; in runs of older versions its place."""
    return str(row["name"] if "name" in row else row["sample"])


def _path(values: Sequence[float], low: float, high: float) -> str:
    """A bar for each column that holds samples, as high as the root of their share of the fullest.

    Written by hand and not by pygal, as the pictures of the calibration's report are: 200 bytes and no axis each.
    """
    counts = [0] * COLUMNS
    for value in values:
        counts[min(int((value - low) / (high - low) * COLUMNS), COLUMNS - 1)] += 1
    top = max(counts, default=0)
    width, height = Spread.WIDTH // COLUMNS, Spread.HEIGHT
    bars = [(i, round((height - 2) * math.sqrt(count / top), 1)) for i, count in enumerate(counts) if count]
    return "".join(f"M{i * width} {height}v{-bar:g}h{width - 1}v{bar:g}z" for i, bar in bars)
