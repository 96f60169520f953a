"""The error statistics agree with plain float64 numpy, merge in any order, and never hide a NaN."""

from __future__ import annotations

import itertools
import math
from dataclasses import asdict

import ml_dtypes
import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from models import Array, examples

from precisionlab.compare.batch import ErrorBatch
from precisionlab.compare.comparison import Comparison
from precisionlab.compare.errors import Agreement, ErrorSums, ErrorTable, agreement, error_sums
from precisionlab.compare.kernel import largest_magnitude
from precisionlab.compare.output import OutputErrors
from precisionlab.compare.task import Accuracy
from precisionlab.compare.tolerance import Bound, closeness, default_tolerance, meets, parse_tolerance
from precisionlab.errors import DataError, OptionError
from precisionlab.precision import Precision

EPS64 = np.finfo(np.float64).eps
COUNTS = (
    *("elements", "overflow", "underflow", "ref_nonfinite", "nan", "inf", "new_nonfinite", "ref_mismatch"),
    *("new_nan", "ref_nan", "unforced_inf", "inf_mismatch"),
)
FORMATS = {
    Precision.FP32: np.finfo(np.float32),
    Precision.FP16: np.finfo(np.float16),
    Precision.BF16: ml_dtypes.finfo(ml_dtypes.bfloat16),
}
TERMS = {"ref2": "rr", "err2": "ee", "ref_out": "ro", "out2": "oo"}

SPECIAL = np.array(
    [0, -0.0, np.nan, np.inf, -np.inf, 1e-45, -1e-40, 5.9e-8, 65504, 65504.004, 65520, -1e5, 3.4028235e38, -3.4e38],
    np.float32,
)


@st.composite
def pairs(draw: st.DrawFn, finite: bool = False) -> tuple[Array, Array]:
    """A reference and an output: values of every size, specials among them, around the borders of the blocks."""
    size = draw(st.sampled_from([0, 1, 2, 7, 63, 4095, 4096, 4097, 8191, 8193]) | st.integers(0, 200))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    if draw(st.booleans()):  # any bits at all
        reference, output = rng.integers(0, 2**32, (2, size), np.uint32).view(np.float32)
    else:
        scale = np.float32(10.0 ** draw(st.integers(-30, 30)))
        reference = rng.standard_normal(size, np.float32) * scale
        output = reference + rng.standard_normal(size, np.float32) * scale * np.float32(
            draw(st.sampled_from([0, 1e-4, 1]))
        )
    for array in (reference, output):
        for _ in range(draw(st.integers(0, 4)) if size else 0):
            array[draw(st.integers(0, size - 1))] = draw(st.sampled_from(SPECIAL.tolist()))
    if draw(st.booleans()) and size:
        same = rng.random(size) < 0.5
        output[same] = reference[same]
    if finite:
        reference = np.nan_to_num(reference, nan=1, posinf=2, neginf=-2)
        output = np.nan_to_num(output, nan=1, posinf=2, neginf=-2)
    return reference, output


def plainly(reference: Array, output: Array, held_in: Precision = Precision.FP32) -> tuple[ErrorSums, dict[str, float]]:
    """The statistics in float64 numpy, and the sums of the terms' magnitudes, which bound their rounding."""
    there, limits = np.isfinite(reference), FORMATS[held_in]
    near = np.float32(float(limits.max) / 2)
    beside, instead = reference[~there], output[~there]
    with np.errstate(all="ignore"):
        r, o = reference[there].astype(np.float64), output[there].astype(np.float64)
        e = o - r
        terms = {"rr": r * r, "ee": e * e, "ro": r * o, "oo": o * o}
        sums = {name: float(np.sum(terms[t])) for name, t in TERMS.items()}
        magnitudes = {name: float(np.sum(np.abs(terms[t]))) for name, t in TERMS.items()}
        # The largest error is that of float32, the nearest to the true one, wherever that is a number.
        largest = np.abs((output[there] - reference[there]).astype(np.float64))
        beyond = np.isinf(largest) & np.isfinite(o)
        largest[beyond] = np.abs(e[beyond])
    same = (beside == instead) | (np.isnan(beside) & np.isnan(instead))
    found = ErrorSums(
        elements=int(there.sum()),
        **sums,
        max_error=float(np.max(largest, initial=0.0)),
        max_ref=float(np.max(np.abs(r), initial=0.0)),
        overflow=int(np.sum(np.abs(r) > float(limits.max))),
        underflow=int(np.sum((o == 0) & (r != 0))),
        ref_nonfinite=int(np.sum(~there)),
        nan=int(np.isnan(output).sum()),
        inf=int(np.isinf(output).sum()),
        new_nonfinite=int(np.sum(~np.isfinite(o))),
        ref_mismatch=int(np.sum(~same)),
        new_nan=int(np.sum(np.isnan(o))),
        ref_nan=int(np.sum(np.isnan(beside))),
        unforced_inf=int(np.sum(np.isinf(o) & (np.abs(r) < near))),
        inf_mismatch=int(np.sum(~same & np.isinf(beside))),
    )
    return found, magnitudes


def assert_same(found: ErrorSums, expected: ErrorSums, magnitudes: dict[str, float]) -> None:
    """Counts and maxima alike, and sums as near as any order of adding up must come."""
    for name in (*COUNTS, "max_error", "max_ref"):
        a, b = getattr(found, name), getattr(expected, name)
        assert a == b or (math.isnan(a) and math.isnan(b)), name
    for name in TERMS:
        a, b = getattr(found, name), getattr(expected, name)
        if math.isfinite(b):
            bound = 2 * EPS64 * max(1, expected.elements) * magnitudes[name]
            assert abs(a - b) <= min(bound, 1e-11 * magnitudes[name]), name
        else:
            assert a == b or (math.isnan(a) and math.isnan(b)), name


@given(st.lists(pairs(), max_size=6), st.sampled_from([np.float32, np.float64, np.float16]))
@settings(max_examples=examples(25))
def test_pairs_summed_together_are_the_same_bits_as_one_by_one(several: list[tuple[Array, Array]], kind: type) -> None:
    """Whatever they hold, at whatever place they stand, of whatever type or shape the output is."""
    formats = [precision.number_format for precision in FORMATS] * 4
    one_by_one, together = ErrorTable(len(formats), formats), ErrorBatch(formats)
    shapes = [*several, (np.zeros(3, np.float32), np.zeros(2, np.float32)), (np.float32(1), np.float32(2))]
    for table in (one_by_one, together):
        for row, (reference, output) in enumerate(shapes):
            with np.errstate(all="ignore"):
                low = np.asarray(output).astype(kind if row == 1 else np.float32)
                table.add(row, np.asarray(reference), low)
            table.count_nonfinite(row, low)
    found = together.result()
    assert found.sums.tobytes() == one_by_one.sums.tobytes()
    assert np.array_equal(found.counts, one_by_one.counts)
    assert np.array_equal(found.reshaped, one_by_one.reshaped)


@given(pairs(), st.sampled_from([*FORMATS]))
@settings(max_examples=examples(250))
def test_statistics_agree_with_float64_numpy_for_any_float32(pair: tuple[Array, Array], held_in: Precision) -> None:
    assert_same(error_sums(*pair, held_in.number_format), *plainly(*pair, held_in))


@pytest.mark.parametrize("precision", FORMATS)
def test_formats_are_those_of_numpy_and_ml_dtypes(precision: Precision) -> None:
    known, found = FORMATS[precision], precision.number_format
    stated = (found.largest, found.normal, found.least, found.epsilon)
    assert stated == tuple(float(v) for v in (known.max, known.tiny, known.smallest_subnormal, known.eps))
    assert ir.DataType[found.dtype].max == known.max


@given(pairs(), st.lists(st.integers(0, 8193), max_size=5), st.randoms(use_true_random=False))
@settings(max_examples=examples(150))
def test_any_split_merged_in_any_order_gives_the_same(
    pair: tuple[Array, Array], cuts: list[int], random: object
) -> None:
    reference, output = pair
    edges = sorted({0, reference.size, *(c for c in cuts if c < reference.size)})
    parts = [(reference[a:b], output[a:b]) for a, b in itertools.pairwise(edges)]
    random.shuffle(parts)  # type: ignore[attr-defined]
    whole, (_, magnitudes) = error_sums(reference, output), plainly(reference, output)
    added = sum((error_sums(*part) for part in parts), ErrorSums())
    assert_same(added, whole, magnitudes)
    table = ErrorTable(3)
    for index, part in enumerate(parts):
        other = ErrorTable(3)
        other.add(index % 3, *part)
        table.merge(other)
    assert_same(table.row(0) + table.row(2) + table.row(1), whole, magnitudes)


@given(pairs(finite=True))
@settings(max_examples=examples(150))
def test_metrics_agree_with_their_definitions_in_float64(pair: tuple[Array, Array]) -> None:
    r, o = (array.astype(np.float64) for array in pair)
    found, e = error_sums(*pair), o - r
    signal, noise, energy = float(r @ r), float(e @ e), float(o @ o)
    if r.size == 0:
        assert math.isnan(found.sqnr)
        assert math.isnan(found.cosine)
        assert math.isnan(found.rel_l2)
        return
    if noise == 0:
        assert (found.sqnr, found.rel_l2) == (math.inf, 0.0)
    elif signal == 0:
        assert (found.sqnr, found.rel_l2) == (-math.inf, math.inf)
    else:
        # 1 part in 1e11 of a power is 4.4e-11 dB; the logarithms add a few units in the last place.
        assert found.sqnr == pytest.approx(10 * math.log10(signal) - 10 * math.log10(noise), abs=2e-10, rel=1e-13)
        assert found.rel_l2 == pytest.approx(math.sqrt(noise / signal), rel=1e-11)
    if signal and energy:
        direction = float((r / math.sqrt(signal)) @ (o / math.sqrt(energy)))
        assert found.cosine == pytest.approx(direction, abs=1e-11)


@given(pairs(finite=True), st.integers(-20, 20))
@settings(max_examples=examples(100))
def test_sqnr_and_cosine_do_not_depend_on_scale(pair: tuple[Array, Array], exponent: int) -> None:
    scale = np.float32(2.0**exponent)
    with np.errstate(over="ignore"):
        scaled = [array * scale for array in pair]
    # Beyond float32, or among its subnormals, it is another signal.
    assume(all(np.array_equal(a / scale, b) for a, b in zip(scaled, pair, strict=True)))
    # Sums below 1e90: each logarithm, times ten, is good to a few 1e-13.
    assert error_sums(*scaled).sqnr == pytest.approx(error_sums(*pair).sqnr, abs=1e-12, rel=0, nan_ok=True)
    assert error_sums(*scaled).cosine == pytest.approx(error_sums(*pair).cosine, rel=4 * EPS64, nan_ok=True)


@given(st.sampled_from([1, 4096, 5000]), st.integers(0, 4999))
def test_one_nan_in_the_output_makes_every_metric_nan(size: int, place: int) -> None:
    reference = np.linspace(1, 2, size, dtype=np.float32)
    output = reference.copy()
    output[place % size] = np.nan
    found = error_sums(reference, output) + error_sums(reference, reference)
    assert all(math.isnan(v) for v in (found.sqnr, found.cosine, found.rel_l2, found.max_error))
    assert (found.nan, found.inf, found.new_nonfinite, found.nonfinite) == (1, 0, 1, 1)


@pytest.mark.parametrize("first", ["nan", "number"])
def test_a_nan_maximum_stays_nan_whichever_side_it_is_merged_from(first: str) -> None:
    broken, fine = error_sums(np.ones(2, np.float32), np.float32([np.nan, 1])), error_sums(*np.ones((2, 3), np.float32))
    merged = broken + fine if first == "nan" else fine + broken
    assert math.isnan(merged.max_error)
    assert math.isnan(merged.sqnr)


@pytest.mark.filterwarnings("error")
def test_infinities_of_both_signs_are_merged_without_a_warning() -> None:
    tables = [ErrorTable(1), ErrorTable(1)]
    for table, value in zip(tables, (np.inf, -np.inf), strict=True):
        table.add(0, np.float32([1, 2]), np.float32([1, value]))
    tables[0].merge(tables[1])
    found = tables[0].row(0)
    assert (found.elements, found.inf, found.sqnr) == (4, 2, -math.inf)
    assert math.isnan(found.cosine)


def test_an_inf_in_the_output_gives_minus_inf_decibels() -> None:
    found = error_sums(np.float32([1, 2]), np.float32([1, np.inf]))
    assert (found.sqnr, found.rel_l2, found.max_error, found.inf, found.nonfinite) == (
        -math.inf,
        math.inf,
        math.inf,
        1,
        1,
    )
    assert math.isnan(found.cosine)


def test_equal_nonfinite_values_are_no_mismatch_and_take_no_part_in_the_metrics() -> None:
    reference = np.float32([np.inf, -np.inf, np.nan, 3])
    found = error_sums(reference, reference.copy())
    assert (found.elements, found.ref_nonfinite, found.nan, found.inf) == (1, 3, 1, 2)
    assert (found.ref_mismatch, found.new_nonfinite, found.nonfinite) == (0, 0, 0)
    assert (found.sqnr, found.cosine, found.max_ref) == (math.inf, 1.0, 3.0)


@pytest.mark.parametrize(
    ("was", "became"), [("inf", "-inf"), ("inf", "nan"), ("nan", "inf"), ("-inf", "-65504"), ("nan", "0")]
)
def test_a_nonfinite_value_that_changed_is_a_mismatch(was: str, became: str) -> None:
    found = error_sums(np.float32([was, 1]), np.float32([became, 1]))
    assert (found.ref_mismatch, found.new_nonfinite, found.nonfinite, found.elements) == (1, 0, 1, 1)
    assert found.inf_mismatch == (was != "nan")  # where NaN was there is nothing to break


def test_the_largest_float16_does_not_overflow_and_the_next_float32_does() -> None:
    reference = np.float32([65504, -65504, np.nextafter(np.float32(65504), np.float32(np.inf)), -7e4, np.inf])
    assert error_sums(reference, reference, Precision.FP16.number_format).overflow == 2
    assert error_sums(reference, reference).overflow == 0  # no float32 is beyond float32


@pytest.mark.parametrize(
    ("held_in", "fits", "may_round"),
    [
        (Precision.FP16, [3, 30000, 32751], [32752, 60000, 65504, 65520, 1e5]),
        (Precision.BF16, [99864, 1e38, 1.69e38], [1.7e38, 3.4e38]),
        (Precision.FP32, [99864, 1e38, 1.7e38], [1.8e38, 3.4028235e38]),
    ],
)
def test_an_inf_is_forced_only_by_what_the_format_cannot_hold(
    held_in: Precision, fits: list[float], may_round: list[float]
) -> None:
    reference = np.float32([*fits, *may_round, *(-np.float32(may_round))])
    found = error_sums(reference, np.copysign(np.float32(np.inf), reference), held_in.number_format)
    assert (found.new_nonfinite, found.unforced_inf) == (reference.size, len(fits))
    beside_nan = np.float32([np.nan, *fits]), np.float32([np.nan, *[np.inf] * len(fits)])
    assert error_sums(*beside_nan, held_in.number_format).unforced_inf == len(fits)


def test_a_subnormal_that_became_zero_is_an_underflow_and_a_zero_has_not() -> None:
    reference = np.float32([1e-45, -1e-45, 0.0, -0.0, 1])
    assert error_sums(reference, np.float32([0, -0.0, 0, 0, 0])).underflow == 3


def test_a_shape_that_changed_is_counted_and_gives_no_metric() -> None:
    found = error_sums(np.ones((2, 3), np.float32), np.ones((2, 2), np.float32))
    assert (found.reshaped, found.ref_mismatch, found.nonfinite) == (1, 0, 0)
    assert math.isnan(found.max_error)
    assert math.isnan(found.sqnr)
    assert math.isnan(found.rel_l2)
    assert math.isnan(found.cosine)
    assert error_sums(np.ones((2, 3), np.float32), np.ones((0, 3), np.float32)).reshaped == 1


def test_doubles_have_error_sums_too() -> None:
    found = error_sums(np.array([1.0, 3.0]), np.array([1.0, 3.0 + 2.0**-40]))
    assert (found.elements, found.ref2, found.err2) == (2, 10.0, 2.0**-80)


@pytest.mark.parametrize("layout", ["reversed", "transposed", "scalar"])
def test_memory_layout_does_not_matter(layout: str) -> None:
    base = np.arange(12, dtype=np.float32).reshape(3, 4)
    array = {"reversed": base[::-1, ::2], "transposed": base.T, "scalar": np.float32(7).reshape(())}[layout]
    assert error_sums(array, array + 1) == error_sums(array.copy(), (array + 1).copy())


@given(pairs())
@settings(max_examples=examples(100))
def test_largest_magnitude_leaves_out_and_counts_what_is_not_finite(pair: tuple[Array, Array]) -> None:
    array = pair[0]
    finite = np.isfinite(array)
    assert largest_magnitude(array) == (float(np.abs(array[finite]).max(initial=0)), int((~finite).sum()))


def test_statistics_survive_the_journal() -> None:
    found = error_sums(np.float32([1, 2, 7e4, np.inf]), np.float32([1.5, 0, np.nan, np.inf]))
    assert repr(ErrorSums(**found.to_dict())) == repr(found)
    comparison = Comparison(
        3, {"a": found}, {}, {"a": OutputErrors(found, Agreement(2, 3)), "b": OutputErrors(None, Agreement())}
    )
    assert repr(Comparison.from_dict(comparison.to_dict())) == repr(comparison)


# Agreement


def test_the_class_axis_is_the_last_of_rows_and_the_second_of_maps() -> None:
    rng = np.random.default_rng(0)
    assert agreement(*2 * [rng.random((5, 3), np.float32)]) == Agreement(5, 5)
    assert agreement(*2 * [rng.random((2, 7, 3), np.float32)]) == Agreement(14, 14)
    assert agreement(*2 * [rng.random((2, 3, 4, 5), np.float32)]) == Agreement(40, 40)


@pytest.mark.parametrize("shape", [(), (4,), (4, 1), (1, 1, 2, 2), (1, 2, 3, 4, 5), (0, 3)])
def test_outputs_without_classes_or_rows_give_no_figure(shape: tuple[int, ...]) -> None:
    found = agreement(np.zeros(shape, np.float32), np.zeros(shape, np.float32))
    assert found.total == 0
    assert math.isnan(found.share)


def test_another_largest_disagrees_and_another_value_does_not() -> None:
    found = agreement(np.float32([[1, 2], [1, 2], [4, 3]]), np.float32([[2, 1], [1, 9], [4, 4]]))
    assert (found.agree, found.total, found.share) == (2, 3, pytest.approx(2 / 3))


@pytest.mark.parametrize("broken", [math.nan, math.inf])
def test_a_row_with_nan_or_inf_agrees_with_nothing(broken: float) -> None:
    reference = np.float32([[0, 1], [0, 1]])
    assert agreement(reference, np.float32([[0, broken], [0, 1]])) == Agreement(1, 2)


def test_integers_and_booleans_are_compared_one_by_one() -> None:
    assert agreement(np.array([1, 2, 3]), np.array([1, 5, 3])) == Agreement(2, 3)
    assert agreement(np.array([True, False]), np.array([True, True])) == Agreement(1, 2)
    assert agreement(np.array([1, 2, 3]), np.array([1, 2])) == Agreement(0, 3)


# Tolerance


def comparison_of(
    *pairs_: tuple[list[float], list[float]], inherited: tuple[list[float], list[float]] | None = None
) -> Comparison:
    outputs = {
        str(i): OutputErrors(error_sums(np.float32(r), np.float32(o)), agreement(np.float32([r]), np.float32([o])))
        for i, (r, o) in enumerate(pairs_)
    }
    seen = {} if inherited is None else {"inner": error_sums(np.float32(inherited[0]), np.float32(inherited[1]))}
    return Comparison(1, seen, {}, outputs, broken=tuple(name for name, errors in seen.items() if errors.new_nan))


def test_the_worst_output_decides_and_nan_fails_every_bound() -> None:
    good, bad, nan = ([1.0, 2.0], [1.0, 2.001]), ([1.0, 2.0], [1.0, 1.5]), ([1.0, 2.0], [1.0, math.nan])
    both = comparison_of(good, bad)
    assert both.worst("sqnr") == comparison_of(bad).worst("sqnr") == pytest.approx(10 * math.log10(5 / 0.25))
    assert both.worst("max_error") == 0.5
    assert both.worst("rel_l2") == pytest.approx(math.sqrt(0.25 / 5))
    for text in ("sqnr>=-1000", "cosine>=-1", "rel_l2<=1e30", "max_error<=1e30", "top1>=0.1"):
        assert not meets(comparison_of(good, nan), parse_tolerance([text])), text


def test_a_nan_that_the_output_does_not_show_fails_the_variant() -> None:
    output = ([1.0, 2.0], [1.0, 2.0])
    tolerance = default_tolerance(Precision.FP16)
    assert meets(comparison_of(output, inherited=output), tolerance)
    hidden = comparison_of(output, inherited=([1.0, 2.0], [1.0, math.nan]))
    assert hidden.nonfinite == ("inner",)
    assert not meets(hidden, tolerance)
    assert closeness(hidden, tolerance) < closeness(comparison_of(output), tolerance)


def test_no_output_with_a_figure_meets_nothing() -> None:
    assert not meets(
        Comparison(1, {}, {}, {"ints": OutputErrors(None, Agreement(4, 4))}), default_tolerance(Precision.INT8)
    )


def test_tolerances_are_read_as_written() -> None:
    assert parse_tolerance(["sqnr>=30,top1 >= 0.99", "max_error<=1e-3"]) == (
        Bound("sqnr", True, 30.0),
        Bound("top1", True, 0.99),
        Bound("max_error", False, 1e-3),
    )
    assert [str(b) for b in parse_tolerance(["sqnr>=30,rel_l2<=0.5"])] == ["sqnr>=30", "rel_l2<=0.5"]


@pytest.mark.parametrize("text", ["", "sqnr", "sqnr>30", "psnr>=3", "sqnr<=30", "rel_l2>=1", "sqnr>=e", "sqnr>=30,"])
def test_a_senseless_tolerance_is_one_sentence(text: str) -> None:
    with pytest.raises(OptionError) as caught:
        parse_tolerance([text])
    assert "tolerance" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("own", "reference", "higher", "drop"), [
    (0.9, 1.0, True, 0.1), (0.2, 0.1, False, 1.0), (0.1, 0.2, False, -0.5), (0.0, 0.0, True, 0.0),
    (0.1, 0.0, False, math.inf),
])  # fmt: skip
def test_metric_drop_is_how_much_worse_as_a_share(own: float, reference: float, higher: bool, drop: float) -> None:
    found = Comparison(1, {}, {}, {}, metric=own, reference_metric=reference, higher_is_better=higher)
    assert found.metric_drop == pytest.approx(drop)


def test_accuracy_counts_rows_and_a_row_with_nan_is_wrong() -> None:
    metric = Accuracy("y")
    metric.update({"y": np.float32([[0, 1, 0]])}, "1")
    metric.update({"y": np.float32([[5, 1], [1, 5], [np.nan, 0]])}, "[0, 0, 0]")
    assert metric.compute() == 2 / 4
    assert math.isnan(Accuracy("y").compute())


@pytest.mark.parametrize("label", ["seven", "1.5", "[0, 1]", "{}", "null", "true", ""])
def test_a_label_that_is_no_class_index_is_a_data_error(label: str) -> None:
    with pytest.raises(DataError, match="class ind"):
        Accuracy("y").update({"y": np.zeros((1, 3), np.float32)}, label)


@given(pairs())
@example((np.float32([1, 2]), np.float32([1, np.nan])))
@settings(max_examples=examples(50))
def test_sums_are_plain_numbers_for_the_journal(pair: tuple[Array, Array]) -> None:
    assert all(type(v) in (int, float) for v in asdict(error_sums(*pair)).values())
