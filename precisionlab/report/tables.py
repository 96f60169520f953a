"""The tables of a run as pandas has them: `variants.csv`, `layers.csv` and `samples.csv`.

Their columns are those of `precisionlab.report.columns`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import TYPE_CHECKING

from precisionlab.compare.metrics import SQNR
from precisionlab.report.cells import Row
from precisionlab.report.columns import LAYERS, SAMPLES, VARIANTS
from precisionlab.report.layer_rows import layer_rows
from precisionlab.report.variant_rows import engines_of, variant_rows

if TYPE_CHECKING:
    import pandas as pd

    from precisionlab.results.sweep import SampleNames, SweepFindings
    from precisionlab.search.outcome import Variant


def variants_table(result: SweepFindings) -> pd.DataFrame:
    """The table of `variants.csv`. In float columns a figure that does not exist looks like a NaN."""
    return VARIANTS.frame(variant_rows(result))


def layers_table(result: SweepFindings) -> pd.DataFrame:
    """The table of `layers.csv`, as `variants_table`."""
    return LAYERS.frame(layer_rows(result))


def samples_table(result: SweepFindings) -> pd.DataFrame:
    """The table of `samples.csv`; it has its columns where it has no row."""
    return SAMPLES.frame(sample_rows(result))


def sample_rows(result: SweepFindings) -> list[Row]:
    """The rows of `samples.csv`."""
    rows = []
    for found in result.precisions:
        variants = [found.low] if found.mixed is found.low else [found.low, found.mixed]
        for variant in [*variants, *(engine.variant for engine in engines_of(found))]:
            rows += _rows_of_samples(variant, result.samples)
    return rows


def _rows_of_samples(variant: Variant, names: SampleNames) -> list[Row]:
    parts = [(False, names.chosen, variant.comparison)]
    parts += [(True, names.held_out, variant.held_out)] if variant.held_out else []
    return [
        {
            "variant": variant.name,
            "output": output,
            "held_out": held,
            "sample": number,
            "name": name,
            "sqnr_db": least(figures),
        }
        for output in variant.comparison.outputs
        for held, called, comparison in parts
        for number, (name, one) in enumerate(zip(called, comparison.each.get(output, ()), strict=False))
        if not (one.errors is not None and one.errors.judges_nothing) and (figures := one.figures(SQNR).values())
    ]


def least(values: Iterable[float]) -> float:
    """The least of some figures; NaN if one is."""
    found = list(values)
    return math.nan if any(map(math.isnan, found)) else min(found)
