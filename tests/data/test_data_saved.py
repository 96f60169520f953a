"""Inputs that Polygraphy and trtexec have saved are read as samples; what could run code or never end is not."""

from __future__ import annotations

import base64
import io
import json
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from models import DIGITS, Array, load, proto
from polygraphy.comparator import RunResults as PolygraphyResults
from polygraphy.json import save_json, to_json

from precisionlab.data import Dataset, open_dataset
from precisionlab.data.hook import is_hook
from precisionlab.data.saved import encoded, feeds_of
from precisionlab.errors import DataError, PlanError
from precisionlab.evaluate.run_results import RunResults
from precisionlab.jobs.plan_source import source_of
from precisionlab.model import Model

BODY = "(float[N,4] x, int64[N] i) => (float[N,4] y) { j = Cast <to = 1> (i) k = Unsqueeze(j, axes) y = Add(x, k) }"
FEEDS = [{"x": np.full((2, 4), number, np.float32), "i": np.array([number, 1])} for number in range(3)]


@pytest.fixture
def model(tmp_path: Path) -> Model:
    return load(proto(BODY, {"axes": np.array([1])}), tmp_path)


def read(data: str | Path, model: Model) -> list[dict[str, Array]]:
    dataset = open_dataset(data, model, None, 0).checked()
    assert len(dataset) == len(dataset.names) == len(set(dataset.names))
    assert len(dataset.sha256) == 64
    return [dict(sample.inputs) for sample in dataset]


def same(found: list[dict[str, Array]], wanted: list[dict[str, Array]]) -> bool:
    pairs = zip(found, wanted, strict=True)
    return all(a.keys() == b.keys() and all(np.array_equal(a[k], b[k]) for k in a) for a, b in pairs)


# Polygraphy's inputs


def test_inputs_that_polygraphy_saved_are_read(model: Model, tmp_path: Path) -> None:
    save_json(FEEDS, str(tmp_path / "inputs.json"))
    assert same(read(tmp_path / "inputs.json", model), FEEDS)
    dataset = open_dataset(tmp_path / "inputs.json", model, None, 0)
    assert dataset.names == ("inputs.json[0]", "inputs.json[1]", "inputs.json[2]")
    assert open_dataset(tmp_path / "inputs.json", model, 2, 0).size == 2


def test_a_folder_with_a_file_for_each_iteration_is_read_in_order(model: Model, tmp_path: Path) -> None:
    (tmp_path / "saved").mkdir()
    for index in (2, 0, 1):
        save_json(FEEDS[index], str(tmp_path / "saved" / f"{index:010}.json"))
    assert same(read(tmp_path / "saved", model), FEEDS)


def test_a_folder_of_samples_with_a_json_beside_them_is_read_as_ever(model: Model, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    np.savez(tmp_path / "data" / "a.npz", **FEEDS[0])
    (tmp_path / "data" / "0000000000.json").write_text("{}")
    assert same(read(tmp_path / "data", model), FEEDS[:1])


def test_arrays_are_written_as_polygraphy_writes_them() -> None:
    for array in (FEEDS[0]["x"], FEEDS[0]["i"], np.array(3.0), np.zeros((0, 2)), np.asfortranarray(np.eye(3))):
        assert encoded(array) == json.loads(to_json(array))
    assert feeds_of(FEEDS[1]) == json.loads(to_json(FEEDS[1]))


def test_what_older_versions_wrote_is_read(model: Model, tmp_path: Path) -> None:
    def old(array: Array) -> dict[str, str]:
        stream = io.BytesIO()
        np.save(stream, array)
        kind = {"__polygraphy_encoded_ndarray": "polygraphy_serialized_json_type"}
        return {"array": stream.getvalue().decode("latin-1"), **kind}

    (tmp_path / "old.json").write_text(json.dumps([{name: old(array) for name, array in FEEDS[2].items()}]))
    assert same(read(tmp_path / "old.json", model), FEEDS[2:])


class _Evil:
    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str]]:
        return os.system, ("touch /tmp/precisionlab-was-here",)


def _npy(array: Array) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array, allow_pickle=True)
    return stream.getvalue()


def _written(content: bytes) -> str:
    array = {"array": base64.b64encode(content).decode(), "polygraphy_class": "ndarray"}
    return json.dumps([{"x": array, "i": encoded(np.array([1]))}])


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (_written(_npy(np.array([_Evil()]))), "holds Python objects"),
        (_written(pickle.dumps(1)), "no readable array"),
        (_written(_npy(np.ones(4, np.float32))[:-5]), "is cut off"),
        (_written(b""), "no readable array"),
        ('[{"x": {"tensor": "gAJ=", "polygraphy_class": "Tensor"}}]', "torch tensors, which are pickles"),
        ('[{"x": 3}]', "is no dict from input name to array"),
        ("[3]", "is no dict from input name to array"),
        ("[]", "holds no inputs"),
        ("{", "no JSON"),
        ('{"lst": [], "polygraphy_class": "RunResults"}', "holds 'RunResults', not inputs"),
        ('[{"x": {"array": "\\u2603", "polygraphy_class": "ndarray"}}]', "neither base64 nor bytes"),
    ],
)
def test_what_is_no_plain_array_is_refused_in_a_sentence(text: str, said: str, model: Model, tmp_path: Path) -> None:
    (tmp_path / "bad.json").write_text(text)
    with pytest.raises(DataError, match=said):
        read(tmp_path / "bad.json", model)
    assert not Path("/tmp/precisionlab-was-here").exists()


def test_links_in_a_folder_of_iterations_are_not_followed(model: Model, tmp_path: Path) -> None:
    save_json(FEEDS[0], str(tmp_path / "outside.json"))
    (tmp_path / "saved").mkdir()
    (tmp_path / "saved" / "0000000000.json").symlink_to(tmp_path / "outside.json")
    with pytest.raises(DataError, match="holds links"):
        read(tmp_path / "saved", model)


@pytest.mark.parametrize("name", ["missing.json", "pipe.json"])
def test_a_file_that_is_not_there_or_never_ends_is_told(name: str, model: Model, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.json")
    with pytest.raises(DataError, match=name):
        read(tmp_path / name, model)


# Data loader scripts


def test_a_script_named_alone_gives_what_its_load_data_gives(model: Model, tmp_path: Path) -> None:
    script = tmp_path / "loader.py"
    script.write_text(
        "import numpy as np\ndef load_data():\n    for n in range(3):\n"
        "        yield {'x': np.full((2, 4), n, np.float32), 'i': np.array([n, 1])}\n"
    )
    assert same(read(script, model), FEEDS)
    assert same(read(f"{script}:load_data", model), FEEDS)
    assert open_dataset(script, model, None, 0).checked().names == ("load_data[0]", "load_data[1]", "load_data[2]")
    script.write_text("x = 1\n")
    with pytest.raises(DataError, match="load_data"):
        read(script, model)


def test_a_script_that_a_runs_folder_names_is_not_run() -> None:
    assert is_hook("loader.py")
    known = {"folder": "loader.py", "shapes": {}, "limit": None, "seed": 0, "holdout": 0, "skip_bad": False}
    with pytest.raises(PlanError, match=r"comes? from Python code, 'loader.py'"):
        source_of({"data": known}, None)


# trtexec's raw files


def raw(model: Model, folder: Path, spec: str) -> Dataset:
    return open_dataset(spec.format(d=folder), model, None, 0).checked()


def test_raw_files_of_trtexec_are_read_and_one_open_dimension_is_told_by_their_size(
    model: Model, tmp_path: Path
) -> None:
    FEEDS[1]["x"].tofile(tmp_path / "x.bin")
    FEEDS[1]["i"].tofile(tmp_path / "i.bin")
    for spec in ("loadInputs=x:{d}/x.bin,i:{d}/i.bin", "--loadInputs='x':{d}/x.bin, i:{d}/i.bin"):
        (found,) = raw(model, tmp_path, spec)
        assert same([dict(found.inputs)], FEEDS[1:2])
    (found,) = raw(model, tmp_path, "loadInputs=x:{d}/x.bin@2x4,i:{d}/i.bin")
    assert found.inputs["x"].shape == (2, 4)


def test_int64_inputs_as_older_tensorrt_takes_them_are_told(model: Model, tmp_path: Path) -> None:
    fixed = load(proto("(int64[3] i) => (int64[3] y) { y = Add(i, i) }"), tmp_path, "fixed.onnx")
    np.array([1, 2, 3], np.int32).tofile(tmp_path / "i.bin")
    (found,) = raw(fixed, tmp_path, "loadInputs=i:{d}/i.bin")
    assert found.inputs["i"].tolist() == [1, 2, 3]
    assert "int32 in the file" in found.remarks[0].text


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ("loadInputs=x:{d}/x.bin", "lacks i"),
        ("loadInputs=x:{d}/x.bin,i:{d}/i.bin,z:{d}/x.bin", "no input 'z'"),
        ("loadInputs=x:{d}/x.bin,x:{d}/x.bin", "stands there twice"),
        ("loadInputs=x", "write loadInputs=NAME:FILE"),
        ("loadInputs=", "write loadInputs=NAME:FILE"),
        ("loadInputs=x:{d}/x.bin@3x4,i:{d}/i.bin", "32 bytes are no float32"),
        ("loadInputs=x:{d}/nosuch.bin,i:{d}/i.bin", "nosuch.bin"),
    ],
)
def test_raw_files_that_do_not_fit_are_refused(spec: str, said: str, model: Model, tmp_path: Path) -> None:
    FEEDS[1]["x"].tofile(tmp_path / "x.bin")
    FEEDS[1]["i"].tofile(tmp_path / "i.bin")
    with pytest.raises(DataError, match=said):
        raw(model, tmp_path, spec)


def test_two_open_dimensions_want_a_shape(tmp_path: Path) -> None:
    model = load(proto("(float[N,M] x) => (float[N,M] y) { y = Relu(x) }"), tmp_path)
    np.ones(6, np.float32).tofile(tmp_path / "x.bin")
    with pytest.raises(DataError, match=r"say its shape: x:.*@1x3x224x224"):
        raw(model, tmp_path, "loadInputs=x:{d}/x.bin")
    (found,) = raw(model, tmp_path, "loadInputs=x:{d}/x.bin@2x3")
    assert found.inputs["x"].shape == (2, 3)


# Outputs


@pytest.mark.newest
def test_polygraphy_reads_the_outputs_that_we_write_and_finds_each_as_it_was(tmp_path: Path) -> None:
    kept = RunResults(("float32", "fp16"), ["y", "n"])
    for feed in FEEDS:
        kept.add({"y": feed["x"], "n": feed["i"], "inner": feed["x"]}, {"y": feed["x"] + 1, "n": feed["i"]})
    kept.write(tmp_path / "outputs.json")
    found = PolygraphyResults.load(str(tmp_path / "outputs.json"))
    assert list(found.keys()) == ["float32", "fp16"]
    for index, feed in enumerate(FEEDS):
        assert dict(found["float32"][index].items()).keys() == {"y", "n"}
        assert np.array_equal(found["fp16"][index]["y"], feed["x"] + 1)
    theirs = PolygraphyResults()
    for name, off in (("float32", 0), ("fp16", 1)):
        theirs.add([{"y": f["x"] + off, "n": f["i"]} for f in FEEDS], runner_name=name)
    assert json.loads(theirs.to_json()) == json.loads(kept.text)


@pytest.mark.newest
@pytest.mark.slow
def test_polygraphy_compares_its_own_run_with_ours(tmp_path: Path) -> None:
    from click.testing import CliRunner
    from polygraphy.backend.onnxrt import OnnxrtRunner, SessionFromOnnx
    from polygraphy.comparator import Comparator, SimpleCompareFunc

    from precisionlab.cli import cli

    model, out = str(DIGITS / "digits.onnx"), tmp_path / "outputs.json"
    feeds = [{"image": np.load(DIGITS / f"{i:04}.npz")["image"]} for i in range(2)]
    save_json(feeds, str(tmp_path / "inputs.json"))
    arguments = ["compare", model, model, "--data", str(tmp_path / "inputs.json"), "--out", str(tmp_path / "out")]
    assert CliRunner().invoke(cli, [*arguments, "--save-outputs", str(out)]).exit_code == 0
    results = PolygraphyResults.load(str(out))
    own = Comparator.run([OnnxrtRunner(SessionFromOnnx(model), name="own")], data_loader=feeds)
    results.append(("own", own["own"]))
    accuracy = Comparator.compare_accuracy(results, compare_func=SimpleCompareFunc(atol=1e-3, rtol=1e-3))
    assert bool(accuracy)
