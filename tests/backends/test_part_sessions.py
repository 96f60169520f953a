"""A model whose parts take turns: sessions stay as far as there is room, and no figure hangs on which of them do."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from models import calibrate, examples, load, proto
from test_switched import attention, heard, plans, samples

from precisionlab.backends import device as devices
from precisionlab.backends import switched
from precisionlab.backends.base import SensitivityRequest
from precisionlab.backends.branches import Turns
from precisionlab.backends.device import CPU, Running
from precisionlab.backends.memory import UNLIMITED, Share
from precisionlab.backends.onnxruntime import OnnxRuntimeBackend
from precisionlab.backends.part_sessions import PartSessions, staying_in
from precisionlab.backends.stretch_turns import StretchTurns
from precisionlab.backends.switched import has_room_for_sessions, parts_of
from precisionlab.backends.switched_turns import SwitchedTurns
from precisionlab.calibration.table import CalibrationTable
from precisionlab.compare.comparison import Comparison
from precisionlab.compare.judging import judging_of
from precisionlab.compare.sensitivity import Sensitivities, merged, to_plain
from precisionlab.data import Sample
from precisionlab.model import Model
from precisionlab.plan.assign import precision_of
from precisionlab.plan.plan import PrecisionPlan
from precisionlab.precision import Precision
from precisionlab.rewrite.observe import largest_need
from precisionlab.rewrite.plans import plan_for

GB = 1024**3
ROOM = {"none stay": 0, "some stay": 300_000, "all stay": GB}


def backend_of(model: Model, data: Sequence[Sample], share: Share, threads: int = 2) -> OnnxRuntimeBackend:
    backend = OnnxRuntimeBackend(model, data[0], threads)
    backend.share = share
    return backend


def parted(room: int) -> Share:
    """Parts with few weights, and so much for the sessions that stay."""
    return Share(GB, UNLIMITED.segment, 2500, GB if room == 0 else 2 * max(room, 200_000))


@contextmanager
def made_here(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[ir.Model]]:
    """The graphs that sessions are made of meanwhile."""
    found: list[ir.Model] = []
    plain = devices.Cpu.session

    def counted(self: devices.Cpu, graph: ir.Model) -> Running:
        found.append(graph)
        return plain(self, graph)

    with monkeypatch.context() as patch:
        patch.setattr(devices.Cpu, "session", counted)
        yield found


def figures(
    backend: OnnxRuntimeBackend, every: Sequence[PrecisionPlan], table: CalibrationTable | None, data: Sequence[Sample]
) -> list[str]:
    low = every[0].with_pins(())
    return figures_of(
        backend, every, table, data, backend.compare(low, table, data, heard, metric=None, introduced=False)
    )


def figures_of(
    backend: OnnxRuntimeBackend,
    every: Sequence[PrecisionPlan],
    table: CalibrationTable | None,
    data: Sequence[Sample],
    known: Comparison,
) -> list[str]:
    found = (backend.judge(plan, table, data, heard, metric=None, known=known) for plan in every)
    return [str({**one.to_dict(), "seconds": 0}) for one in found]


@pytest.fixture
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(switched, "_LEAST", 3)
    monkeypatch.setattr(switched, "BUILT", 30_000)


@pytest.mark.parametrize("how", ROOM)
@pytest.mark.parametrize("low", [Precision.FP16, Precision.INT8])
def test_plans_of_parts_in_turn_have_the_figures_of_the_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, small_parts: None, low: Precision, how: str
) -> None:
    model, data = attention(tmp_path), samples(5)
    table = calibrate(OnnxRuntimeBackend(model, data[0]), data) if low.is_quantized else None
    every = plans(model, low)
    expected = figures(backend_of(model, data, UNLIMITED), every, table, data)
    backend = backend_of(model, data, parted(ROOM[how]))
    if how == "none stay":
        monkeypatch.setattr(switched, "_SESSIONS", GB)
    assert figures(backend, every, table, data) == expected
    assert backend._switched is not None
    sessions = backend._switched[1]
    assert len(sessions.cut) > 3
    staying = len(sessions._sessions.staying)
    assert (staying > 0, staying == len(sessions.cut)) == {
        "none stay": (False, False), "some stay": (True, False), "all stay": (True, True),
    }[how]  # fmt: skip
    known = backend.compare(every[0].with_pins(()), table, data, heard, metric=None, introduced=False)
    figures_of(backend, every[:1], table, data, known)  # makes those that stay, behind another thing that took memory
    with made_here(monkeypatch) as made:
        assert figures_of(backend, every[1:3], table, data, known) == expected[1:3]
    assert len(made) == 2 * (len(sessions.cut) - staying)


@pytest.mark.parametrize("restored", [False, True])
@pytest.mark.parametrize("count", [1, 5])
def test_layers_are_toggled_in_turn_in_the_sessions_of_plans(
    tmp_path: Path, small_parts: None, restored: bool, count: int
) -> None:
    model, data = attention(tmp_path), samples(count)
    low, float32 = plan_for(model, Precision.FP16), PrecisionPlan(model.sha256, Precision.FP32)
    names = tuple(layer.name for layer in model.layers if precision_of(layer, low) is not Precision.FP32)
    request = SensitivityRequest(*((low, float32) if restored else (float32, low)), names, None, judging_of(model))

    def found(share: Share, threads: int, kind: type[Turns] | None) -> Sensitivities:
        backend = backend_of(model, data, share, threads)
        assert kind is None or isinstance(backend._turns_for(request), kind)
        parts: list[Sensitivities] = list(backend.sensitivities(request, data))
        return merged(parts)

    expected = to_plain(found(UNLIMITED, 2, None))
    for room in ROOM.values():
        for threads in (1, 3):
            assert to_plain(found(parted(room), threads, SwitchedTurns)) == expected


def test_a_model_that_cannot_be_switched_has_graphs_of_its_own_for_each_request(tmp_path: Path) -> None:
    body = "(float[1, 2, 8, 8] x) => (float[1, 2, 8, 8] y) { h = Conv<kernel_shape = [1, 1]>(x, w)  y = Exp(h) }"
    weights = {"w": samples(1)[0].inputs["x"].reshape(-1)[:4].reshape(2, 2, 1, 1)}
    model = load(proto(body, weights), tmp_path)
    data = [Sample("a", {"x": samples(1)[0].inputs["x"].reshape(-1)[:128].reshape(1, 2, 8, 8)})]
    low, float32 = plan_for(model, Precision.FP16), PrecisionPlan(model.sha256, Precision.FP32)
    request = SensitivityRequest(float32, low, tuple(layer.name for layer in model.layers), None, judging_of(model))
    backend = backend_of(model, data, parted(GB))
    assert isinstance(backend._turns_for(request), StretchTurns)
    assert merged(list(backend.sensitivities(request, data))).keys() == set(request.layers)


def test_sessions_stay_where_half_the_room_is_enough_for_a_sample(tmp_path: Path) -> None:
    model = backend_of(attention(tmp_path), samples(1), UNLIMITED).model
    parts = parts_of(model, UNLIMITED.segment, parted(0), CPU)
    each, *_ = largest_need(model, parts, 1, 1)
    for room, is_enough in ((4 * each - 2, False), (4 * each, True)):
        assert has_room_for_sessions(model, UNLIMITED.segment, Share(GB, GB, 2500, room), CPU) == is_enough
    assert has_room_for_sessions(model, UNLIMITED.segment, UNLIMITED, CPU)


@settings(max_examples=examples(100), deadline=None)
@given(st.lists(st.integers(0, 50), max_size=12), st.integers(0, 200))
def test_those_that_stay_fit_and_no_other_would(needs: list[int], room: int) -> None:
    stay = staying_in(needs, room)
    held = sum(needs[index] for index in stay)
    assert held <= room
    assert list(stay) == sorted(set(stay))
    assert all(needs[index] > room - held for index in range(len(needs)) if index not in stay)
    assert staying_in(needs, None) == tuple(range(len(needs)))


def test_a_session_that_does_not_stay_is_made_once_a_turn() -> None:
    made: list[str] = []

    class Counting(devices.Cpu):
        def repeated(self, graph: ir.Model) -> Running:
            made.append(str(graph.graph.name))
            return super().repeated(graph)

    graphs = [ir.from_proto(proto("(float[2] x) => (float[2] y) { y = Neg(x) }")) for _ in range(2)]
    sessions = PartSessions(graphs, [10, 20], 15, Counting())
    assert (sessions.staying, sessions.held, made) == ((0,), 10, [])
    for turn in (1, 2, 3):
        for index in (0, 1):
            assert sessions.at(index) is sessions.at(index)
            sessions.end_turn(index)
        assert len(made) == 1 + turn
    whole = PartSessions(graphs, [10, 20], None, CPU)
    assert whole.staying == (0, 1)
    assert whole.at(1) is whole.at(1)
