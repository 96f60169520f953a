"""A part of a model shows the fault that the whole does, by itself, and with nothing but what was written."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import zipfile
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from click.testing import CliRunner, Result
from models import DIGITS, proto
from polygraphy.comparator import RunResults
from polygraphy.json import load_json

from precisionlab.calibration.cache import read_cache_file
from precisionlab.cli import cli
from precisionlab.errors import OptionError, PlanError
from precisionlab.jobs.extract import extract
from precisionlab.jobs.result import SweepResult
from precisionlab.system.npyfile import write_npz

MODEL = DIGITS / "digits.onnx"
RNG = np.random.default_rng(2)


def run(*args: str | Path) -> Result:
    return CliRunner().invoke(cli, [str(arg) for arg in args], catch_exceptions=False)


def small(folder: Path, body: str, weights: dict[str, np.ndarray], **inputs: np.ndarray) -> tuple[Path, Path]:
    onnx.save_model(proto(body, weights), folder / "model.onnx")
    (folder / "data").mkdir()
    for index in range(2):
        write_npz(folder / "data" / f"{index}.npz", {name: value * (index + 1) for name, value in inputs.items()})
    return folder / "model.onnx", folder / "data"


def test_the_worst_layer_is_cut_out_and_its_files_alone_give_the_fault_again(tmp_path: Path) -> None:
    found = extract(MODEL, DIGITS, samples=8, threads=2, out=tmp_path / "out")
    assert found.shown
    assert found.layers == ("/norm/square",)
    assert found.part == found.whole == -np.inf
    part = onnx.load(tmp_path / "out" / "model.onnx")
    assert [node.op_type for node in part.graph.node] == ["Pow"]
    onnx.checker.check_model(part, full_check=True)
    inputs = dict(np.load(tmp_path / "out" / "inputs" / "0.npz", allow_pickle=False))
    expected = np.load(tmp_path / "out" / "expected" / "0.npz", allow_pickle=False)
    low = np.load(tmp_path / "out" / "found" / "0.npz", allow_pickle=False)
    session = ort.InferenceSession(part.SerializeToString(), providers=["CPUExecutionProvider"])
    (given,) = session.run(None, inputs)
    assert np.array_equal(given, expected["/norm/square_out"])
    assert np.isinf(low["/norm/square_out"]).any()
    assert np.isfinite(given).all()


def test_polygraphy_reads_inputs_and_outputs_of_an_extract(tmp_path: Path) -> None:
    extract(MODEL, DIGITS, samples=8, threads=2, out=tmp_path / "out")
    (feed,) = load_json(str(tmp_path / "out" / "inputs.json"))
    inputs = np.load(tmp_path / "out" / "inputs" / "0.npz")
    assert np.array_equal(feed["/norm/center_out"], inputs["/norm/center_out"])
    results = RunResults.load(str(tmp_path / "out" / "outputs.json"))
    assert list(results.keys()) == ["float32", "fp16, emulated"]


def test_a_range_ends_where_it_is_told_and_the_fewest_layers_that_show_a_fault_are_found(tmp_path: Path) -> None:
    # The large value is rounded where it is taken, and what is left when it is subtracted again is little.
    body = """(float[2,4] x) => (float[2,4] y) { a = Relu(x) b = Add(a, big) c = Sub(b, big) d = Neg(c) y = Neg(d) }"""
    model, data = small(tmp_path, body, {"big": np.float32(2e4)}, x=RNG.random((2, 4)).astype(np.float32))
    found = extract(model, data, end=["y"], out=tmp_path / "out", keep=2)
    assert found.shown
    assert len(found.layers) == 3
    assert [node.op_type for node in onnx.load(tmp_path / "out" / "model.onnx").graph.node] == ["Sub", "Neg", "Neg"]
    assert len(found.samples) == 2
    some = extract(model, data, start=["c"], end=["y"], out=tmp_path / "some")
    assert not some.shown
    assert some.part > 30


def test_a_part_begins_where_its_inputs_are_finite(tmp_path: Path) -> None:
    body = """(float[2,4] x) => (float[2,4] y) {
        m = Greater(x, half) n = Where(m, x, low) e = Exp(n) s = Mul(e, big) y = Mul(s, big) }"""
    weights = {"half": np.float32(0.5), "low": np.float32(-np.inf), "big": np.float32(300)}
    model, data = small(tmp_path, body, weights, x=RNG.random((2, 4)).astype(np.float32))
    found = extract(model, data, layer=layer_of(model, "e"), out=tmp_path / "out")
    arrays = np.load(tmp_path / "out" / "inputs" / "0.npz")
    assert all(np.isfinite(arrays[name]).all() for name in arrays)
    assert len(found.layers) > 1


def layer_of(path: Path, tensor: str) -> str:
    from precisionlab.model import load_model

    return next(layer.name for layer in load_model(path).layers if tensor in layer.outputs)


def test_int8_comes_with_its_ranges_and_shows_the_same_figure(tmp_path: Path) -> None:
    found = extract(MODEL, DIGITS, precision="int8", samples=8, threads=2, out=tmp_path / "out")
    assert found.shown
    assert found.part == pytest.approx(found.whole, abs=0.05)
    cache = read_cache_file(tmp_path / "out" / "calibration.cache")
    inputs = np.load(tmp_path / "out" / "inputs" / "0.npz")
    assert set(inputs) <= set(cache.scales)


def test_an_int8_part_of_a_run_has_the_runs_own_ranges(swept_digits: SweepResult, tmp_path: Path) -> None:
    assert swept_digits.folder is not None
    found = extract(swept_digits.folder, precision="int8", threads=2, out=tmp_path / "out")
    assert found.shown
    (outcome,) = (one for one in swept_digits.precisions if one.precision.is_quantized)
    assert outcome.own_ranges is not None
    scales = read_cache_file(tmp_path / "out" / "calibration.cache").scales
    assert scales
    for name, scale in scales.items():
        assert np.float32(outcome.own_ranges.scales[name]) == np.float32(scale), name


def test_where_a_run_holds_no_ranges_they_are_found_anew_and_that_is_said(
    swept_digits: SweepResult, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert swept_digits.folder is not None
    folder = shutil.copytree(swept_digits.folder, tmp_path / "run")
    (folder / "histograms.json").unlink()
    found = run("extract", folder, "--precision", "int8", "--out", tmp_path / "out", "--threads", "2")
    assert found.exit_code == 0, found.output
    assert "the run holds no int8 ranges of this model as it is: they are found anew, by entropy" in found.output
    (folder / "histograms.json").write_text("{}")
    with pytest.raises(PlanError, match="not the histograms of a run"):
        extract(folder, precision="int8", threads=2, out=tmp_path / "out")


@pytest.mark.slow
def test_a_second_model_is_cut_at_the_same_place_in_its_own_types(tmp_path: Path) -> None:
    body = "({t}[N,4] x) => ({t}[N,4] y) {{ a = MatMul(x, w) b = Exp(a) c = MatMul(b, v) y = Tanh(c) }}"
    weights = {"w": RNG.standard_normal((4, 4)).astype(np.float32), "v": RNG.standard_normal((4, 4)).astype(np.float32)}
    model, data = small(tmp_path, body.format(t="float"), weights, x=RNG.random((2, 4)).astype(np.float32))
    wrong = {"w": weights["w"].astype(np.float16), "v": (weights["v"] * np.float32(1.2)).astype(np.float16)}
    theirs = proto(body.format(t="float16"), wrong)
    for node in theirs.graph.node:
        for values in (node.input, node.output):
            values[:] = [{"b": "other_b"}.get(value, value) for value in values]
    onnx.save_model(theirs, tmp_path / "other.onnx")
    found = extract(model, data, other=tmp_path / "other.onnx", out=tmp_path / "out")
    assert found.shown
    assert found.part == pytest.approx(found.whole, abs=0.01)
    other = onnx.load(tmp_path / "out" / "other.onnx")
    assert other.graph.input[0].type.tensor_type.elem_type == onnx.TensorProto.FLOAT16
    assert len(other.graph.node) == len(onnx.load(tmp_path / "out" / "model.onnx").graph.node)
    check_commands(tmp_path / "out", 0 if found.part >= 30 else 1)


def check_commands(folder: Path, wanted: int) -> None:
    """Those of ours that the README shows run, in that folder."""
    block = re.search(r"```sh\n(.*?)```", (folder / "README.md").read_text(), re.S)
    assert block is not None
    lines = [line for line in block[1].splitlines() if line.startswith("precisionlab ")]
    assert lines
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for line in lines:
            assert run(*shlex.split(line)[1:], "--out", "run").exit_code == wanted


@pytest.mark.thorough
def test_the_commands_of_an_emulated_extract_run(tmp_path: Path) -> None:
    extract(MODEL, DIGITS, samples=8, threads=2, out=tmp_path / "out")
    check_commands(tmp_path / "out", 1)


def test_nothing_of_an_earlier_extract_is_left_and_nothing_else_goes(tmp_path: Path) -> None:
    body = "(float[2,4] x) => (float[2,4] y) { a = Mul(x, big) y = Mul(a, big) }"
    model, data = small(tmp_path, body, {"big": np.float32(1e4)}, x=np.ones((2, 4), np.float32))
    out = tmp_path / "out"
    extract(model, data, keep=2, precision="int8", out=out, end=["y"])
    (out / "inputs" / "mine.npz").write_text("mine")
    (out / "calibration.cache").write_text("old")
    found = extract(model, data, out=out, end=["y"])
    there = {str(path.relative_to(out)) for path in out.rglob("*") if path.is_file() and path.name != ".lock"}
    assert there == {*found.files, "inputs/mine.npz"}


def test_files_behind_a_link_are_left_alone(tmp_path: Path) -> None:
    body = "(float[2,4] x) => (float[2,4] y) { a = Mul(x, big) y = Mul(a, big) }"
    model, data = small(tmp_path, body, {"big": np.float32(1e4)}, x=np.ones((2, 4), np.float32))
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "inputs").symlink_to(data)
    with pytest.raises(OptionError, match="link"):
        extract(model, data, out=tmp_path / "out")
    assert {path.name for path in data.iterdir()} == {"0.npz", "1.npz"}


def test_a_run_says_model_data_and_precision(swept_digits: SweepResult, tmp_path: Path) -> None:
    assert swept_digits.folder is not None
    found = run("extract", swept_digits.folder, "--out", tmp_path / "out", "--json", "--threads", "2")
    assert found.exit_code == 0
    content = json.loads(found.stdout)
    assert content["precision"] == "fp16"
    assert content["layers"] == ["/norm/square"]
    assert content["shown"] is True
    assert content == json.loads((tmp_path / "out" / "extract.json").read_text())


def test_code_that_a_runs_folder_names_is_not_run(swept_digits: SweepResult, tmp_path: Path) -> None:
    assert swept_digits.folder is not None
    run_facts = json.loads((swept_digits.folder / "run.json").read_text())
    run_facts["data"]["folder"] = "evil.py"
    (tmp_path / "run.json").write_text(json.dumps(run_facts))
    with pytest.raises(PlanError, match="Python code"):
        extract(tmp_path, out=tmp_path / "out")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--layer", "nosuch"], "no such layer"),
        (["--to", "nosuch"], "no layer of"),
        (["--from", "logits"], "--to"),
        (["--layer", "/norm/square", "--to", "logits"], "not both"),
        (["--to", "logits", "--tolerance", "top1>=1"], "one bound of sqnr"),
        (["--from", "/norm/mean_out", "--to", "/norm/mean_out"], "nothing lies between"),
        (["--precision", "fp99"], "fp99"),
    ],
)
def test_what_cannot_be_cut_out_is_told(options: list[str], said: str, tmp_path: Path) -> None:
    found = run("extract", MODEL, "--data", DIGITS, "--samples", "2", "--out", tmp_path / "out", *options)
    assert found.exit_code == 2
    assert re.search(said, found.stderr)


def test_a_model_alone_wants_samples(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="--data"):
        extract(MODEL, out=tmp_path / "out")


def test_names_of_strangers_stay_in_the_folder_and_in_their_code_spans(tmp_path: Path) -> None:
    bad = "../../`evil`\n# x"
    model = proto("(float[2,4] x) => (float[2,4] y) { a = Mul(x, big) y = Mul(a, big) }", {"big": np.float32(1e4)})
    for node in model.graph.node:
        for values in (node.input, node.output):
            values[:] = [bad if value == "a" else value for value in values]
    onnx.save_model(model, tmp_path / "model.onnx")
    (tmp_path / "data").mkdir()
    write_npz(tmp_path / "data" / "0.npz", {"x": np.full((2, 4), 3, np.float32)})
    before = set(tmp_path.parent.rglob("*"))
    found = extract(tmp_path / "model.onnx", tmp_path / "data", end=["y"], start=[bad], out=tmp_path / "out")
    assert all(path.is_relative_to(tmp_path / "out") for path in set(tmp_path.parent.rglob("*")) - before)
    text = (tmp_path / "out" / "README.md").read_text()
    assert "\n# x" not in text
    assert "`evil`" not in text
    assert found.outputs == ("y",)


def test_arrays_are_written_by_any_name_and_never_as_pickles(tmp_path: Path) -> None:
    write_npz(tmp_path / "a.npz", {"file": np.ones(2), "allow_pickle": np.zeros(1)})
    assert set(np.load(tmp_path / "a.npz")) == {"file", "allow_pickle"}
    first = (tmp_path / "a.npz").read_bytes()
    write_npz(tmp_path / "a.npz", {"file": np.ones(2), "allow_pickle": np.zeros(1)})
    assert (tmp_path / "a.npz").read_bytes() == first
    with pytest.raises(ValueError, match=r"pickle|Object arrays"):
        write_npz(tmp_path / "b.npz", {"x": np.array([object()])})
    assert zipfile.is_zipfile(tmp_path / "a.npz")
