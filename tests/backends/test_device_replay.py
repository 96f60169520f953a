"""Captured runs: to the same values as ordinary ones, of graphs alone that no value of a sample can lead elsewhere."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from time import sleep
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
from numpy.typing import NDArray
from test_switched import attention, heard, plans
from test_switched import samples as shared_samples

from precisionlab.backends.cuda.arrays import DeviceArray
from precisionlab.backends.cuda.replay import Replays
from precisionlab.backends.cuda.replayable import is_replayable
from precisionlab.backends.device import Cpu, Running
from precisionlab.backends.onnxruntime import OnnxRuntimeBackend
from precisionlab.data import Sample
from precisionlab.errors import ModelError
from precisionlab.precision import Precision
from precisionlab.rewrite.plans import plan_for

WHERE = """(bool pinned, float[n, 4] x) => (float[n, 4] y) {
    low = Cast<to = 10>(x)
    rounded = Cast<to = 1>(low)
    y = Where(pinned, x, rounded)
}"""


def graph(text: str) -> onnx.ModelProto:
    return onnx.parser.parse_model(f'<ir_version: 10, opset_import: ["" : 21, "com.microsoft" : 1]> g {text}')


def copied(array: NDArray[Any]) -> DeviceArray:
    return DeviceArray(ort.OrtValue.ortvalue_from_numpy(array.copy()))


class Host:
    """This machine's memory in the place of a GPU's."""

    def __init__(self, free: int = 1 << 30) -> None:
        self._free, self.filled = free, 0

    def value(self, array: NDArray[Any]) -> DeviceArray:
        return copied(array)

    def empty(self, shape: tuple[int, ...]) -> DeviceArray:
        return copied(np.zeros(shape, np.float32))

    def fill(self, place: DeviceArray, value: DeviceArray | NDArray[Any]) -> None:
        self.filled += 1
        place.value.update_inplace(value.host() if isinstance(value, DeviceArray) else value)

    def free(self) -> int:
        return self._free


class Played:
    """A session of the CPU that binds its captures to their places as one of CUDA does; `spoilt` ones add 1 to them."""

    def __init__(self, text: str, spoilt: int | None = None, refuses: bool = False) -> None:
        self._session = ort.InferenceSession(graph(text).SerializeToString(), providers=["CPUExecutionProvider"])
        self._spoilt, self._refuses = spoilt, refuses
        self.ordinary = self.launched = 0

    def fed(self, name: str, value: Any) -> Any:
        return value

    def run(self, feeds: Mapping[str, Any]) -> dict[str, Any]:
        self.ordinary += 1
        given = {name: v.host() if isinstance(v, DeviceArray) else v for name, v in feeds.items()}
        names = [info.name for info in self._session.get_outputs()]
        found = dict(zip(names, self._session.run(names, given), strict=True))
        return {n: copied(v) if v.dtype == np.float32 else v for n, v in found.items()}

    def captured(
        self, inputs: Mapping[str, DeviceArray], outputs: Mapping[str, DeviceArray], number: int
    ) -> Callable[[], None]:
        if self._refuses:
            raise ModelError("no")
        binding = self._session.io_binding()
        for name, value in inputs.items():
            binding.bind_ortvalue_input(name, value.value)
        for name, value in outputs.items():
            binding.bind_ortvalue_output(name, value.value)
        for info in self._session.get_outputs():
            if info.name not in outputs:
                binding.bind_output(info.name)
        launch = partial(self._launch, binding, outputs)
        launch()
        return launch

    def _launch(self, binding: ort.IOBinding, outputs: Mapping[str, DeviceArray]) -> None:
        self._session.run_with_iobinding(binding)
        if self._spoilt is not None and self.launched >= self._spoilt:
            for value in outputs.values():
                value.value.update_inplace(value.host() + 1)
        self.launched += 1


def values(found: Mapping[str, Any]) -> dict[str, NDArray[Any]]:
    return {name: value.host() if isinstance(value, DeviceArray) else value for name, value in found.items()}


def held_to_ordinary_runs(played: Played, samples: list[NDArray[np.float32]], memory: Host | None = None) -> None:
    replays, ordinary = Replays(played, memory or Host()), Played(WHERE)
    for number, x in enumerate(samples):
        feed = x if number % 2 else copied(x)
        pinned = number % 3 == 0
        found = values(replays.run({"x": feed}, {"pinned": pinned}))
        assert np.array_equal(found["y"], ordinary.run({"x": x, "pinned": np.asarray(pinned)})["y"].host())


def samples(count: int, rows: int = 3) -> list[NDArray[np.float32]]:
    return list(np.random.default_rng(rows).normal(size=(count, rows, 4)).astype(np.float32))


def test_captured_runs_give_what_ordinary_ones_do_whatever_is_switched() -> None:
    played = Played(WHERE)
    held_to_ordinary_runs(played, samples(12))
    assert played.ordinary == 3  # the first of its shape, that which is captured, and one more to check it
    assert played.launched == 11


def test_samples_of_other_shapes_have_captures_of_their_own_and_no_more_than_a_few() -> None:
    mixed = [one for rows in (1, 2, 3, 4, 5, 6) for one in samples(4, rows)]
    played = Played(WHERE)
    held_to_ordinary_runs(played, mixed)
    assert played.launched == 4 * 3
    assert played.ordinary == 4 * 3 + 2 * 4


def test_a_capture_that_gives_another_bit_than_an_ordinary_run_is_one_no_longer() -> None:
    for spoilt in (0, 1):
        played = Played(WHERE, spoilt)
        held_to_ordinary_runs(played, samples(8))
        assert played.ordinary == 8


def test_where_a_run_cannot_be_captured_or_has_no_room_it_runs_as_ever() -> None:
    for played, memory in ((Played(WHERE, refuses=True), Host()), (Played(WHERE), Host(8 * 4 * 12 - 1))):
        held_to_ordinary_runs(played, samples(6), memory)
        assert (played.ordinary, played.launched) == (6, 0)
    played = Played(WHERE)
    held_to_ordinary_runs(played, samples(6), Host(8 * 4 * 12))
    assert played.launched == 5


def test_switches_are_written_only_where_they_change() -> None:
    memory, played = Host(), Played(WHERE)
    replays, (x, *_) = Replays(played, memory), samples(1)
    for pinned in (False, False, False, False, True, True):
        replays.run({"x": x}, {"pinned": pinned})
    assert memory.filled == 4 + 1  # the input of each launch behind the first, and one switch


def test_what_is_no_float32_is_handed_out_as_it_was() -> None:
    played = Played("(float[n, 4] x) => (float[n, 4] y, int64[2] shape) { y = Neg(x)  shape = Shape(x) }")
    replays = Replays(played, Host())
    for x in samples(4):
        assert values(replays.run({"x": x}, {}))["shape"].tolist() == [3, 4]


@pytest.mark.parametrize(
    "text",
    [
        WHERE,
        "(int64[n] ids, float[9, 4] t) => (float[n, 4] y) { y = Gather(t, ids) }",
        # shapes lead to shapes, whatever the values are
        "(float[a, b] x, float[c] z) => (float[a, b] y) { s = Shape(x)  y = Reshape(z, s) }",
        "(float[a, b] x) => (float[b, a] y, int64[2] s) { y = Transpose<perm = [1, 0]>(x)  s = Shape(y) }",
        "(float[a, b] x, int64[2] m) => (float[a, b] y) { k = Cast<to = 1>(m)  y = Add(x, k) }",
    ],
)
def test_a_graph_whose_values_stay_on_the_gpu_can_be_replayed(text: str) -> None:
    assert is_replayable(ir.from_proto(graph(text)))


@pytest.mark.parametrize(
    "text",
    [
        "(float[a] x, int64[k] shape) => (float[b, c] y) { y = Reshape(x, shape) }",
        "(float[a] x, int64[k] shape) => (float[b, c] y) { two = Add(shape, shape)  y = Reshape(x, two) }",
        "(float[a, b] x) => (float[a, b] y) { m = ReduceMax(x)  y = Clip(x, m) }",
        "(float[a] x) => (float[b] y) { i = NonZero(x)  f = Squeeze(i)  y = Gather(x, f) }",
        "(float[a] x) => (int64[b] y) { y = ArgMax(x) }",
        "(float[a] x, int64 n) => (float[b] y) { r = Range(n, n, n)  c = Cast<to = 1>(r)  y = Add(x, c) }",
        "(float[a] x) => (float[a] y) { y = com.microsoft.FastGelu(x) }",
        """(bool c, float[a] x) => (float[a] y) {
            y = If(c) <then_branch = t () => (float[a] p) { p = Neg(x) },
                       else_branch = e () => (float[a] q) { q = Abs(x) }>
        }""",
    ],
)
def test_a_graph_in_which_the_host_reads_values_is_not(text: str) -> None:
    assert not is_replayable(ir.from_proto(graph(text)))


class OnePlace(Cpu):
    """A device whose repeated sessions give their values at one place, which the next run of any thread fills anew."""

    name = "one place"

    def __init__(self) -> None:
        self.runs = 0
        self._places: dict[int, dict[str, NDArray[Any]]] = {}

    def replayed(self, session: Running, switches: Mapping[str, bool]) -> Running:
        return _AtOnePlace(self, session, switches, self._places.setdefault(id(session), {}))


class _AtOnePlace:
    def __init__(
        self, device: OnePlace, session: Running, switches: Mapping[str, bool], place: dict[str, NDArray[Any]]
    ) -> None:
        self._device, self._session, self._place = device, session, place
        self._switches = {name: np.asarray(state) for name, state in switches.items()}

    def run(self, feeds: Mapping[str, Any]) -> dict[str, Any]:
        self._device.runs += 1
        for name, value in self._session.run({**feeds, **self._switches}).items():
            self._place.setdefault(name, np.zeros_like(value))[...] = value
        sleep(1e-4)  # another thread has time to run here
        return dict(self._place)

    def close(self) -> None:
        """Others use it."""


@pytest.mark.parametrize("alike", [True, False])
def test_plans_on_two_threads_do_not_fill_each_others_places(tmp_path: Path, alike: bool) -> None:
    model, every = attention(tmp_path), shared_samples(6)
    words = [5, 5, 5, 5, 5, 5] if alike else [3, 4, 5, 3, 4, 5]
    data = [
        Sample(one.name, {name: array[:, :count] for name, array in one.inputs.items()})
        for one, count in zip(every, words, strict=True)
    ]
    low = plan_for(model, Precision.FP16)
    device = OnePlace()
    backend = OnnxRuntimeBackend(model, data[0], 2, device=device)
    known = backend.compare(low, None, data, heard, metric=None, introduced=False)
    judged = partial(backend.judge, table=None, samples=data, progress=heard, metric=None, known=known)
    wanted = plans(model, Precision.FP16)[:2]
    beside = OnnxRuntimeBackend(model, data[0], 2)
    expected = [
        str({**beside.judge(p, None, data, heard, metric=None, known=known).to_dict(), "seconds": 0}) for p in wanted
    ]
    with ThreadPoolExecutor(2) as pool:
        found = [pool.submit(judged, plan) for plan in wanted * 3]
        texts = [str({**one.result().to_dict(), "seconds": 0}) for one in found]
    assert texts == expected * 3
    assert (device.runs > 0) == alike  # samples of many shapes run side by side
