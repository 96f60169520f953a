"""`INT8 or FP8?` as a report answers it, from what a run's folder holds."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from precisionlab.calibration.coarse import OCTAVES, PARTS, CoarseHistogram
from precisionlab.model.layers import quantized_operands
from precisionlab.report.cells import Row, as_number, as_text, needs_ranges
from precisionlab.report.histograms import RunHistograms
from precisionlab.report.layer_rows import layer_rows
from precisionlab.search.quantized_choice import QuantizedChoice, quantized_choice, tail_of

if TYPE_CHECKING:
    from precisionlab.results.sweep import SweepFindings


def choice_of(names: Iterable[str], layers: Sequence[Row], tails: Mapping[int, float]) -> QuantizedChoice | None:
    """The choice between the quantized ones of these precisions; `layers` are the rows of `layers.csv`.

    `tails` has by a layer's index the largest amax over rms of its operands.
    """
    titles = {name: name.upper() for name in names if needs_ranges(name)}
    own: dict[str, dict[str, float]] = {name: {} for name in titles}
    kinds: dict[str, str] = {}
    of: dict[str, float] = {}
    for row in layers:
        name, layer = as_text(row, "precision"), str(row["layer"])
        sqnr = as_number(row, "introduced_sqnr_db", "introduced_nan")
        if name not in own or as_text(row, "runs_in") != name or sqnr is None or math.isnan(sqnr):
            continue
        own[name][layer], kinds[layer] = sqnr, as_text(row, "kind")
        index = as_number(row, "index")
        if index is not None and int(index) in tails:
            of[layer] = tails[int(index)]
    return quantized_choice(titles, own, kinds, of)


def choice_in(result: SweepFindings) -> QuantizedChoice | None:
    """The same of a result that is at hand."""
    known = {name: histogram_tail(found) for name, found in result.values.histograms.items()}
    operands = [quantized_operands(result.model, layer) for layer in result.model.layers]
    return choice_of(result.plans, layer_rows(result), _largest(operands, known))


def tails_of(histograms: RunHistograms | None) -> dict[int, float]:
    """By a layer's index the largest amax over rms of its operands."""
    if histograms is None:
        return {}
    known = {name: histogram_tail(found.histogram) for name, found in histograms.tensors.items()}
    return _largest([layer.operands for layer in histograms.layers], known)


def _largest(operands: Sequence[Sequence[str]], known: Mapping[str, float | None]) -> dict[int, float]:
    found = {index: [tail for n in names if (tail := known.get(n)) is not None] for index, names in enumerate(operands)}
    return {index: max(tails) for index, tails in found.items() if tails}


def histogram_tail(histogram: CoarseHistogram) -> float | None:
    """amax over rms, each value taken at its bin's middle: a quarter of an octave wide at most, so to a few percent."""
    first = 2.0 ** (histogram.exponent - OCTAVES)
    octaves, parts = np.divmod(np.arange(OCTAVES * PARTS), PARTS)
    middles = first * 2.0**octaves * (1 + (parts + 0.5) / PARTS)
    squares = float((np.array(histogram.bins, np.float64) * middles**2).sum())
    return tail_of(histogram.amax, squares, histogram.count)
