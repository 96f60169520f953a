"""How steady the reference answers: chaos is told from noise, and quantised models are not called unsteady."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from click.testing import CliRunner
from models import Array, digits, load, proto, sample

from precisionlab.backends.onnxruntime import OnnxRuntimeBackend
from precisionlab.backends.steadiness import steadiness
from precisionlab.cli import cli
from precisionlab.compare.judging import judging_of
from precisionlab.jobs.sweep import sweep
from precisionlab.model import Model
from precisionlab.rewrite.nudge import NudgingCopier, moved_layers, nudged
from precisionlab.search.verdict import State


def logistic(steps: int) -> str:
    """x → 4·x·(1 − x), so often: every step doubles a difference, as the map's Lyapunov exponent is ln 2."""
    nodes = " ".join(f"m{i} = Sub(one, x{i}) p{i} = Mul(x{i}, m{i}) x{i + 1} = Mul(p{i}, four)" for i in range(steps))
    return f"(float[1,256] x0) => (float[1,256] x{steps}) {{ {nodes} }}"


CONSTANTS: dict[str, Array] = {"one": np.float32([1]), "four": np.float32([4])}


def steady(model: Model, samples: list[Any]) -> float:
    backend = OnnxRuntimeBackend(model, samples[0], threads=1)
    return steadiness(backend, judging_of(backend.model), samples).worst("sqnr")


def uniform(shape: tuple[int, ...], seed: int = 0) -> Array:
    return np.random.default_rng(seed).uniform(0.01, 0.99, shape).astype(np.float32)


@pytest.mark.parametrize("steps", [2, 6, 10, 14])
def test_the_figure_is_that_of_float32_numpy(tmp_path: Path, steps: int) -> None:
    x = uniform((1, 256))
    found = steady(load(proto(logistic(steps), CONSTANTS), tmp_path), [sample(x0=x)])

    def through(values: Array) -> Array:
        for _ in range(steps):
            values = values * (np.float32(1) - values) * np.float32(4)
        return values.astype(np.float64)

    before, after = through(x), through(nudged({"x": x})["x"])
    expected = 10 * math.log10(np.sum(before**2) / np.sum((after - before) ** 2))
    assert found == pytest.approx(expected, abs=0.3)


@pytest.mark.slow
def test_chaos_cannot_be_judged_and_nothing_is_searched(tmp_path: Path) -> None:
    """Twenty-two doublings leave no digit of a float32: any verdict would be chance."""
    data = tmp_path / "data"
    data.mkdir()
    onnx.save_model(proto(logistic(22), CONSTANTS), tmp_path / "m.onnx")
    for number in range(8):
        np.savez(data / f"s{number}.npz", x0=uniform((1, 256), number))
    result = sweep(tmp_path / "m.onnx", data, out=tmp_path / "out", threads=1, precisions="fp16")
    (found,) = result.precisions
    assert (found.verdict.state, found.evaluations, found.plan.pins) == (State.NOT_KNOWN, 1, ())
    assert "the float32 model itself answers with" in found.verdict.sentence
    facts = json.loads((tmp_path / "out" / "run.json").read_text())["reference"]["steadiness"]
    assert facts["sqnr_db"] < 20
    assert facts["samples"] == 4
    assert facts["limits"] == ["fp16"]
    assert "Steadiness" in (tmp_path / "out" / "report.html").read_text()
    assert "to a change in the last bits" in (tmp_path / "out" / "summary.md").read_text()
    run = CliRunner().invoke(
        cli,
        ["sweep", str(tmp_path / "m.onnx"), "--data", str(data), "--precisions=fp16", "--out", str(tmp_path / "out")],
    )
    assert run.exit_code == 1
    assert "fp16: not known: the float32 model itself answers" in " ".join(run.stdout.split())


@pytest.mark.slow
def test_a_metric_that_is_not_of_the_values_can_still_judge_it(tmp_path: Path) -> None:
    """Where the class does not hang on the noisy values, top-1 is as good a judge as ever."""
    body = logistic(22).replace("=> (float[1,256] x22)", "=> (float[1,2] y)").removesuffix("}")
    body += " n = Mul(x22, little) s = ReduceMean <axes: ints = [1]> (n) t = Sub(ten, s) "
    body += "y = Concat <axis: int = 1> (s, t) }"
    data = tmp_path / "data"
    data.mkdir()
    constants = {**CONSTANTS, "little": np.float32([1e-3]), "ten": np.float32([10])}
    onnx.save_model(proto(body, constants), tmp_path / "m.onnx")
    for number in range(8):
        np.savez(data / f"s{number}.npz", x0=uniform((1, 256), number))
    result = sweep(
        tmp_path / "m.onnx", data, out=tmp_path / "out", threads=1, precisions="fp16", tolerance="top1>=0.99"
    )
    assert result.precisions[0].verdict.state is State.MET


def test_a_healthy_model_answers_with_its_own_digits() -> None:
    model, dataset = digits()
    assert steady(model, list(dataset)[:4]) > 110


@pytest.mark.slow
def test_the_steadiness_of_a_healthy_model_is_a_detail(tmp_path: Path) -> None:
    """The report and `run.json` have it; the summary begins with what is asked."""
    model, _ = digits()
    result = sweep(model.path, model.path.parent, out=tmp_path / "out", threads=1, precisions="fp16", samples=8)
    assert result.precisions[0].verdict.state is State.MET
    facts = json.loads((tmp_path / "out" / "run.json").read_text())["reference"]["steadiness"]
    assert facts["sqnr_db"] > 110
    assert facts["limits"] == []
    assert "Steadiness" in (tmp_path / "out" / "report.html").read_text()
    assert "last bits" not in (tmp_path / "out" / "summary.md").read_text()


def test_whole_numbers_are_left_alone(tmp_path: Path) -> None:
    """(1 − mask)·−1e9 is 0 for a mask of ones: with the last bit of the mask moved it would be 119."""
    body = (
        "(int64[1,8] ids, float[1,8] mask) => (float[1,8] y) { e = Gather(table, ids) m = Sub(one, mask) "
        "a = Mul(m, far) s = Add(e, a) y = Softmax(s) }"
    )
    table = np.random.default_rng(0).standard_normal(100).astype(np.float32)
    weights = {"table": table, "one": np.float32([1]), "far": np.float32([-1e9])}
    given = sample(ids=np.arange(8)[None] * 3, mask=np.float32([[1, 1, 1, 1, 1, 0, 0, 0]]))
    model = load(proto(body, weights), tmp_path)
    assert 110 < steady(model, [given]) < math.inf
    moved = nudged({"x": np.float32([0, 1, -3, 255, 1e9, np.inf, -np.inf, 0.5, 1.25])})["x"]
    assert np.array_equal(moved[:7], np.float32([0, 1, -3, 255, 1e9, np.inf, -np.inf]))
    assert (moved[7:] != np.float32([0.5, 1.25])).all()


def test_a_moved_value_is_one_unit_off_and_infinities_stay(tmp_path: Path) -> None:
    """The graph's own way to move what adds up, read value by value: sums of one value each."""
    body = "(float[8,1] x) => (float[8,1] y) { y = ReduceSum <keepdims: int = 1> (x, axes) }"
    model = load(proto(body, {"axes": np.array([1])}), tmp_path)
    x = np.float32([0, 1, 7, 0.1, -0.3, 1e-20, 3e38, -np.inf])[:, None]
    given = sample(x=x)
    backend = OnnxRuntimeBackend(model, given, threads=1)
    y = next(backend.references(["y"], [given], NudgingCopier))["y"]
    assert np.array_equal(y[[0, 1, 2, 6, 7]], x[[0, 1, 2, 6, 7]])
    ratio = y[3:6].astype(np.float64) / x[3:6] - 1
    assert np.allclose(np.abs(ratio), 2.0**-23, rtol=0.5)


def test_a_quantised_model_is_not_called_unsteady(tmp_path: Path) -> None:
    """Rounding to int8 turns a last bit into a whole step in few places: the answer as a whole stands."""
    rng = np.random.default_rng(0)
    w = rng.integers(-100, 100, (3, 16, 16)).astype(np.int8)
    body = "(float[4,16] x) => (float[4,16] y) { "
    last = "x"
    for i in range(3):
        body += (
            f"q{i} = QuantizeLinear({last}, s, z) d{i} = DequantizeLinear(q{i}, s, z) "
            f"v{i} = DequantizeLinear(w{i}, t, z) h{i} = MatMul(d{i}, v{i}) r{i} = Relu(h{i}) "
        )
        last = f"r{i}"
    body += f"y = Add({last}, {last}) }}"
    weights: dict[str, Array] = {f"w{i}": w[i] for i in range(3)}
    weights |= {"s": np.float32(0.03), "t": np.float32(0.004), "z": np.int8(0)}
    given = [sample(x=rng.standard_normal((4, 16)).astype(np.float32)) for _ in range(4)]
    assert steady(load(proto(body, weights), tmp_path), given) > 45


def test_a_dynamically_quantised_model_of_few_layers_is_not_called_unsteady(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    body, last = "(float[4,16] x) => (float[4,16] y) { ", "x"
    for i in range(2):
        body += (
            f"q{i}, s{i}, z{i} = DynamicQuantizeLinear({last}) i{i} = MatMulInteger(q{i}, w{i}, z{i}) "
            f"f{i} = Cast <to: int = 1> (i{i}) g{i} = Mul(s{i}, t) h{i} = Mul(f{i}, g{i}) r{i} = Relu(h{i}) "
        )
        last = f"r{i}"
    body += f"y = Add({last}, {last}) }}"
    weights: dict[str, Array] = {f"w{i}": rng.integers(-100, 100, (16, 16)).astype(np.int8) for i in range(2)}
    given = [sample(x=rng.standard_normal((4, 16)).astype(np.float32)) for _ in range(4)]
    assert steady(load(proto(body, {**weights, "t": np.float32(0.004)}), tmp_path), given) > 45


def test_what_stands_behind_a_first_layer_is_not_moved_on_its_own(tmp_path: Path) -> None:
    """Peaks are where x equals the largest of its neighbours: moved each for itself, no value would equal another."""
    body = (
        "(float[1,1,8,8] x) => (float[1,1,8,8] y) { c = Conv <pads: ints = [1,1,1,1]> (x, w) "
        "p = MaxPool <kernel_shape: ints = [3,3], pads: ints = [1,1,1,1]> (c) e = Equal(c, p) "
        "f = Cast <to: int = 1> (e) y = Mul(f, c) }"
    )
    w = np.random.default_rng(0).standard_normal((1, 1, 3, 3)).astype(np.float32)
    model = load(proto(body, {"w": w}), tmp_path)
    assert [model.layer[name].kind for name in moved_layers(model)] == ["Conv"]
    pixels = np.random.default_rng(1).integers(0, 255, (1, 1, 8, 8)).astype(np.float32)
    assert 110 < steady(model, [sample(x=pixels)]) < math.inf


@pytest.mark.newest
def test_sums_are_moved_where_the_onnx_domain_is_written_out_too(tmp_path: Path) -> None:
    graph = proto("(float[1,64] x) => (float[1,1] y) { y = MatMul(x, w) }", {"w": uniform((64, 1), seed=1)})
    whole = [sample(x=np.arange(64, dtype=np.float32).reshape(1, 64))]  # whole numbers: only the sum itself is moved
    figure = steady(load(graph, tmp_path), whole)
    graph.opset_import[0].domain = "ai.onnx"
    assert steady(load(graph, tmp_path), whole) == figure < math.inf
