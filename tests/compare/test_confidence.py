"""How far a figure hangs on the samples: intervals, and the task metric's standard error, against slow plain ones."""

from __future__ import annotations

import bisect
import json
import math
import random
from collections.abc import Mapping, Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from models import Array, examples

from precisionlab.compare.comparison import Comparison
from precisionlab.compare.confidence import FEWEST, Interval, inconclusive_bounds, interval
from precisionlab.compare.errors import Agreement, ErrorSums, ErrorTable, error_sums
from precisionlab.compare.gather import Gathering, SampleResult, output_errors
from precisionlab.compare.output import OutputErrors
from precisionlab.compare.task import MeanOf, Outputs
from precisionlab.compare.tolerance import Bound, parse_tolerance


def bound(text: str) -> Bound:
    (found,) = parse_tolerance([text])
    return found


SQNR, TOP1 = bound("sqnr>=30"), bound("top1>=0.9")
FIGURES = [SQNR, bound("cosine>=0.9"), bound("rel_l2<=0.1"), TOP1]


def comparison(each: Mapping[str, Sequence[OutputErrors]], **more: object) -> Comparison:
    """As a run would give it for these errors of each output, sample by sample."""
    outputs = {}
    for name, errors in each.items():
        total = errors[0]
        for other in errors[1:]:
            total = total + other
        outputs[name] = total
    samples = len(next(iter(each.values())))
    return Comparison(samples, {}, {}, outputs, {name: tuple(errors) for name, errors in each.items()}, **more)  # type: ignore[arg-type]


def noisy(seed: int, samples: int, noise: float, spread: float = 1.0) -> list[OutputErrors]:
    """The errors of samples that differ in size and in noise."""
    rng = np.random.default_rng(seed)
    found = []
    for _ in range(samples):
        reference = rng.standard_normal((1, 10)).astype(np.float32) * np.float32(rng.uniform(0.5, 2))
        error = rng.standard_normal((1, 10)) * noise * math.exp(spread * rng.standard_normal())
        found.append(output_errors(reference, (reference + error).astype(np.float32)))
    return found


def plain(metric: str, drawn: Sequence[OutputErrors]) -> float:
    """The figure of these samples together, by its definition."""
    if metric == "top1":
        return sum(e.top1.agree for e in drawn) / sum(e.top1.total for e in drawn)
    sums = [e.errors for e in drawn if e.errors is not None]
    ref2, err2 = sum(s.ref2 for s in sums), sum(s.err2 for s in sums)
    if metric == "cosine":
        return sum(s.ref_out for s in sums) / math.sqrt(ref2 * sum(s.out2 for s in sums))
    return 10 * math.log10(ref2 / err2) if metric == "sqnr" else math.sqrt(err2 / ref2)


def slow(each: Sequence[Sequence[OutputErrors]], metric: str, resamples: int = 2000) -> tuple[float, float]:
    """The percentile bootstrap as in the book: draw samples, take the figure of those, the worst output's."""
    drawing = random.Random(7)
    worst = max if metric == "rel_l2" else min
    values = []
    for _ in range(resamples):
        drawn = drawing.choices(range(len(each[0])), k=len(each[0]))
        values.append(worst(plain(metric, [errors[i] for i in drawn]) for errors in each))
    values.sort()
    return values[int(0.025 * resamples)], values[int(0.975 * resamples)]


# The interval


@pytest.mark.parametrize("figure", FIGURES, ids=lambda b: b.metric)
@pytest.mark.parametrize("outputs", [1, 2])
def test_the_interval_is_that_of_a_plain_bootstrap(figure: Bound, outputs: int) -> None:
    each = [noisy(seed, 40, 0.15) for seed in range(outputs)]
    found = interval(comparison({str(i): errors for i, errors in enumerate(each)}), figure)
    assert found is not None
    low, high = slow(each, figure.metric)
    # Two bootstraps of 2000 draws differ by the quantiles' own noise: a tenth of the width is beyond that.
    assert found.low == pytest.approx(low, abs=0.15 * (high - low))
    assert found.high == pytest.approx(high, abs=0.15 * (high - low))
    assert found.high > found.low


@pytest.mark.parametrize(("samples", "right"), [(64, 48), (200, 190), (30, 15)])
def test_the_interval_of_top1_is_that_of_a_binomial(samples: int, right: int) -> None:
    """Drawing rows that are right or wrong with replacement: their number is binomial."""
    errors = [OutputErrors(None, Agreement(int(i < right), 1)) for i in range(samples)]
    found = interval(comparison({"k": errors}), TOP1)
    assert found is not None
    p = right / samples
    chances = [math.comb(samples, i) * p**i * (1 - p) ** (samples - i) for i in range(samples + 1)]
    below = np.cumsum(chances).tolist()
    expected = [bisect.bisect_left(below, tail) / samples for tail in (0.025, 0.975)]
    assert [found.low, found.high] == pytest.approx(expected, abs=1.01 / samples)


def test_a_mean_has_the_interval_of_the_normal_law() -> None:
    """rel_l2 of samples with equal reference is the root of a mean of their squared errors."""
    rng = np.random.default_rng(1)
    errors = rng.uniform(1, 3, 400)
    each = [OutputErrors(ErrorSums(elements=1, ref2=1.0, err2=float(e), out2=1.0), Agreement()) for e in errors]
    found = interval(comparison({"y": each}), bound("rel_l2<=2"))
    assert found is not None
    mean, error = float(errors.mean()), float(errors.std() / math.sqrt(len(errors)))
    assert found.low**2 == pytest.approx(mean - 1.96 * error, abs=0.25 * error)
    assert found.high**2 == pytest.approx(mean + 1.96 * error, abs=0.25 * error)


@given(st.integers(0, 1000), st.integers(FEWEST, 60), st.integers(1, 3), st.floats(0, 2))
@settings(max_examples=examples(40))
def test_the_figure_of_all_samples_lies_inside(seed: int, samples: int, outputs: int, spread: float) -> None:
    each = {str(i): noisy(seed + i, samples, 10.0**-i, spread) for i in range(outputs)}
    found = comparison(each)
    for figure in FIGURES:
        ends = interval(found, figure)
        assert ends is not None
        assert ends.low <= figure.of(found) <= ends.high, figure


def test_more_samples_make_the_interval_narrower() -> None:
    widths = []
    for samples in (16, 64, 256):
        ends = interval(comparison({"y": noisy(3, samples, 0.1, 0.5)}), SQNR)
        assert ends is not None
        widths.append(ends.high - ends.low)
    assert widths[0] > 1.4 * widths[1] > 1.4**2 * widths[2]


def test_alike_samples_have_an_interval_of_no_width() -> None:
    each = noisy(5, 1, 0.1) * 20
    ends = interval(comparison({"y": each}), SQNR)
    assert ends is not None
    assert ends.low == pytest.approx(ends.high, abs=1e-9)
    assert ends.low == pytest.approx(SQNR.of(comparison({"y": each})), abs=1e-9)


def test_the_same_samples_give_the_same_interval_each_time() -> None:
    found = comparison({"y": noisy(6, 30, 0.1)})
    assert interval(found, SQNR) == interval(found, SQNR)


def test_no_error_at_all_is_infinite_decibels_at_both_ends() -> None:
    same = [output_errors(a, a) for a in np.random.default_rng(0).standard_normal((20, 1, 4)).astype(np.float32)]
    found = comparison({"y": same})
    assert interval(found, SQNR) == Interval(math.inf, math.inf)
    assert interval(found, bound("rel_l2<=0.1")) == Interval(0, 0)
    assert interval(found, TOP1) == Interval(1, 1)
    assert inconclusive_bounds(found, (SQNR, TOP1)) == ()


# Where there is none


def test_too_few_samples_have_no_interval() -> None:
    for samples, has in ((1, False), (FEWEST - 1, False), (FEWEST, True)):
        found = comparison({"y": noisy(0, samples, 0.1)})
        assert [interval(found, figure) is not None for figure in FIGURES] == [has] * 4


def test_a_largest_error_has_no_interval() -> None:
    found = comparison({"y": noisy(0, 50, 0.1)})
    assert interval(found, bound("max_error<=1")) is None
    assert inconclusive_bounds(found, parse_tolerance(["max_error<=0.1"])) == ()


def test_integers_have_one_of_their_agreement_alone() -> None:
    arrays = np.random.default_rng(0).integers(0, 2, (20, 2, 1, 10))
    found = comparison({"k": [output_errors(*pair) for pair in arrays]})
    assert interval(found, SQNR) is None
    assert interval(found, bound("cosine>=0.5")) is None
    ends = interval(found, TOP1)
    assert ends is not None
    assert 0.3 < ends.low < 0.5 < ends.high < 0.7


def test_an_output_without_classes_has_none_of_top1() -> None:
    flat = np.random.default_rng(0).standard_normal((20, 4)).astype(np.float32)
    found = comparison({"y": [output_errors(a, a + np.float32(0.01)) for a in flat]})
    assert interval(found, TOP1) is None
    assert interval(found, SQNR) is not None


@pytest.mark.parametrize("broken", [math.nan, math.inf])
def test_a_sample_that_breaks_leaves_no_interval(broken: float) -> None:
    bad = error_sums(np.float32([1, 2]), np.float32([1, broken]))
    found = comparison({"y": [*noisy(0, 20, 0.1), OutputErrors(bad, Agreement(0, 1))]})
    assert interval(found, SQNR) is None
    assert inconclusive_bounds(found, (SQNR,)) == ()


def test_a_comparison_of_an_old_kind_without_single_samples_has_none() -> None:
    total = noisy(0, 1, 0.1)[0]
    assert interval(Comparison(50, {}, {}, {"y": total}), SQNR) is None


def test_the_number_of_broken_tensors_has_no_interval() -> None:
    """It counts tensors of the network, and says nothing of outputs sample by sample."""
    found = comparison({"y": noisy(0, 50, 0.1)})
    assert interval(found, bound("nonfinite<=0")) is None


# One output, or all


def test_a_bound_on_one_output_has_that_outputs_interval() -> None:
    good, bad = noisy(0, 30, 0.01), noisy(1, 30, 0.3)
    both = comparison({"a": good, "b": bad})
    for name, alone in (("a", good), ("b", bad)):
        assert interval(both, bound(f"sqnr[{name}]>=30")) == interval(comparison({name: alone}), SQNR)
    assert interval(both, SQNR) == interval(comparison({"b": bad}), SQNR), "the worst output's"
    assert interval(both, bound("sqnr[c]>=30")) is None
    assert interval(both, bound("rel_l2<=30")) == interval(comparison({"b": bad}), bound("rel_l2<=30"))


def test_integers_beside_do_not_hide_the_float_outputs_interval() -> None:
    floats = noisy(0, 30, 0.1)
    ints = [OutputErrors(None, Agreement(3, 4))] * 30
    assert interval(comparison({"k": ints, "y": floats}), SQNR) == interval(comparison({"y": floats}), SQNR)


# What hangs on the samples


def test_only_a_bound_inside_its_interval_hangs_on_the_samples() -> None:
    found = comparison({"y": noisy(0, 30, 0.1), "z": noisy(1, 30, 0.01)})
    ends = interval(found, SQNR)
    assert ends is not None
    middle, width = (ends.low + ends.high) / 2, ends.high - ends.low
    for value, hangs in ((ends.low - 0.01, False), (middle, True), (ends.high - 0.01 * width, True)):
        asked = Bound("sqnr", True, value)
        assert inconclusive_bounds(found, (asked,)) == (((asked, ends),) if hangs else ())
    assert inconclusive_bounds(found, (Bound("sqnr", True, ends.high + 0.01),)) == ()
    other = Bound("rel_l2", False, 1e9)
    asked = Bound("sqnr", True, middle)
    assert [b for b, _ in inconclusive_bounds(found, (other, asked, Bound("sqnr", True, middle, "z")))] == [asked]


@given(st.floats(-100, 100), st.floats(0, 50), st.floats(-200, 200), st.booleans())
def test_an_interval_holds_a_bound_at_both_ends_at_none_or_hangs(
    low: float, width: float, value: float, at_least: bool
) -> None:
    found = Interval(low, low + width).holds(Bound("sqnr", at_least, value))
    ends = [(low >= value) if at_least else (low <= value)]
    ends.append((low + width >= value) if at_least else (low + width <= value))
    assert found == (None if ends[0] != ends[1] else ends[0])


# The task metric


def gathered(values: Sequence[float], labelled: Sequence[bool] | None = None) -> Comparison:
    """A comparison of made-up samples, whose task metric is the mean of these values."""

    def own(outputs: Outputs, label: str) -> float:
        return float(outputs["y"][0])

    gathering = Gathering(0, lambda: MeanOf(own))
    for i, value in enumerate(values):
        arrays: dict[str, Array] = {"y": np.array([value])}
        label = "0" if labelled is None or labelled[i] else None
        gathering.add(SampleResult(ErrorTable(0), {"y": OutputErrors(None, Agreement(1, 1))}, (arrays, arrays), label))
    return gathering.comparison({}, {}, (), 0.0)


def jackknife(values: Sequence[float], groups: int = 10) -> float:
    """Delete-a-group: √((G − 1) / G · Σ(θ_g − θ̄)²), each θ_g computed anew."""
    means = [math.fsum(v for i, v in enumerate(values) if i % groups != g) for g in range(groups)]
    sizes = [sum(i % groups != g for i in range(len(values))) for g in range(groups)]
    replicates = [total / size for total, size in zip(means, sizes, strict=True)]
    centre = math.fsum(replicates) / groups
    return math.sqrt((groups - 1) / groups * math.fsum((r - centre) ** 2 for r in replicates))


@given(st.lists(st.floats(-100, 100), min_size=20, max_size=60))
def test_the_standard_error_is_that_of_a_plain_jackknife(values: list[float]) -> None:
    error = gathered(values).metric_error
    assert error is not None
    assert error == pytest.approx(jackknife(values), rel=1e-6, abs=1e-9)


@pytest.mark.slow
def test_the_standard_error_of_a_mean_is_the_classical_one() -> None:
    """Ten groups leave 9 degrees of freedom: single ones scatter by a quarter, their squares' mean does not."""
    rng = np.random.default_rng(0)
    ratios = []
    for _ in range(60):
        values = rng.exponential(1, 200)
        error = gathered(values.tolist()).metric_error
        assert error is not None
        ratios.append(error**2 / (values.var(ddof=1) / len(values)))
    assert np.mean(ratios) == pytest.approx(1, abs=0.2)
    assert all(0.05 < ratio < 4 for ratio in ratios)


def test_only_labelled_samples_count_for_the_standard_error() -> None:
    values = np.random.default_rng(0).standard_normal(60).tolist()
    labelled = [i % 3 != 0 for i in range(60)]
    kept = [v for v, has in zip(values, labelled, strict=True) if has]
    assert gathered(values, labelled).metric_error == pytest.approx(jackknife(kept))
    assert gathered(values, [False] * 60).metric_error is None


def test_too_few_samples_have_no_standard_error() -> None:
    assert gathered([1.0, 2.0] * 9 + [1.0]).metric_error is None
    assert gathered([1.0, 2.0] * 10).metric_error is not None
    assert gathered([1.0] * 30).metric_error == 0


def test_the_interval_of_the_task_metric_is_its_error_to_both_sides() -> None:
    found = gathered(np.random.default_rng(0).uniform(0, 1, 100).tolist())
    assert found.metric is not None
    assert found.metric_error is not None
    ends = interval(found, bound("metric>=0.5"))
    assert ends is not None
    assert (ends.low, ends.high) == pytest.approx(
        (found.metric - 1.96 * found.metric_error, found.metric + 1.96 * found.metric_error), rel=1e-5
    )
    drop = interval(found, bound("metric_drop<=0.1"))
    assert drop is not None
    assert drop.high - drop.low == pytest.approx((ends.high - ends.low) / found.metric)
    assert drop.low <= 0 <= drop.high
    assert interval(gathered([0.0] * 30), bound("metric_drop<=0.1")) is None, "a drop of nothing has no share"
    assert interval(comparison({"y": noisy(0, 30, 0.1)}), bound("metric>=0.5")) is None


# The journal


def test_the_journal_changes_neither_a_comparison_nor_its_intervals() -> None:
    sums = error_sums(np.float32([1, 2, 7e4, np.inf]), np.float32([1.5, 0, np.nan, np.inf]))
    each = {"y": noisy(0, 30, 0.1), "z": noisy(1, 30, 0.01), "k": [OutputErrors(None, Agreement(3, 4))] * 30}
    found = comparison(
        each,
        broken=("inner", "deep"),
        metric=0.9,
        metric_error=0.02,
        reference_metric=0.95,
        metric_name="own",
        higher_is_better=False,
        seconds=1.5,
    )
    found = Comparison(**{**found.__dict__, "inherited": {"inner": sums}, "introduced": {"inner": sums}})
    read = Comparison.from_dict(json.loads(json.dumps(found.to_dict())))
    assert repr(read) == repr(found)
    assert read.each == found.each
    assert read.broken == found.broken
    for figure in (*FIGURES, bound("sqnr[z]>=30"), bound("metric>=0.5"), bound("metric_drop<=0.1")):
        assert interval(read, figure) == interval(found, figure) is not None


@given(st.integers(0, 100), st.integers(1, 12))
@settings(max_examples=examples(20))
def test_a_comparison_without_nan_is_equal_after_the_journal(seed: int, samples: int) -> None:
    found = comparison({"y": noisy(seed, samples, 0.1)}, broken=("a",))
    assert Comparison.from_dict(json.loads(json.dumps(found.to_dict()))) == found
