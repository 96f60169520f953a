"""The methods against independent ones: the published algorithm in plain float64, NVIDIA's and ONNX Runtime's."""

from __future__ import annotations

import math
from pathlib import Path

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings
from models import DIGITS, Array, examples

from precisionlab.backends.onnxruntime import OnnxRuntimeBackend
from precisionlab.calibration import kernel
from precisionlab.calibration.find import range_of, table_of
from precisionlab.calibration.histogram import BINS, Histogram, histogram_of
from precisionlab.calibration.methods import METHODS
from precisionlab.calibration.table import Range, weight_scales
from precisionlab.calibration.thresholds import percentile
from precisionlab.data import open_dataset
from precisionlab.errors import OptionError
from precisionlab.jobs.calibrate import calibrated_tensors
from precisionlab.model import load_model
from precisionlab.precision import Precision

INT8 = Precision.INT8.number_format
SEEDS = st.integers(0, 2**32 - 1)
KINDS = ("normal", "relu", "laplace", "uniform", "outliers", "sparse", "gelu", "few", "lognormal", "levels")


def found_by(method: str, histogram: Histogram) -> float:
    return METHODS[method].find(histogram, METHODS[method].default, INT8)


def data(kind: str, seed: int, size: int = 20000) -> Array:
    """Values as activations have them."""
    rng = np.random.default_rng(seed)
    normal = rng.standard_normal(size)
    values = {
        "normal": lambda: normal,
        "relu": lambda: np.maximum(normal, 0),
        "laplace": lambda: rng.laplace(size=size),
        "uniform": lambda: rng.uniform(-3, 3, size),
        "outliers": lambda: np.concatenate([normal, rng.uniform(50, 60, 5)]),
        "sparse": lambda: normal * (rng.random(size) < 0.02),
        "gelu": lambda: normal / (1 + np.exp(-1.702 * normal)),
        "few": lambda: normal[:30],
        "lognormal": lambda: np.exp(2 * normal),
        "levels": lambda: np.rint(normal * 40) / 16,
    }[kind]()
    return (values * 10.0 ** rng.integers(-4, 4)).astype(np.float32)


def every(seed: int = 0) -> list[Histogram]:
    return [histogram_of(data(kind, seed)) for kind in KINDS]


# The published algorithm


def published(counts: Array) -> Array:
    """KL(P‖Q) for i = 128 … n, from Migacz's slides, bin by bin.

    P: the first i bins, with all that lies beyond in the last of them. Q: the first i bins without it, in 128
    levels, each spread evenly over those of its bins that are not empty.
    """
    divergences = []
    for i in range(128, counts.size + 1):
        reference = counts[:i].astype(np.float64)
        p = reference.copy()
        p[-1] += counts[i:].sum()
        level = np.arange(i) * 128 // i
        filled = reference > 0
        mass = np.bincount(level, reference, 128)
        share = np.bincount(level, filled, 128)
        q = np.where(filled, mass[level] / np.maximum(share[level], 1), 0.0)
        if q.sum() == 0:
            divergences.append(math.inf)
            continue
        p, q = p / p.sum(), q / q.sum()
        some = p > 0
        with np.errstate(divide="ignore"):
            divergences.append(float((p[some] * np.log(p[some] / q[some])).sum()))
    return np.array(divergences)


def entropy_counts(histogram: Histogram) -> tuple[Array, float]:
    """What the algorithm is given: at most 2048 bins up to the largest value, exact zeros left out; and their width."""
    counts = histogram.bins.copy()
    counts[0] -= histogram.zeros
    counts = counts[0::2] + counts[1::2]
    width = histogram.width * 2
    return counts[: int(histogram.amax // width) + 1].astype(np.float64), width


@given(SEEDS, st.integers(128, 600), st.sampled_from([0.0, 0.5, 0.97]), st.sampled_from([3, 1000, 10**9]))
@settings(max_examples=examples(25))
def test_divergences_are_those_of_a_brute_force(seed: int, size: int, empty: float, largest: int) -> None:
    rng = np.random.default_rng(seed)
    counts = np.floor(rng.integers(1, largest, size) * np.exp(-np.arange(size) / rng.uniform(20, size)))
    counts[rng.random(size) < empty] = 0
    counts[-1] = 1
    found, expected = kernel.divergences(counts), published(counts)
    assert found.shape == expected.shape == (size - 127,)
    assert np.array_equal(np.isinf(found), np.isinf(expected))
    finite = np.isfinite(expected)
    assert np.allclose(found[finite], expected[finite], rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("counts", [np.ones(128), np.ones(200), np.eye(1, 300, 299)[0], np.eye(1, 300, 0)[0]])
def test_divergences_of_bare_histograms(counts: Array) -> None:
    found, expected = kernel.divergences(counts), published(counts)
    assert np.array_equal(np.isinf(found), np.isinf(expected))
    assert np.allclose(found[np.isfinite(found)], expected[np.isfinite(expected)], atol=1e-12)
    assert not np.isnan(found).any()


def test_no_candidate_below_128_bins() -> None:
    assert kernel.divergences(np.ones(100)).size == 0


@pytest.mark.parametrize("kind", KINDS)
def test_entropy_takes_the_brute_forces_best(kind: str) -> None:
    histogram = histogram_of(data(kind, 5))
    counts, width = entropy_counts(histogram)
    expected = published(counts)
    threshold = found_by("entropy", histogram)
    best = min((128 + int(np.argmin(expected)) + 0.5) * width, histogram.amax)
    if threshold != best:  # two candidates may be equal to all digits that float64 holds
        chosen = min(round(threshold / width - 0.5) - 128, expected.size - 1)
        assert expected[chosen] == pytest.approx(expected.min(), abs=1e-12)
    assert width * 1024 <= histogram.amax < width * 2048  # "2048 bins": those in use


@pytest.mark.parametrize("kind", KINDS)
def test_capped_is_the_best_among_those_that_clip_little(kind: str) -> None:
    histogram = histogram_of(data(kind, 6))
    counts, width = entropy_counts(histogram)
    beyond = counts.sum() - np.cumsum(counts)[127:]
    expected = np.where(beyond <= 1e-4 * histogram.count, published(counts), np.inf)
    best = min((128 + int(np.argmin(expected)) + 0.5) * width, histogram.amax)
    assert found_by("capped", histogram) == pytest.approx(best, rel=1e-12)


@given(SEEDS, st.sampled_from(KINDS), st.integers(1, 30000))
@settings(max_examples=examples(60))
def test_capped_never_clips_more_than_one_in_10_000(seed: int, kind: str, size: int) -> None:
    values = data(kind, seed, size)
    histogram = histogram_of(values)
    threshold = found_by("capped", histogram)
    assert histogram.clipped(threshold) <= 1e-4 * histogram.count
    beyond = int((np.abs(values).astype(np.float64) > threshold + histogram.width).sum())
    assert beyond <= 1e-4 * histogram.count


def test_exact_zeros_take_no_part_in_entropy_and_mse() -> None:
    """Any threshold keeps them, and behind ReLU they would drown all else."""
    values = data("gelu", 1)
    with_zeros = histogram_of(np.concatenate([values, np.zeros(10**6, np.float32)]))
    for method in ("entropy", "mse", "max"):
        assert found_by(method, with_zeros) == found_by(method, histogram_of(values))


# pytorch-quantization's formulae


@pytest.mark.parametrize("share", [50.0, 90.0, 99.0, 99.9, 99.99, 100.0])
def test_percentile_is_the_upper_edge_of_pytorch_quantizations_bin(share: float) -> None:
    """That takes `edges[idx]`, the bin's lower edge, and clips the values of the bin as well; we do not."""
    for histogram in every(2):
        cdf = np.cumsum(histogram.bins / histogram.bins.sum())
        index = int(np.searchsorted(cdf, share / 100))
        edges = np.arange(BINS + 1) * histogram.width
        found = percentile(histogram, share)
        exact = int(np.flatnonzero(np.cumsum(histogram.bins) >= share / 100 * histogram.count)[0])
        assert found == min(edges[exact + 1], histogram.amax)
        # Ours compares counts; its sum of quotients misses by a rounding where the share falls between two bins.
        assert exact == index or cdf[exact] == pytest.approx(share / 100, abs=1e-12)
        if share == 100:
            assert found == histogram.amax


@pytest.mark.parametrize("share", [1.0, 50.0, 99.0, 99.99])
def test_percentile_keeps_the_share_and_a_bin_less_would_not(share: float) -> None:
    for kind in KINDS:
        values = np.abs(data(kind, 4)).astype(np.float64)
        histogram = histogram_of(values.astype(np.float32))
        found = percentile(histogram, share)
        assert (values <= found).mean() >= share / 100
        lower = (math.ceil(found / histogram.width) - 1) * histogram.width
        assert (values < lower).mean() < share / 100


def fake_quant_errors(histogram: Histogram, candidates: Array) -> Array:
    """pytorch-quantization's `_compute_amax_mse`: the mean of (fake_quant(centre) − centre)² · count."""
    edges = np.arange(BINS + 1) * histogram.width
    centres = (edges[1:] + edges[:-1]) / 2
    counts = histogram.bins.astype(np.float64)
    counts[0] -= histogram.zeros  # ours: exact zeros cost nothing
    scale = 127 / candidates[:, None]
    quantised = np.clip(np.rint(centres * scale), -127, 127) / scale
    return np.asarray(((quantised - centres) ** 2 * counts).mean(1))


@pytest.mark.parametrize("kind", KINDS)
def test_mse_takes_the_least_error_of_pytorch_quantizations_formula_at_every_eighth_edge(kind: str) -> None:
    """Candidates are edges, theirs are centres; each eighth of them, theirs are every one."""
    histogram = histogram_of(data(kind, 8))
    used = int(histogram.amax // histogram.width) + 1
    candidates = np.arange(128, used + 8, 8) * histogram.width
    errors = fake_quant_errors(histogram, candidates)
    found = found_by("mse", histogram)
    at = np.flatnonzero(candidates == found)
    chosen = errors[at[0]] if at.size else errors[candidates > histogram.amax][0]
    assert chosen == pytest.approx(errors.min(), rel=1e-9)


@pytest.mark.slow
@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "few"])
def test_mse_differs_little_from_pytorch_quantizations_own_search(kind: str) -> None:
    """All centres as candidates, with its stride of 1: the error we accept is at most 3 % above its best."""
    histogram = histogram_of(data(kind, 9))
    centres = (np.arange(128, BINS, 1) + 0.5) * histogram.width
    theirs = np.concatenate([fake_quant_errors(histogram, part) for part in np.array_split(centres, 8)]).min()
    ours = fake_quant_errors(histogram, np.array([found_by("mse", histogram)]))[0]
    assert ours <= 1.03 * theirs


# What holds for all


@given(SEEDS, st.sampled_from(KINDS), st.integers(1, 5000), st.integers(-60, 60))
@settings(max_examples=examples(60))
def test_thresholds_are_positive_within_the_values_and_scale_with_them(
    seed: int, kind: str, size: int, exponent: int
) -> None:
    values = data(kind, seed, size)
    histogram = histogram_of(values)
    scaled = histogram_of(np.ldexp(values, exponent).astype(np.float32))
    for name in METHODS:
        threshold = found_by(name, histogram)
        assert threshold <= histogram.amax
        assert threshold > 0 or histogram.amax == 0
        assert found_by(name, scaled) == math.ldexp(threshold, exponent), name


@pytest.mark.parametrize(
    "values",
    [[], [0.0, 0.0], [math.nan, math.inf], [2.0**-149], [3.4e38] * 3, [1.0], [1e-38, 3e38], [2.0**-101, 2.0**-140]],
)
def test_thresholds_of_bare_histograms(values: list[float]) -> None:
    histogram = histogram_of(np.array(values, np.float32))
    for name in METHODS:
        threshold = found_by(name, histogram)
        assert 0 <= threshold <= histogram.amax
        assert (threshold > 0) == (histogram.amax > 0), name
        assert math.isfinite(range_of(histogram, name, threshold).scale(INT8))


def test_max_is_the_largest_value_and_clips_nothing() -> None:
    for histogram in every(3):
        found = range_of(histogram, "max", found_by("max", histogram))
        assert found.amax == found.largest == histogram.amax
        assert found.clipped == 0


def test_the_table_says_what_is_clipped_and_counted() -> None:
    values = np.append(data("outliers", 11), [math.nan, math.inf]).astype(np.float32)
    histogram = histogram_of(values)
    table = table_of({"x": histogram}, "percentile", 3, 99.0)
    found = table.ranges["x"]
    finite = np.abs(values[np.isfinite(values)]).astype(np.float64)
    assert table.samples == 3
    assert (found.method, found.nonfinite, found.count, found.largest) == ("percentile", 2, finite.size, finite.max())
    assert found.amax == percentile(histogram, 99.0)
    assert found.clipped == int((finite >= found.amax).sum())
    assert found.clipped_share == found.clipped / finite.size <= 0.01


def test_an_unknown_method_is_an_option_error() -> None:
    with pytest.raises(
        OptionError, match=r"unknown calibration method 'minmax' \(did you mean 'max'\?\); use one of entropy, capped"
    ):
        table_of({}, "minmax", 1)


def test_a_zero_tensor_gets_the_scale_of_one() -> None:
    assert Range(0.0).scale(INT8) == 1 / 127


# ONNX Runtime


@pytest.mark.slow
def test_max_is_onnx_runtimes_minmax_for_every_tensor_of_the_bundled_model(tmp_path: Path) -> None:
    calibrate = pytest.importorskip("onnxruntime.quantization.calibrate")
    model = load_model(DIGITS / "digits.onnx")
    dataset = open_dataset(DIGITS, model, None, 0)

    class Reader(calibrate.CalibrationDataReader):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            self.samples = iter(dataset)

        def get_next(self) -> dict[str, Array] | None:
            sample = next(self.samples, None)
            return None if sample is None else dict(sample.inputs)

    calibrater = calibrate.create_calibrator(
        str(DIGITS / "digits.onnx"),
        augmented_model_path=str(tmp_path / "augmented.onnx"),
        calibrate_method=calibrate.CalibrationMethod.MinMax,
        extra_options={"symmetric": True},
    )
    calibrater.collect_data(Reader())
    theirs = {name: float(np.max(np.abs(found.range_value))) for name, found in calibrater.compute_data().items()}

    backend = OnnxRuntimeBackend(model, next(iter(dataset)), 2)
    collector = backend.collector(calibrated_tensors(backend.model))
    collector.add(dataset, lambda done: None)
    ours = {name: found.amax for name, found in table_of(collector.histograms(), "max", 1).ranges.items()}
    both = ours.keys() & theirs.keys()
    assert len(both) >= 25
    assert "image" in both
    # Its graph keeps what ours shares: the same kernels, but not always the same fusions.
    assert {n: ours[n] for n in both} == pytest.approx({n: theirs[n] for n in both}, rel=1e-5)


@pytest.mark.parametrize("axis", [0, 1])
def test_weight_scales_are_onnx_runtimes_per_channel_ones(axis: int) -> None:
    """Its symmetric int8 over −127 … 127 (`reduce_range` off): scale = 2·max |w| / 254 for each channel."""
    utils = pytest.importorskip("onnxruntime.quantization.quant_utils")
    weight = np.random.default_rng(12).standard_normal((6, 5, 3, 3)).astype(np.float32)
    weight *= np.geomspace(1e-6, 1e6, weight.shape[axis]).reshape([-1 if i == axis else 1 for i in range(4)])
    ours = weight_scales(weight, axis, INT8)
    assert ours.dtype == np.float32
    assert ours.shape == (weight.shape[axis],)
    for channel, scale in enumerate(ours):
        values = weight.take(channel, axis)
        qmin, qmax = utils.get_qmin_qmax_for_qType(1 + 2, reduce_range=False, symmetric=True)  # TensorProto.INT8
        zero, theirs = utils.compute_scale_zp(values.min(), values.max(), qmin, qmax, symmetric=True)
        assert zero == 0
        assert scale == pytest.approx(float(theirs), rel=3e-7)
        assert scale == np.float32(np.float32(np.abs(values).max()) / 127)


def test_weight_scales_of_a_whole_tensor_and_of_zeros() -> None:
    weight = np.float32([[1, -2.54], [0, 0]])
    assert weight_scales(weight, None, INT8) == np.float32(np.float32(2.54) / 127)
    assert weight_scales(weight, 0, INT8).tolist() == [
        np.float32(2.54) / np.float32(127),
        np.float32(1 / 127),
    ]
    assert weight_scales(np.zeros((0, 3), np.float32), 1, INT8).tolist() == [np.float32(1 / 127)] * 3
    assert weight_scales(np.zeros((2, 2), np.float32), None, INT8) == np.float32(1 / 127)


@given(SEEDS, st.integers(0, 3))
@settings(max_examples=examples(20))
def test_int8_weights_use_all_levels_and_never_saturate(seed: int, axis: int) -> None:
    weight = np.random.default_rng(seed).standard_normal((3, 4, 2, 5)).astype(np.float32)
    shape = [-1 if i == axis else 1 for i in range(4)]
    levels = weight.astype(np.float64) / weight_scales(weight, axis, INT8).astype(np.float64).reshape(shape)
    most = np.abs(levels).max(axis=tuple(i for i in range(4) if i != axis))
    assert np.allclose(most, 127, rtol=1e-6)
