"""Engines are fed, run, read and timed as TensorRT and CUDA want it; whose fault an error is, and what to do, is told.

No GPU is here. The CUDA runtime's functions are held against the real cuda-python of three generations, which import
without a driver; the output allocator is driven through the vtables of the real bindings; and that each attribute of
TensorRT exists in each version, test_trt_conformance.py shows. For running, there is a CUDA whose memory is the host's,
and `gpu/stub.py` in TensorRT's place. `gpu/check_cuda.py` holds the same code against a real GPU.
"""

from __future__ import annotations

import ast
import gc
import json
import os
import pickle
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from bindings.cudapython import PACKAGES as CUDA_PYTHONS
from bindings.cudapython import cuda_python, unsupported
from bindings.versions import ROOT, TensorRT, parameters
from gpu import stub
from gpu.hostcuda import CudaError, FakeCudart
from gpu.stub import DataType, Spec, StubTensorRT, Tensor, TensorLocation
from hypothesis import given
from hypothesis import strategies as st
from models import DIGITS
from numpy.typing import NDArray
from rtx import drive, needs_rtx

from precisionlab.backends.tensorrt import cuda as cuda_module
from precisionlab.backends.tensorrt.api import RTX as RTX_MODULE
from precisionlab.backends.tensorrt.api import load_tensorrt
from precisionlab.backends.tensorrt.buffers import Buffers, HostBuffers, as_dtype, numpy_dtype, take_into
from precisionlab.backends.tensorrt.buildlog import layers_of
from precisionlab.backends.tensorrt.cuda import Cuda, Event, Stream, address_of
from precisionlab.backends.tensorrt.execution import Engine
from precisionlab.backends.tensorrt.jobs import EngineLayer, EngineTensor, Watch
from precisionlab.backends.tensorrt.latency import Group, measure, measure_layers, times_of_layers
from precisionlab.backends.tensorrt.listener import make_listener
from precisionlab.backends.tensorrt.logger import LogKeeper
from precisionlab.errors import DataError, EngineError
from precisionlab.model import Layer, Model

SOURCES = ROOT / "precisionlab" / "backends" / "tensorrt"
FLOAT32, FLOAT16, INT32, INT64 = (np.dtype(kind) for kind in (np.float32, np.float16, np.int32, np.int64))
BFLOAT16 = np.dtype(ml_dtypes.bfloat16)

# A CUDA whose memory is the host's: gpu/hostcuda.py


@pytest.fixture
def cudart() -> FakeCudart:
    return FakeCudart()


@pytest.fixture
def cuda(cudart: FakeCudart) -> Cuda:
    return Cuda(cudart)


class Logger:
    """TensorRT's logger, for a `LogKeeper`."""

    def __init__(self, keeper: LogKeeper) -> None:
        self.keeper = keeper

    def log(self, severity: str, text: str) -> None:
        self.keeper.take(severity, text)


@pytest.fixture
def load(cuda: Cuda, cudart: FakeCudart, tmp_path: Path) -> Iterator[Callable[[Spec], Engine]]:
    """Loads a stand-in's engine; closes it in the end, and sees that nothing is left."""
    loaded: list[Engine] = []

    def engine(spec: Spec) -> Engine:
        path = tmp_path / "digits.engine"
        path.write_bytes(b"engine")
        keeper = LogKeeper()
        keeper.take("ERROR", "from an earlier build")
        loaded.append(Engine(StubTensorRT(cudart, {b"engine": spec}), cuda, Logger(keeper), path, keeper))
        return loaded[-1]

    yield engine
    for one in loaded:
        one.close()
    assert (cudart.held, cudart.open) == (0, 0)


def doubled(*, dtype: DataType = DataType.FLOAT, shape: tuple[int, ...] = (2, 3)) -> Spec:
    """y = 2x."""
    kind = stub.NUMPY[dtype]
    return Spec([Tensor("x", shape)], [Tensor("y", shape, dtype)], lambda v: {"y": (v["x"] * 2).astype(kind)})


# The real cuda-python


@cache
def real(version: str) -> dict[str, Any]:
    """What one version of cuda-python has, and what our code makes of it where no GPU can be seen."""
    done = subprocess.run(
        [sys.executable, str(ROOT / "tests" / "bindings" / "cudart.py")],
        env={**os.environ, "PYTHONPATH": f"{cuda_python(version)}{os.pathsep}{ROOT}", "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def names_of_cuda() -> tuple[dict[str, set[int]], set[str]]:
    """What our source asks of the CUDA runtime: functions with the number of arguments, and all other names."""
    calls: dict[str, set[int]] = {}
    others: set[str] = set()
    for path in SOURCES.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and _is_cudas(node.func.attr):
                assert not node.keywords
                calls.setdefault(node.func.attr, set()).add(len(node.args))
            elif isinstance(node, ast.Attribute) and _is_cudas(node.attr):
                others.add(node.attr)
    return calls, others - set(calls)


def _is_cudas(name: str) -> bool:
    return name.startswith("cuda") and name[4:5].isupper()


@pytest.mark.skipif(unsupported() is not None, reason=str(unsupported()))
class TestRealCudaPython:
    @pytest.mark.parametrize("version", CUDA_PYTHONS)
    def test_has_every_function_with_as_many_arguments_and_every_enumeration_that_we_use(self, version: str) -> None:
        found = real(version)
        calls, others = names_of_cuda()
        assert {"cudaMalloc", "cudaMemcpy", "cudaEventElapsedTime", "cudaGetErrorName"} <= set(calls)
        assert {"cudaError_t", "cudaErrorNoDevice", "cudaMemcpyDefault", "cudaMemcpyKind"} <= others
        for name, counts in calls.items():
            assert counts == {len(found["functions"][name])}, name
        known = {*found["enums"], *(member for members in found["enums"].values() for member in members)}
        assert others - known == set()

    @pytest.mark.parametrize("version", CUDA_PYTHONS)
    def test_the_tests_own_cuda_has_nothing_that_the_real_one_lacks(self, version: str) -> None:
        found = real(version)
        for name in filter(_is_cudas, vars(FakeCudart)):
            ours = getattr(FakeCudart, name)
            if isinstance(ours, type):
                assert set(ours.__members__) <= set(found["enums"][name])
            else:
                assert ours.__code__.co_argcount - 1 == len(found["functions"][name]), name

    @pytest.mark.parametrize("version", CUDA_PYTHONS)
    def test_without_a_gpu_it_says_what_is_missing_and_what_to_do(self, version: str) -> None:
        assert real(version)["module"] == ("cuda.cudart" if version == "12.1.0" else "cuda.bindings.runtime")
        refused = real(version)["refused"]
        assert "no NVIDIA" in refused
        assert "`nvidia-smi`" in refused
        assert "`--backend onnxruntime`" in refused

    @pytest.mark.parametrize("version", CUDA_PYTHONS)
    def test_results_are_checked_and_errors_told_by_name(self, version: str) -> None:
        assert real(version)["checked"] == [7, 8]
        assert real(version)["told"].startswith("the GPU failed while it was tried: cudaErrorInvalidValue")
        assert real(version)["handles"] == [0, 0]  # a handle becomes the number that TensorRT wants


class TestCuda:
    def test_what_the_gpu_is(self, cuda: Cuda) -> None:
        device = cuda.device()
        assert str(device) == "Test GPU, compute capability 8.9, driver for CUDA 12.8"
        assert (device.compute_capability, device.memory, device.runtime) == ((8, 9), 1 << 30, "12.9")

    def test_the_devices_words_do_not_change_with_what_else_runs(self, cuda: Cuda) -> None:
        before = str(cuda.device())
        cuda.allocate(1 << 20)
        assert cuda.memory() == ((1 << 30) - (1 << 20), 1 << 30)
        assert str(cuda.device()) == before

    @pytest.mark.parametrize(
        ("state", "text"),
        [
            ({"devices": 0}, "no NVIDIA GPU can be seen; check it with `nvidia-smi` and look at CUDA_VISIBLE_DEVICES"),
            ({"error": CudaError.cudaErrorNoDevice}, "no NVIDIA GPU can be seen"),
            ({"error": CudaError.cudaErrorInsufficientDriver, "driver": 0}, "no NVIDIA driver is here"),
            (
                {"error": CudaError.cudaErrorInsufficientDriver, "driver": 12020, "runtime": 13010},
                "driver can do CUDA 12.2, the installed cuda-python needs 13.1: update the driver, "
                'or `pip install "cuda-python<13"`',
            ),
            ({"error": CudaError.cudaErrorIllegalAddress}, "cudaErrorIllegalAddress (something went wrong)"),
        ],
    )
    def test_why_there_is_no_gpu(self, cudart: FakeCudart, state: dict[str, Any], text: str) -> None:
        for name, value in state.items():
            setattr(cudart, name, value)
        with pytest.raises(EngineError) as raised:
            Cuda(cudart).need_gpu()
        assert text in str(raised.value)

    def test_a_gpu_that_is_there_is_taken(self, cuda: Cuda) -> None:
        cuda.need_gpu()

    def test_no_memory_is_told_with_how_much_there_is_and_not_left_for_tensorrt_to_find(
        self, cuda: Cuda, cudart: FakeCudart
    ) -> None:
        cuda.allocate(3 << 28)
        with pytest.raises(EngineError) as raised:
            cuda.allocate(1 << 29)
        assert "512.0 MiB of its memory were taken: cudaErrorMemoryAllocation (out of memory)" in str(raised.value)
        assert "256.0 MiB of 1.0 GiB are free; end other programs" in str(raised.value)
        assert cudart.cudaGetLastError() == (CudaError.cudaSuccess,)

    def test_an_error_of_queued_work_comes_up_at_the_wait(self, cuda: Cuda, cudart: FakeCudart) -> None:
        with Stream(cuda) as stream:
            cudart.broken = CudaError.cudaErrorIllegalAddress
            with pytest.raises(EngineError, match="cudaErrorIllegalAddress"):
                stream.wait()
        assert cudart.open == 0

    def test_events_take_the_time_between_them(self, cuda: Cuda, cudart: FakeCudart) -> None:
        with Stream(cuda) as stream, Event(cuda) as start, Event(cuda) as end:
            start.record(stream)
            cudart.clock += 1.25
            end.record(stream)
            end.wait()
            assert end.since(start) == 1.25
        assert cudart.open == 0

    @pytest.mark.parametrize(
        ("failures", "text"),
        [
            ({}, "cuda-python is not installed; install the one that `precisionlab doctor` names here, such as `pip"),
            ({"cuda.bindings.runtime": ImportError("libfoo.so: no such file")}, "cannot be loaded: libfoo.so"),
            ({"cuda.cudart": ImportError("libold.so: no such file")}, "cannot be loaded: libold.so"),
        ],
    )
    def test_why_cuda_python_cannot_be_loaded(
        self, monkeypatch: pytest.MonkeyPatch, failures: dict[str, ImportError], text: str
    ) -> None:
        def find(name: str) -> ModuleType:
            raise failures.get(name, ModuleNotFoundError(f"No module named {name!r}", name=name))

        monkeypatch.setattr(cuda_module.importlib, "import_module", find)
        with pytest.raises(EngineError) as raised:
            Cuda.load()
        assert text in str(raised.value)


class TestTypes:
    @pytest.mark.parametrize(
        ("name", "dtype"),
        [("FLOAT", FLOAT32), ("HALF", FLOAT16), ("BF16", BFLOAT16), ("INT32", INT32), ("INT64", INT64)],
    )
    def test_tensorrts_types_in_numpy(self, name: str, dtype: np.dtype[Any]) -> None:
        assert numpy_dtype(name, "y") == dtype

    @pytest.mark.parametrize("name", ["FP8", "INT4", "FP4", "E8M0"])
    def test_types_that_numpy_lacks_are_refused_with_the_tensors_name(self, name: str) -> None:
        with pytest.raises(EngineError, match=f"'y' of the engine is {name}, which cannot be read"):
            numpy_dtype(name, "y")

    @needs_rtx
    def test_every_type_of_tensorrt_has_its_numpy_type_or_is_refused(self) -> None:
        trt = load_tensorrt(RTX_MODULE)
        refused = set()
        for name, member in trt.DataType.__members__.items():
            try:
                ours = numpy_dtype(name, "y")
            except EngineError:
                refused.add(name)
                continue
            assert ours.itemsize == member.itemsize
            if name != "BF16":
                assert ours == np.dtype(trt.nptype(member))
        assert refused == {"FP8", "INT4", "FP4", "E8M0"}

    @pytest.mark.parametrize(
        ("values", "dtype"),
        [
            (np.array([-(2**31), 2**31 - 1], np.int64), INT32),
            (np.array([0, 255], np.int64), np.dtype(np.uint8)),
            (np.array([1.5, np.nan, np.inf, -0.0], np.float64), FLOAT32),
            (np.array([0.5, 65504, np.inf], np.float32), FLOAT16),
            (np.array([0.5, 3e38, np.nan], np.float32).astype(BFLOAT16), FLOAT32),
            (np.array([1.0, 2.0, np.nan], np.float32), BFLOAT16),
            (np.array([1.0, 2.0], ">f4"), FLOAT32),
            (np.array(7, np.int64), INT32),
            (np.empty((0, 3), np.int64), INT32),
        ],
    )
    def test_values_that_fit_are_converted(self, values: NDArray[Any], dtype: np.dtype[Any]) -> None:
        found = as_dtype(values, dtype, "input 'x'")
        assert (found.dtype, found.shape) == (dtype, values.shape)
        np.testing.assert_array_equal(found.astype(np.float64), values.astype(np.float64))

    @pytest.mark.parametrize(
        ("values", "dtype", "told"),
        [
            (np.array([1, 2**31], np.int64), INT32, "2147483648"),
            (np.array([-1], np.int64), np.dtype(np.uint64), "-1"),
            (np.array([2**63], np.uint64), INT64, "9223372036854775808"),
            (np.array([1, 0.1]), FLOAT32, "0.1"),
            (np.array([1e39]), FLOAT32, "1e+39"),
            (np.array([70000], np.float32), FLOAT16, "70000.0"),
            (np.array(2**40, np.int64), INT32, "1099511627776"),
        ],
    )
    def test_a_value_that_does_not_fit_is_told(self, values: NDArray[Any], dtype: np.dtype[Any], told: str) -> None:
        with pytest.raises(DataError) as raised:
            as_dtype(values, dtype, "input 'x'")
        assert str(raised.value).startswith(f"input 'x' has {told}, which is no {dtype}")

    @pytest.mark.parametrize(
        ("values", "dtype"),
        [
            (np.array([1.0]), INT32),
            (np.array([1]), FLOAT32),
            (np.array([True]), INT32),
            (np.array([1]), np.dtype(np.bool_)),
            (np.array(["a"]), FLOAT32),
            (np.array([None]), FLOAT32),
        ],
    )
    def test_another_kind_of_type_is_refused(self, values: NDArray[Any], dtype: np.dtype[Any]) -> None:
        with pytest.raises(DataError, match=r"input 'x' is \S+; the engine takes \S+: convert it"):
            as_dtype(values, dtype, "input 'x'")

    def test_what_fits_already_is_only_made_contiguous(self) -> None:
        array = np.arange(6, dtype=np.float32).reshape(2, 3)
        assert as_dtype(array, FLOAT32, "x") is array
        turned = as_dtype(array.T, FLOAT32, "x")
        assert turned.flags.c_contiguous
        np.testing.assert_array_equal(turned, array.T)


ARRAYS = {
    "plain": np.arange(24, dtype=np.float32).reshape(2, 3, 4),
    "transposed": np.arange(24, dtype=np.float32).reshape(2, 3, 4).T,
    "every other": np.arange(24)[::2],
    "reversed": np.arange(5, dtype=np.int8)[::-1],
    "bool": np.array([True, False, True]),
    "bfloat16": np.array([1.5, -2.0], BFLOAT16),
    "scalar": np.array(3.5, np.float32),
    "empty": np.empty((0, 4), np.float32),
}


class TestMemory:
    @pytest.mark.parametrize("name", ARRAYS)
    @pytest.mark.parametrize("where", ["gpu", "host"])
    def test_arrays_come_back_as_they_went(self, cuda: Cuda, name: str, where: str) -> None:
        memory = Buffers(cuda) if where == "gpu" else HostBuffers()
        address = memory.upload("x", ARRAYS[name])
        assert address > 0
        assert address % 256 == 0
        back = memory.download("x", ARRAYS[name].dtype, ARRAYS[name].shape)
        assert back.shape == ARRAYS[name].shape
        assert back.tobytes() == ARRAYS[name].tobytes()

    @pytest.mark.parametrize("where", ["gpu", "host"])
    def test_an_address_is_kept_until_more_is_wanted(self, cuda: Cuda, where: str) -> None:
        memory = Buffers(cuda) if where == "gpu" else HostBuffers()
        first = memory.reserve("x", 1000)
        assert memory.reserve("x", 10) == memory.reserve("x", 1000) == first
        memory.upload("x", np.ones(5000, np.float32))
        assert memory.download("x", FLOAT32, (5000,)).sum() == 5000
        assert memory.reserve("y", 10) != memory.reserve("x", 10)

    def test_what_is_outgrown_is_given_back_before_more_is_taken(self) -> None:
        cudart = FakeCudart(room=10_000)
        with Buffers(Cuda(cudart)) as buffers:
            buffers.reserve("x", 6000)
            buffers.reserve("x", 8000)
            assert cudart.held == 8000
        assert cudart.held == 0

    def test_after_no_memory_the_rest_is_still_given_back(self) -> None:
        cudart = FakeCudart(room=10_000)
        with Buffers(Cuda(cudart)) as buffers:
            buffers.reserve("y", 500)
            buffers.reserve("x", 6000)
            with pytest.raises(EngineError, match="out of memory"):
                buffers.reserve("x", 80_000)
            buffers.reserve("x", 100)
        assert cudart.held == 0

    @pytest.mark.parametrize("where", ["gpu", "host"])
    def test_no_more_is_read_than_was_written(self, cuda: Cuda, where: str) -> None:
        memory = Buffers(cuda) if where == "gpu" else HostBuffers()
        memory.reserve("x", 1000)
        for name, elements in (("x", 251), ("y", 1)):
            with pytest.raises(EngineError, match=f"'{name}' has {4 * elements} bytes"):
                memory.download(name, FLOAT32, (elements,))

    @given(st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 3000)), max_size=20))
    def test_names_never_share_memory(self, wishes: list[tuple[str, int]]) -> None:
        cudart = FakeCudart()
        with Buffers(Cuda(cudart)) as buffers:
            held: dict[str, NDArray[Any]] = {}
            for number, (name, size) in enumerate(wishes):
                held[name] = np.full(size, number, np.uint8)
                buffers.upload(name, held[name])
            for name, array in held.items():
                np.testing.assert_array_equal(buffers.download(name, array.dtype, array.shape), array)
        assert cudart.held == 0


# Engines


class TestRun:
    def test_what_goes_in_comes_out_computed(self, load: Callable[[Spec], Engine]) -> None:
        engine = load(doubled())
        x = np.arange(6, dtype=np.float32).reshape(3, 2).T
        for _ in range(2):
            outputs = engine.run({"x": x})
            assert outputs["y"].dtype == np.float32
            np.testing.assert_array_equal(outputs["y"], 2 * x)

    @pytest.mark.parametrize("dtype", [DataType.HALF, DataType.BF16])
    def test_outputs_have_the_engines_type_and_can_be_sent(
        self, load: Callable[[Spec], Engine], dtype: DataType
    ) -> None:
        outputs = load(doubled(dtype=dtype)).run({"x": np.full((2, 3), 0.1, np.float32)})
        assert outputs["y"].dtype == stub.NUMPY[dtype]
        sent = pickle.loads(pickle.dumps(outputs))["y"]
        np.testing.assert_array_equal(sent.astype(np.float32), np.full((2, 3), 0.2, stub.NUMPY[dtype]), strict=False)

    def test_int64_goes_into_an_engine_that_takes_int32(self, load: Callable[[Spec], Engine]) -> None:
        spec = Spec(
            [Tensor("ids", (3,), DataType.INT32)], [Tensor("y", (3,), DataType.INT32)], lambda v: {"y": v["ids"]}
        )
        engine = load(spec)
        assert engine.run({"ids": np.array([1, -2, 3])})["y"].tolist() == [1, -2, 3]
        with pytest.raises(DataError, match="input 'ids' has 4294967296, which is no int32"):
            engine.run({"ids": np.array([1, 2**32, 3])})

    def test_shapes_differ_from_run_to_run(self, load: Callable[[Spec], Engine], cudart: FakeCudart) -> None:
        spec = Spec(
            [Tensor("x", (-1, 3), profile=((1, 3), (2, 3), (8, 3)))],
            [Tensor("y", (-1, 3))],
            lambda v: {"y": v["x"] * 2},
            lambda shapes, _: {"y": shapes["x"]},
        )
        engine = load(spec)
        for rows in (2, 8, 1, 5):
            x = np.full((rows, 3), rows, np.float32)
            np.testing.assert_array_equal(engine.run({"x": x})["y"], 2 * x)
        assert cudart.allocations == 2  # 8 rows fit where 2 did: 256 bytes are the least

    def test_outputs_whose_size_depends_on_values(self, load: Callable[[Spec], Engine]) -> None:
        spec = Spec(
            [Tensor("x", (600,))],
            [Tensor("found", (-1,), DataType.INT64)],
            lambda v: {"found": np.nonzero(v["x"])[0]},
            lambda shapes, _: {"found": (-1,)},
        )
        engine = load(spec)
        for chosen in ([5], [], list(range(600)), [1, 2]):
            x = np.zeros(600, np.float32)
            x[chosen] = 1
            assert engine.run({"x": x})["found"].tolist() == chosen

    def test_an_output_of_unknown_size_that_has_no_room_says_so(self, tmp_path: Path) -> None:
        cudart = FakeCudart(room=4000)
        spec = Spec(
            [Tensor("x", (1,))],
            [Tensor("y", (-1,))],
            lambda v: {"y": np.zeros(int(v["x"][0]), np.float32)},
            lambda shapes, _: {"y": (-1,)},
        )
        path = tmp_path / "e"
        path.write_bytes(b"engine")
        with Engine(StubTensorRT(cudart, {b"engine": spec}), Cuda(cudart), Logger(LogKeeper()), path) as engine:
            with pytest.raises(EngineError, match=r"3\.9 KiB of its memory were taken: .*out of memory"):
                engine.run({"x": np.array([1000], np.float32)})
            assert engine.run({"x": np.array([3], np.float32)})["y"].shape == (3,)
        assert cudart.held == 0

    def test_shapes_go_in_and_come_out_in_the_hosts_memory(
        self, load: Callable[[Spec], Engine], cudart: FakeCudart
    ) -> None:
        spec = Spec(
            [Tensor("size", (2,), DataType.INT64, TensorLocation.HOST)],
            [Tensor("y", (-1, -1)), Tensor("shape", (2,), DataType.INT64, TensorLocation.HOST)],
            lambda v: {"y": np.ones(v["size"], np.float32), "shape": v["size"]},
            lambda _, values: {"y": tuple(values["size"].tolist()), "shape": (2,)},
        )
        engine = load(spec)
        for size in ([2, 3], [4, 0], [1, 1]):
            outputs = engine.run({"size": np.array(size, np.int32)})
            assert outputs["y"].shape == tuple(size)
            assert outputs["shape"].tolist() == size
        assert cudart.allocations == 1  # y's alone

    def test_an_output_that_shares_its_inputs_memory(self, load: Callable[[Spec], Engine], cudart: FakeCudart) -> None:
        spec = doubled()
        spec.aliases = {"y": "x"}
        assert load(spec).run({"x": np.ones((2, 3), np.float32)})["y"].tolist() == [[2.0] * 3] * 2
        assert cudart.allocations == 1

    @pytest.mark.parametrize(
        ("inputs", "text"),
        [
            ({}, "input 'x' is missing; the engine takes 'x'"),
            ({"x": (2, 3), "z": (1,)}, "the engine has no input 'z'; it takes 'x'"),
            ({"x": (3, 2)}, "input 'x' has the shape 3x2; the engine takes 2x3"),
            ({"x": (2, 3, 1)}, "input 'x' has the shape 2x3x1; the engine takes 2x3"),
            ({"x": ()}, "input 'x' has the shape a scalar; the engine takes 2x3"),
        ],
    )
    def test_inputs_that_do_not_fit_are_the_datas_fault(
        self, load: Callable[[Spec], Engine], inputs: dict[str, tuple[int, ...]], text: str
    ) -> None:
        engine = load(doubled())
        with pytest.raises(DataError) as raised:
            engine.run({name: np.zeros(shape, np.float32) for name, shape in inputs.items()})
        assert str(raised.value) == text
        assert engine.run({"x": np.ones((2, 3), np.float32)})["y"].max() == 2  # and nothing is broken by it

    @pytest.mark.parametrize("shape", [(9, 3), (0, 3), (1, 4), (3,)])
    def test_a_shape_outside_the_profile_is_told_with_its_limits(
        self, load: Callable[[Spec], Engine], shape: tuple[int, ...]
    ) -> None:
        spec = doubled(shape=(-1, 3))
        spec.inputs[0].profile = ((1, 3), (2, 3), (8, 3))
        with pytest.raises(DataError, match="the engine takes 1x3 to 8x3: give it other shapes with --shapes"):
            load(spec).run({"x": np.zeros(shape, np.float32)})

    def test_inputs_that_do_not_go_together_are_told_with_what_tensorrt_says(
        self, load: Callable[[Spec], Engine]
    ) -> None:
        def shapes(given: Mapping[str, tuple[int, ...]], _: Any) -> dict[str, tuple[int, ...]]:
            if given["a"] != given["b"]:
                raise ValueError("dimensions of a and b must be equal")
            return {"y": given["a"]}

        dynamic = [Tensor(name, (-1,), profile=((1,), (2,), (8,))) for name in "ab"]
        engine = load(Spec(dynamic, [Tensor("y", (-1,))], lambda v: {"y": v["a"] + v["b"]}, shapes))
        with pytest.raises(DataError) as raised:
            engine.run({"a": np.ones(2, np.float32), "b": np.ones(3, np.float32)})
        assert str(raised.value) == (
            "these inputs do not go together in the engine: 'a' of 2, 'b' of 3 (dimensions of a and b must be equal)"
        )

    def test_a_run_that_fails_says_what_tensorrt_says_of_it(self, load: Callable[[Spec], Engine]) -> None:
        spec = doubled()
        engine = load(spec)
        spec.fails = True
        with pytest.raises(EngineError, match=r"digits.engine: .*could not run .*\(.*illegal memory access"):
            engine.run({"x": np.ones((2, 3), np.float32)})

    def test_work_that_fails_after_it_was_queued_is_no_result(
        self, load: Callable[[Spec], Engine], cudart: FakeCudart
    ) -> None:
        engine = load(doubled())

        def fail() -> None:
            cudart.broken = CudaError.cudaErrorIllegalAddress

        engine.bind({"x": np.ones((2, 3), np.float32)})
        engine.enqueue()
        fail()
        with pytest.raises(EngineError, match="cudaErrorIllegalAddress"):
            engine.fetch()


class TestLoad:
    def test_ports_are_as_the_engine_tells(self, load: Callable[[Spec], Engine]) -> None:
        spec = Spec(
            [
                Tensor("x", (-1, 3), profile=((1, 3), (2, 3), (8, 3))),
                Tensor("n", (), DataType.INT64, TensorLocation.HOST),
            ],
            [Tensor("y", (2,), DataType.HALF)],
            dict,
        )
        engine = load(spec)
        assert [(p.name, p.dtype, p.shape, p.on_host, p.is_dynamic) for p in engine.inputs] == [
            ("x", FLOAT32, (-1, 3), False, True),
            ("n", INT64, (), True, False),
        ]
        assert [(p.name, p.dtype, p.shape) for p in engine.outputs] == [("y", FLOAT16, (2,))]
        (limits,) = engine.inputs[0].limits
        assert (limits.min, limits.opt, limits.max) == ((1, 3), (2, 3), (8, 3))

    @pytest.mark.parametrize(
        ("content", "spec", "text"),
        [
            (b"other", doubled(), r"cannot load the engine \(Serialization .*8\.9.* Delete the file"),
            (b"engine", doubled(dtype=DataType.FP8), "'y' of the engine is FP8"),
            (b"engine", Spec([], [], dict, has_room=False), r"no room to run the engine \(Requested amount"),
        ],
    )
    def test_an_engine_that_cannot_be_used_says_why_and_leaves_nothing(
        self, cuda: Cuda, cudart: FakeCudart, tmp_path: Path, content: bytes, spec: Spec, text: str
    ) -> None:
        path = tmp_path / "digits.engine"
        path.write_bytes(content)
        keeper = LogKeeper()
        keeper.take("ERROR", "from an earlier build")
        trt = StubTensorRT(cudart, {b"engine": spec})
        with pytest.raises(EngineError, match=text) as raised:
            Engine(trt, cuda, Logger(keeper), path, keeper)
        assert "earlier" not in str(raised.value)
        assert (cudart.held, cudart.open) == (0, 0)
        del raised  # its traceback holds what has failed
        gc.collect()
        assert trt.alive == []

    def test_what_tensorrt_said_before_is_not_taken_for_the_reason(
        self, cuda: Cuda, cudart: FakeCudart, tmp_path: Path
    ) -> None:
        path = tmp_path / "digits.engine"
        path.write_bytes(b"other")
        keeper = LogKeeper()
        keeper.take("ERROR", "from an earlier build")
        with pytest.raises(EngineError, match=r"cannot load the engine\. An engine loads"):
            Engine(StubTensorRT(cudart, {}), cuda, Logger(LogKeeper()), path, keeper)

    def test_a_file_that_is_not_there(self, cuda: Cuda, cudart: FakeCudart, tmp_path: Path) -> None:
        with pytest.raises(EngineError, match="the engine cannot be read: No such file"):
            Engine(StubTensorRT(cudart, {}), cuda, None, tmp_path / "no.engine")

    def test_nothing_is_released_before_what_it_has_made(self, cuda: Cuda, cudart: FakeCudart, tmp_path: Path) -> None:
        path = tmp_path / "e"
        path.write_bytes(b"engine")
        trt = StubTensorRT(cudart, {b"engine": doubled()})
        with Engine(trt, cuda, Logger(LogKeeper()), path) as engine:
            engine.run({"x": np.ones((2, 3), np.float32)})
        assert trt.released == ["IExecutionContext", "ICudaEngine", "Runtime"]
        assert (cudart.held, cudart.open) == (0, 0)
        with pytest.raises(EngineError, match="the engine is closed"):
            engine.run({"x": np.ones((2, 3), np.float32)})


class TestListener:
    @staticmethod
    def spec() -> Spec:
        spec = doubled()
        spec.debug = lambda v: {"inner": (v["x"] + 1).astype(np.float16)}
        return spec

    def test_debug_tensors_are_handed_over_for_as_long_as_one_listens(
        self, load: Callable[[Spec], Engine], cuda: Cuda
    ) -> None:
        engine = load(self.spec())
        shown: dict[str, NDArray[Any]] = {}
        listener = make_listener(engine.trt, take_into(cuda, shown))
        for value in (1, 2):
            engine.run({"x": np.full((2, 3), value, np.float32)}, listener, Watch(marked=True))
            assert shown["inner"].dtype == np.float16
            assert shown["inner"].tolist() == [[value + 1.0] * 3] * 2
        shown.clear()
        assert engine.run({"x": np.ones((2, 3), np.float32)})["y"].max() == 2
        assert shown == {}

    def test_what_goes_wrong_in_it_comes_out_of_the_run(self, load: Callable[[Spec], Engine]) -> None:
        def take(*_: Any) -> None:
            raise DataError("the disk is full")

        engine = load(self.spec())
        with pytest.raises(DataError, match="the disk is full"):
            engine.run({"x": np.ones((2, 3), np.float32)}, make_listener(engine.trt, take), Watch(marked=True))

    def test_values_are_taken_after_the_stream_that_computes_them(self, cuda: Cuda, cudart: FakeCudart) -> None:
        value = np.ones(3, np.float32)
        cudart.broken = CudaError.cudaErrorIllegalAddress
        with pytest.raises(EngineError, match="cudaErrorIllegalAddress"):
            take_into(cuda, {})("x", address_of(value), "FLOAT", (3,), 0x5000)


@pytest.mark.parametrize("version", parameters())
def test_the_real_bindings_take_memory_from_our_allocator_and_tell_it_shapes(version: TensorRT) -> None:
    found = json.loads(version.run(ROOT / "tests" / "bindings" / "allocator.py", version.module))
    count = 1 if version.is_rtx or version.is_old else 2
    assert found["methods"] == count
    assert found["answers"] == [0xABC00] * count
    assert found["taken"] == [["y: 1", 1 << 40]] * count
    assert found["refused"] == [None] * count  # a null pointer
    assert found["raised"] == "no room for y: 1"
    assert found["shapes"] == [[3, 4], [0, 7], [], [1]]


# Times


class TestLatency:
    @staticmethod
    def spec(cudart: FakeCudart, milliseconds: Callable[[int], float]) -> tuple[Spec, list[int]]:
        """An engine whose n-th run takes so long on the GPU's clock."""
        runs: list[int] = []

        def run() -> None:
            runs.append(len(runs))
            cudart.clock += milliseconds(runs[-1])

        spec = doubled()
        spec.on_run = run
        return spec, runs

    def test_the_median_of_warm_runs_and_where_most_of_them_lie(
        self, load: Callable[[Spec], Engine], cudart: FakeCudart
    ) -> None:
        spec, runs = self.spec(cudart, lambda n: 50 if n < 20 else 1 + (n - 20) / 100)
        found = measure(load(spec), {"x": np.ones((2, 3), np.float32)})
        assert len(runs) == 120
        assert found.runs == 100
        assert found.median == pytest.approx(1.495)
        assert found.low == pytest.approx(1.0495)
        assert found.high == pytest.approx(1.9405)

    def test_one_run_that_was_interrupted_does_not_make_the_figure(
        self, load: Callable[[Spec], Engine], cudart: FakeCudart
    ) -> None:
        spec, _ = self.spec(cudart, lambda n: 900 if n == 77 else 2)
        found = measure(load(spec), {"x": np.ones((2, 3), np.float32)})
        assert found.low == found.median == found.high == pytest.approx(2)

    def test_a_slow_engine_is_run_less_often_but_some_times(
        self, load: Callable[[Spec], Engine], cudart: FakeCudart
    ) -> None:
        spec, runs = self.spec(cudart, lambda n: 5000)
        found = measure(load(spec), {"x": np.ones((2, 3), np.float32)}, seconds=0)
        assert (found.runs, found.median, len(runs)) == (5, 5000, 7)

    def test_a_failing_run_gives_no_time(self, load: Callable[[Spec], Engine], cudart: FakeCudart) -> None:
        spec, _ = self.spec(cudart, lambda n: 1)
        engine = load(spec)
        spec.fails = True
        with pytest.raises(EngineError, match="could not run"):
            measure(engine, {"x": np.ones((2, 3), np.float32)})

    def test_layers_are_watched_apart_and_not_afterwards(
        self, load: Callable[[Spec], Engine], cudart: FakeCudart
    ) -> None:
        spec, runs = self.spec(cudart, lambda n: 1)
        counted = spec.on_run

        def run() -> None:
            counted()
            spec.layers = {"conv": 0.75 if len(runs) > 2 else 99, "reformat": 0.25}

        spec.on_run = run
        engine = load(spec)
        inputs = {"x": np.ones((2, 3), np.float32)}
        assert measure_layers(engine, inputs, runs=4, warmup=2) == {"conv": 0.75, "reformat": 0.25}
        assert len(runs) == 6
        assert engine.trt.released == ["IExecutionContext"] * 2  # the one before, and the one that was watched
        assert engine.run(inputs)["y"].max() == 2
        assert measure_layers(engine, inputs, seconds=0, warmup=0) == {"conv": 0.75, "reformat": 0.25}
        assert len(runs) == 8

    def test_a_tensorrt_that_tells_no_times_of_layers(self, load: Callable[[Spec], Engine], cudart: FakeCudart) -> None:
        engine = load(doubled())
        assert measure_layers(engine, {"x": np.ones((2, 3), np.float32)}) == {}


def model_layer(name: str, *others: str, outputs: tuple[str, ...] = ()) -> Layer:
    nodes = (name, *others)
    return Layer(name, nodes, ("Op",) * len(nodes), (), outputs or (f"{name}_out",), (), None, False, None, 0)


def kernel(name: str, nodes: tuple[str, ...] = (), inputs: str = "", outputs: str = "") -> EngineLayer:
    def tensors(text: str) -> tuple[EngineTensor, ...]:
        return tuple(EngineTensor(tensor, "fp32", None) for tensor in text.split())

    return EngineLayer(name, "", nodes, tensors(inputs), tensors(outputs))


class TestTimesOfLayers:
    MODEL = (model_layer("a"), model_layer("b", "b.bn", "b.relu"), model_layer("c"), model_layer("d"))

    def test_kernels_of_one_layer_are_added_up(self) -> None:
        engine = [kernel("k1", ("a",)), kernel("k2", ("b", "b.bn")), kernel("k3", ("b.relu",))]
        found = times_of_layers({"k1": 1.0, "k2": 2.0, "k3": 0.5}, engine, self.MODEL)
        assert (found.times, found.groups, found.rest) == ({"a": 1.0, "b": 2.5}, (), 0)

    def test_layers_that_share_a_kernel_are_a_group_with_all_that_they_run_in(self) -> None:
        engine = [kernel("k1", ("a",)), kernel("k2", ("b.relu", "a")), kernel("k3", ("c",)), kernel("k4", ("b",))]
        found = times_of_layers({"k1": 1.0, "k2": 2.0, "k3": 4.0, "k4": 8.0}, engine, self.MODEL)
        assert found.times == {"c": 4.0}
        assert found.groups == (Group(("a", "b"), 11.0),)

    def test_copies_count_for_the_layer_behind_them_and_the_last_for_the_one_before(self) -> None:
        engine = [
            kernel("copy in", (), "x", "x1"),
            kernel("k1", ("a",), "x1", "t"),
            kernel("copy 1", (), "t", "t1"),
            kernel("copy 2", (), "t1", "t2"),
            kernel("k2", ("c",), "t2", "u"),
            kernel("copy out", (), "u", "y"),
        ]
        milliseconds = {"copy in": 1.0, "k1": 2.0, "copy 1": 4.0, "copy 2": 8.0, "k2": 16.0, "copy out": 32.0}
        found = times_of_layers(milliseconds, engine, self.MODEL)
        assert (found.times, found.groups, found.rest) == ({"a": 3.0, "c": 60.0}, (), 0)

    def test_a_copy_that_several_take_counts_for_them_together(self) -> None:
        engine = [
            kernel("copy", (), "x", "x1"),
            kernel("k1", ("a",), "x1", "t"),
            kernel("k2", ("c",), "x1", "u"),
        ]
        found = times_of_layers({"copy": 1.0, "k1": 2.0, "k2": 4.0}, engine, self.MODEL)
        assert found.times == {"a": 2.0, "c": 4.0}
        assert found.groups == (Group(("a", "c"), 1.0),)

    @pytest.mark.parametrize(
        ("layer", "expected"),
        [
            (kernel("b + b.relu"), {"b": 1.0}),
            (kernel("PWN(c)"), {"c": 1.0}),
            (kernel("anything", outputs="d_out"), {"d": 1.0}),
            (kernel("__myl_Mul_myl0_1", ("c",), outputs="d_out"), {"c": 1.0}),
        ],
    )
    def test_without_metadata_names_and_tensors_tell(self, layer: EngineLayer, expected: dict[str, float]) -> None:
        assert times_of_layers({layer.name: 1.0}, [layer], self.MODEL).times == expected

    def test_a_name_that_the_inspector_has_not_told_still_tells(self) -> None:
        assert times_of_layers({"a": 1.0}, [], self.MODEL).times == {"a": 1.0}

    def test_names_are_compared_whole(self) -> None:
        found = times_of_layers({"a1": 1.0, "conv a": 2.0}, [kernel("a1"), kernel("conv a")], self.MODEL)
        assert (found.times, found.groups, found.rest) == ({}, (), 3.0)

    def test_a_foreign_node_holds_all_between_its_ends(self) -> None:
        name = "{ForeignNode[a...c]}"
        found = times_of_layers({name: 1.0}, [kernel(name)], self.MODEL)
        assert (found.times, found.groups) == ({}, (Group(("a", "b", "c"), 1.0),))

    def test_copies_in_a_circle_belong_to_nobody(self) -> None:
        engine = [kernel("one", (), "t", "u"), kernel("two", (), "u", "t")]
        found = times_of_layers({"one": 1.0, "two": 2.0}, engine, self.MODEL)
        assert (found.times, found.groups, found.rest) == ({}, (), 3.0)

    @given(st.data())
    def test_no_time_is_lost_or_counted_twice(self, data: st.DataObject) -> None:
        nodes = st.lists(st.sampled_from(["a", "b", "b.bn", "c", "d", "unknown"]), max_size=3).map(tuple)
        tensors = st.lists(st.sampled_from("tuvxy"), max_size=2).map(" ".join)
        engine = [
            kernel(f"k{i}", data.draw(nodes), data.draw(tensors), data.draw(tensors))
            for i in range(data.draw(st.integers(0, 6)))
        ]
        milliseconds = {layer.name: 2.0**i for i, layer in enumerate(engine)}
        found = times_of_layers(milliseconds, engine, self.MODEL)
        parts = [*found.times.values(), *(group.milliseconds for group in found.groups), found.rest]
        assert sum(parts) == sum(milliseconds.values())
        shared = [set(self.nodes_to_layers(layer)) for layer in engine if len(self.nodes_to_layers(layer)) > 1]
        assert not any(name in layers for layers in shared for name in found.times)

    def nodes_to_layers(self, layer: EngineLayer) -> set[str]:
        return {one.name for one in self.MODEL for node in layer.nodes if node in one.nodes}

    @needs_rtx
    def test_every_kernel_of_a_real_engine_finds_its_layers(self, bundled: tuple[Model, Any]) -> None:
        (answer,) = drive("layers", DIGITS / "digits.onnx")
        engine = layers_of(answer["plain"])
        model, _ = bundled
        found = times_of_layers({layer.name: 1.0 for layer in engine}, engine, model.layers)
        assert found.rest == 0
        told = {*found.times, *(name for group in found.groups for name in group.layers)}
        computing = {layer.name for layer in model.layers if layer.quantizable}
        assert computing <= told
        total = sum(found.times.values()) + sum(group.milliseconds for group in found.groups)
        assert total == len({layer.name for layer in engine})


def test_the_script_for_a_real_gpu_holds_on_the_tests_own_cuda(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """All but what is about real time and real memory: so that it is not broken when a GPU is there for once."""
    from gpu import check_cuda

    about_the_gpu = {
        check_cuda.memory_is_kept_grown_and_given_back,
        check_cuda.events_take_the_time_of_what_stands_between,
        check_cuda.an_engine_is_timed,
        check_cuda.an_engine_leaves_nothing_behind,
    }
    cudart = FakeCudart()
    monkeypatch.setattr(Cuda, "load", lambda: Cuda(cudart))
    checks = [check for check in check_cuda.CHECKS if check not in about_the_gpu]
    monkeypatch.setattr(check_cuda, "CHECKS", checks)
    assert check_cuda.main() == 0, capsys.readouterr().out
    assert capsys.readouterr().out.count("PASS") == len(checks)


@needs_rtx
def test_a_stand_ins_names_are_those_of_tensorrt() -> None:
    """The reverse, that TensorRT has what our code uses, test_trt_conformance.py shows."""
    trt = load_tensorrt(RTX_MODULE)
    for kind in (stub.Runtime, stub.ICudaEngine, stub.IExecutionContext):
        theirs = getattr(trt, kind.__name__)
        public = [name for name in vars(kind) if not name.startswith("_")]
        assert public
        assert [name for name in public if not hasattr(theirs, name)] == []
    for enumeration in (stub.DataType, stub.TensorIOMode, stub.TensorLocation, stub.TensorFormat):
        assert set(enumeration.__members__) <= set(getattr(trt, enumeration.__name__).__members__)
