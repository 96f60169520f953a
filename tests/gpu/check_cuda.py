"""Holds our CUDA memory, streams, events and running of engines against a real GPU; needs no TensorRT.

    PYTHONPATH=<repository>:<repository>/tests python tests/gpu/check_cuda.py

needs cuda-python (or cuda-bindings) and a GPU. In TensorRT's place stands `stub.py`, whose engines compute in NumPy or
copy within the GPU's memory: memory, streams, events and errors are the real ones. Prints a line for each check, and
exits with 1 where one has failed.
"""

from __future__ import annotations

import sys
import tempfile
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from gpu.stub import DataType, Spec, StubTensorRT, Tensor, TensorLocation
from precisionlab.backends.tensorrt.buffers import Buffers, take_into
from precisionlab.backends.tensorrt.cuda import Cuda, Event, Stream
from precisionlab.backends.tensorrt.execution import Engine
from precisionlab.backends.tensorrt.jobs import Watch
from precisionlab.backends.tensorrt.latency import measure, measure_layers
from precisionlab.backends.tensorrt.listener import make_listener
from precisionlab.errors import EngineError

MIB = 1024**2
RANDOM = np.random.default_rng(0)


class Silent:
    def log(self, severity: str, text: str) -> None:
        """Nothing is kept."""


def engine(cuda: Cuda, spec: Spec) -> Engine:
    """A stand-in's engine, loaded."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "stub.engine"
        path.write_bytes(b"stub")
        return Engine(StubTensorRT(cuda.cudart, {b"stub": spec}), cuda, Silent(), path)


def copying(elements: int) -> Spec:
    """An engine that copies its input within the GPU's memory, in its stream."""
    return Spec([Tensor("x", (elements,))], [Tensor("y", (elements,))], dict, copies={"y": "x"}, layers={"copy": 1.0})


def refused(action: Callable[[], object]) -> str:
    """What the EngineError says that this must raise."""
    try:
        action()
    except EngineError as error:
        return str(error)
    raise AssertionError("no error was raised")


def the_gpu_is_described(cuda: Cuda) -> str:
    device = cuda.device()
    free, total = cuda.memory()
    assert device.name
    assert 5 <= device.compute_capability[0] < 20
    assert 0 < free <= total
    assert abs(device.memory - total) < 0.2 * total
    assert int(device.driver.split(".")[0]) >= int(device.runtime.split(".")[0])
    return f"{device}; {free // MIB} of {total // MIB} MiB free; cuda-python for CUDA {device.runtime}"


def arrays_come_back_as_they_went(cuda: Cuda) -> str:
    arrays = {
        "large": RANDOM.standard_normal((64, 3, 224, 224)).astype(np.float32),
        "transposed": RANDOM.standard_normal((7, 5, 3)).astype(np.float32).T,
        "every other": RANDOM.integers(-9, 9, (8, 10))[:, ::2],
        "bool": RANDOM.integers(0, 2, 1001).astype(bool),
        "half": RANDOM.standard_normal(77).astype(np.float16),
        "bfloat16": RANDOM.standard_normal(77).astype(ml_dtypes.bfloat16),
        "scalar": np.array(3.5, np.float32),
        "empty": np.empty((0, 4), np.float32),
    }
    with Buffers(cuda) as buffers:
        for name, array in arrays.items():
            address = buffers.upload(name, array)
            assert address
            assert address % 256 == 0
        for name, array in arrays.items():
            back = buffers.download(name, array.dtype, array.shape)
            assert back.shape == array.shape
            assert back.tobytes() == array.tobytes(), name
    return f"{len(arrays)} arrays"


def memory_is_kept_grown_and_given_back(cuda: Cuda) -> str:
    free = cuda.memory()[0]
    with Buffers(cuda) as buffers:
        first = buffers.reserve("x", 64 * MIB)
        assert buffers.reserve("x", MIB) == first
        buffers.reserve("x", 512 * MIB)
        held = free - cuda.memory()[0]
        assert 500 * MIB <= held <= 640 * MIB, held
    left = free - cuda.memory()[0]
    assert left < 32 * MIB, left
    return f"{held // MIB} MiB held, {left // MIB} MiB left behind"


def too_much_is_refused_and_the_gpu_goes_on(cuda: Cuda) -> str:
    with Buffers(cuda) as buffers:
        text = refused(lambda: buffers.reserve("x", 2 * cuda.memory()[1]))
        assert "cudaErrorMemoryAllocation (out of memory)" in text, text
        assert int(cuda.cudart.cudaGetLastError()[0]) == 0  # TensorRT does not find our error
        value = np.arange(5, dtype=np.float32)
        buffers.upload("x", value)
        assert (buffers.download("x", value.dtype, value.shape) == value).all()
    return text


def a_false_call_is_told_in_words(cuda: Cuda) -> str:
    text = refused(lambda: cuda.upload(0, np.ones(4, np.float32)))
    assert "cudaErrorInvalidValue" in text, text
    return text


def events_take_the_time_of_what_stands_between(cuda: Cuda) -> str:
    kind = cuda.cudart.cudaMemcpyKind.cudaMemcpyDeviceToDevice
    with Buffers(cuda) as buffers, Stream(cuda) as stream, Event(cuda) as start, Event(cuda) as end:
        assert stream.address
        one, two = (buffers.reserve(name, 512 * MIB) for name in "ab")
        times = []
        for count in (1, 1, 10):  # the first warms up
            start.record(stream)
            for _ in range(count):
                cuda.check(cuda.cudart.cudaMemcpyAsync(one, two, 512 * MIB, kind, stream.handle), "testing")
            end.record(stream)
            end.wait()
            times.append(end.since(start))
    assert 5 < times[2] / times[1] < 20, times
    return f"{times[1]:.3f} ms for one copy of 512 MiB, {times[2]:.3f} ms for ten"


def what_lies_on_either_side_is_fetched(cuda: Cuda) -> str:
    with Buffers(cuda) as buffers, Stream(cuda) as stream:
        value = RANDOM.standard_normal(1000).astype(np.float32)
        shown: dict[str, Any] = {}
        take = take_into(cuda, shown)
        take("gpu", buffers.upload("x", value), "FLOAT", (1000,), stream.address)
        take("host", value.__array_interface__["data"][0], "FLOAT", (1000,), stream.address)
    assert (shown["gpu"] == value).all()
    assert (shown["host"] == value).all()
    return "GPU and host memory"


def an_engine_runs(cuda: Cuda) -> str:
    spec = Spec(
        inputs=[
            Tensor("x", (-1, 4), DataType.FLOAT, profile=((1, 4), (2, 4), (64, 4))),
            Tensor("size", (1,), DataType.INT64, TensorLocation.HOST),
        ],
        outputs=[Tensor("y", (-1, 4), DataType.BF16), Tensor("found", (-1,), DataType.INT64), Tensor("n", (-1, -1))],
        compute=lambda v: {
            "y": (v["x"] * 2).astype(ml_dtypes.bfloat16),
            "found": np.nonzero(v["x"][:, 0] > 0)[0],
            "n": np.zeros((1, int(v["size"][0])), np.float32),
        },
        shapes=lambda s, v: {"y": s["x"], "found": (-1,), "n": (1, int(v["size"][0]))},
        debug=lambda v: {"inner": v["x"] + 1},
    )
    with engine(cuda, spec) as loaded:
        for rows, size in ((2, 3), (64, 0), (1, 1000)):
            x = RANDOM.standard_normal((rows, 4)).astype(np.float32)
            shown: dict[str, Any] = {}
            listener = make_listener(loaded.trt, take_into(cuda, shown))
            given = {"x": x.astype(np.float64), "size": np.array([size], np.int32)}
            outputs = loaded.run(given, listener, Watch(marked=True))
            assert outputs["y"].dtype == ml_dtypes.bfloat16
            assert (outputs["y"] == (x * 2).astype(ml_dtypes.bfloat16)).all()
            assert (outputs["found"] == np.nonzero(x[:, 0] > 0)[0]).all()
            assert outputs["n"].shape == (1, size)
            assert (shown["inner"] == x + 1).all()
    return "dynamic, data-dependent and empty shapes, shape input on the host, bfloat16, debug tensors"


def an_engine_is_timed(cuda: Cuda) -> str:
    found = []
    for elements in (1 * MIB, 128 * MIB):
        with engine(cuda, copying(elements)) as loaded:
            inputs = {"x": RANDOM.standard_normal(elements).astype(np.float32)}
            found.append(measure(loaded, inputs))
            assert measure_layers(loaded, inputs) == {"copy": 1.0}
            assert (loaded.run(inputs)["y"] == inputs["x"]).all()
    small, large = found
    assert small.low <= small.median <= small.high
    assert large.runs == 100
    assert large.median > 5 * small.median, found
    return f"4 MiB: {small.median:.4f} ms ({small.low:.4f} to {small.high:.4f}); 512 MiB: {large.median:.4f} ms"


def an_engine_leaves_nothing_behind(cuda: Cuda) -> str:
    free = cuda.memory()[0]
    for _ in range(3):
        with engine(cuda, copying(64 * MIB)) as loaded:
            loaded.run({"x": np.zeros(64 * MIB, np.float32)})
    left = free - cuda.memory()[0]
    assert left < 32 * MIB, left
    return f"{left // MIB} MiB left behind"


CHECKS: tuple[Callable[[Cuda], str], ...] = (
    the_gpu_is_described,
    arrays_come_back_as_they_went,
    memory_is_kept_grown_and_given_back,
    too_much_is_refused_and_the_gpu_goes_on,
    a_false_call_is_told_in_words,
    events_take_the_time_of_what_stands_between,
    what_lies_on_either_side_is_fetched,
    an_engine_runs,
    an_engine_is_timed,
    an_engine_leaves_nothing_behind,
)


def main() -> int:
    cuda = Cuda.load()
    failed = 0
    for check in CHECKS:
        name = check.__name__.replace("_", " ")
        try:
            print(f"PASS {name}: {check(cuda)}", flush=True)
        except Exception:
            failed += 1
            print(f"FAIL {name}\n{traceback.format_exc()}", flush=True)
    print(f"{len(CHECKS) - failed} of {len(CHECKS)} checks held")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
