"""Evaluations with sums in half: in parts, on threads, in processes, and layer by layer, they find the same."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from models import Array, calibrate, load, plan_for, proto

from precisionlab.backends.base import Detail, Evaluation, SensitivityRequest
from precisionlab.backends.memory import Share
from precisionlab.backends.onnxruntime import OnnxRuntimeBackend
from precisionlab.backends.spread import SpreadBackend, source_of
from precisionlab.compare.comparison import Comparison
from precisionlab.compare.judging import judging_of
from precisionlab.compare.sensitivity import merged, to_plain, worst_sqnr
from precisionlab.data import Dataset, open_dataset
from precisionlab.model import Model
from precisionlab.plan.arithmetic import TENSORRT, Arithmetic, Sums
from precisionlab.plan.plan import Pin, PrecisionPlan
from precisionlab.precision import Precision
from precisionlab.system.executors import Processes

FP32, FP16, INT8 = Precision.FP32, Precision.FP16, Precision.INT8
HALF = Arithmetic(sums=Sums.HALF)
BODY = (
    '(float[1,3,8,8] x) => (float[1,5] y) { ["conv"] c = Conv <pads = [1,1,1,1]> (x, k, b) '
    '["norm"] n = BatchNormalization (c, gamma, beta, mean, variance) ["relu"] r = Relu(n) '
    '["beside"] s = Conv (r, one) ["again"] d = Conv <pads = [1,1,1,1]> (r, l) ["residual"] e = Add(d, s) '
    '["soft"] q = Sigmoid(e) ["up"] u = ConvTranspose <strides = [2,2]> (q, t) ["pool"] p = GlobalAveragePool(u) '
    '["flat"] f = Flatten(p) ["fc"] y = Gemm <alpha = 0.5> (f, m, o) }'
)


def normal(*shape: int, seed: int, scale: float = 0.3) -> Array:
    return (np.random.default_rng(seed).standard_normal(shape) * scale).astype(np.float32)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    weights = {
        "k": normal(24, 3, 3, 3, seed=1),
        "b": normal(24, seed=2),
        "gamma": normal(24, seed=3),
        "beta": normal(24, seed=4),
        "mean": normal(24, seed=5),
        "variance": np.ones(24, np.float32),
        "one": normal(24, 24, 1, 1, seed=6),
        "l": normal(24, 24, 3, 3, seed=7),
        "t": normal(24, 8, 2, 2, seed=8),
        "m": normal(8, 5, seed=9),
        "o": normal(5, seed=10),
    }
    return load(proto(BODY, weights), tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def samples(model: Model, tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    folder = tmp_path_factory.mktemp("data")
    for index in range(4):
        np.save(folder / f"{index}.npy", normal(1, 3, 8, 8, seed=index, scale=1.0))
    return open_dataset(folder, model, None, 0).checked()


def backend_for(model: Model, samples: Dataset, threads: int = 1, share: Share | None = None) -> OnnxRuntimeBackend:
    backend = OnnxRuntimeBackend(model, next(iter(samples)), threads)
    if share is not None:
        backend.share = share
    return backend


def compared(backend: OnnxRuntimeBackend | SpreadBackend, plan: PrecisionPlan, samples: Dataset) -> Comparison:
    return backend.compare(plan, None, samples, lambda done: None, metric=None, introduced=True, arithmetic=HALF)


def figures(found: Comparison) -> str:
    """Everything but the time that it took."""
    return repr({name: value for name, value in found.to_dict().items() if name != "seconds"})


def request_of(model: Model, arithmetic: Arithmetic = HALF) -> SensitivityRequest:
    names = tuple(layer.name for layer in model.layers)
    plans = plan_for(model, FP32), plan_for(model, FP16)
    return SensitivityRequest(*plans, names, None, judging_of(model), arithmetic=arithmetic)


def test_sums_in_half_are_worse_than_in_float32_and_without_tensor_cores_worse_yet(
    model: Model, samples: Dataset
) -> None:
    backend, plan = backend_for(model, samples), plan_for(model, FP16)
    worst = []
    for arithmetic in (TENSORRT, HALF, Arithmetic(sums=Sums.HALF_SINGLE)):
        found = backend.compare(
            plan, None, samples, lambda done: None, metric=None, introduced=True, arithmetic=arithmetic
        )
        worst.append(min(errors.sqnr for errors in found.introduced.values()))
    assert worst[0] > worst[1] + 3 > worst[2] + 6


@pytest.mark.slow
def test_parts_in_turn_give_the_figures_of_the_whole(model: Model, samples: Dataset) -> None:
    plan = plan_for(model, FP16)
    whole = compared(backend_for(model, samples), plan, samples)
    share = Share(1 << 30, backend_for(model, samples).budget, 1, 1 << 30)
    assert share.is_parted
    parted = compared(backend_for(model, samples, 2, share), plan, samples)
    assert parted.inherited.keys() == whole.inherited.keys()
    assert parted.introduced.keys() == whole.introduced.keys()
    for kind in ("inherited", "introduced"):
        for name, errors in getattr(whole, kind).items():
            assert math.isclose(getattr(parted, kind)[name].rel_l2, errors.rel_l2, rel_tol=1e-3, abs_tol=1e-7), name


def test_sensitivities_in_parts_are_those_of_the_whole(model: Model, samples: Dataset) -> None:
    whole, parts = (
        merged(list(backend_for(model, samples, 2, share).sensitivities(request_of(model), samples)))
        for share in (None, Share(1 << 30, backend_for(model, samples).budget, 1, 1 << 30))
    )
    assert parts.keys() == whole.keys()
    for name, found in whole.items():
        assert worst_sqnr(parts[name]) == pytest.approx(worst_sqnr(found), abs=0.05), name


@pytest.mark.slow
@pytest.mark.parametrize("budget", [None, 1], ids=["few stages", "every layer its own"])
@pytest.mark.parametrize("way", ["alone", "restored"])
def test_the_sensitivity_to_a_layer_is_what_the_plan_with_that_pin_finds(
    model: Model, samples: Dataset, budget: int | None, way: str
) -> None:
    backend = OnnxRuntimeBackend(model, next(iter(samples)), 1, budget)
    request = request_of(backend.model)
    if way == "restored":
        request = replace(request, plan=request.other, other=request.plan)
    found = merged(list(backend.sensitivities(request, samples)))
    other = merged(list(backend.sensitivities(replace(request, arithmetic=TENSORRT), samples)))
    differ = 0
    for layer in backend.model.layers:
        plan = replace(request.plan, pins=(Pin(layer.name, layer.nodes, request.other.default, "test"),))
        wanted = backend.compare(
            plan, None, samples, lambda done: None, metric=None, introduced=False, arithmetic=HALF
        ).outputs["y"]
        assert wanted.errors is not None
        mine = found[layer.name]["y"].errors
        assert mine.sqnr == pytest.approx(wanted.errors.sqnr, abs=0.01), layer.name
        differ += mine.sqnr != pytest.approx(other[layer.name]["y"].errors.sqnr, abs=0.01)
    assert differ >= 3, "sums in half must show"


@pytest.mark.slow
@pytest.mark.thorough
def test_threads_and_processes_change_no_bit(model: Model, samples: Dataset) -> None:
    plan, one = plan_for(model, FP16), backend_for(model, samples)
    wanted = figures(compared(one, plan, samples))
    sensitivities = [repr(to_plain(part)) for part in one.sensitivities(request_of(model), samples)]
    two = backend_for(model, samples, 2)
    assert figures(compared(two, plan, samples)) == wanted
    assert [repr(to_plain(part)) for part in two.sensitivities(request_of(model), samples)] == sensitivities
    with Processes(2) as pool:
        spread = SpreadBackend(one, source_of(one, samples), pool)
        assert figures(compared(spread, plan, samples)) == wanted
        parts = list(spread.sensitivities(request_of(model), samples))  # of single layers, where processes share them
        assert repr(to_plain(merged(parts))) == repr(to_plain(merged(one.sensitivities(request_of(model), samples))))


def test_int8_with_half_around_adds_up_exactly_and_the_float_products_in_half(tmp_path: Path) -> None:
    body = (
        '(float[4,64] x) => (float[4,4] y) { ["low"] a = MatMul(x, w) ["turn"] b = Transpose(x) '
        '["both"] y = MatMul(a, b) }'
    )
    model = load(proto(body, {"w": normal(64, 64, seed=1)}), tmp_path)
    np.save(tmp_path / "0.npy", normal(4, 64, seed=2, scale=1.0))
    samples = open_dataset(tmp_path, model, None, 0).checked()
    backend = backend_for(model, samples)
    table = calibrate(backend, list(samples))
    pin = Pin("both", model.layer["both"].nodes, FP16, "test")
    plan = PrecisionPlan(model.sha256, INT8, (pin,), FP16)
    found = {
        arithmetic.sums: [
            np.array(result.values[1]["y"])
            for result in backend.results(
                Evaluation(plan, table, Detail.NONFINITE, True, judging_of(model), arithmetic), samples
            )
            if result.values is not None
        ]
        for arithmetic in (HALF, TENSORRT)
    }
    assert not np.array_equal(found[Sums.HALF], found[Sums.FLOAT32])
    assert np.allclose(found[Sums.HALF], found[Sums.FLOAT32], rtol=0.02, atol=0.02)
