"""Where the emulation runs: which devices there are, and that values are only touched by the device that has them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from click.testing import CliRunner
from models import DIGITS, load, proto
from numpy.typing import NDArray

from precisionlab.backends.base import Detail, Evaluation, SensitivityRequest
from precisionlab.backends.device import CPU, Cpu, parse_device
from precisionlab.backends.handed import lookup_tables
from precisionlab.backends.onnxruntime import OnnxRuntimeBackend
from precisionlab.backends.session import Session
from precisionlab.calibration.histogram import Histogram, Histograms
from precisionlab.cli import cli
from precisionlab.compare.errors import ErrorTable
from precisionlab.compare.judging import judging_of
from precisionlab.compare.sensitivity import merged
from precisionlab.data import open_dataset
from precisionlab.errors import EngineError, ModelError, OptionError
from precisionlab.jobs.result import SweepResult
from precisionlab.model import load_model
from precisionlab.plan.plan import PrecisionPlan
from precisionlab.precision import Format, Precision


@pytest.mark.parametrize(("text", "number"), [("cpu", None), ("cuda", 0), ("cuda:0", 0), ("cuda:13", 13)])
def test_devices_are_told_by_name_and_number(text: str, number: int | None) -> None:
    assert parse_device(text) == number


@pytest.mark.parametrize("text", ["", "gpu", "cuda:", "cuda:-1", "cuda:1:2", "CUDA", "cuda:9999"])
def test_another_device_is_refused(text: str) -> None:
    with pytest.raises(OptionError, match="write cpu, cuda or cuda:N"):
        parse_device(text)


LOOKED_UP = """
(int64[n] ids, bool which) => (float[n, 256] y, float[n, 8] z) {
    rows = Gather(table, ids)
    y = If(which) <
        then_branch = then () => (float[n, 256] a) { a = Gather(table, ids) },
        else_branch = other () => (float[n, 256] b) { b = Neg(rows) }
    >
    z = MatMul(rows, weight)
}"""


def test_a_table_that_rows_are_taken_from_is_handed_to_the_session_and_others_are_not(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    table, weight = (rng.standard_normal(shape).astype(np.float32) for shape in ((1100, 256), (256, 8)))
    model = load(proto(LOOKED_UP, {"table": table, "weight": weight}), tmp_path).onnx
    assert list(lookup_tables(model)) == ["table"]
    ids = np.array([5, 1099, 0])
    for which in (True, False):
        found, whole = (
            one.run({"ids": ids, "which": np.array(which)}) for one in (CPU.session(model), Session(model, 1))
        )
        assert np.array_equal(found["y"], table[ids] if which else -table[ids])
        assert np.array_equal(found["z"], whole["z"])
    assert list(model.graph.initializers) == ["weight", "table"]
    assert [value.name for value in model.graph.inputs] == ["ids", "which"]


@pytest.mark.parametrize(
    "body",
    [
        "(int64[n] ids) => (float[n, 256] y, float[1100, 256] z) { y = Gather(table, ids) z = Neg(table) }",
        "(int64[n] ids) => (float[n, 256] y, float[1100, 256] table) { y = Gather(table, ids) }",
    ],
)
def test_what_is_no_table_alone_stays_in_the_graph(tmp_path: Path, body: str) -> None:
    model = load(proto(body, {"table": np.ones((1100, 256), np.float32)}), tmp_path).onnx
    assert not lookup_tables(model)
    assert CPU.session(model).run({"ids": np.array([0])})["y"].shape[0] == 1


@pytest.mark.parametrize("command", [["sweep"], ["calibrate"], ["verify"]])
def test_a_gpu_that_is_not_there_is_told_in_one_sentence(command: list[str], swept_digits: SweepResult) -> None:
    import onnxruntime

    if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        pytest.skip("this ONNX Runtime has a CUDA provider")
    given = [str(DIGITS / "digits.onnx"), "--data", str(DIGITS)]
    if command == ["verify"]:
        given = [f"{swept_digits.folder}/plan.int8.json"]
    found = CliRunner().invoke(cli, [*command, *given, "--device", "cuda"])
    assert found.exit_code == 2
    assert "this ONNX Runtime has no CUDA provider; put onnxruntime-gpu in its place" in found.stderr
    assert "Traceback" not in found.output


# A device whose values cannot be looked at from outside, as those in a GPU's memory cannot


@dataclass
class Sealed:
    """A value that only its device can open."""

    _array: NDArray[Any]


class SealedSession(Session):
    def run(self, feeds: Mapping[str, Any]) -> dict[str, Any]:
        given = {name: value._array if isinstance(value, Sealed) else value for name, value in feeds.items()}
        return {name: Sealed(np.array(array)) for name, array in super().run(given).items()}


class SealedErrors(ErrorTable):
    """Waits until it is told to settle, as kernels do."""

    def __init__(self, formats: Sequence[Format]) -> None:
        super().__init__(len(formats), formats)
        self._waiting: list[tuple[int, Sealed | None, Sealed]] = []

    def add(self, row: int, reference: Any, output: Any) -> None:
        self._waiting.append((row, reference, output))

    def count_nonfinite(self, row: int, output: Any) -> None:
        self._waiting.append((row, None, output))

    def settle(self) -> None:
        for row, reference, output in self._waiting:
            if reference is None:
                super().count_nonfinite(row, output._array)
            else:
                super().add(row, reference._array, output._array)
        self._waiting.clear()

    def result(self) -> ErrorTable:
        assert not self._waiting, "values may have been freed by now"
        return self


class SealedHistograms:
    def __init__(self, names: Iterable[str]) -> None:
        self._inner = Histograms(names)
        self._waiting: list[tuple[str, Any]] = []

    def __getitem__(self, name: str) -> Histogram:
        assert not self._waiting
        return self._inner[name]

    def add(self, name: str, tensor: Any) -> None:
        if isinstance(tensor, Sealed):
            self._waiting.append((name, tensor))
        else:  # one of the model's own inputs
            self._inner.add(name, tensor)

    def add_all(self, tensors: Iterable[tuple[str, Any]]) -> None:
        for name, tensor in tensors:
            self.add(name, tensor)

    def merge(self, name: str, other: Histogram) -> None:
        self._inner.merge(name, other)

    def settle(self) -> None:
        for name, tensor in self._waiting:
            self._inner.add(name, tensor._array)
        self._waiting.clear()


class SealedDevice(Cpu):
    name = "sealed"

    def threads(self, asked: int, each: int) -> int:
        return 1

    def pool(self, threads: int) -> ThreadPoolExecutor:
        return ThreadPoolExecutor(threads)

    def session(self, graph: ir.Model) -> Session:
        return SealedSession(graph, 1)

    def errors(self, formats: Sequence[Format]) -> ErrorTable:
        return SealedErrors(formats)

    def histograms(self, names: Iterable[str]) -> Any:
        return SealedHistograms(names)

    def host(self, value: Any) -> NDArray[Any]:
        return value._array if isinstance(value, Sealed) else np.asarray(value)


@pytest.fixture(scope="module", params=[None, 1])
def both(request: pytest.FixtureRequest) -> tuple[OnnxRuntimeBackend, OnnxRuntimeBackend, list[Any]]:
    """The backend on the CPU and on the sealed device, in one segment and in as many as there are layers."""
    model = load_model(DIGITS / "digits.onnx")
    samples = list(open_dataset(DIGITS, model, 6, 0))
    devices = (CPU, SealedDevice())
    here, there = (OnnxRuntimeBackend(model, samples[0], 2, budget=request.param, device=device) for device in devices)
    return here, there, samples


@pytest.mark.slow
def test_comparisons_elsewhere_are_those_of_the_cpu(both: tuple[OnnxRuntimeBackend, OnnxRuntimeBackend, Any]) -> None:
    here, there, samples = both
    plan = PrecisionPlan(here.model.sha256, Precision.FP16)
    for detail in (Detail.INTRODUCED, Detail.INHERITED, Detail.NONFINITE):
        evaluation = Evaluation(plan, None, detail, True, judging_of(here.model))
        for mine, other in zip(*(b.results(evaluation, samples) for b in (here, there)), strict=True):
            np.testing.assert_array_equal(mine.layers.sums, other.layers.sums)
            np.testing.assert_array_equal(mine.layers.counts, other.layers.counts)
            assert mine.outputs == other.outputs
            assert mine.values is not None
            assert other.values is not None
            for a, b in zip(mine.values, other.values, strict=True):
                assert all(np.array_equal(a[name], b[name], equal_nan=True) for name in a)


def test_histograms_elsewhere_are_those_of_the_cpu(both: tuple[OnnxRuntimeBackend, OnnxRuntimeBackend, Any]) -> None:
    found = []
    for backend in both[:2]:
        names = [info.name for info in backend.model.inputs]
        collector = backend.collector([*names, *(name for layer in backend.model.layers for name in layer.outputs)])
        collector.add(both[2], lambda done: None)
        found.append(collector.histograms())
    for name, expected in found[0].items():
        np.testing.assert_array_equal(found[1][name].bins, expected.bins)
        assert found[1][name].amax == expected.amax


def test_single_layers_elsewhere_do_what_they_do_on_the_cpu(
    both: tuple[OnnxRuntimeBackend, OnnxRuntimeBackend, Any],
) -> None:
    here, there, samples = both
    reference = PrecisionPlan(here.model.sha256, Precision.FP32)
    layers = tuple(layer.name for layer in here.model.layers)
    request = SensitivityRequest(
        reference, PrecisionPlan(here.model.sha256, Precision.FP16), layers, None, judging_of(here.model)
    )
    mine, other = (merged(list(backend.sensitivities(request, samples))) for backend in (here, there))
    assert mine.keys() == other.keys() == set(layers)
    for layer, outputs in mine.items():  # where pooling is added up in another order, the last bits are others
        for output, found in outputs.items():
            figures = [min(each.errors.sqnr, 120.0) for each in (found, other[layer][output])]
            assert figures[0] == pytest.approx(figures[1], abs=0.3)


def test_what_is_looked_at_comes_to_the_host(both: tuple[OnnxRuntimeBackend, OnnxRuntimeBackend, Any]) -> None:
    seen: list[dict[str, NDArray[Any]]] = []
    for backend in both[:2]:
        shown: dict[str, NDArray[Any]] = {}
        backend.look(both[2][:1], shown.__setitem__)
        seen.append(shown)
        wanted = backend.model.outputs[0].name
        assert np.array_equal(backend.reference([wanted])(both[2][0])[wanted], shown[wanted])
    assert seen[0].keys() == seen[1].keys()
    assert all(np.array_equal(seen[0][name], seen[1][name]) for name in seen[0])


def test_the_gpus_kernels_compile() -> None:
    nvrtc = pytest.importorskip("cuda.bindings.nvrtc", reason="cuda-bindings is not installed")
    from precisionlab.backends.cuda.kernels import compiled
    from precisionlab.backends.tensorrt.cuda import GpuFacts

    try:
        nvrtc.nvrtcVersion()
    except RuntimeError:
        pytest.skip("NVRTC is not installed")
    for capability in ((7, 5), (8, 9), (9, 0)):
        image = compiled(GpuFacts("a GPU", capability, 0, "13.0", "13.0"))
        for name in (b"error_sums", b"gather_sums", b"look", b"fill"):
            assert b".entry " + name in image


# What can be wrong with a GPU


def test_a_gpu_beyond_those_that_are_there_is_told_with_their_number(monkeypatch: pytest.MonkeyPatch) -> None:
    from precisionlab.backends.cuda import device

    monkeypatch.setattr(device.ort, "get_available_providers", lambda: [device.PROVIDER])
    monkeypatch.setattr(device.ort, "preload_dlls", lambda: None, raising=False)
    monkeypatch.setattr(device.Cuda, "load", classmethod(lambda cls: object()))
    monkeypatch.setattr(device, "count_of_gpus", lambda: 1)
    with pytest.raises(OptionError, match=r"device cuda:3: this machine has 1 GPU\(s\), counted from cuda:0"):
        device.Gpu(3)


class RefusingNvrtc:
    """NVRTC as cuda-python has it, which compiles nothing."""

    nvrtcResult = SimpleNamespace(NVRTC_SUCCESS=SimpleNamespace(value=0, name="NVRTC_SUCCESS"))  # noqa: N815

    def __init__(self, created: Any) -> None:
        self._created = created

    def nvrtcCreateProgram(self, *_: object) -> tuple[Any, int]:  # noqa: N802
        return self._created, 1

    def nvrtcCompileProgram(self, *_: object) -> tuple[Any]:  # noqa: N802
        return (SimpleNamespace(value=6, name="NVRTC_ERROR_COMPILATION"),)

    def nvrtcGetProgramLogSize(self, _: int) -> tuple[Any, int]:  # noqa: N802
        return self._created, 0

    def nvrtcGetProgramLog(self, *_: object) -> None:  # noqa: N802
        return None

    def nvrtcDestroyProgram(self, _: int) -> None:  # noqa: N802
        return None


def test_kernels_that_cannot_be_compiled_are_told_with_the_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    from precisionlab.backends.cuda import kernels
    from precisionlab.backends.tensorrt.cuda import GpuFacts

    old = GpuFacts("an old GPU", (3, 5), 0, "11.0", "11.0")
    fine = RefusingNvrtc.nvrtcResult.NVRTC_SUCCESS
    monkeypatch.setattr(kernels, "_module", lambda *_: RefusingNvrtc(fine))
    with pytest.raises(EngineError, match="NVRTC cannot compile the kernels for an old GPU"):
        kernels.compiled(old)
    broken = SimpleNamespace(value=1, name="NVRTC_ERROR_OUT_OF_MEMORY")
    monkeypatch.setattr(kernels, "_module", lambda *_: RefusingNvrtc(broken))
    with pytest.raises(EngineError, match="NVRTC failed while it was given the kernels: NVRTC_ERROR_OUT_OF_MEMORY"):
        kernels.compiled(old)


def test_a_part_of_cuda_python_that_is_missing_is_told_with_what_to_install() -> None:
    from precisionlab.backends.cuda import kernels

    with pytest.raises(EngineError, match=r"cuda-python has no nothing here; install it with `pip"):
        kernels._module("nothing", "cuda.nothing")


def test_what_onnx_runtime_cannot_load_or_run_on_a_device_is_told_with_the_device() -> None:
    from precisionlab.backends.real import RealSession, real_device

    with pytest.raises(ModelError, match="ONNX Runtime cannot load the model on cpu: "):
        RealSession(b"no model", real_device("cpu"), optimised=False)
    session = RealSession((DIGITS / "digits.onnx").read_bytes(), real_device("cpu"), optimised=False)
    with pytest.raises(ModelError, match="ONNX Runtime cannot run the model on cpu: "):
        session.run({"image": np.zeros((1, 2), np.float32)})
