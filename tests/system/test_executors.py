"""The same bits in one process, on several, and on a Dask cluster; also where a worker is killed on the way."""

from __future__ import annotations

import importlib.util
import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from models import DIGITS, calibrate, load, plan_for, proto

from precisionlab.backends.base import Backend, Detail, Evaluation, SensitivityRequest
from precisionlab.backends.onnxruntime import OnnxRuntimeBackend
from precisionlab.backends.spread import SpreadBackend, source_of
from precisionlab.backends.worker import Chunk, Source
from precisionlab.calibration.histogram import Histogram
from precisionlab.calibration.table import CalibrationTable
from precisionlab.compare.comparison import Comparison
from precisionlab.compare.judging import judging_of
from precisionlab.compare.sensitivity import merged
from precisionlab.compare.task import Accuracy
from precisionlab.data import Dataset, open_dataset, random_dataset
from precisionlab.errors import DataError, ModelError, OptionError, PrecisionLabError
from precisionlab.model import Model, load_model
from precisionlab.precision import Precision
from precisionlab.system.executors import Dask, Executor, Processes, open_executor

HERE = Path(__file__).parents[1]
SAMPLES = 8


def nothing(done: int) -> None:
    """No progress is told."""


@dataclass(frozen=True)
class Work:
    """The bundled model, its data, and the plain backend with ranges for int8."""

    model: Model
    dataset: Dataset
    backend: OnnxRuntimeBackend
    table: CalibrationTable
    source: Source

    def spread(self, executor: Executor) -> SpreadBackend:
        return SpreadBackend(self.backend, self.source, executor)

    @property
    def request(self) -> SensitivityRequest:
        low = plan_for(self.model, Precision.FP16)
        layers = tuple(layer.name for layer in self.model.layers)
        return SensitivityRequest(plan_for(self.model, Precision.FP32), low, layers, None, judging_of(self.model))

    @property
    def evaluation(self) -> Evaluation:
        return Evaluation(
            plan_for(self.model, Precision.INT8), self.table, Detail.INTRODUCED, True, judging_of(self.model)
        )


@pytest.fixture(scope="module")
def work() -> Work:
    model = load_model(DIGITS / "digits.onnx")
    dataset = open_dataset(DIGITS, model, SAMPLES, seed=0).checked()
    # Small enough a budget for several segments, and several stages of single layers.
    backend = OnnxRuntimeBackend(model, next(iter(dataset)), threads=2, budget=30_000)
    return Work(model, dataset, backend, calibrate(backend, list(dataset)), source_of(backend, dataset))


@pytest.fixture(scope="module")
def expected(work: Work) -> dict[str, Any]:
    return everything(work.backend, work)


@pytest.fixture(scope="module")
def pool() -> Iterator[Processes]:
    with Processes(2) as executor:
        yield executor


class Cluster:
    """A real scheduler and two real workers, each a process of its own that nobody starts again."""

    def __init__(self, folder: Path) -> None:
        about = folder / "scheduler.json"
        self.scheduler = self._start("scheduler", "--host", "127.0.0.1", "--port", "0", "--scheduler-file", str(about))
        self.workers = [self._worker(about) for _ in range(2)]
        self.address = "tcp://" + _soon(lambda: _read(about)).partition("tcp://")[2].partition('"')[0]

    def end(self) -> None:
        for process in (*self.workers, self.scheduler):
            process.kill()
            process.wait()

    def _worker(self, about: Path) -> subprocess.Popen[bytes]:
        quiet = ("--no-nanny", "--nthreads", "1", "--no-dashboard")
        return self._start("worker", "--scheduler-file", str(about), *quiet, cwd=about.parent)

    def _start(self, kind: str, *options: str, cwd: Path | None = None) -> subprocess.Popen[bytes]:
        # Nothing of this process but the modules: that is all that a worker elsewhere has.
        environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join(map(str, (HERE.parent, HERE, Path(__file__).parent))),
        }
        if kind == "scheduler":
            options = (*options, "--no-dashboard", "--no-show")
        command = [sys.executable, "-m", f"distributed.cli.dask_{kind}", *options]
        return subprocess.Popen(command, env=environment, cwd=cwd, stderr=subprocess.DEVNULL)


def _read(path: Path) -> str:
    text = path.read_text() if path.is_file() else ""
    return text if text.rstrip().endswith("}") else ""


def _soon(found: Callable[[], Any]) -> Any:
    for _ in range(300):
        if value := found():
            return value
        time.sleep(0.1)
    raise AssertionError("not within 30 s")


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    pytest.importorskip("distributed")
    started = Cluster(tmp_path_factory.mktemp("dask"))
    yield started
    started.end()


def everything(backend: Backend, work: Work) -> dict[str, Any]:
    """All that a backend can do, on the bundled model."""
    fp16 = plan_for(work.model, Precision.FP16)
    metric = partial(Accuracy, "logits")
    full = backend.compare(fp16, None, work.dataset, nothing, metric=metric, introduced=True)
    int8 = plan_for(work.model, Precision.INT8)
    collector = backend.collector([layer.outputs[0] for layer in work.model.layers][:3])
    collector.add(work.dataset, nothing)
    return {
        "compare": figures(full),
        "int8": figures(backend.compare(int8, work.table, work.dataset, nothing, metric=None, introduced=True)),
        "judge": figures(backend.judge(fp16, None, work.dataset, nothing, metric=metric, known=full)),
        "sensitivities": [repr(e) for e in backend.sensitivities(work.request, work.dataset)],
        "histograms": counts(collector.histograms()),
    }


def figures(found: Comparison) -> dict[str, Any]:
    """Everything but the time that it took; floats by their bits."""
    return {name: repr(value) for name, value in found.to_dict().items() if name != "seconds"}


def counts(found: Mapping[str, Histogram]) -> dict[str, Any]:
    return {n: (h.bins.tobytes(), h.exponent, h.amax.hex(), h.zeros, h.nonfinite) for n, h in found.items()}


def bits(backend: Backend, work: Work, kill: Callable[[], None] | None = None) -> list[bytes]:
    """Every sample's result of one evaluation; `kill` is called once the first is there."""
    found = []
    for result in backend.results(work.evaluation, work.dataset):
        found.append(result.layers.sums.tobytes() + result.layers.counts.tobytes() + repr(result.label).encode())
        if kill and len(found) == 1:
            kill()
    return found


# The same bits


def test_on_processes_everything_has_the_same_bits(work: Work, expected: dict[str, Any], pool: Processes) -> None:
    assert everything(work.spread(pool), work) == expected


def test_random_inputs_and_hooks_are_opened_by_workers_too(tmp_path: Path, pool: Processes) -> None:
    model = load(proto("(float[1,3] x) => (float[1,3] y) { y = Tanh(x) }"), tmp_path)
    hook = tmp_path / "hook.py"
    hook.write_text(
        "import numpy as np\n"
        "def samples():\n"
        "    for i in range(40):\n"
        "        yield {'x': np.full((1, 3), i, np.float32)}, i % 2\n"
    )
    for dataset in (random_dataset(model, {}, seed=3), open_dataset(f"{hook}:samples", model, 11, seed=1)):
        data = dataset.checked()
        backend = OnnxRuntimeBackend(model, next(iter(data)), threads=1)
        spread = SpreadBackend(backend, source_of(backend, data), pool)
        plan = plan_for(model, Precision.FP16)
        done: list[int] = []
        found = spread.compare(plan, None, data, done.append, metric=None, introduced=True)
        assert figures(found) == figures(backend.compare(plan, None, data, nothing, metric=None, introduced=True))
        assert done == list(range(1, len(data) + 1))
        part = data.only(data.names[3:5])
        assert labels(spread, plan, part) == labels(backend, plan, part)
        assert labels(spread, plan, list(part)) == labels(backend, plan, part)


def test_layers_of_a_single_sample_are_shared_between_processes_to_the_same_bits(
    tmp_path: Path, pool: Processes, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = "(float[4,8] x) => (float[4,8] y) { a = MatMul(x, w) s = Softmax(a) m = MatMul(s, a) y = Tanh(m) }"
    weight = np.random.default_rng(0).standard_normal((8, 8)).astype(np.float32)
    model = load(proto(text, {"w": weight}), tmp_path)
    data = random_dataset(model, {}, seed=3).checked()
    backend = OnnxRuntimeBackend(model, next(iter(data)), threads=1)
    spread = SpreadBackend(backend, source_of(backend, data), pool)
    layers = tuple(layer.name for layer in model.layers)
    plans = plan_for(model, Precision.FP32), plan_for(model, Precision.FP16)
    request = SensitivityRequest(*plans, layers, None, judging_of(model))
    tasks: list[Chunk] = []
    ran = pool.map
    monkeypatch.setattr(pool, "map", lambda function, chunks: ran(function, tasks.extend(chunks) or tasks))

    one = data.only(data.names[:1])
    found = merged(list(spread.sensitivities(request, one)))

    assert [chunk.layers for chunk in tasks] == [layers[::2], layers[1::2]]
    expected = merged(list(backend.sensitivities(request, one)))
    assert {name: repr(found[name]) for name in layers} == {name: repr(expected[name]) for name in layers}


def labels(backend: Backend, plan: Any, samples: Any) -> list[str | None]:
    evaluation = Evaluation(plan, None, Detail.INHERITED, False, judging_of(backend.model))
    return [result.label for result in backend.results(evaluation, samples)]


# Errors


def test_workers_refuse_another_model_other_data_and_other_versions(
    work: Work, tmp_path: Path, pool: Processes
) -> None:
    other = load(proto("(float[1,3] x) => (float[1,3] y) { y = Tanh(x) }"), tmp_path)
    wrong: list[tuple[Source, type[PrecisionLabError], str]] = [
        (replace(work.source, model=str(other.path)), ModelError, "model.onnx: not the model that the run began with"),
        (replace(work.source, model=str(tmp_path / "gone.onnx")), ModelError, "gone.onnx: no such file"),
        (replace(work.source, data=str(tmp_path / "gone")), DataError, "gone: no such folder"),
        (
            replace(work.source, first=replace(work.source.first, digest="0")),
            DataError,
            "is not what it was when the run began",
        ),
        (replace(work.source, first=replace(work.source.first, name="x.png")), DataError, "has no sample x.png"),
        (replace(work.source, versions=(("numpy", "1.0"),)), OptionError, r"has numpy .*, the run began with 1\.0"),
        (
            replace(work.source, versions=(("processor", "riscv64"),)),
            OptionError,
            "runs on .*, the run began on riscv64",
        ),
    ]
    for source, kind, message in wrong:
        with pytest.raises(kind, match=f"^worker on {socket.gethostname()}: .*{message}"):
            list(SpreadBackend(work.backend, source, pool).results(work.evaluation, work.dataset))


def test_a_sample_that_changes_on_the_way_is_noticed(tmp_path: Path, pool: Processes) -> None:
    model = load(proto("(float[1,3] x) => (float[1,3] y) { y = Tanh(x) }"), tmp_path)
    data = tmp_path / "data"
    data.mkdir()
    for index in range(3):
        np.save(data / f"{index}.npy", np.full((1, 3), index, np.float32))
    dataset = open_dataset(data, model, None, 0).checked()
    backend = OnnxRuntimeBackend(model, next(iter(dataset)), threads=1)
    spread = SpreadBackend(backend, source_of(backend, dataset), pool)
    np.save(data / "2.npy", np.full((1, 3), 7, np.float32))
    with pytest.raises(DataError, match=r"2\.npy is not what it was"):
        spread.compare(plan_for(model, Precision.FP16), None, dataset, nothing, metric=None, introduced=False)


def test_without_scheduler_without_dask_and_with_wrong_options_it_says_what_to_do(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert open_executor(None, None) is None
    assert open_executor(1, None) is None
    with pytest.raises(OptionError, match="at least 1"):
        open_executor(0, None)
    with pytest.raises(OptionError, match="one of them"):
        open_executor(2, "tcp://localhost:1")
    monkeypatch.setattr("precisionlab.system.executors._CONNECT_SECONDS", 1)
    if importlib.util.find_spec("distributed"):
        for address in ("tcp://127.0.0.1:1", "nonsense://x"):
            with pytest.raises(OptionError, match=f"{address}: no Dask scheduler answers"):
                open_executor(None, address)
    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(OptionError, match=r'pip install "precisionlab\[dask\]"'):
        open_executor(None, "tcp://localhost:1")


# The executors by themselves


def square(number: int) -> int:
    return number * number


def slow_first(number: int) -> int:
    time.sleep(0.5 if number == 0 else 0)
    return number


def touch(folder: str, number: int) -> int:
    (Path(folder) / str(number)).touch()
    return number


def die_once(flag: str, number: int) -> int:
    """The first worker that comes to number 3 dies of it."""
    if number == 3:
        try:
            Path(flag).touch(exist_ok=False)
        except FileExistsError:
            return number
        os.kill(os.getpid(), signal.SIGKILL)
    return number


def deadly(number: int) -> int:
    if number == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    return number


def fail(number: int) -> int:
    if number == 2:
        raise DataError("sample 2 is bad")
    return number


def test_results_come_in_order_and_as_they_are_ready(pool: Processes) -> None:
    assert list(pool.map(slow_first, range(5))) == list(range(5))
    assert list(pool.map(square, [])) == []


def test_no_more_than_a_few_tasks_are_ahead_of_what_is_taken(tmp_path: Path, pool: Processes) -> None:
    results = pool.map(partial(touch, str(tmp_path)), range(50))
    assert next(results) == 0
    time.sleep(0.5)
    assert len(list(tmp_path.iterdir())) <= 5
    results.close()  # type: ignore[attr-defined]
    assert list(pool.map(square, [3])) == [9]


def test_what_a_task_raises_comes_through(pool: Processes) -> None:
    results = pool.map(fail, range(5))
    assert [next(results), next(results)] == [0, 1]
    with pytest.raises(DataError, match=r"^sample 2 is bad$"):
        next(results)


# A Dask cluster


def test_on_a_dask_cluster_too_and_when_a_worker_is_killed_on_the_way(
    work: Work, expected: dict[str, Any], cluster: Cluster
) -> None:
    with Dask(cluster.address) as executor:
        _soon(lambda: executor.workers == 2)
        assert everything(work.spread(executor), work) == expected
        survivors = bits(work.spread(executor), work, kill=cluster.workers[0].kill)
        assert cluster.workers[0].wait() == -signal.SIGKILL
        assert survivors == bits(work.backend, work)


def test_dask_lets_what_a_task_raises_through(cluster: Cluster) -> None:
    with Dask(cluster.address) as executor, pytest.raises(DataError, match=r"^sample 2 is bad$"):
        list(executor.map(fail, range(5)))


def test_dask_without_a_worker_and_without_a_scheduler_ends_in_one_error(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("precisionlab.system.executors._LOOK_SECONDS", 0.2)
    monkeypatch.setattr("precisionlab.system.executors._NOBODY_SECONDS", 0.5)
    monkeypatch.setattr("precisionlab.system.executors._JOIN_SECONDS", 0.5)
    with Dask(cluster.address) as executor:
        for process in cluster.workers:
            process.kill()
        with pytest.raises(PrecisionLabError, match="no Dask worker is left; start some"):
            list(executor.map(square, range(5)))
        with pytest.raises(OptionError, match=f"{cluster.address}: the Dask scheduler has no worker"):
            Dask(cluster.address)
        cluster.scheduler.kill()
        with pytest.raises(PrecisionLabError, match="the Dask scheduler is gone"):
            list(executor.map(square, range(5)))


# Processes that are killed; these tests come last, as every new process takes a while to start


def test_with_a_process_killed_on_the_way_it_has_the_same_bits(work: Work, pool: Processes) -> None:
    def kill() -> None:
        os.kill(multiprocessing.active_children()[0].pid or 0, signal.SIGKILL)

    assert bits(work.spread(pool), work, kill) == bits(work.backend, work)


def test_a_process_killed_while_it_waits_is_replaced(work: Work, pool: Processes) -> None:
    assert list(pool.map(abs, [-1])) == [1]
    child = multiprocessing.active_children()[0]
    os.kill(child.pid or 0, signal.SIGKILL)
    child.join()
    assert list(pool.map(abs, [-1, -2])) == [1, 2]


def test_what_a_dead_worker_had_in_hand_is_done_again(tmp_path: Path, pool: Processes) -> None:
    assert list(pool.map(partial(die_once, str(tmp_path / "died")), range(8))) == list(range(8))


def test_a_task_that_kills_every_worker_ends_in_one_error_after_those_before_it(pool: Processes) -> None:
    results = pool.map(deadly, range(5))
    assert [next(results), next(results)] == [0, 1]
    with pytest.raises(PrecisionLabError, match=r"^2: the worker died each time.*memory"):
        next(results)
    assert list(pool.map(square, [4])) == [16]


def test_workers_end_with_a_main_process_that_is_killed() -> None:
    script = (
        "import os, time\n"
        "from precisionlab.system.executors import Processes\n"
        "if __name__ == '__main__':\n"
        "    print(*Processes(1).map(os.getenv, ['OMP_NUM_THREADS']), flush=True)\n"
        "    import multiprocessing\n"
        "    print(multiprocessing.active_children()[0].pid, flush=True)\n"
        "    time.sleep(60)\n"
    )
    main = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    assert main.stdout is not None
    assert main.stdout.readline() == "1\n"
    worker = int(main.stdout.readline())
    main.kill()
    main.communicate()
    _soon(lambda: not _runs(worker))


def _runs(pid: int) -> bool:
    status = Path(f"/proc/{pid}/status")
    return status.is_file() and "State:\tZ" not in status.read_text()
