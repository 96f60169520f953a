"""Which library fills a histogram fastest: `python -m benchmarks.histogram` (boost-histogram where it is installed)."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from typing import Any

import click
import numpy as np

from benchmarks.processes import timed
from precisionlab.calibration.histogram import BINS, Histograms

_VALUES = 1 << 20


@click.command()
@click.option("--repeats", default=7, show_default=True)
def main(repeats: int) -> None:
    """Print a row for each kind of tensor: milliseconds for a million values on one core."""
    generator = np.random.default_rng(0)
    normal = generator.standard_normal(_VALUES, np.float32)
    click.echo(f"{'tensor':<10}" + "".join(f"{name:>18}" for name in _fillers(normal)))
    for name, values in (("normal", normal), ("relu", np.maximum(normal, 0)), ("zeros", np.zeros_like(normal))):
        row = []
        for fill in _fillers(values).values():
            fill()
            row.append(statistics.median(timed(fill) for _ in range(repeats)) * 1e3)
        click.echo(f"{name:<10}" + "".join(f"{milliseconds:>18.2f}" for milliseconds in row))


def _fillers(values: Any) -> dict[str, Callable[[], Any]]:
    ours = Histograms(("x",))
    found: dict[str, Callable[[], Any]] = {
        "ours (numba)": lambda: ours.add("x", values),
        "numpy.histogram": lambda: np.histogram(np.abs(values), bins=BINS, range=(0, 8)),
    }
    try:
        import boost_histogram
    except ImportError:
        return found
    boost = boost_histogram.Histogram(boost_histogram.axis.Regular(BINS, 0, 8))
    found["boost-histogram"] = lambda: boost.fill(np.abs(values))
    return found


if __name__ == "__main__":
    main()
