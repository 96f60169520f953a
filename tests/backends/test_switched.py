"""Plans that share sessions: to the same bits as with sessions of their own."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
import pytest
from models import calibrate, digits, load, proto

from precisionlab.backends import onnxruntime, switched, walk
from precisionlab.backends.base import SensitivityRequest
from precisionlab.backends.device import CPU, Cpu, Device
from precisionlab.backends.onnxruntime import OnnxRuntimeBackend
from precisionlab.backends.switched import Switchable, SwitchedSessions, can_be_switched
from precisionlab.calibration.blocks import Blocks
from precisionlab.calibration.table import CalibrationTable, block_table
from precisionlab.compare.comparison import Comparison
from precisionlab.compare.judging import judging_of
from precisionlab.compare.sensitivity import Sensitivities, merged, to_plain
from precisionlab.data import Sample
from precisionlab.model import Model
from precisionlab.plan.arithmetic import ONNXRUNTIME, TENSORRT, Arithmetic, Sums
from precisionlab.plan.assign import precision_of
from precisionlab.plan.plan import Pin, PrecisionPlan
from precisionlab.precision import Precision
from precisionlab.rewrite.constants import is_clamped
from precisionlab.rewrite.plans import completed, plan_for

R = np.random.default_rng(20)
ATTENTION = """
(float[batch, words, 16] x, int64[batch, words] ids) => (float[batch, words, 16] y, float[batch, words, 8] z) {
    rows = Gather(table, ids)
    sum = Add(x, rows)
    q = MatMul(sum, wq)
    k = MatMul(sum, wk)
    kt = Transpose<perm = [0, 2, 1]>(k)
    scores = MatMul(q, kt)
    shown = Softmax(scores)
    v = MatMul(shown, q)
    square = Mul(v, v)
    mean = ReduceMean<axes = [2], keepdims = 1>(square)
    root = Sqrt(mean)
    normed = Div(v, root)
    shape = Shape(normed)
    flat = Reshape(normed, shape)
    y = Mul(flat, gain)
    z = MatMul(flat, wz)
}"""


def attention(folder: Path, scale: float = 1.0, rows: int = 9, table: float = 1.0) -> Model:
    weights = {
        name: R.standard_normal((16, 8 if name == "wz" else 16)).astype(np.float32) for name in ("wq", "wk", "wz")
    }
    weights["table"] = R.standard_normal((rows, 16)).astype(np.float32) * np.float32(table)
    weights["gain"] = np.float32([1e-9, *[scale] * 15])
    return load(proto(ATTENTION, weights), folder)


def samples(count: int = 3) -> list[Sample]:
    return [
        Sample(f"s{i}", {"x": R.standard_normal((2, 5, 16)).astype(np.float32), "ids": R.integers(0, 9, (2, 5))})
        for i in range(count)
    ]


def plans(model: Model, low: Precision, rungs: Sequence[Precision] = (Precision.FP32,)) -> list[PrecisionPlan]:
    """The low precision with pins here and there."""
    plan = plan_for(model, low)
    layers = [layer for layer in model.layers if layer.fixed is None]
    chosen = [layers[:1], layers[2:5], layers[::2], layers[1::3], layers]
    return [
        plan.with_pins(Pin(layer.name, layer.nodes, rungs[i % len(rungs)], "") for i, layer in enumerate(some))
        for some in chosen
    ]


def judged(
    model: Model,
    every: Sequence[PrecisionPlan],
    table: CalibrationTable | None,
    data: Sequence[Sample],
    budget: int | None = None,
    arithmetic: Arithmetic = TENSORRT,
    device: Device = CPU,
) -> list[dict[str, object]]:
    return judged_beside(model, every[0].with_pins(()), every, table, data, budget, arithmetic, device)


def judged_beside(
    model: Model,
    low: PrecisionPlan,
    every: Sequence[PrecisionPlan],
    table: CalibrationTable | None,
    data: Sequence[Sample],
    budget: int | None = None,
    arithmetic: Arithmetic = TENSORRT,
    device: Device = CPU,
) -> list[dict[str, object]]:
    """The same, where the variant as it is has pins that it cannot do without."""
    backend = OnnxRuntimeBackend(model, data[0], 2, budget, device=device)
    known = backend.compare(low, table, data, heard, metric=None, introduced=False, arithmetic=arithmetic)

    def figures(plan: PrecisionPlan) -> dict[str, object]:
        found: Comparison = backend.judge(plan, table, data, heard, metric=None, known=known, arithmetic=arithmetic)
        return {**found.to_dict(), "seconds": 0}

    return [figures(plan) for plan in every]


def heard(_: int) -> None:
    """Nobody listens."""


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[PrecisionPlan]:
    """The plans that sessions to share were made for."""
    found: list[PrecisionPlan] = []

    class Counted(SwitchedSessions):
        def __init__(self, model: Model, plan: PrecisionPlan, *more: object) -> None:
            found.append(plan)
            super().__init__(model, plan, *more)

    monkeypatch.setattr(onnxruntime, "SwitchedSessions", Counted)
    return found


@pytest.mark.parametrize("low", [Precision.FP16, Precision.BF16, Precision.INT8])
@pytest.mark.parametrize("budget", [None, 4000])
@pytest.mark.parametrize("scale", [1.0, 1e6])
def test_plans_that_share_their_sessions_have_the_figures_of_sessions_of_their_own(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    made: list[PrecisionPlan],
    low: Precision,
    budget: int | None,
    scale: float,
) -> None:
    model, data = attention(tmp_path, scale), samples()
    table = calibrate(OnnxRuntimeBackend(model, data[0]), data) if low.is_quantized else None
    every = plans(model, low)
    together = judged(model, every, table, data, budget)
    assert len(made) == 1  # for all of them
    monkeypatch.setattr(switched, "can_be_switched", lambda *_: False)
    assert str(together) == str(judged(model, every, table, data, budget))  # NaN is not itself
    assert len(made) == 1
    assert len({str(one["outputs"]) for one in together}) > 2  # the pins do something


def test_a_weight_that_has_no_scale_is_in_float32_in_shared_sessions_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, made: list[PrecisionPlan]
) -> None:
    weights = {"w": R.standard_normal((64, 64)).astype(np.float32), "v": R.standard_normal((64, 32)).astype(np.float32)}
    weights["v"][3, 5] = np.inf
    body = "(float[n, 64] x) => (float[n, 32] y) { [first] a = MatMul(x, w) r = Relu(a) [last] y = MatMul(r, v) }"
    model, table = load(proto(body, weights), tmp_path), block_table(Blocks(32))
    data = [Sample("s", {"x": R.standard_normal((2, 64)).astype(np.float32)})]
    low = completed(model, plan_for(model, Precision.INT4), table)
    assert [pin.layer for pin in low.pins] == ["last"]
    first = Pin("first", ("first",), Precision.FP32, "")
    every = [low.with_pins((*low.pins, *more)) for more in ((), (first,))]
    together = [str(one) for one in judged_beside(model, low, every, table, data)]
    assert len(made) == 1
    monkeypatch.setattr(switched, "can_be_switched", lambda *_: False)
    assert together == [str(one) for one in judged_beside(model, low, every, table, data)]
    assert len(set(together)) == 2


@pytest.mark.parametrize("shared", [False, True])
def test_a_large_table_that_is_clamped_is_judged_with_no_reference_beside(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shared: bool
) -> None:
    model, data = attention(tmp_path, rows=100, table=1e6), samples()
    assert is_clamped(model.onnx.graph.initializers["table"], Precision.FP16)
    if not shared:
        monkeypatch.setattr(switched, "can_be_switched", lambda *_: False)
    low = plan_for(model, Precision.FP16)
    assert len(judged(model, [low, *plans(model, Precision.FP16)], None, data)) == 6


def test_pins_to_other_precisions_are_what_plans_that_share_have_in_common(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, made: list[PrecisionPlan]
) -> None:
    model, data = attention(tmp_path), samples()
    every = plans(model, Precision.FP16, (Precision.FP32, Precision.BF16))
    together = judged(model, every, None, data)
    assert 1 < len(made) <= len(every)
    monkeypatch.setattr(switched, "can_be_switched", lambda *_: False)
    assert together == judged(model, every, None, data)


def test_the_arithmetic_of_another_runtime_is_switched_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, made: list[PrecisionPlan]
) -> None:
    model, data = attention(tmp_path), samples()
    every = plans(model, Precision.FP16)
    together = judged(model, every, None, data, arithmetic=ONNXRUNTIME)
    assert len(made) == 1
    monkeypatch.setattr(switched, "can_be_switched", lambda *_: False)
    assert together == judged(model, every, None, data, arithmetic=ONNXRUNTIME)


class Elsewhere(Cpu):
    """A device that is not the CPU: what is chosen there is values, and not branches."""

    name = "elsewhere"


def test_what_branches_would_change_has_sessions_of_its_own(tmp_path: Path) -> None:
    model = attention(tmp_path)
    base = plan_for(model, Precision.FP16)
    assert can_be_switched(model, base, TENSORRT, CPU)
    assert can_be_switched(model, base, TENSORRT, Elsewhere())
    assert not can_be_switched(model, base, Arithmetic(sums=Sums.HALF), CPU)  # cut at products
    convolutions, _ = digits()
    base = plan_for(convolutions, Precision.FP16)
    assert not can_be_switched(convolutions, base, TENSORRT, CPU)
    assert can_be_switched(convolutions, base, TENSORRT, Elsewhere())


def test_what_can_be_said_of_a_base_is_asked_once_for_all_its_plans(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, asked, real = attention(tmp_path), list[PrecisionPlan](), switched.can_be_switched
    monkeypatch.setattr(switched, "can_be_switched", lambda m, base, *rest: asked.append(base) or real(m, base, *rest))
    together = Switchable(model, Elsewhere())
    bases = [plan_for(model, low) for low in (Precision.FP16, Precision.BF16)]

    assert all(
        together.is_shared(base, pinned, TENSORRT)
        for base in bases
        for pinned in ([], [layer.name for layer in model.layers])
    )
    assert asked == bases


@pytest.mark.parametrize("low", [Precision.FP16, Precision.BF16, Precision.INT8])
@pytest.mark.parametrize("kind", ["attention", "convolutions"])
def test_on_another_device_values_are_chosen_to_the_same_bits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, made: list[PrecisionPlan], low: Precision, kind: str
) -> None:
    monkeypatch.setattr(onnxruntime, "CPU", Elsewhere())  # so that memory is parted as on one
    if kind == "attention":
        model, data = attention(tmp_path), samples()
    else:
        model, dataset = digits()
        data = list(dataset)[:3]
    table = calibrate(OnnxRuntimeBackend(model, data[0]), data) if low.is_quantized else None
    every = plans(model, low)
    device = Elsewhere()
    together = judged(model, every, table, data, device=device)
    assert len(made) == 1
    monkeypatch.setattr(switched, "can_be_switched", lambda *_: False)
    own = judged(model, every, table, data, device=device)
    if kind == "attention":
        assert together == own
    else:  # a CPU adds up a pooling in another order where a value beside it is chosen
        for one, other in zip(together, own, strict=True):
            found, beside = (Comparison.from_dict(each).outputs for each in (one, other))
            for output in found:
                figures = [min(each[output].errors.sqnr, 120.0) for each in (found, beside)]
                assert figures[0] == pytest.approx(figures[1], abs=0.3)


def test_a_pinned_layer_with_bodies_has_sessions_of_its_own(tmp_path: Path, made: list[PrecisionPlan]) -> None:
    text = """
        (float[4, 8] x, bool c) => (float[4, 8] y) {
            h = MatMul(x, w)
            r = If(c) <
                then_branch = a () => (float[4, 8] t) { t = Mul(h, h) },
                else_branch = b () => (float[4, 8] e) { e = Add(h, h) }
            >
            y = MatMul(r, w)
        }"""
    model: onnx.ModelProto = proto(text, {"w": R.standard_normal((8, 8)).astype(np.float32)})
    loaded = load(model, tmp_path)
    data = [Sample("a", {"x": R.standard_normal((4, 8)).astype(np.float32), "c": np.asarray(True)})]
    every = plans(loaded, Precision.FP16)
    assert len(judged(loaded, every, None, data)) == len(every)
    assert not made


def sensitivities(
    model: Model, low: PrecisionPlan, table: CalibrationTable | None, data: Sequence[Sample], *, restored: bool
) -> list[Sensitivities]:
    plans = (PrecisionPlan(model.sha256, Precision.FP32), low)
    layers = tuple(layer.name for layer in model.layers if precision_of(layer, low) is not Precision.FP32)
    request = SensitivityRequest(*(plans[::-1] if restored else plans), layers, table, judging_of(model))
    found: list[Sensitivities] = list(OnnxRuntimeBackend(model, data[0], 2).sensitivities(request, data))
    assert set(merged(found)) == set(layers)
    return found


@pytest.mark.parametrize("low", [Precision.FP16, Precision.INT8])
@pytest.mark.parametrize("restored", [False, True])
def test_layers_are_toggled_in_shared_sessions_as_in_stages_of_their_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, made: list[PrecisionPlan], low: Precision, restored: bool
) -> None:
    model, data = attention(tmp_path), samples()
    table = calibrate(OnnxRuntimeBackend(model, data[0]), data) if low.is_quantized else None
    plan = plan_for(model, low)
    shared = sensitivities(model, plan, table, data, restored=restored)
    assert len(made) == 1
    monkeypatch.setattr(switched, "can_be_switched", lambda *_: False)
    own = sensitivities(model, plan, table, data, restored=restored)
    for one, other in zip((merged(part) for part in (shared, own)), (merged(own), merged(shared)), strict=True):
        for name, outputs in one.items():
            for output, sensitivity in outputs.items():
                beside = other[name][output].errors.sqnr
                assert sensitivity.errors.sqnr == pytest.approx(beside, abs=0.01) or min(beside, 1e9) > 120


@pytest.mark.parametrize("kind", ["switched", "with branches", "elsewhere"])
@pytest.mark.parametrize("room", [1, 1000])
def test_however_many_layers_wait_between_parts_and_on_whatever_threads_the_bits_are_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, room: int, kind: str
) -> None:
    model, data = attention(tmp_path), samples()
    device = Elsewhere() if kind == "elsewhere" else CPU
    if kind == "with branches":
        monkeypatch.setattr(switched, "can_be_switched", lambda *_: False)
    monkeypatch.setattr(switched, "_LEAST", 2)
    plans = PrecisionPlan(model.sha256, Precision.FP32), plan_for(model, Precision.FP16)
    names = tuple(layer.name for layer in model.layers if precision_of(layer, plans[1]) is not Precision.FP32)
    request = SensitivityRequest(*plans, names, None, judging_of(model))
    expected = merged(list(OnnxRuntimeBackend(model, data[0], 1, device=device).sensitivities(request, data)))

    monkeypatch.setattr(walk, "_ROOM", room)
    monkeypatch.setattr(walk, "_ON_GPU", min(room, 4))

    for threads in (1, 3):
        backend = OnnxRuntimeBackend(model, data[0], threads, device=device)
        found = list(backend.sensitivities(request, data))
        assert backend._ranking is not None
        assert to_plain(merged(found)) == to_plain(expected)


def test_a_layer_that_changes_nothing_has_no_effect_at_all(tmp_path: Path) -> None:
    model, data = attention(tmp_path), samples(1)
    found = merged(sensitivities(model, plan_for(model, Precision.FP16), None, data, restored=False))
    errors = {name: {output: one.errors.err2 for output, one in outputs.items()} for name, outputs in found.items()}
    assert errors["node_of_z"]["y"] == 0
    assert errors["node_of_z"]["z"] > 0
    assert errors["node_of_y"] == {"y": errors["node_of_y"]["y"], "z": 0}
