"""Histograms of |x|: the same bits whatever the order, the split and the threads, and the counts that numpy finds."""

from __future__ import annotations

import math
import random
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import example, given, settings
from models import Array, digits, examples

from precisionlab.backends.onnxruntime import OnnxRuntimeBackend
from precisionlab.calibration.histogram import BINS, Histogram, Histograms, exponent_of, histogram_of
from precisionlab.calibration.state import CalibrationState, read_state
from precisionlab.data import Dataset, Sample
from precisionlab.errors import DataError
from precisionlab.jobs.calibrate import calibrated_tensors
from precisionlab.model import Model

LEAST = -100  # the smallest exponent
FLOATS = st.floats(width=32, allow_subnormal=True)
FINITE = st.floats(width=32, allow_nan=False, allow_infinity=False, allow_subnormal=True)
POWERS = st.integers(-149, 127).map(lambda e: math.ldexp(1.0, e))
VALUES = st.lists(st.one_of(FLOATS, FINITE, POWERS, st.just(0.0), st.floats(-10, 10, width=32)), max_size=60)


def same(a: Histogram, b: Histogram) -> bool:
    """Bit for bit."""
    return (
        a.bins.tobytes() == b.bins.tobytes()
        and (a.exponent, a.zeros, a.nonfinite) == (b.exponent, b.zeros, b.nonfinite)
        and a.amax.hex() == b.amax.hex()
    )


def f32(values: Sequence[float]) -> Array:
    return np.array(values, np.float32)


def brute(values: Array, exponent: int) -> Array:
    """Counts over [0, 2^exponent), in float64, by numpy."""
    magnitudes = np.abs(values[np.isfinite(values)].astype(np.float64))
    counts, _ = np.histogram(magnitudes, BINS, (0.0, math.ldexp(1.0, exponent)))
    return np.asarray(counts)


# The same bits


@given(VALUES, st.randoms(use_true_random=False), st.integers(1, 7))
@settings(max_examples=examples(150))
def test_order_split_and_merge_order_leave_no_trace(values: list[float], rng: random.Random, size: int) -> None:
    whole = histogram_of(f32(values))
    shuffled = rng.sample(values, len(values))
    parts = [f32(shuffled[i : i + size]) for i in range(0, len(shuffled), size)] or [f32([])]
    one_by_one = Histograms(["x"])
    for part in parts:
        one_by_one.add("x", part)
    assert same(one_by_one["x"], whole)
    singles = [histogram_of(part) for part in parts]
    rng.shuffle(singles)
    into = Histograms(["other", "x"])
    merged = Histogram()
    for single in singles:
        merged = rng.choice([merged.merge(single), single.merge(merged)])
        into.merge("x", single)
    assert same(merged, whole)
    assert same(into["x"], whole)
    assert same(into["other"], Histogram())


@given(st.lists(VALUES, min_size=3, max_size=3))
@settings(max_examples=examples(50))
def test_merging_is_associative_and_commutative(groups: list[list[float]]) -> None:
    a, b, c = (histogram_of(f32(group)) for group in groups)
    assert same(a.merge(b).merge(c), a.merge(b.merge(c)))
    assert same(a.merge(b), b.merge(a))
    assert same(a.merge(Histogram()), a)


@pytest.mark.parametrize("shape", [(40000,), (200, 200), (1, 4, 100, 100), (100, 1, 400)])
def test_shape_layout_and_batch_size_leave_no_trace(shape: tuple[int, ...]) -> None:
    values = np.random.default_rng(1).standard_normal(40000).astype(np.float32)
    whole = histogram_of(values)
    assert same(histogram_of(values.reshape(shape)), whole)
    assert same(histogram_of(np.asfortranarray(values.reshape(shape))), whole)
    assert same(histogram_of(np.repeat(values, 2)[::2]), whole)
    for size in (1000, 8191, 8192, 8193, 39999):  # around the size where the compiled loop changes its tables
        batched = Histograms(["x"])
        for start in range(0, values.size, size):
            batched.add("x", values[start : start + size])
        assert same(batched["x"], whole)


@given(st.lists(st.integers(-140, 128), min_size=2, max_size=8), st.integers(0, 2**32 - 1))
@settings(max_examples=examples(60))
def test_growth_by_doubling_is_direct_binning_at_the_final_exponent(exponents: list[int], seed: int) -> None:
    rng = np.random.default_rng(seed)
    grown = Histograms(["x"])
    everything = []
    for exponent in sorted(exponents):
        values = np.ldexp(rng.uniform(-1, 1, 50), exponent).astype(np.float32)
        grown.add("x", values)
        everything.append(values)
    flat = np.concatenate(everything)
    found = grown["x"]
    assert found.exponent == exponent_of(float(np.abs(flat).max()))
    assert np.array_equal(found.bins, brute(flat, found.exponent))


@given(st.lists(st.lists(FLOATS, max_size=20), max_size=20))
@settings(max_examples=examples(40))
def test_threads_with_their_own_histograms_leave_no_trace(samples: list[list[float]]) -> None:
    first, second = Histograms(["x"]), Histograms(["x"])
    for index, values in enumerate(samples):
        (first if index % 3 else second).add("x", f32(values))
    whole = histogram_of(f32([value for values in samples for value in values]))
    assert same(first["x"].merge(second["x"]), whole)


@given(st.lists(st.lists(FLOATS, max_size=20), max_size=12), st.booleans())
@settings(max_examples=examples(20))
def test_tensors_counted_together_are_those_counted_one_by_one(tensors: list[list[float]], large: bool) -> None:
    arrays = [f32(values) for values in tensors]
    if large:  # such are not counted together
        arrays[len(arrays) // 2 :] = [np.resize(array, 20_000) for array in arrays[len(arrays) // 2 :] if array.size]
    names = [str(index) for index in range(len(arrays))]
    together = Histograms(names)
    for _ in range(2):
        together.add_all(zip(names, arrays, strict=True))
    for name, array in zip(names, arrays, strict=True):
        assert same(together[name], histogram_of(np.concatenate([array, array])))


def test_threads_that_share_histograms_lose_no_count() -> None:
    names = [str(index) for index in range(20)]
    arrays = [np.random.default_rng(i).standard_normal(9000, np.float32) * 2.0**i for i in range(20)]
    shared = Histograms(names)

    def work(start: int) -> None:
        turned = list(zip(names, arrays, strict=True))
        for _ in range(10):
            shared.add_all(turned[start:] + turned[:start])

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, (0, 5, 10, 15)))
    for name, array in zip(names, arrays, strict=True):
        assert same(shared[name], histogram_of(np.tile(array, 40)))


# What is counted


@given(VALUES)
@example([0.0, -0.0, 1.0, -1.0, math.inf, -math.inf, math.nan])
@example([3.4028234663852886e38, 2.0**-149, -(2.0**-126)])
@settings(max_examples=examples(200))
def test_counts_are_numpys_and_the_rest_is_exact(values: list[float]) -> None:
    array = f32(values)
    finite = array[np.isfinite(array)]
    found = histogram_of(array)
    amax = float(np.abs(finite).max(initial=0))
    assert found.amax == amax
    assert found.zeros == int((finite == 0).sum())
    assert found.nonfinite == array.size - finite.size
    assert found.count == finite.size == int(found.bins.sum())
    assert found.exponent == LEAST or math.ldexp(0.5, found.exponent) <= amax < math.ldexp(1.0, found.exponent)
    assert np.array_equal(found.bins, brute(array, found.exponent))
    assert found.bins.dtype == np.int64


@pytest.mark.parametrize("scale", [1e-30, 1e-3, 1.0, 1e5, 1e37])
def test_counts_of_many_values_are_numpys(scale: float) -> None:
    rng = np.random.default_rng(7)
    values = (rng.standard_normal(100_003) * scale).astype(np.float32)
    values[::17] = 0
    found = histogram_of(values)
    edges = np.arange(BINS + 1) * found.width
    assert np.array_equal(found.bins, np.histogram(np.abs(values.astype(np.float64)), edges)[0])
    assert found.zeros == int((values == 0).sum())


@pytest.mark.parametrize("exponent", [-126, -100, -99, -1, 0, 1, 16, 127])
def test_a_power_of_two_begins_a_bin(exponent: int) -> None:
    value = math.ldexp(1.0, exponent)
    found = histogram_of(f32([value]))
    assert found.exponent == max(exponent + 1, LEAST)
    index = int(np.flatnonzero(found.bins)[0])
    assert index == (BINS // 2 if exponent >= LEAST else math.floor(value / found.width))
    below = histogram_of(np.nextafter(f32([value]), np.float32(0)))
    assert below.exponent == max(exponent, LEAST)


def test_at_least_2048_bins_are_in_use() -> None:
    for amax in (1.0, 1.999, 3e38, 1e-20, 65504.0):
        found = histogram_of(f32([amax]))
        assert math.floor(found.amax / found.width) + 1 > BINS // 2


def test_subnormals_are_no_zeros() -> None:
    found = histogram_of(f32([2.0**-149, -(2.0**-130), 0.0, -0.0]))
    assert (found.zeros, found.count, found.amax, found.exponent) == (2, 4, 2.0**-130, LEAST)
    assert found.bins[0] == 4


def test_huge_values_beside_tiny_ones() -> None:
    found = histogram_of(f32([3e38, -3.4028234663852886e38, 1e-38, 1.0]))
    assert found.exponent == 128
    assert found.amax == 3.4028234663852886e38
    assert found.bins[0] == 2
    assert found.bins[-1] == 1
    assert math.isfinite(found.width)


@pytest.mark.parametrize("shape", [(0,), (0, 3), (2, 0, 4)])
def test_an_empty_tensor_counts_nothing(shape: tuple[int, ...]) -> None:
    assert same(histogram_of(np.zeros(shape, np.float32)), Histogram())
    grown = Histograms(["x"])
    grown.add("x", f32([1.5]))
    grown.add("x", np.zeros(shape, np.float32))
    assert same(grown["x"], histogram_of(f32([1.5])))


def test_a_scalar_is_one_value() -> None:
    assert same(histogram_of(np.array(2.5, np.float32)), histogram_of(f32([2.5])))


def test_a_tensor_of_zeros_is_zeros_only() -> None:
    found = histogram_of(np.zeros(9000, np.float32))
    assert (found.zeros, found.count, found.amax, found.bins[0]) == (9000, 9000, 0.0, 9000)
    later = found.merge(histogram_of(f32([4.0])))
    assert (later.zeros, later.bins[0], later.exponent) == (9000, 9000, 3)


def test_nan_and_inf_stand_in_no_bin() -> None:
    found = histogram_of(f32([math.nan, math.inf, -math.inf, 1.0]))
    assert (found.nonfinite, found.count, found.amax) == (3, 1, 1.0)
    nothing = histogram_of(f32([math.nan] * 10))
    assert (nothing.nonfinite, nothing.count, nothing.amax, nothing.exponent) == (10, 0, 0.0, LEAST)


def test_the_tensor_given_is_left_as_it_was() -> None:
    values = f32([math.nan, -1.0, 2.0])
    before = values.tobytes()
    histogram_of(values)
    assert values.tobytes() == before


def test_clipped_counts_whole_bins_beyond_a_threshold_at_an_edge() -> None:
    values = np.random.default_rng(3).standard_normal(20000).astype(np.float32)
    found = histogram_of(values)
    for index in (1, 17, 1000, 2000):
        edge = index * found.width
        assert found.clipped(edge) == int((np.abs(values.astype(np.float64)) >= edge).sum())
    assert found.clipped(found.amax) == found.clipped(2 * found.amax) == 0


# Histograms of a model


def collected(model: Model, samples: Sequence[Sample] | Dataset, threads: int, budget: int | None = None) -> bytes:
    first = next(iter(samples))
    options = {} if budget is None else {"budget": budget}
    backend = OnnxRuntimeBackend(model, first, threads, **options)
    tensors = calibrated_tensors(backend.model)
    collector = backend.collector(tensors)
    collector.add(samples, lambda done: None)
    return CalibrationState({}, (), collector.histograms()).to_bytes()


@pytest.mark.slow
def test_any_number_of_threads_and_any_order_collect_the_same_bits_in_one_segment_and_in_many() -> None:
    model, dataset = digits()
    for budget in (None, 20_000):
        one = collected(model, dataset, 1, budget)
        assert collected(model, dataset, 2, budget) == one
        assert collected(model, dataset, 3, budget) == one
        assert collected(model, list(dataset)[::-1], 2, budget) == one


def test_a_collector_goes_on_from_what_another_counted() -> None:
    model, dataset = digits()
    samples = list(dataset)
    backend = OnnxRuntimeBackend(model, samples[0], 2)
    tensors = calibrated_tensors(backend.model)
    first, second = backend.collector(tensors), backend.collector(tensors)
    first.add(samples[:3], lambda done: None)
    second.restore(first.histograms())
    second.add(samples[3:], lambda done: None)
    assert CalibrationState({}, (), second.histograms()).to_bytes() == collected(model, dataset, 1)


def test_memory_does_not_depend_on_the_number_of_samples() -> None:
    model, dataset = digits()
    samples = list(dataset)
    backend = OnnxRuntimeBackend(model, samples[0], 1)
    collector = backend.collector(calibrated_tensors(backend.model))
    sizes = []
    for _ in range(3):
        collector.add(samples, lambda done: None)
        sizes.append(sum(h.bins.nbytes for h in collector.histograms().values()))
    assert len(set(sizes)) == 1
    assert sizes[0] == len(calibrated_tensors(backend.model)) * BINS * 8
    few, many = collected(model, samples, 1), collected(model, samples * 20, 1)
    assert len(many) < 1.3 * len(few)


# On disk


@given(st.dictionaries(st.text(max_size=8), VALUES, max_size=4))
@settings(max_examples=examples(25))
def test_a_state_comes_back_bit_for_bit(tensors: dict[str, list[float]]) -> None:
    state = CalibrationState(
        {"model": "m", "shard": [1, 2]}, ("a", "b"), {n: histogram_of(f32(v)) for n, v in tensors.items()}
    )
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "histograms.npz"
        path.write_bytes(state.to_bytes())
        back = read_state(path)
        assert back.to_bytes() == state.to_bytes()
    assert (back.context, back.samples) == (state.context, state.samples)
    assert list(back.histograms) == list(tensors)
    assert all(same(back.histograms[name], state.histograms[name]) for name in tensors)


def test_damaged_histograms_are_a_data_error_whatever_the_damage(tmp_path: Path) -> None:
    """Of a zip's bytes any may change: its headers, its deflate streams, the headers of the arrays inside."""
    whole = CalibrationState({"a": 1}, ("s",), {"x": histogram_of(np.arange(1000, dtype=np.float32))}).to_bytes()
    path = tmp_path / "histograms.npz"
    rng = random.Random(0)
    refused = 0
    for _ in range(400):
        damaged = bytearray(whole)
        damaged[rng.randrange(len(whole))] ^= 1 << rng.randrange(8)
        path.write_bytes(damaged)
        try:
            back = read_state(path)
        except DataError:
            refused += 1
        else:
            assert back.to_bytes() == whole  # a date in the zip, which nobody reads
    assert refused > 200
    for cut in range(0, len(whole), 50):
        path.write_bytes(whole[:cut])
        with pytest.raises(DataError):
            read_state(path)


def test_other_files_are_no_histograms(tmp_path: Path) -> None:
    np.save(tmp_path / "array.npy", np.zeros(3))
    np.savez(tmp_path / "other.npz", x=np.zeros(3))
    (tmp_path / "text.npz").write_text("hello")
    meta = np.frombuffer(b'{"tensors": ["x"], "samples": [], "context": {}}', np.uint8)
    counts, amax = np.zeros((1, 3), np.int64), np.zeros(1)
    np.savez(tmp_path / "short.npz", meta=meta, bins=np.zeros((1, 8), np.int64), counts=counts, amax=amax)
    np.savez(tmp_path / "negative.npz", meta=meta, bins=np.full((1, BINS), -1), counts=counts, amax=amax)
    np.savez(tmp_path / "list.npz", meta=np.frombuffer(b"[]", np.uint8), bins=counts, counts=counts, amax=amax)
    for name in ("array.npy", "other.npz", "text.npz", "short.npz", "negative.npz", "list.npz", "missing.npz"):
        with pytest.raises(DataError, match=name):
            read_state(tmp_path / name)


def test_zeros_alone_do_not_widen_the_range() -> None:
    """A sample of zeros, and one of 0.001: as one batch of both."""
    apart = Histograms(["x"])
    apart.add("x", f32([0.0]))
    apart.add("x", f32([0.001]))
    assert same(apart["x"], histogram_of(f32([0.0, 0.001])))
    assert exponent_of(0.0) == LEAST
