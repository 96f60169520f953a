"""A budget of memory holds, changes no verdict, and is refused in one sentence where it cannot hold."""

from __future__ import annotations

import functools
import math
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st
from models import DIGITS, calibrate, examples, load, plan_for, proto

from precisionlab.backends.base import SensitivityRequest
from precisionlab.backends.memory import Share, default_memory, machine_memory, share_of, too_little
from precisionlab.backends.onnxruntime import OnnxRuntimeBackend
from precisionlab.backends.session import Session
from precisionlab.cli import cli
from precisionlab.compare.errors import ErrorSums
from precisionlab.compare.judging import judging_of
from precisionlab.compare.sensitivity import Sensitivities, merged
from precisionlab.data import Dataset, Sample
from precisionlab.errors import OptionError, is_out_of_memory
from precisionlab.evaluate.evaluator import Evaluator
from precisionlab.jobs.sweep import sweep
from precisionlab.model import Model, load_model
from precisionlab.precision import Precision
from precisionlab.rewrite.observe import cut
from precisionlab.rewrite.toggle import stage_ends, whole
from precisionlab.system.parsing import parse_memory

MB, GB = 1024**2, 1024**3
Machine = Callable[..., int]


@pytest.mark.parametrize(
    ("text", "count"),
    [("4G", 4 * GB), ("512M", 512 * MB), ("1.5G", 3 * GB // 2), ("1048576", MB), (MB, MB), (None, None)],
)
def test_memory_is_written_in_units_or_bytes(text: str | int | None, count: int | None) -> None:
    assert parse_memory(text) == count


@pytest.mark.parametrize("text", ["lots", "-1G", "0", "4 apples", ""])
def test_what_is_no_memory_is_refused(text: str) -> None:
    with pytest.raises(OptionError, match="512M or 4G"):
        parse_memory(text)


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    """A made-up machine of 16 GB: the process's control groups, and files below where they are mounted."""

    def of(groups: str, **limits: str) -> int:
        (tmp_path / "meminfo").write_text("MemTotal:       16777216 kB\nMemFree:        1234 kB\n")
        (tmp_path / "own").write_text(groups)
        for place, limit in limits.items():
            file = tmp_path / "cgroup" / place.replace("__", "/")
            file = file.with_name(file.name.replace("max", "memory.max").replace("limit", "memory.limit_in_bytes"))
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(limit)
        return machine_memory(tmp_path / "meminfo", tmp_path / "own", tmp_path / "cgroup")

    return of


def test_a_machine_without_control_groups_has_what_is_installed(machine: Machine) -> None:
    assert machine("") == 16 * GB


def test_the_least_limit_of_version_2_on_the_way_to_the_root_counts(machine: Machine) -> None:
    assert machine("0::/a/b\n", a__b__max="max\n", a__max=f"{2 * GB}\n", max=f"{8 * GB}\n") == 2 * GB


def test_a_limit_of_version_1_counts(machine: Machine) -> None:
    assert (
        machine("9:cpu:/x\n4:memory:/x\n0::/\n", memory__x__limit=f"{3 * GB}\n", memory__limit=f"{1 << 62}\n") == 3 * GB
    )


def test_inside_a_container_the_limit_stands_at_the_root(machine: Machine) -> None:
    assert machine("0::/host/path\n", max=f"{GB}\n") == GB


def test_a_limit_above_what_is_installed_is_none(machine: Machine) -> None:
    assert machine("0::/\n", max=f"{64 * GB}\n") == 16 * GB


def test_the_default_is_the_same_every_time() -> None:
    held = bytearray(64 * MB)  # what is free does not matter
    assert default_memory() == machine_memory() // 2
    assert held


# What is split


def in_turn(model: Model, sample: Sample, threads: int = 2, samples: int = GB) -> OnnxRuntimeBackend:
    """The emulation with one layer's weights at a time."""
    backend = OnnxRuntimeBackend(model, sample, threads)
    backend.share = Share(GB, backend.budget, 1, samples)
    assert len(cut(backend.model, 0, backend.budget, 1)) > 3
    return backend


def assert_alike(found: ErrorSums, expected: ErrorSums, where: str) -> None:
    assert (found.elements, found.nan, found.inf) == (expected.elements, expected.nan, expected.inf), where
    assert math.isclose(found.rel_l2, expected.rel_l2, rel_tol=1e-3, abs_tol=1e-7), where


@pytest.mark.parametrize("precision", [Precision.FP16, Precision.INT8])
def test_parts_in_turn_give_the_figures_of_the_whole(bundled: tuple[Model, Dataset], precision: Precision) -> None:
    model, samples = bundled[0], list(bundled[1])
    plain, parted = OnnxRuntimeBackend(model, samples[0], 2), in_turn(model, samples[0])
    assert parted.model.tensors == plain.model.tensors
    table = calibrate(plain, samples) if precision is Precision.INT8 else None
    plan = plan_for(model, precision)
    if table is not None:
        for name, found_range in calibrate(parted, samples).ranges.items():
            assert math.isclose(found_range.amax, table.ranges[name].amax, rel_tol=1e-6), name
    found, expected = (
        backend.compare(plan, table, samples, lambda done: None, metric=None, introduced=True)
        for backend in (parted, plain)
    )
    for name in expected.inherited:
        assert_alike(found.inherited[name], expected.inherited[name], name)
    for name in expected.introduced:
        assert_alike(found.introduced[name], expected.introduced[name], name)
    names = tuple(layer.name for layer in model.layers)
    for base, other in ((plan_for(model, Precision.FP32), plan), (plan, plan_for(model, Precision.FP32))):
        request = SensitivityRequest(base, other, names, table, judging_of(model))
        sensitivities, true = (merged(list(backend.sensitivities(request, samples))) for backend in (parted, plain))
        assert set(sensitivities) == set(true) == set(names)
        for layer, outputs in true.items():
            for name, sensitivity in outputs.items():
                assert_alike(sensitivities[layer][name].errors, sensitivity.errors, layer)
                assert math.isclose(sensitivities[layer][name].along, sensitivity.along, rel_tol=1e-3, abs_tol=1e-4), (
                    layer
                )


def test_few_branches_and_few_samples_at_a_time_change_nothing(bundled: tuple[Model, Dataset]) -> None:
    model, samples = bundled[0], list(bundled[1])
    names = tuple(layer.name for layer in model.layers)
    request = SensitivityRequest(
        plan_for(model, Precision.FP32), plan_for(model, Precision.FP16), names, None, judging_of(model)
    )
    found = [
        merged(list(in_turn(model, samples[0], threads, room).sensitivities(request, samples)))
        for threads, room in ((2, GB), (1, GB), (2, 500_000), (1, 250_000))
    ]
    assert all(other == found[0] for other in found[1:])


@pytest.mark.parametrize("room", [250_000, 500_000])
def test_neither_threads_nor_room_change_a_bit(bundled: tuple[Model, Dataset], room: int) -> None:
    model, samples = bundled[0], list(bundled[1])
    plan = plan_for(model, Precision.FP16)

    def compared(threads: int, room: int) -> dict[str, ErrorSums]:
        backend = in_turn(model, samples[0], threads, room)
        found = backend.compare(plan, None, samples, lambda done: None, metric=None, introduced=True)
        return {**found.inherited, **{f"alone/{k}": v for k, v in found.introduced.items()}}

    assert compared(1, GB) == compared(3, room)


def test_as_many_samples_run_side_by_side_as_fit(bundled: tuple[Model, Dataset]) -> None:
    model = bundled[0]
    share = Share(GB, MB, None, 1000)
    assert [share.side_by_side(model, 4, each, "x") for each in (0, 100, 300, 600, 1000)] == [4, 4, 3, 1, 1]
    with pytest.raises(OptionError, match="one sample's values at layer x"):
        share.side_by_side(model, 4, 1001, "x")


def test_cuts_hang_on_the_budget_and_not_on_threads(bundled: tuple[Model, Dataset]) -> None:
    model, sample = bundled[0], next(iter(bundled[1]))
    cuts = [OnnxRuntimeBackend(model, sample, threads, memory=GB).cuts for threads in (1, 2, 7)]
    assert cuts[0] == cuts[1] == cuts[2]
    assert OnnxRuntimeBackend(model, sample, 1, budget=1000).cuts != cuts[0]


# What cannot be


def heavy(folder: Path, layers: int, side: int) -> Path:
    """A chain of MatMuls, with its weights beside it."""
    sys.path.insert(0, str(DIGITS.parent))
    from benchmarks.memory import heavy_model

    path = folder / "heavy" / "model.onnx"
    heavy_model(path, layers, side)
    return path


def test_too_little_is_told_with_what_is_needed_and_for_what(tmp_path: Path) -> None:
    path = heavy(tmp_path, 2, 2048)
    out = tmp_path / "out"
    found = CliRunner().invoke(cli, ["sweep", str(path), "--memory", "400M", "--out", str(out)])
    assert found.exit_code == 2, found.output
    last = found.stderr.strip().splitlines()[-1]
    assert f"--memory 400M is too little for {path}" in last
    for part in (
        "are needed",
        "for the program",
        "the model and its graphs",
        "largest layer's weights of 16M",
        "give that much",
    ):
        assert part in last, part
    assert not out.exists()


@pytest.mark.parametrize("memory", ["1M", "10M", "128M", "129M", "300M", "386M"])
def test_the_figure_that_is_told_works_whatever_was_given(tmp_path: Path, memory: str) -> None:
    told = refused_with("sweep", str(DIGITS / "digits.onnx"), "--memory", memory, "--out", str(tmp_path / "out"))
    assert told == refused_with("sweep", str(DIGITS / "digits.onnx"), "--memory", "2M", "--out", str(tmp_path / "out"))
    assert swept_within(told) == 0


@functools.cache  # all of them are told the same
def swept_within(memory: str) -> int:
    """The exit code of a sweep with that much."""
    with tempfile.TemporaryDirectory() as folder:
        options = ["--precisions", "fp16", "--random", "--out", f"{folder}/out", "--memory", memory]
        return CliRunner().invoke(cli, ["sweep", str(DIGITS / "digits.onnx"), *options]).exit_code


def refused_with(*command: str) -> str:
    """The figure of the refusal."""
    found = CliRunner().invoke(cli, command)
    assert found.exit_code == 2, found.output
    match = re.search(r"too little.* (\S+) are needed", found.stderr)
    assert match, found.stderr
    return match[1]


@given(memory=st.integers(1, 1 << 34), each=st.integers(1, 1 << 36))
@settings(max_examples=examples(60))
def test_the_figure_of_a_refusal_has_room_for_the_sample(
    bundled: tuple[Model, Dataset], memory: int, each: int
) -> None:
    model, _ = bundled
    told = parse_memory(str(too_little(memory, model, each, "a sample")).split(" are needed")[0].rsplit(" ", 1)[1])
    assert told is not None
    assert share_of(told, model).side_by_side(model, 1, each, "a") == 1


def test_more_than_the_machine_has_for_one_sample_is_told(tmp_path: Path) -> None:
    model = load(proto("(float[1,N] x) => (float[1,N] y) { h = Exp(x) y = Neg(h) }"), tmp_path)
    sample = Sample("s", {"x": np.zeros((1, 30_000_000), np.float32)})
    backend = OnnxRuntimeBackend(model, sample, 2, memory=700 * MB)
    with pytest.raises(OptionError, match=r"one sample's values at layer node_of_"):
        backend.compare(plan_for(model, Precision.FP16), None, [sample], lambda d: None, metric=None, introduced=True)


def test_the_share_of_a_larger_budget_is_no_smaller(bundled: tuple[Model, Dataset]) -> None:
    shares = [share_of(memory, bundled[0]) for memory in (500 * MB, GB, 4 * GB, 64 * GB)]
    assert [s.segment for s in shares] == sorted(s.segment for s in shares)
    assert shares[-1].segment == shares[-2].segment == 128 * MB
    assert all(s.weights is None for s in shares), "a small model is never parted"


# Measured


_PEAK = """
import os, subprocess, sys
process = subprocess.Popen([sys.executable, "-m", "precisionlab", *sys.argv[1:]], stdout=subprocess.DEVNULL)
_, status, usage = os.wait4(process.pid, 0)
print(os.waitstatus_to_exitcode(status), usage.ru_maxrss / 1024)
"""


def peak_of(arguments: Iterable[str]) -> tuple[float, int]:
    """The most MB that the command held, and its exit code."""
    # By way of a small process: Linux counts what the parent holds at the fork among the child's peak.
    found = subprocess.run([sys.executable, "-c", _PEAK, *arguments], capture_output=True, text=True, check=True)
    code, peak = found.stdout.split()
    return float(peak), int(code)


@pytest.mark.skipif(sys.platform != "linux", reason="the peak is read as Linux gives it")
def test_a_sweep_and_a_calibration_stay_within_their_budget(tmp_path: Path) -> None:
    path = heavy(tmp_path, 5, 2304)  # 106 MB of weights, which whole sessions would hold a dozen times
    data = tmp_path / "data"
    data.mkdir()
    for i in range(2):
        np.save(data / f"{i}.npy", np.random.default_rng(i).standard_normal((1, 2304), np.float32))
    common = [str(path), "--data", str(data), "--memory", "576M", "--threads", "2"]
    asked = ["--precisions", "fp16", "--tolerance", "sqnr>=120", "--max-evaluations", "1"]
    peak, code = peak_of(["sweep", *common, *asked, "--out", str(tmp_path / "s")])
    assert (code, peak < 576) == (1, True), peak
    peak, code = peak_of(["calibrate", *common, "--out", str(tmp_path / "c")])
    assert (code, peak < 576) == (0, True), peak


# When it runs out all the same

_FAILS = """
import resource, sys
from pathlib import Path
from precisionlab.cli import cli
from precisionlab.system.observer import Silent
import precisionlab.cli.progress as progress

class Stingy(Silent):
    def stage(self, title, total, unit="sample"):
        if title == "fp16":  # the reference is done: from here on there is no memory left
            used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
            resource.setrlimit(resource.RLIMIT_AS, (used + 32 * 1024**2, -1))

class Watching:
    def __enter__(self):
        return Stingy()
    def __exit__(self, *rest):
        return None

progress.progress = Watching
cli(sys.argv[1:], prog_name="precisionlab")
"""


@pytest.mark.skipif(sys.platform != "linux", reason="RLIMIT_AS")
@pytest.mark.parametrize("megabytes", [300, 450])
def test_a_library_that_finds_no_room_is_told_as_memory_that_ran_out(tmp_path: Path, megabytes: int) -> None:
    words = f"{sys.executable} -m precisionlab sweep {DIGITS / 'digits.onnx'} --data {DIGITS} --samples 2 --threads 1"
    line = f"ulimit -v {megabytes * 1024}; {words} --precisions fp16 --out {tmp_path / 'run'}"
    done = subprocess.run(["bash", "-c", line], capture_output=True, text=True, check=False, timeout=100)
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith("precisionlab: memory ran out")
    assert "Traceback" not in done.stderr


def test_an_error_that_follows_from_another_kind_is_not_taken_for_memory() -> None:
    error = OSError("cannot load it")
    error.__context__ = OSError("libx.so: failed to map segment from shared object")
    assert is_out_of_memory(error)
    assert is_out_of_memory(RuntimeError("can't start new thread"))
    assert is_out_of_memory(SystemError("error return without exception set"))
    assert not is_out_of_memory(SystemError("bad argument to internal function"))
    assert is_out_of_memory(ImportError("x.so: cannot allocate memory in static TLS block"))
    assert not is_out_of_memory(ImportError("x.so: no such file"))


@pytest.mark.skipif(sys.platform != "linux", reason="RLIMIT_AS")
def test_memory_that_runs_out_ends_in_one_sentence_and_the_run_goes_on_later(tmp_path: Path) -> None:
    model = proto(
        "(float[1,8] x) => (float[1] y) { b = Expand(x, s) h = Exp(b) y = ReduceMean<keepdims = 0>(h) }",
        {"s": np.array([1_500_000, 8])},
    )
    load(model, tmp_path)
    command = ["sweep", str(tmp_path / "model.onnx"), "--precisions", "fp16", "--memory", "4G", "--threads", "1"]
    command += ["--random", "--samples", "1", "--out", str(tmp_path / "out")]
    failed = subprocess.run([sys.executable, "-c", _FAILS, *command], capture_output=True, text=True)
    assert failed.returncode == 2, failed.stderr
    (sentence,) = failed.stderr.strip().splitlines()
    assert sentence.startswith("precisionlab: memory ran out"), failed.stderr
    found = CliRunner().invoke(cli, command)
    assert "fp32: taken from the journal" in found.stderr, found.stderr
    assert found.exit_code == 0


@pytest.mark.skipif(sys.platform != "linux", reason="RLIMIT_AS")
def test_what_onnx_runtime_cannot_allocate_is_no_fault_of_the_model(tmp_path: Path) -> None:
    body = "(float[N,8] x) => (float[N,8] y) { h = Exp(x) y = Neg(h) }"
    model = load(proto(body), tmp_path)
    graph, _ = whole(model, plan_for(model, Precision.FP32), None)
    session = Session(graph, 1)
    import resource

    feed = {"x": np.zeros((10_000_000, 8), np.float32)}
    limits = resource.getrlimit(resource.RLIMIT_AS)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + 64 * MB, limits[1]))
    try:
        with pytest.raises(MemoryError):
            session.run(feed)
    finally:
        resource.setrlimit(resource.RLIMIT_AS, limits)
    assert session.run({"x": np.zeros((2, 8), np.float32)})


# Very many layers


def chain(folder: Path, layers: int) -> Path:
    """A chain of MatMul and Softmax."""
    sys.path.insert(0, str(DIGITS.parent))
    from benchmarks.memory import chain_of_layers

    path = folder / f"chain{layers}.onnx"
    chain_of_layers(path, layers)
    return path


def of_few_nodes(model: Model, sample: Sample, nodes: int) -> OnnxRuntimeBackend:
    """The emulation with graphs of at most so many nodes, in turn."""
    backend = OnnxRuntimeBackend(model, sample, 1)
    backend.share = Share(GB, backend.budget, None, GB, nodes)
    return backend


def test_graphs_of_few_nodes_in_turn_give_the_figures_of_the_whole(bundled: tuple[Model, Dataset]) -> None:
    model, samples = bundled[0], list(bundled[1])
    plain, parted = OnnxRuntimeBackend(model, samples[0], 1), of_few_nodes(model, samples[0], 16)
    plan = plan_for(model, Precision.FP16)
    found, expected = (
        backend.compare(plan, None, samples, lambda done: None, metric=None, introduced=True)
        for backend in (parted, plain)
    )
    for name in expected.inherited:
        assert_alike(found.inherited[name], expected.inherited[name], name)
        assert_alike(found.introduced[name], expected.introduced[name], name)
    names = tuple(layer.name for layer in model.layers)
    request = SensitivityRequest(plan_for(model, Precision.FP32), plan, names, None, judging_of(model))
    sensitivities, true = (merged(list(backend.sensitivities(request, samples))) for backend in (parted, plain))
    assert set(sensitivities) == set(true) == set(names)
    for layer, outputs in true.items():
        for name, sensitivity in outputs.items():
            assert_alike(sensitivities[layer][name].errors, sensitivity.errors, layer)


def test_what_is_ranked_can_be_stopped_between_parts_and_kept_between_passes(
    bundled: tuple[Model, Dataset], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, samples = bundled[0], list(bundled[1])
    names = tuple(layer.name for layer in model.layers)
    plans = plan_for(model, Precision.FP32), plan_for(model, Precision.FP16)
    backend = of_few_nodes(model, samples[0], 16)
    whole_pass = list(backend.sensitivities(SensitivityRequest(*plans, names, None, judging_of(model)), samples))
    monkeypatch.setattr("precisionlab.backends.branches._enough", lambda model, samples: 2)
    backwards = list(backend.sensitivities(SensitivityRequest(*plans, names[::-1], None, judging_of(model)), samples))
    assert {} in whole_pass  # here whoever waits may stop
    firsts = [part for part in backwards if part][: len(samples)]
    assert all(set(part) == set(names[-2:]) for part in firsts)  # the first two, for every sample
    assert merged(backwards) == merged(whole_pass)


def test_a_model_of_thousands_of_layers_is_parted_by_nodes_where_memory_is_little(tmp_path: Path) -> None:
    model = load_model(chain(tmp_path, 3000))
    with pytest.raises(OptionError, match="are needed") as refused:
        share_of(400 * MB, model)
    told = re.search(r"(\d+M) are needed", str(refused.value))
    assert told is not None
    share = share_of(parse_memory(told[1]) or 0, model)
    assert share.is_parted
    assert share.nodes is not None
    assert all(sum(len(layer.nodes) for layer in part) <= share.nodes for part in cut(model, 3, GB, None, share.nodes))
    assert not share_of(16 * GB, model).is_parted


def test_stages_of_a_model_of_thousands_of_layers_have_few_branches(tmp_path: Path) -> None:
    model = load_model(chain(tmp_path, 3000))
    ends = stage_ends(model, frozenset(layer.name for layer in model.layers), 8, GB)
    assert ends[-1] == 3000
    assert max(stop - start for start, stop in pairwise([0, *ends])) < 200


@pytest.mark.parametrize("budget", [None, "10m"])
def test_where_time_may_run_out_the_layers_that_look_worst_are_ranked_first(
    tmp_path: Path, budget: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[str, ...]] = []
    sensitivities = Evaluator.sensitivities

    def noted(self: Evaluator, title: str, request: SensitivityRequest, samples: Dataset) -> Sensitivities:
        asked.append(request.layers)
        return sensitivities(self, title, request, samples)

    monkeypatch.setattr(Evaluator, "sensitivities", noted)
    found = sweep(
        DIGITS / "digits.onnx", DIGITS, precisions="fp16", tolerance="sqnr>=90", samples=4, out=tmp_path,
        budget=budget, max_evaluations=1, threads=1, repair=False,
    )  # fmt: skip
    in_order = [layer.name for layer in found.model.layers if layer.name in asked[0]]
    errors = found.precisions[0].low.comparison.introduced
    assert sorted(asked[0]) == sorted(in_order)
    if budget is None:
        assert list(asked[0]) == in_order
    else:
        worst = [min(errors[name].sqnr for name in found.model.layer[layer].outputs) for layer in asked[0]]
        assert worst == sorted(worst)


def test_an_output_that_later_parts_take_is_handed_on_to_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = load(proto("(float[N,4] x) => (float[N,4] a, float[N,4] b) { a = Exp(x) b = Neg(a) }"), tmp_path)
    given = Sample("s", {"x": np.ones((2, 4), np.float32)})
    plan = plan_for(model, Precision.FP16)
    found = []
    for nodes in (1, None):  # so that each layer is a part, and so that both are one
        share = Share(GB, MB, None, GB, nodes)
        monkeypatch.setattr("precisionlab.backends.onnxruntime.share_of", lambda memory, model, share=share: share)
        backend = OnnxRuntimeBackend(model, given, 1, memory=GB)
        assert len(cut(backend.model, 3, MB, None, nodes)) == (2 if nodes else 1)
        found.append(backend.compare(plan, None, [given], lambda done: None, metric=None, introduced=True))
    assert found[0].inherited == found[1].inherited
