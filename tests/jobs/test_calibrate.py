"""Calibration from a folder to a cache: whole, in shards, killed and started again, by `auto`, and inside a sweep."""

from __future__ import annotations

import functools
import hashlib
import json
import math
import operator
import random
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
import pandas as pd
import pytest
from click.testing import CliRunner, Result
from models import DIGITS, proto, read_table

from precisionlab.backends.onnxruntime import OnnxRuntimeBackend
from precisionlab.calibration.cache import read_cache_file
from precisionlab.calibration.methods import METHODS
from precisionlab.calibration.state import STATE_FILE, CalibrationState, read_state
from precisionlab.calibration.table import CalibrationTable
from precisionlab.cli import cli
from precisionlab.compare.comparison import Comparison
from precisionlab.compare.errors import Agreement, error_sums
from precisionlab.compare.output import OutputErrors
from precisionlab.data import open_dataset
from precisionlab.errors import DataError, OptionError
from precisionlab.evaluate.ranges import least_lossy, typical_sqnr
from precisionlab.jobs.calibrate import CACHE_FILE, calibrate, calibrated_tensors, merge
from precisionlab.jobs.result import CalibrationResult
from precisionlab.jobs.sweep import sweep
from precisionlab.model import load_model
from precisionlab.model.layers import quantized_operands
from precisionlab.precision import Precision
from precisionlab.report.columns import RANGES
from precisionlab.rewrite.plans import plan_for

MODEL = DIGITS / "digits.onnx"


class Heard:
    """An observer that keeps what it is told."""

    def __init__(self) -> None:
        self.notes: list[str] = []

    def stage(self, title: str, total: int) -> None:
        pass

    def advance(self, done: int) -> None:
        pass

    def note(self, text: str) -> None:
        self.notes.append(text)


@pytest.fixture(autouse=True)
def _own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs go to reports/ below where the user stands."""
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> CalibrationResult:
    """The README's command from Python: no option but the data."""
    return calibrate(data=DIGITS, out=tmp_path_factory.mktemp("whole") / "run")


def run(*args: str | Path) -> Result:
    """The command in this process; an exception of any kind but an exit is a failure."""
    return CliRunner().invoke(cli, ["calibrate", *map(str, args)], catch_exceptions=False)


def refused(*args: str | Path) -> str:
    """What a command that cannot be carried out says: exit code 2, and one sentence."""
    result = run(*args)
    assert result.exit_code == 2, result.output
    line = result.stderr.strip().splitlines()[-1]
    assert "Traceback" not in result.stderr
    return line


def arrays(path: Path) -> dict[str, bytes]:
    """What the histograms' file holds, array for array."""
    with np.load(path) as archive:
        return {name: archive[name].tobytes() for name in archive.files if name != "meta"}


def copied(tmp_path: Path, count: int = 64) -> Path:
    """The bundled folder with so many of its samples, to be changed."""
    data = shutil.copytree(DIGITS, tmp_path / "data")
    labels = (data / "labels.csv").read_text().splitlines(True)
    for line in labels[count + 1 :]:
        (data / line.partition(",")[0]).unlink()
    (data / "labels.csv").write_text("".join(labels[: count + 1]))
    return data


def cache_of(result: CalibrationResult) -> bytes:
    assert result.cache is not None
    return result.cache.read_bytes()


# One run


def test_the_command_needs_nothing_but_the_folder(whole: CalibrationResult) -> None:
    result = run("--data", DIGITS, "--out", "X")
    assert result.exit_code == 0
    assert "ranges of 33 tensors by entropy over 64 samples; 8 of them" in result.stdout
    assert "Cache:  X/calibration.cache" in result.stdout
    assert Path("X", CACHE_FILE).read_bytes() == cache_of(whole)
    assert Path("X/calibration.html").read_text(encoding="utf-8").lstrip().startswith("<!doctype html>")


def test_the_cache_has_every_float_tensor_once(whole: CalibrationResult) -> None:
    assert whole.cache is not None
    cache = read_cache_file(whole.cache)
    tensors = calibrated_tensors(whole.model)
    assert tuple(cache.scales) == tensors == tuple(whole.table.ranges)
    assert len(tensors) == len(set(tensors)) == 33
    assert cache.tensorrt == "10.16.1"
    for name, found in whole.table.ranges.items():
        assert cache.scales[name] == np.float32(found.amax / 127)
    assert set(tensors) >= {name for layer in whole.model.layers for name in quantized_operands(whole.model, layer)}


def test_calibrated_tensors_are_the_float_values_and_no_constants(tmp_path: Path) -> None:
    body = (
        "(float[1,4] x, int64[1] i) => (float[1,4] y, int64[2] s) "
        "{ a = Relu(x) b = Mul(a, w) s = Shape(b) g = Gather(b, i) y = Add(b, g) }"
    )
    onnx.save_model(proto(body, {"w": np.float32([2])}), tmp_path / "m.onnx")
    assert calibrated_tensors(load_model(tmp_path / "m.onnx")) == ("x", "a", "b", "g", "y")


def test_the_fingerprint_is_that_of_the_cache(whole: CalibrationResult) -> None:
    assert whole.cache is not None
    facts = json.loads(whole.cache.with_name("calibration.cache.json").read_text())
    assert facts["cache"]["sha256"] == hashlib.sha256(cache_of(whole)).hexdigest()
    assert facts["model"]["sha256"] == hashlib.sha256(MODEL.read_bytes()).hexdigest()
    assert facts["data"]["samples"] == 64
    assert (facts["method"], facts["cache"]["tensorrt"]) == ("entropy", "10.16.1")
    lint = CliRunner().invoke(cli, ["cache", "lint", str(whole.cache), "--model", str(MODEL)])
    assert "fingerprint" not in lint.output.lower() or "stale" not in lint.output.lower()


def test_ranges_csv_has_its_documented_columns(whole: CalibrationResult) -> None:
    table = read_table(whole.folder / "ranges.csv")
    assert list(table.columns) == [
        "tensor", "method", "amax", "scale", "largest", "count", "zeros", "nonfinite", "clipped", "clipped_share",
        "levels_used", "entropy", "capped", "percentile", "mse", "max", "disagreement", "operand",
    ]  # fmt: skip
    assert list(table.columns) == RANGES.names


@pytest.mark.parametrize("method", METHODS)
def test_every_method_gives_its_column(method: str, whole: CalibrationResult, tmp_path: Path) -> None:
    shutil.copytree(whole.folder, tmp_path / "run")  # its histograms are taken over
    result = calibrate(
        MODEL, DIGITS, method=method, out=tmp_path / "run", tensorrt="8.6.1", cache=tmp_path / "my.cache"
    )
    assert result.cache == tmp_path / "my.cache"
    assert {n: r.amax for n, r in result.table.ranges.items()} == {
        n: r.amax for n, r in whole.methods[method].ranges.items()
    }
    assert cache_of(result).startswith(b"TRT-8601-EntropyCalibration2\n")
    assert {found.method for found in result.table.ranges.values()} == {method}


def test_the_percentile_asked_for_is_used_and_noted(whole: CalibrationResult, tmp_path: Path) -> None:
    result = calibrate(data=DIGITS, method="percentile", percentile=90, out=tmp_path / "run")
    assert result.facts["method"] == "percentile 90"
    assert all(
        found.amax <= whole.methods["percentile"].ranges[name].amax for name, found in result.table.ranges.items()
    )
    assert (result.ranges["clipped_share"] <= 0.1).all()


def test_samples_and_seed_choose_and_threads_do_not_matter(tmp_path: Path) -> None:
    first = calibrate(data=DIGITS, samples=8, seed=3, threads=1, out=tmp_path / "a")
    again = calibrate(data=DIGITS, samples=8, seed=3, threads=2, out=tmp_path / "b")
    other = calibrate(data=DIGITS, samples=8, seed=4, out=tmp_path / "c")
    assert first.table.samples == 8
    assert cache_of(first) == cache_of(again) != cache_of(other)
    assert arrays(tmp_path / "a" / STATE_FILE) == arrays(tmp_path / "b" / STATE_FILE)


def test_histograms_of_other_samples_or_another_model_are_not_taken_over(tmp_path: Path) -> None:
    """The same folder for run after run: each counts what it was asked for."""
    heard = Heard()
    calibrate(data=DIGITS, samples=3, out=tmp_path / "run")
    more = calibrate(data=DIGITS, samples=4, out=tmp_path / "run", observer=heard)
    assert not [note for note in heard.notes if "going on" in note]
    assert cache_of(more) == cache_of(calibrate(data=DIGITS, samples=4, out=tmp_path / "fresh"))
    (tmp_path / "run" / STATE_FILE).write_bytes(b"PK damaged")
    assert cache_of(calibrate(data=DIGITS, samples=4, out=tmp_path / "run")) == cache_of(more)
    again = Heard()
    calibrate(data=DIGITS, samples=4, out=tmp_path / "run", observer=again)
    assert "going on after 4 of 4 samples" in again.notes


def test_histograms_damaged_in_the_middle_are_counted_anew(tmp_path: Path) -> None:
    first = calibrate(data=DIGITS, samples=8, out=tmp_path / "run")
    content = bytearray((tmp_path / "run" / STATE_FILE).read_bytes())
    for place in range(300, len(content) - 300, 7):
        content[place] ^= 0x55
    (tmp_path / "run" / STATE_FILE).write_bytes(content)
    assert cache_of(calibrate(data=DIGITS, samples=8, out=tmp_path / "run")) == cache_of(first)


def test_a_tensor_of_nan_is_warned_of_and_one_of_zeros_gets_the_scale_of_one(tmp_path: Path) -> None:
    body = "(float[1,4] x) => (float[1,4] y, float[1,4] z) { y = Log(x) z = Mul(x, none) }"
    onnx.save_model(proto(body, {"none": np.float32([0])}), "model.onnx")
    Path("data").mkdir()
    np.savez("data/a.npz", x=np.float32([[-1, -2, -3, -4]]))
    result = run("model.onnx", "--data", "data", "--out", "X")
    assert result.exit_code == 0
    assert "1 tensors hold NaN or Inf" in result.stdout
    assert "1 samples are few" in result.stdout
    scales = read_cache_file(Path("X", CACHE_FILE)).scales
    assert scales["y"] == scales["z"] == np.float32(1 / 127)


PAST = (
    '(float[1,1,8] x, float[1,P,8] past) => (float[1,Q,4] y) { ["key"] k = MatMul(x, w) ["old"] o = MatMul(past, w) '
    '["cat"] c = Concat <axis = 1> (o, k) ["out"] y = MatMul(c, v) }'
)


def past_of(lengths: Sequence[int], folder: str) -> None:
    """A decoder's step with a past, and samples in which that has these lengths."""
    rng = np.random.default_rng(71)
    weights = {"w": rng.standard_normal((8, 8)), "v": rng.standard_normal((8, 4))}
    onnx.save_model(proto(PAST, {name: value.astype(np.float32) for name, value in weights.items()}), "model.onnx")
    Path(folder).mkdir()
    for index, length in enumerate(lengths):
        x, past = rng.standard_normal((1, 1, 8), np.float32), rng.standard_normal((1, length, 8), np.float32)
        np.savez(Path(folder, f"{index:03d}.npz"), x=x, past=past)


def test_a_tensor_that_never_held_an_element_has_no_range(tmp_path: Path) -> None:
    past_of([0] * 40, "data")
    result = run("model.onnx", "--data", "data", "--out", "X")
    assert result.exit_code == 0
    assert "past, o never held an element in the samples" in " ".join(result.stdout.split())
    assert set(read_cache_file(Path("X", CACHE_FILE)).scales) == {"x", "k", "c", "y"}
    ranges = pd.read_csv("X/ranges.csv").set_index("tensor")
    assert ranges["count"]["past"] == 0
    assert ranges.loc["past", ["amax", "scale", "max"]].isna().all()
    assert ranges["scale"]["x"] > 0
    assert "Never held an element in the samples: 1 tensor" in Path("X/calibration.html").read_text()
    assert "past" not in Path("X/onnxruntime/calibration.json").read_text()
    linted = CliRunner().invoke(cli, ["cache", "lint", f"X/{CACHE_FILE}", "--model", "model.onnx"])
    told = " ".join(linted.stdout.split())
    assert linted.exit_code == 0
    assert "warning past" in told
    assert "It never held an element in the samples: it has no range" in told


def test_one_element_is_enough_for_a_range(tmp_path: Path) -> None:
    past_of([i % 5 for i in range(40)], "data")
    result = run("model.onnx", "--data", "data", "--out", "X")
    assert "never held" not in result.stdout
    assert set(read_cache_file(Path("X", CACHE_FILE)).scales) == {"x", "past", "k", "o", "c", "y"}
    linted = CliRunner().invoke(cli, ["cache", "lint", f"X/{CACHE_FILE}", "--model", "model.onnx"])
    assert "nothing to object to" in linted.stdout


def test_a_scale_that_a_cache_has_of_such_a_tensor_is_told(tmp_path: Path) -> None:
    past_of([0] * 40, "data")
    assert run("model.onnx", "--data", "data", "--out", "X").exit_code == 0
    with Path("X", CACHE_FILE).open("a") as cache:
        cache.write("past: 3c010204\n")  # 1/127
    linted = CliRunner().invoke(cli, ["cache", "lint", f"X/{CACHE_FILE}", "--model", "model.onnx"])
    told = " ".join(linted.stdout.split())
    assert "the scale that the cache has of it is made up" in told
    assert "1 of 5 tensors differ" in told


def test_int8_leaves_a_layer_whose_operand_never_held_an_element(tmp_path: Path) -> None:
    past_of([0] * 40, "data")
    result = sweep("model.onnx", "data", precisions=("int8",), tolerance="sqnr>=10", out="S")
    plan = result.plans["int8"]
    reasons = {pin.layer: pin.reason for pin in plan.pins}
    assert list(reasons) == ["old"]
    assert "past never held an element in the samples" in reasons["old"]
    past_of([i % 5 for i in range(40)], "more")
    result = sweep("model.onnx", "more", precisions=("int8",), tolerance="sqnr>=10", out="T")
    assert not result.plans["int8"].pins


# Shards


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("shards")
    for index in (1, 2, 3):
        result = calibrate(data=DIGITS, shard=(index, 3), out=folder / str(index))
        assert result.cache is None
        assert not (folder / str(index) / CACHE_FILE).exists()
    return [folder / "1", folder / "2", folder / "3"]


def test_merged_shards_are_the_bits_of_one_run(shards: list[Path], whole: CalibrationResult, tmp_path: Path) -> None:
    for order in ((0, 1, 2), (2, 0, 1)):
        merged = merge(None, [shards[i] for i in order], DIGITS, out=tmp_path / "m")
        assert cache_of(merged) == cache_of(whole)
        assert merged.table == whole.table
        assert merged.facts["data"] == whole.facts["data"]
        left = CalibrationState({}, (), merged.histograms).to_bytes()
        assert left == CalibrationState({}, (), whole.histograms).to_bytes()
    counted = [name for shard in shards for name in read_state(shard / STATE_FILE).samples]
    assert sorted(counted) == sorted(open_dataset(DIGITS, load_model(MODEL), None, 0).names)


def test_shards_on_the_command_line(whole: CalibrationResult) -> None:
    for index in "123":
        result = run("--data", DIGITS, "--shard", f"{index}/3", "--out", f"s{index}")
        assert result.exit_code == 0
        assert f"{22 if index == '1' else 21} samples counted for 33 tensors" in result.stdout
    result = run("--data", DIGITS, "--merge", "s1", "--merge", f"s2/{STATE_FILE}", "--merge", "s3", "--out", "m")
    assert result.exit_code == 0
    assert Path("m", CACHE_FILE).read_bytes() == cache_of(whole)


def test_shards_that_do_not_make_a_whole_are_refused(shards: list[Path], tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"shard 2/3 is missing; give the folders of all 3"):
        merge(None, [shards[0], shards[2]], DIGITS)
    twice = shutil.copytree(shards[1], tmp_path / "twice")
    with pytest.raises(DataError, match=r"shard 2/3 comes twice"):
        merge(None, [*shards, twice], DIGITS)
    with pytest.raises(DataError, match=r"shard 1/3 comes twice"):
        merge(None, [shards[0], *shards], DIGITS)
    other = calibrate(data=DIGITS, shard=(2, 4), out=tmp_path / "four").folder
    with pytest.raises(DataError, match="not of the same calibration"):
        merge(None, [*shards, other], DIGITS)


def test_a_shard_counted_by_another_kind_of_processor_is_refused(
    shards: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """ONNX Runtime's kernels there have other last bits."""
    monkeypatch.setattr("platform.machine", lambda: "riscv64")
    other = calibrate(data=DIGITS, shard=(2, 3), out=tmp_path / "other").folder
    with pytest.raises(DataError, match=r"not of the same calibration .*processor"):
        merge(None, [shards[0], other, shards[2]], DIGITS)


def test_a_shard_of_another_model_or_a_whole_run_is_refused(
    shards: list[Path], whole: CalibrationResult, tmp_path: Path
) -> None:
    onnx.save_model(
        proto("(float[1,1,8,8] image) => (float[1,1,8,8] logits) { logits = Relu(image) }"), tmp_path / "other.onnx"
    )
    other = calibrate(tmp_path / "other.onnx", DIGITS, shard=(1, 3), out=tmp_path / "other").folder
    with pytest.raises(DataError, match="histograms of another model"):
        merge(MODEL, [other, *shards[1:]], DIGITS)
    with pytest.raises(DataError, match="not a shard"):
        merge(MODEL, [whole.folder], DIGITS)


def test_merging_with_other_data_is_refused(shards: list[Path], tmp_path: Path) -> None:
    data = copied(tmp_path)
    (data / "0005.npz").write_bytes((data / "0006.npz").read_bytes())
    with pytest.raises(DataError, match="not the samples that the shards were counted from"):
        merge(None, shards, data)
    (data / "0005.npz").unlink()
    with pytest.raises(DataError, match=r"not the samples that the shards were counted from|0005"):
        merge(None, shards, data)


@pytest.mark.slow
def test_shards_of_chosen_samples_and_past_bad_ones_can_be_merged(tmp_path: Path) -> None:
    data = copied(tmp_path, 12)
    (data / "0007.npz").write_bytes(b"broken")
    whole = calibrate(data=data, skip_bad=True, out=tmp_path / "whole")
    for i in (1, 2):
        calibrate(data=data, skip_bad=True, shard=(i, 2), out=tmp_path / f"bad{i}")
        calibrate(data=DIGITS, samples=9, seed=1, shard=(i, 2), out=tmp_path / f"few{i}")
    merged = merge(None, [tmp_path / "bad1", tmp_path / "bad2"], data, out=tmp_path / "m1")
    assert cache_of(merged) == cache_of(whole)
    assert merged.facts["data"] == whole.facts["data"]
    assert whole.facts["data"]["skipped"] == 1
    few = calibrate(data=DIGITS, samples=9, seed=1, out=tmp_path / "few", method="auto")
    merged = merge(None, [tmp_path / "few1", tmp_path / "few2"], DIGITS, out=tmp_path / "m2", method="auto")
    assert cache_of(merged) == cache_of(few)
    assert merged.facts["data"] == few.facts["data"]


# Killed and started again

_KILLED = """
import importlib, sys, time
c = importlib.import_module("precisionlab.jobs.calibrate")
c._SAVE_EVERY = 0.0
save = c._save
def slowly(path, state):
    print("saving", flush=True)
    save(path, state)
    time.sleep(0.01)
c._save = slowly
class See:
    def stage(self, title, total): print(title, flush=True)
    def advance(self, done): pass
    def note(self, text): print(text, flush=True)
c.calibrate(data=sys.argv[1], out=sys.argv[2], threads=2, observer=See())
print("done", flush=True)
"""


@pytest.mark.slow
@pytest.mark.thorough
def test_killed_at_any_moment_and_started_again_it_ends_with_the_same_bits(tmp_path: Path) -> None:
    rng = np.random.default_rng(5)
    data = tmp_path / "many"
    data.mkdir()
    shutil.copy(MODEL, data)
    (data / "dataset.toml").write_text('model = "digits.onnx"\n')
    for index in range(300):
        size = np.float32(rng.choice([1e-3, 1, 4095, 0]))
        np.savez(data / f"{index:04}.npz", image=rng.random((1, 1, 8, 8), np.float32) * size)
    undisturbed = calibrate(data=data, out=tmp_path / "undisturbed")

    chance = random.Random(6)
    moments = ["reading", "histograms", *["saving"] * 3, ""]  # the last one is left to finish
    heard, states = "", set()
    for moment in moments:
        child = subprocess.Popen(
            [sys.executable, "-c", _KILLED, str(data), str(tmp_path / "killed")],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            encoding="utf-8",
        )
        assert child.stdout is not None
        times = chance.randint(1, 5) if moment == "saving" else 1
        while moment and times and (line := child.stdout.readline()):
            heard += line
            times -= line.startswith(moment)
        if moment:
            assert times == 0, f"it ended before it could be killed: {heard}"
            time.sleep(chance.uniform(0.0, 0.02))
            child.kill()
        heard += child.stdout.read()
        child.wait()
        state = tmp_path / "killed" / STATE_FILE
        if state.is_file():
            states.add(len(read_state(state).samples))  # whole after every kill
    assert child.returncode == 0
    assert len(states & set(range(1, 300))) >= 2, "no kill fell among the samples"
    assert re.search(r"going on after [1-9]\d* of 300", heard)
    assert (tmp_path / "killed" / CACHE_FILE).read_bytes() == cache_of(undisturbed)
    assert arrays(tmp_path / "killed" / STATE_FILE) == arrays(tmp_path / "undisturbed" / STATE_FILE)
    for name in ("ranges.csv", "calibration.cache.json"):
        assert (tmp_path / "killed" / name).read_bytes() == (tmp_path / "undisturbed" / name).read_bytes()


# auto


def comparison_of(result: CalibrationResult, table: CalibrationTable) -> Comparison:
    """The int8 model under these ranges, by a comparison of its own."""
    dataset = open_dataset(DIGITS, load_model(MODEL), 8, 0)
    backend = OnnxRuntimeBackend(result.model, next(iter(dataset)), 2)
    plan = plan_for(backend.model, Precision.INT8, table)
    return backend.compare(plan, table, dataset, lambda done: None, metric=None, introduced=False)


def test_auto_takes_what_the_measured_candidates_speak_for(tmp_path: Path) -> None:
    heard = Heard()
    result = calibrate(data=DIGITS, method="auto", samples=8, out=tmp_path / "run", observer=heard)
    (note,) = [note for note in heard.notes if "SQNR of the final output" in note]
    noted = {name: (float(a), float(b)) for name, a, b in re.findall(r"(\w+) ([\d.]+) \(([\d.]+)\)[,;]", note)}
    assert list(noted) == [*METHODS, "auto"]
    found = {name: comparison_of(result, table) for name, table in result.methods.items()}
    for name, comparison in found.items():
        assert noted[name] == pytest.approx((comparison.worst("sqnr"), typical_sqnr(comparison)), abs=0.06)
    taken = note.rpartition("taken: ")[2]
    chosen = comparison_of(result, result.table)
    assert noted[taken] == pytest.approx((chosen.worst("sqnr"), typical_sqnr(chosen)), abs=0.06)
    assert least_lossy({**found, "chosen": chosen}) in ("chosen", taken)
    assert result.facts["method"] == "auto"
    for name, range_ in result.table.ranges.items():
        assert range_ == result.methods[range_.method].ranges[name]


def of_samples(*noise: float) -> Comparison:
    """One output of signal 1 with so much noise in each sample."""
    each = tuple(OutputErrors(error_sums(np.float32([1, 0]), np.float32([1, n])), Agreement(0, 0)) for n in noise)
    return Comparison(len(noise), {}, {}, {"y": functools.reduce(operator.add, each)}, {"y": each})


def test_of_ranges_that_the_samples_cannot_tell_apart_the_typical_sample_decides() -> None:
    """One sample of twenty rules both sums; which of the two it hits less is chance."""
    often_good = of_samples(*[0.001] * 19, 0.6)
    often_bad = of_samples(*[0.05] * 19, 0.5)
    assert often_bad.worst("sqnr") > often_good.worst("sqnr")
    assert least_lossy({"bad": often_bad, "good": often_good}) == "good"


def test_ranges_that_are_worse_beyond_chance_are_not_taken_for_their_typical_sample() -> None:
    even = of_samples(*[0.05] * 20)
    uneven = of_samples(*[0.001] * 10, *[0.9] * 10)
    assert typical_sqnr(uneven) > typical_sqnr(even)
    assert least_lossy({"uneven": uneven, "even": even}) == "even"


def test_ranges_under_which_a_sample_breaks_are_never_taken() -> None:
    broken = of_samples(*[0.0] * 19, math.nan)
    assert least_lossy({"broken": broken, "poor": of_samples(*[0.9] * 20)}) == "poor"
    assert least_lossy({"few": of_samples(0.1), "fewer": of_samples(0.01)}) == "fewer"


# Samples and options that cannot be used


def test_a_bad_sample_stops_the_run_with_its_name_and_skip_bad_goes_on(tmp_path: Path) -> None:
    data = copied(tmp_path, 12)
    (data / "0007.npz").write_bytes(b"broken")
    assert "0007.npz" in refused("--data", data, "--out", "X")
    result = run("--data", data, "--out", "X", "--skip-bad")
    assert result.exit_code == 0
    assert "skipped 0007.npz" in result.stderr
    assert "over 11 samples" in result.stdout
    facts = json.loads(Path("X/calibration.cache.json").read_text())
    assert (facts["data"]["samples"], facts["data"]["skipped"]) == (11, 1)
    (data / "0007.npz").unlink()
    labels = data / "labels.csv"
    labels.write_text("".join(line for line in labels.read_text().splitlines(True) if "0007" not in line))
    run("--data", data, "--out", "Y")
    assert Path("X", CACHE_FILE).read_bytes() == Path("Y", CACHE_FILE).read_bytes()


OPTIONS = [
    (["--method", "minmax"], "unknown calibration method 'minmax'"),
    (["--percentile", "0"], "percentile is 0; it must lie above 0 and be at most 100"),
    (["--percentile", "100.1"], "percentile is 100.1"),
    (["--percentile", "nan"], "percentile is nan"),
    (["--tensorrt", "5.0"], "TensorRT 5.0 reads no calibration cache"),
    (["--tensorrt", "new"], "'new' is no TensorRT version"),
    (["--shard", "3/2"], "shard 3/2: write I/N with I from 1 to N"),
    (["--shard", "0/2"], "shard 0/2"),
    (["--shard", "one"], "write I/N, such as 2/8"),
    (["--shard", "65/65"], "shard 65/65 is empty: there are only 64 samples"),
    (["--shard", "1/2", "--merge", "x"], "give one of them"),
    (["--merge", "nowhere"], "not the histograms of a calibration"),
    (["--merge", str(MODEL)], "not the histograms of a calibration"),
    (["--merge", str(DIGITS / "0000.npz")], "not the histograms of a calibration"),
    (["--threads", "-1"], "threads is -1; it must be at least 1"),
    (["--threads", "0"], "threads is 0; it must be at least 1"),
    (["--samples", "0"], "samples is 0; it must be at least 1"),
    (["--samples", "-3"], "samples is -3; it must be at least 1"),
    (["--seed", "-1", "--samples", "3"], "seed is -1; it must be at least 0"),
    (["--samples", "2", "--cache", "no/such/folder/x.cache"], "cannot be written"),
]


@pytest.mark.parametrize(("options", "said"), OPTIONS)
def test_options_that_cannot_be_used_are_one_sentence(options: list[str], said: str) -> None:
    line = refused("--data", DIGITS, "--out", "X", *options)
    assert line.startswith("precisionlab: ")
    assert said in line


def test_a_folder_without_a_manifest_model_asks_for_the_model(tmp_path: Path) -> None:
    data = tmp_path / "plain"
    data.mkdir()
    shutil.copy(DIGITS / "0000.npz", data)
    assert "no dataset.toml there names a model; give the model" in refused("--data", data)
    assert "no dataset.toml there names a model" in refused("--data", tmp_path / "nothing")
    assert run(MODEL, "--data", data, "--out", "X").exit_code == 0
    (data / "dataset.toml").write_text('model = "../outside.onnx"\n')
    assert "outside" in refused("--data", data)


def test_python_raises_what_the_command_says() -> None:
    with pytest.raises(OptionError, match="unknown calibration method"):
        calibrate(data=DIGITS, method="best")
    with pytest.raises(OptionError, match="shard 0/3"):
        calibrate(data=DIGITS, shard=(0, 3))
    with pytest.raises(OptionError, match="percentile"):
        merge(None, [], DIGITS, percentile=-1)


def test_merging_nothing_is_refused() -> None:
    with pytest.raises((DataError, OptionError), match="shard"):
        merge(None, [], DIGITS)


# Sweep


@pytest.mark.slow
@pytest.mark.thorough
def test_sweep_calibrates_with_each_method_and_the_journal_never_mixes_them_up(tmp_path: Path) -> None:
    def figures(calibration: str, out: str) -> tuple[float, ...]:
        result = sweep(
            MODEL,
            DIGITS,
            precisions="int8",
            calibration=calibration,
            samples=8,
            tolerance="sqnr>=5",
            out=tmp_path / out,
        )
        (row,) = result.variants[result.variants["variant"] == "int8"].to_dict("records")
        assert math.isfinite(row["sqnr_db"])
        return (row["sqnr_db"], row["cosine"])

    fresh = {name: figures(name, f"fresh-{name}") for name in ("max", "entropy", "auto", "percentile")}
    assert fresh["max"] != fresh["entropy"]
    # Into one folder, there and back again.
    for name in ("max", "entropy", "auto", "percentile", "max", "entropy"):
        assert figures(name, "one") == fresh[name], name
    # Within what eight samples can tell apart: there the typical sample decides, not the sum over all.
    assert fresh["auto"][0] >= max(value[0] for value in fresh.values()) - 1


def test_the_sweeps_ranges_are_those_of_calibrate(tmp_path: Path, whole: CalibrationResult) -> None:
    result = sweep(MODEL, DIGITS, precisions="int8", tolerance="sqnr>=5", holdout=0, out=tmp_path / "run")
    (found,) = result.precisions
    table = found.table
    assert table is not None
    for name, ours in table.ranges.items():
        theirs = whole.table.ranges[name]
        # A sweep looks at what layers take and fuses the rest, so that a sum may round another way.
        assert ours.largest == pytest.approx(theirs.largest, rel=1e-6)
        assert ours.amax == pytest.approx(theirs.amax, rel=2e-3)
        assert (ours.method, ours.count) == (theirs.method, theirs.count)
