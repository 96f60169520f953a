"""Samples that run together: the figures of samples by themselves but for last bits, where a model allows it."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st
from models import DIGITS, calibrate, examples, load, proto, sample

from precisionlab.backends.batching import ONE, Batching, batching_of
from precisionlab.backends.device import CPU
from precisionlab.backends.onnxruntime import DEFAULT_BUDGET, OnnxRuntimeBackend
from precisionlab.backends.spread import _chunks
from precisionlab.backends.worker import Wanted
from precisionlab.cli import cli
from precisionlab.compare.comparison import Comparison
from precisionlab.data import Sample
from precisionlab.errors import OptionError
from precisionlab.model import Model
from precisionlab.plan.plan import Pin, PrecisionPlan
from precisionlab.precision import Precision

RNG = np.random.default_rng(0)
NET = """(float[n, 6] x) => (float[n, 3] y, int64[n] best) {
    h = MatMul(x, a)
    r = Relu(h)
    s = Softmax<axis = -1>(r)
    y = MatMul(s, b)
    best = ArgMax<axis = 1, keepdims = 0>(y)
}"""
WEIGHTS = {"a": RNG.normal(size=(6, 5)).astype(np.float32), "b": RNG.normal(size=(5, 3)).astype(np.float32)}


def named(arrays: Sequence[np.ndarray], **more: object) -> list[Sample]:
    return [Sample(f"{i:03}", {"x": a.astype(np.float32), **more}) for i, a in enumerate(arrays)]


def rows(count: int, each: int = 1, width: int = 6) -> list[Sample]:
    return named([RNG.normal(size=(each, width)) for _ in range(count)])


def together(model: Model, samples: Sequence[Sample], size: int, budget: int = DEFAULT_BUDGET) -> OnnxRuntimeBackend:
    backend = OnnxRuntimeBackend(model, samples[0], 2, budget)
    backend.run_together(batching_of(backend.model, size, samples, CPU, budget))
    return backend


def assert_alike(one: Comparison, other: Comparison) -> None:
    """All but last bits: counts are the same, and errors within a hundredth of a dB."""
    assert one.samples == other.samples
    assert one.inherited.keys() == other.inherited.keys()
    pairs = [(one.inherited[name], other.inherited[name]) for name in one.inherited]
    pairs += [(one.introduced[name], other.introduced[name]) for name in one.introduced]
    pairs += [(one.outputs[name].errors, other.outputs[name].errors) for name in one.outputs if "y" in name]
    for a, b in pairs:
        assert a.elements == b.elements
        assert (a.overflow, a.nan, a.inf) == (b.overflow, b.nan, b.inf)
        assert math.isclose(a.ref2, b.ref2, rel_tol=1e-5)
        assert math.isclose(a.err2, b.err2, rel_tol=2e-2, abs_tol=1e-12 * a.ref2)


@pytest.mark.parametrize("precision", [Precision.FP16, Precision.INT8])
@pytest.mark.parametrize("budget", [DEFAULT_BUDGET, 1])
def test_figures_of_batches_are_those_of_samples_by_themselves(
    tmp_path: Path, precision: Precision, budget: int
) -> None:
    model, samples = load(proto(NET, WEIGHTS), tmp_path), rows(11, each=2)
    alone, eight = OnnxRuntimeBackend(model, samples[0], 2, budget), together(model, samples, 8, budget)
    table = calibrate(alone, samples)
    assert eight.batching.size == 8
    low = PrecisionPlan(model.sha256, precision)
    compared = [b.compare(low, table, samples, lambda _: None, metric=None, introduced=True) for b in (alone, eight)]
    assert_alike(*compared)
    for layer in model.layers:
        plan = low.with_pins([Pin(layer.name, layer.nodes, Precision.FP32, "")])
        known = dict(zip((alone, eight), compared, strict=True))
        judged = [b.judge(plan, table, samples, lambda _: None, metric=None, known=known[b]) for b in (alone, eight)]
        assert_alike(*judged)


def test_ranges_of_batches_are_those_of_samples_by_themselves(tmp_path: Path) -> None:
    model, samples = load(proto(NET, WEIGHTS), tmp_path), rows(9)
    tables = [calibrate(b, samples) for b in (OnnxRuntimeBackend(model, samples[0], 1), together(model, samples, 4))]
    for name in tables[0].ranges:
        first, second = (table.scale(name, Precision.INT8) for table in tables)
        assert math.isclose(first, second, rel_tol=1e-6)


@settings(max_examples=examples(60), deadline=None)
@given(st.lists(st.integers(1, 3), max_size=20), st.integers(1, 6))
def test_a_window_is_parted_where_shapes_change_and_nowhere_else(shapes: list[int], size: int) -> None:
    samples = named([np.zeros((1, width)) for width in shapes])
    groups = list(Batching(size).groups(samples))
    assert [one for group in groups for one in group] == samples
    for group in groups:
        places = [samples.index(one) for one in group]
        assert len({place // size for place in places}) == 1
        assert len({one.inputs["x"].shape for one in group}) == 1
    for a, b in itertools.pairwise(groups):
        first, second = samples.index(a[-1]), samples.index(b[0])
        assert first // size != second // size or a[-1].inputs["x"].shape != b[0].inputs["x"].shape


def test_inputs_without_a_batch_are_shared_by_samples_that_have_the_same(tmp_path: Path) -> None:
    model = load(
        proto("(float[n, 2] x, float gain, float[2] bias) => (float[n, 2] y) { s = Mul(x, gain)  y = Add(s, bias) }"),
        tmp_path,
    )
    gains = [1, 1, 2, 2, 2, 3]
    samples = [
        sample(x=RNG.normal(size=(1, 2)).astype(np.float32), gain=np.float32(gain), bias=np.ones(2, np.float32))
        for gain in gains
    ]
    backend = together(model, samples, 4)
    assert {"gain", "bias"} <= backend.batching.shared
    assert [len(group) for group in backend.batching.groups(samples)] == [2, 2, 1, 1]
    found = list(backend.references(["y"], samples))
    for one, values in zip(samples, found, strict=True):
        np.testing.assert_array_equal(values["y"], one.inputs["x"] * one.inputs["gain"] + 1)


REFUSED = {
    "(float[n, 4] x) => (float[n, 4] y) { y = Softmax<axis = 0>(x) }": "y of two samples together is not",
    "(float[n, 4] x) => (float[n, 4] y) { m = ReduceMean<axes = [0]>(x)  y = Sub(x, m) }": "not what they give",
    "(float[n, 4] x) => (float[4, n] y) { y = Transpose<perm = [1, 0]>(x) }": r"\[4, 1\] and \[4, 2\]",
    "(float[n, 4] x) => (float y) { y = ReduceMax<keepdims = 0>(x) }": "samples of a batch are mixed",
    "(float[1, 4] x) => (float[1, 4] y) { y = Neg(x) }": "x at 1",
    "(float[n, 4] x) => (float[1, 4] y) { s = Constant<value = int64[2] {1, 4}>()  y = Reshape(x, s) }": "do not run",
    """(float[n, 4] x, bool c) => (float[n, 4] y) {
        y = If(c) <then_branch = t () => (float[n, 4] p) { p = Neg(x) },
                   else_branch = e () => (float[n, 4] q) { q = Abs(x) }>
    }""": "what their values together say",
    "(float[n, 4] x) => (float y) { z = NonZero(x)  f = Cast<to = 1>(z)  y = ReduceSum<keepdims = 0>(f) }": "NonZero",
}


@pytest.mark.parametrize("body", REFUSED)
def test_a_model_that_mixes_samples_or_has_no_batch_is_refused(tmp_path: Path, body: str) -> None:
    model = load(proto(body), tmp_path)
    more = {"c": np.asarray(True)} if "bool c" in body else {}
    samples = named([RNG.normal(size=(1, 4)) for _ in range(3)], **more)
    with pytest.raises(OptionError, match=REFUSED[body]):
        together(model, samples, 2)


def test_samples_without_a_neighbour_of_their_shape_are_refused_and_one_is_enough(tmp_path: Path) -> None:
    model = load(proto("(float[n, k] x) => (float[n, k] y) { y = Neg(x) }"), tmp_path)
    every = named([np.ones((1, 1 + i)) for i in range(4)])
    with pytest.raises(OptionError, match="no two samples beside each other"):
        together(model, every, 2)
    assert together(model, [*every[:3], every[2]], 2).batching.size == 2
    assert batching_of(model, 1, every, CPU, DEFAULT_BUDGET) is ONE


@settings(max_examples=examples(60), deadline=None)
@given(st.integers(1, 700), st.integers(1, 40))
def test_tasks_of_workers_end_where_batches_do(count: int, together: int) -> None:
    wanted = [Wanted(f"{i}", "", None) for i in range(count)]
    tasks = _chunks(wanted, together)
    assert [one for task in tasks for one in task.samples] == wanted
    assert all(len(task.samples) % together == 0 for task in tasks[:-1])


def test_a_sweep_in_batches_says_so(tmp_path: Path) -> None:
    command = ["sweep", str(DIGITS / "digits.onnx"), "--data", str(DIGITS), "--precisions", "fp16", "--samples", "9"]
    found = CliRunner().invoke(cli, [*command, "--batch", "4", "--no-repair", "--out", str(tmp_path)])
    assert found.exit_code == 0, found.output
    assert "up to 4 samples in one batch" in (tmp_path / "report.html").read_text()
    assert json.loads((tmp_path / "plan.json").read_text())["pins"]


def test_a_batch_below_one_is_refused() -> None:
    found = CliRunner().invoke(cli, ["sweep", str(DIGITS / "digits.onnx"), "--data", str(DIGITS), "--batch", "0"])
    assert found.exit_code == 2
    assert "batch is 0" in found.output
