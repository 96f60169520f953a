"""What a run keeps of the reference's values: coarse histograms, outlier channels, how errors spread over samples."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from models import DIGITS
from numpy.typing import NDArray

from precisionlab import sweep
from precisionlab.calibration.channels import ChannelMaxima, ChannelSpread
from precisionlab.calibration.coarse import COARSE, OCTAVES, PARTS, CoarseHistogram
from precisionlab.calibration.histogram import histogram_of
from precisionlab.calibration.methods import METHODS
from precisionlab.compare.errors import ErrorTable
from precisionlab.compare.spread import spread_of, sqnr_of_rows
from precisionlab.evaluate.values import ObservedValues
from precisionlab.jobs.result import SweepResult
from precisionlab.precision import Precision
from precisionlab.report.columns import SAMPLES
from precisionlab.report.csvfile import from_csv
from precisionlab.report.histograms import HISTOGRAMS, RunHistograms, histograms_json, read_histograms
from precisionlab.report.redraw import read_run, redraw

FLOATS = st.floats(-(2.0**100), 2.0**100, width=32)


# Coarse histograms


@given(st.lists(FLOATS | st.just(math.nan) | st.just(math.inf), max_size=60))
def test_a_coarse_histogram_counts_each_value_where_it_lies(values: list[float]) -> None:
    found = CoarseHistogram.of(histogram_of(np.array(values, np.float32)))
    finite = np.abs(np.array(values, np.float32))[np.isfinite(np.array(values, np.float32))].astype(np.float64)
    assert len(found.bins) == COARSE
    assert found.count == finite.size
    assert found.nonfinite == len(values) - finite.size
    assert found.zeros == (finite == 0).sum()
    edges = [
        math.ldexp(1 + part / PARTS, found.exponent - OCTAVES + octave)
        for octave in range(OCTAVES)
        for part in range(PARTS)
    ]
    assert list(found.bins) == np.histogram(finite, [*edges, math.ldexp(1.0, found.exponent)])[0].tolist()
    assert found.below == ((finite > 0) & (finite < edges[0])).sum()
    assert CoarseHistogram.from_dict(json.loads(json.dumps(found.to_dict()))) == found


# Channels


def spread_over(tensor: NDArray[np.float32], axis: int) -> ChannelSpread | None:
    maxima = ChannelMaxima({"x": axis})
    for half in np.array_split(tensor, 2):
        maxima.add("x", half)
    return maxima.spreads().get("x")


def test_the_largest_channel_and_the_median_are_those_of_numpy() -> None:
    tensor = np.random.default_rng(0).normal(size=(6, 9, 5)).astype(np.float32)
    tensor[:, 4] *= 50
    tensor[:, 7] = 0
    largest = np.abs(tensor).max((0, 2))
    found = spread_over(tensor, 1)
    assert found is not None
    assert (found.channels, found.place, found.largest) == (9, 4, largest[4])
    assert found.median == np.median(np.delete(largest, 7))
    assert found.levels(largest[4]) == pytest.approx(127 * found.median / largest[4])
    assert found.is_uneven(largest[4])


def test_even_channels_nan_and_few_channels_are_no_outliers() -> None:
    tensor = np.random.default_rng(0).normal(size=(64, 8)).astype(np.float32)
    even = spread_over(tensor, -1)
    assert even is not None
    assert not even.is_uneven(even.largest)
    tensor[3, 2] = math.nan
    tensor[40, 5] = math.inf
    broken = spread_over(tensor, -1)
    assert broken is not None
    assert broken.largest == np.abs(tensor[np.isfinite(tensor)]).max()
    assert spread_over(tensor[:, :3], -1) is None
    assert spread_over(np.zeros((4, 8), np.float32), -1) is None
    assert spread_over(np.ones(4, np.float32), 1) is None  # it has no such axis


# How errors spread


@given(st.lists(st.floats(-300, 300) | st.sampled_from([math.nan, math.inf, -math.inf]), min_size=1, max_size=40))
def test_a_spread_is_ordered_with_nan_as_the_worst(values: list[float]) -> None:
    found = spread_of(values)
    if all(map(math.isnan, values)):
        assert found is None
        return
    assert found is not None
    order = sorted(values, key=lambda value: (not math.isnan(value), value if value == value else 0.0))
    places = [(len(values) - 1) * part // 4 for part in range(5)]
    got = [found.low, found.quarter, found.median, found.three_quarters, found.high]
    assert got == pytest.approx([order[place] for place in places], nan_ok=True)
    assert values[found.worst] == pytest.approx(order[0], nan_ok=True)


@given(st.lists(st.tuples(FLOATS, FLOATS | st.sampled_from([math.nan, math.inf])), min_size=1, max_size=8))
def test_the_sqnr_of_rows_is_that_of_the_sums(pairs: list[tuple[float, float]]) -> None:
    table = ErrorTable(3)  # the last row stays empty
    for row in (0, 1):
        reference, output = (
            (np.array(values, np.float32) for values in zip(*pairs[row:], strict=True))
            if pairs[row:]
            else (np.zeros(0, np.float32),) * 2
        )
        table.add(row, reference, output)
    expected = [table.row(row).sqnr for row in range(3)]
    assert sqnr_of_rows(table).tolist() == pytest.approx(expected, rel=1e-5, abs=1e-4, nan_ok=True)


# A run


@pytest.fixture(name="run")
def _run(swept_digits: SweepResult) -> SweepResult:
    return swept_digits


def kept(run: SweepResult) -> RunHistograms:
    assert run.folder is not None
    return read_histograms((run.folder / HISTOGRAMS).read_text(encoding="utf-8"))


def test_a_run_keeps_the_histogram_of_every_float_tensor_with_its_range(run: SweepResult) -> None:
    found = kept(run)
    assert found.samples == 48
    given = [name for layer in run.model.layers for name in layer.outputs]
    assert {name for layer in found.layers for name in layer.outputs} == set(given)
    (int8,) = (result for result in run.precisions if result.precision.value == "int8")
    assert int8.table is not None
    for name, expected in int8.table.ranges.items():
        values = found.tensors[name]
        assert values.ranges.get(Precision.INT8) == expected
        assert values.histogram.count == expected.count
        assert values.channels == run.values.channels.get(name)
    for layer in run.model.layers:
        errors = int8.low.comparison.inherited[layer.outputs[0]]
        assert found.tensors[layer.outputs[0]].histogram.amax == pytest.approx(errors.max_ref)


def test_what_was_observed_comes_back_from_the_journal_as_it_was(run: SweepResult) -> None:
    again = ObservedValues.from_dict(json.loads(json.dumps(run.values.to_dict())))
    assert again == run.values
    assert {p: set(found) for p, found in again.methods.items()} == {Precision.INT8: set(METHODS)}


@pytest.mark.slow
def test_a_run_without_int8_keeps_histograms_and_no_ranges(tmp_path: Path) -> None:
    found = kept(sweep(DIGITS / "digits.onnx", DIGITS, precisions="fp16", samples=8, out=tmp_path / "run"))
    assert found.tensors
    assert all(not values.ranges for values in found.tensors.values())
    weights = {name for name, values in found.tensors.items() if values.channels is not None}
    assert weights
    assert all(name.endswith(".weight") for name in weights)


def test_samples_are_named_in_the_tables(run: SweepResult) -> None:
    assert run.folder is not None
    table = from_csv((run.folder / "samples.csv").read_text(encoding="utf-8"), SAMPLES.columns)
    names = {name for part in (run.samples.chosen, run.samples.held_out) for name in part}
    assert set(table["name"]) == names
    layers = run.layers[run.layers.inherited_sqnr_db.notna()]
    assert set(layers.inherited_worst) <= set(run.samples.chosen)
    finite = layers[np.isfinite(layers.inherited_low_db) & np.isfinite(layers.inherited_high_db)]
    assert len(finite) > 5
    assert (finite.inherited_low_db <= finite.inherited_sqnr_db + 1e-3).all()
    assert (finite.inherited_sqnr_db <= finite.inherited_high_db + 1e-3).all()


def test_weights_are_smaller_in_lower_precisions(run: SweepResult) -> None:
    size = run.variants.set_index("variant").weight_mb
    assert size["fp16"] == pytest.approx(size["fp32"] / 2)
    assert size["int8"] < size["fp16"] < size["fp16 mixed"] + 1e-9


def test_the_page_is_drawn_again_with_its_histograms(run: SweepResult) -> None:
    assert run.folder is not None
    page = (run.folder / "report.html").read_text(encoding="utf-8")
    assert redraw(read_run(run.folder)) == page
    drawn: dict[str, Any] = json.loads(str(histograms_json(kept(run))))
    assert json.dumps(drawn["tensors"][0][0]).strip('"') in page
    for name, _, bars, *_ in drawn["tensors"]:
        assert len(bars) == COARSE, name


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"samples": 1, "layers": [{"outputs": ["x"], "operands": []}], "tensors": {}}',
             '{"samples": 1, "layers": [], "tensors": {"x": {"exponent": 1, "bins": [1]}}}'],
)  # fmt: skip
def test_what_is_no_file_of_histograms_is_told(text: str) -> None:
    with pytest.raises(ValueError, match=r"not|JSON|Error|Expecting|no histogram"):
        read_histograms(text)
