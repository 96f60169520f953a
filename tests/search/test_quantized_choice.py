"""INT8 or FP8: which is more exact in a layer, by how far its operands' largest values lie beyond the usual ones."""

from __future__ import annotations

import math

import numpy as np
import pytest

from precisionlab.calibration.coarse import CoarseHistogram
from precisionlab.calibration.grid import quantized_array
from precisionlab.calibration.histogram import histogram_of
from precisionlab.precision import Precision
from precisionlab.report.quantized_choice import choice_of, histogram_tail
from precisionlab.search.quantized_choice import EVEN, EVEN_OF_LAYER, quantized_choice, tail_of
from precisionlab.search.recommendation import Candidate, recommend
from precisionlab.search.verdict import State, Verdict

TITLES = {"int8": "INT8", "fp8": "FP8"}
SPREADS = {
    "uniform": lambda rng, n: rng.uniform(-1, 1, n),
    "normal": lambda rng, n: rng.standard_normal(n),
    "Laplace": lambda rng, n: rng.laplace(size=n),
    "Student": lambda rng, n: rng.standard_t(3, n),
    "log-normal": lambda rng, n: np.exp(rng.standard_normal(n)),
}


def rounded(x: np.ndarray, precision: Precision, amax: np.ndarray) -> np.ndarray:
    scale = np.asarray(amax / precision.number_format.largest, np.float32)
    return quantized_array(x, scale, 1 if scale.ndim else None, precision.number_format).astype(np.float64)


def decibels(true: np.ndarray, found: np.ndarray) -> float:
    return float(10 * np.log10((true**2).sum() / ((found - true) ** 2).sum()))


def noise(x: np.ndarray, precision: Precision) -> float:
    return decibels(x.astype(np.float64), rounded(x, precision, np.abs(x).max()))


@pytest.mark.parametrize("name", SPREADS)
def test_the_tail_says_which_of_the_two_is_more_exact(name: str) -> None:
    x = np.asarray(SPREADS[name](np.random.default_rng(1), 60_000), np.float32)
    tail = tail_of(float(np.abs(x).max()), float((x.astype(np.float64) ** 2).sum()), x.size)
    assert tail is not None
    int8, fp8 = noise(x, Precision.INT8), noise(x, Precision.FP8)
    assert (fp8 > int8) == (tail > EVEN)
    assert int8 == pytest.approx(20 * math.log10(127 / tail) + 10 * math.log10(12), abs=1.5)
    assert 31 < fp8 < 33


@pytest.mark.parametrize("tail", [6, 11, 14, 19, 25, 40])
def test_a_layer_of_two_operands_is_more_exact_in_fp8_where_one_has_a_longer_tail_than_an_operand_needs(
    tail: float,
) -> None:
    rng = np.random.default_rng(3)
    x, w = rng.standard_normal((500, 64)).astype(np.float32), rng.standard_normal((64, 32)).astype(np.float32)
    x[0, 0] = tail * np.sqrt((x[1:] ** 2).mean())
    true = x.astype(np.float64)[1:] @ w.astype(np.float64)
    int8, fp8 = (
        decibels(true, rounded(x, low, np.abs(x).max())[1:] @ rounded(w, low, np.abs(w).max(0)))
        for low in (Precision.INT8, Precision.FP8)
    )
    assert (fp8 > int8) == (tail > EVEN_OF_LAYER)
    assert 27.5 < fp8 < 29.5


def test_a_histogram_tells_the_tail_to_a_few_percent() -> None:
    for spread in SPREADS.values():
        x = np.asarray(spread(np.random.default_rng(2), 20_000), np.float32)
        exact = tail_of(float(np.abs(x).max()), float((x.astype(np.float64) ** 2).sum()), x.size)
        assert histogram_tail(CoarseHistogram.of(histogram_of(x))) == pytest.approx(exact, rel=0.06)
    assert histogram_tail(CoarseHistogram.of(histogram_of(np.zeros(5, np.float32)))) is None


def test_each_layer_has_its_better_one_and_the_reason() -> None:
    own = {"int8": {"a": 40.0, "b": 20.0, "c": 30.0, "d": 9.0}, "fp8": {"a": 31.0, "b": 29.0, "c": 30.5}}
    other = quantized_choice(TITLES, own, {}, {"a": 20.0})
    assert other is not None
    assert other.layers[0].why == "though its operands reach 20 times their rms: long tails"
    found = quantized_choice(TITLES, own, {"a": "Conv"}, {"a": 4.0, "b": 50.0})
    assert found is not None
    assert [(one.layer, one.better) for one in found.layers] == [("a", "int8"), ("b", "fp8"), ("c", "")]
    assert [one.why for one in found.layers] == [
        "its operands reach 4 times their rms: short tails",
        "its operands reach 50 times their rms: long tails",
        "",
    ]
    assert found.question == "INT8 or FP8?"
    assert found.sentence == (
        "of 3 layers by themselves, more exact: INT8 in 1, FP8 in 1; 1 within 1 dB; "
        "where they differ most, in dB: INT8 20.0, FP8 29.0"
    )
    alike = quantized_choice(TITLES, {"int8": {"a": 30.0}, "fp8": {"a": 30.5}}, {}, {})
    assert alike is not None
    assert alike.sentence == "of 1 layer by themselves, more exact: INT8 in 0, FP8 in 0; 1 within 1 dB"
    assert quantized_choice({"fp8": "FP8"}, own, {}, {}) is None
    assert quantized_choice(TITLES, {"int8": {}, "fp8": own["fp8"]}, {}, {}) is None


def test_layers_that_run_in_floats_or_were_not_measured_take_no_part() -> None:
    def row(layer: str, precision: str, runs_in: str, sqnr: float | None) -> dict[str, object]:
        return {
            "layer": layer, "precision": precision, "runs_in": runs_in, "introduced_sqnr_db": sqnr,
            "introduced_nan": None if sqnr is None else 0, "kind": "Conv", "index": 0,
        }  # fmt: skip

    rows = [row(n, p, r, s) for p in TITLES for n, r, s in (("a", p, 30.0), ("b", "fp16", 70.0), ("c", p, None))]
    found = choice_of(["fp16", *TITLES], rows, {0: 3.0})
    assert found is not None
    assert [one.layer for one in found.layers] == ["a"]
    assert choice_of(["fp16", "int8"], rows, {}) is None


def candidate(name: str, sqnr: float, changes: int = 0) -> Candidate:
    verdict = Verdict(State.MET, "")
    return Candidate(name, name.upper(), verdict, "right", changes, 3, True, "emulated", 0.3, "estimated", sqnr=sqnr)


def test_of_two_that_cost_and_change_as_much_the_more_exact_is_taken() -> None:
    for first, second in ((25.0, 31.0), (31.0, 25.0)):
        advice = recommend([candidate("int8", first), candidate("fp8", second)], 10)
        assert advice.taken == ("fp8" if second > first else "int8")
        assert "too, as cheap and less exact (25.0 dB, not 31.0)" in advice.sentence
    assert recommend([candidate("int8", 25.0), candidate("fp8", 31.0, changes=2)], 10).taken == "int8"
