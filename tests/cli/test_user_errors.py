"""Sentences for what a user can fix that no test of their subject reads, and the tool that finds such."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from click.testing import CliRunner
from models import DIGITS, load, proto
from PIL import Image

from benchmarks.errors import Raise, error_names, every_raise, not_executed, not_read, raises_of
from precisionlab.backends.memory import share_of
from precisionlab.backends.session import Session
from precisionlab.backends.tensorrt.jobs import Profile
from precisionlab.calibration.cache import CacheError, read_cache_file
from precisionlab.calibration.table import CalibrationTable, Range
from precisionlab.cli import cli
from precisionlab.data import listing as listings
from precisionlab.data import open_dataset
from precisionlab.errors import DataError, ModelError, OptionError, PlanError
from precisionlab.export import Subject
from precisionlab.export.modelopt import modelopt_json
from precisionlab.export.onnxruntime import onnxruntime_model
from precisionlab.export.polygraphy import polygraphy_words
from precisionlab.jobs.fidelity import fidelity
from precisionlab.jobs.result import SweepResult
from precisionlab.model import Model, load_model
from precisionlab.plan.plan import PrecisionPlan
from precisionlab.precision import Precision
from precisionlab.report.annotate import annotated_model
from precisionlab.report.redraw import read_run
from precisionlab.rewrite.typed import save_typed, typed_model
from precisionlab.rewrite.typed.checks import check_typed
from precisionlab.rewrite.typed.opset import convert
from precisionlab.system.parsing import parse_duration, parse_share


def refused(*args: str | Path) -> str:
    """What the command says, in one line, of what it cannot use."""
    found = CliRunner().invoke(cli, [str(arg) for arg in args], catch_exceptions=False)
    assert found.exit_code == 2
    line = found.stderr.strip().splitlines()[-1]
    assert line.startswith("precisionlab: ")
    return line


@pytest.mark.parametrize("text", ["", "soon", "1d", "h", "-3", "30 m", "nan"])
def test_a_time_that_is_none_is_told_with_what_to_write(text: str) -> None:
    with pytest.raises(OptionError, match=r"^budget '.*': write a time such as 90s, 30m or 1h30m$"):
        parse_duration(text, "budget")


@pytest.mark.parametrize("text", ["", "half", "5 percent", "%"])
def test_a_share_that_is_none_is_told_with_what_to_write(text: str) -> None:
    with pytest.raises(OptionError, match=r"^spend '.*': write a share such as 0.05 or 5%$"):
        parse_share(text, "spend")


@pytest.mark.parametrize("text", ["-1", "-5%", "inf", "nan"])
def test_a_share_below_nothing_is_told(text: str) -> None:
    with pytest.raises(OptionError, match=r"^spend '.*': a share is at least 0$"):
        parse_share(text, "spend")


# Samples


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """One sample of a model with one input."""
    (tmp_path / "data").mkdir()
    np.save(tmp_path / "data" / "a.npy", np.ones((1, 3), np.float32))
    return tmp_path / "data"


def opened(folder: Path) -> None:
    model = load(proto("(float[1,3] x) => (float[1,3] y) { y = Relu(x) }"), folder.parent)
    open_dataset(folder, model, None, 0).checked(skip_bad=False, progress=lambda _: None)


@pytest.mark.parametrize(
    ("name", "text", "told"),
    [
        ("samples.csv", "file\na.npy\n", "samples.csv, line 1: must be the header path or path,label"),
        ("samples.jsonl", '{"file": "a.npy"}\n', 'samples.jsonl, line 1: write {"path": "a.png", "label": …}'),
        ("samples.jsonl", '\n{"path": ""}\n', 'samples.jsonl, line 2: write {"path": "a.png", "label": …}'),
        ("samples.csv", "path\nb.npy\n", "'b.npy' is no file in "),
        ("samples.csv", "path\nsub\\b.npy\n", "; write / between folders"),
        ("samples.csv", "path,label\na.npy\n", "samples.csv, line 2: no label; give each line all columns"),
        ("samples.csv", "path\n/there/a.npy\n", "'/there/a.npy' is absolute; write paths relative to "),
        ("dataset.toml", '[labels]\nmetric = "accuracy"\n', "dataset.toml: labels.metric needs labels.file"),
    ],
)
def test_what_is_wrong_with_a_listing_or_a_manifest_is_told_with_its_place(
    data: Path, name: str, text: str, told: str
) -> None:
    (data / name).write_text(text)
    with pytest.raises(DataError) as caught:
        opened(data)
    assert told in str(caught.value)


def test_a_listing_without_end_is_told(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listings, "MOST_LINES", 2)
    (data / "samples.csv").write_text("path\na.npy\nb.npy\nc.npy\n")
    with pytest.raises(DataError, match=r"samples.csv: lists more than 2 samples; choose among them"):
        opened(data)


# Runs and plans


def test_a_run_that_lacks_a_file_is_told_which(run: Path, tmp_path: Path) -> None:
    shutil.copytree(run, tmp_path, dirs_exist_ok=True)
    for name in ("layers.csv", "plan.int8.json"):
        content = (tmp_path / name).read_bytes()
        (tmp_path / name).unlink()
        assert f"{tmp_path / name}: missing; put it back, or run the sweep again" in refused("report", tmp_path)
        (tmp_path / name).write_bytes(content)
    (tmp_path / "variants.csv").write_bytes(b"\xff\xfe")
    with pytest.raises(OptionError, match=r"variants.csv: broken: not UTF-8: byte 0; run the sweep again"):
        read_run(tmp_path)
    run = json.loads((tmp_path / "run.json").read_text())
    (tmp_path / "run.json").write_text(json.dumps(run | {"data": []}))
    assert "run.json: broken: data must be a JSON object" in refused("report", tmp_path)


def test_opening_a_page_of_a_comparison_needs_its_file(tmp_path: Path) -> None:
    told = refused("diff", tmp_path, tmp_path, "--open")
    assert told == "precisionlab: --open shows the page of --html: give --html FILE too"


def test_a_typed_model_of_an_int8_plan_needs_ranges(tmp_path: Path) -> None:
    weights = {"w": np.ones((3, 2), np.float32)}
    model = load(proto("(float[1,3] x) => (float[1,2] y) { y = MatMul(x, w) }", weights), tmp_path)
    with pytest.raises(PlanError, match="in int8, which needs a calibration table; there is none"):
        typed_model(model, PrecisionPlan(model.sha256, Precision.INT8), None)


# The tool


@pytest.fixture(scope="module")
def raises() -> list[Raise]:
    return every_raise()


@pytest.mark.slow
@pytest.mark.thorough
def test_the_tool_finds_the_raises_of_our_errors_and_which_were_executed_or_are_read(
    tmp_path: Path, raises: list[Raise]
) -> None:
    names = error_names()
    assert {"PrecisionLabError", "DataError", "CacheError", "BuildError"} <= names
    source = tmp_path / "some.py"
    source.write_text(
        'def f(x):\n    if x:\n        raise DataError(\n            f"{x}: words that no test but this one has"\n'
        '        )\n    raise ValueError("not ours")\n\n\ndef made() -> DataError:\n    return DataError("")\n\n\n'
        "def g():\n    raise made()\n"
    )
    first, second = raises_of(source, names)
    assert (first.first, first.last, second.first) == (3, 5, 14)
    assert not_read([first, second]) == [second]
    assert len(raises) > 300


@pytest.mark.slow
def test_the_tool_reads_the_data_of_coverage(tmp_path: Path, raises: list[Raise]) -> None:
    import coverage

    lock = next(one for one in raises if one.file.name == "lock.py")
    other = Raise(lock.file, 1, 1, ())
    measured = coverage.CoverageData(str(tmp_path / "data"))
    measured.add_lines({"/elsewhere/precisionlab/system/lock.py": [lock.last]})
    measured.write()
    assert not_executed(tmp_path / "data", [lock, other]) == [other]


# Options of a sweep that only the model or the target can show to be wrong


@pytest.fixture
def run(swept_digits: SweepResult) -> Path:
    """A finished run's folder."""
    assert swept_digits.folder is not None
    return swept_digits.folder


def test_what_a_sweep_cannot_be_asked_is_told_with_what_can(tmp_path: Path) -> None:
    given = ("sweep", DIGITS / "digits.onnx", "--data", DIGITS, "--samples", "2", "--out", tmp_path / "run")
    told = refused(*given, "--tolerance", "sqnr[nothing]>=3")
    assert "tolerance of 'nothing': the model has no such output, part of one, or float32 tensor" in told
    assert "target t4 has no bf16; choose another --target (a100, h100, orin, l4) or precision" in refused(
        *given, "--precisions", "bf16", "--target", "t4"
    )
    assert "holdout '150%': write a share below 1, such as 0.25" in refused(*given, "--holdout", "150%")
    assert "holdout '1.5': that may mean 1.5 % or 150 %" in refused(*given, "--holdout", "1.5")
    assert "metric 'mine': write package.module:name or path/to/file.py:name" in refused(*given, "--metric", "mine")
    assert not (tmp_path / "run" / "journal.jsonl").exists()


def test_a_folder_that_cannot_be_looked_into_is_told(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def walk(folder: Path, onerror: Callable[[OSError], None]) -> Iterator[Any]:
        onerror(PermissionError(13, "Permission denied", f"{folder}/private"))
        yield from ()

    monkeypatch.setattr("precisionlab.data.folder.os.walk", walk)
    with pytest.raises(DataError, match=r"private: cannot be read: Permission denied"):
        open_dataset(data, load(proto("(float[1, 3] x) => (float[1, 3] y) { y = Relu(x) }"), data.parent), None, 0)


@pytest.mark.parametrize("suffix", [".npy", ".npz"])
def test_rows_that_no_sample_can_have_are_told_with_their_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str
) -> None:
    rows, file = np.ones((3, 8), np.float32), tmp_path / "data" / f"a{suffix}"
    file.parent.mkdir()
    model = load(proto("(float[1, 8] x) => (float[1, 8] y) { y = Relu(x) }"), tmp_path)
    np.save(file, rows) if suffix == ".npy" else np.savez(file, x=rows)
    monkeypatch.setattr("precisionlab.data.arrays.MOST_BYTES", 16)
    with pytest.raises(DataError, match=r"a\.np[yz]: array 'x' would take .* save each sample in a file of its own"):
        list(open_dataset(tmp_path / "data", model, None, 0))


# A run's files that somebody has edited


def test_files_of_a_run_that_are_not_what_a_sweep_writes_are_told(run: Path, tmp_path: Path) -> None:
    for name in run.iterdir():
        (tmp_path / name.name).write_bytes(name.read_bytes())
    histograms = tmp_path / "histograms.json"
    kept = histograms.read_text()
    histograms.write_text('{"samples": 1, "layers": [], "tensors": {"x": {}}}')
    told = refused("report", tmp_path)
    assert "histograms.json: broken: not the histograms of a run" in told
    assert told.endswith("run the sweep again")
    histograms.write_text(kept)
    facts = json.loads((tmp_path / "run.json").read_text())
    del facts["tolerance"]["int8"]
    (tmp_path / "run.json").write_text(json.dumps(facts))
    assert "made by another version of precisionlab: it lacks tolerance.int8" in refused("report", tmp_path)


# Files that change, vanish or cannot be read between two looks


def relu(folder: Path, name: str = "x") -> Model:
    """A model of one layer."""
    model = proto("(float[1,3] x) => (float[1,3] y) { y = Relu(x) }")
    model.graph.input[0].name = model.graph.node[0].input[0] = name
    return load(model, folder)


def test_a_model_that_the_system_does_not_let_read_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def denied(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    model = relu(tmp_path)
    monkeypatch.setattr("precisionlab.model.load.onnx.load_model", denied)
    with pytest.raises(ModelError, match=r"model\.onnx: cannot be read: Permission denied$"):
        load_model(model.path)


def test_a_model_that_is_gone_when_its_copy_is_drawn_is_told(tmp_path: Path) -> None:
    model = relu(tmp_path)
    model.path.unlink()
    with pytest.raises(ModelError, match=r"model\.onnx: gone or changed since the run began: "):
        annotated_model(model, ())


def test_samples_that_are_gone_when_they_are_hashed_are_told(data: Path) -> None:
    found = open_dataset(data, relu(data.parent), None, 0)
    (data / "a.npy").unlink()
    with pytest.raises(DataError, match=r"a\.npy: cannot be read: No such file or directory$"):
        found.source.sha256(["a.npy"], {}, {})


def test_a_file_of_a_run_that_is_a_folder_or_empty_is_told(run: Path, tmp_path: Path) -> None:
    for name in run.iterdir():
        (tmp_path / name.name).write_bytes(name.read_bytes())
    (tmp_path / "layers.csv").write_text("")
    told = refused("report", tmp_path)
    assert "layers.csv: broken: " in told
    assert told.endswith("; run the sweep again")
    (tmp_path / "layers.csv").unlink()
    (tmp_path / "layers.csv").mkdir()
    assert refused("report", tmp_path).endswith("layers.csv: cannot be read: Is a directory")


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("folder", "folder: cannot be read: Is a directory"),
        ("large", "large: larger than 0 MiB; this is no calibration cache"),
        ("gone", "gone: cannot be read: No such file or directory"),
    ],
)
def test_what_cannot_be_a_calibration_cache_is_told_with_its_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, told: str
) -> None:
    monkeypatch.setattr("precisionlab.calibration.cache.LARGEST_FILE", 4)
    (tmp_path / "large").write_bytes(b"12345")
    (tmp_path / "folder").mkdir()
    with pytest.raises(CacheError) as caught:
        read_cache_file(tmp_path / name)
    assert str(caught.value) == f"{tmp_path}/{told}"


def test_an_image_of_too_many_pixels_is_told_with_its_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("precisionlab.data.picture.MOST_PIXELS", 8)
    (tmp_path / "data").mkdir()
    Image.new("RGB", (3, 4)).save(tmp_path / "data" / "a.png")
    model = load(proto("(float[1,3,4,3] x) => (float[1,3,4,3] y) { y = Relu(x) }"), tmp_path)
    with pytest.raises(DataError, match=r"a\.png: 3×4 pixels, more than 8; scale the image down and save it again"):
        open_dataset(tmp_path / "data", model, None, 0).checked(skip_bad=False, progress=lambda _: None)


# What a model, the memory or a tool does not allow


def test_less_memory_than_the_program_takes_is_told_with_what_it_takes(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match=r"--memory 1M .* \d+M are needed .*for the program"):
        share_of(1 << 20, relu(tmp_path))


def test_external_strings_are_told_with_tensor_and_file(tmp_path: Path) -> None:
    model = proto("(float[1] x) => (float[1] y) { y = Relu(x) }")
    text = model.graph.initializer.add(name="t", dims=[1], data_type=onnx.TensorProto.STRING)
    text.data_location = onnx.TensorProto.EXTERNAL
    text.external_data.add(key="location", value="model.data")
    (tmp_path / "model.data").write_bytes(b"text")
    with pytest.raises(ModelError, match=r"tensor 't'.*'model\.data' holds strings, .*; save them in the model$"):
        load(model, tmp_path)


def test_a_graph_that_fails_on_a_sample_is_told_with_onnx_runtimes_words(tmp_path: Path) -> None:
    body = "(float[3] x, int64[1] at) => (float[1] y) { y = Gather(x, at) }"
    session = Session(load(proto(body), tmp_path).onnx, 1)
    with pytest.raises(ModelError, match=r"^ONNX Runtime cannot run the model: .*indices"):
        session.run({"x": np.ones(3, np.float32), "at": np.array([7])})


def test_an_opponent_that_is_none_is_told_with_those_that_are(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="unknown opponent 'cpu'; hold the emulation against one of cuda, tensorrt"):
        fidelity(relu(tmp_path).path, tmp_path, against="cpu")


def int8(model: Model) -> Subject:
    """The model in int8, as exports have it."""
    table = CalibrationTable({"x": Range(1.0), "a: b": Range(1.0)}, 1)
    return Subject(model, PrecisionPlan(model.sha256, Precision.INT8), table, {}, {"node": 1}, "10.16.1")


def product(folder: Path) -> Model:
    """A model with a layer that int8 has."""
    model = proto("(float[1,3] x) => (float[1,2] y) { y = MatMul(x, w) }", {"w": np.ones((3, 2), np.float32)})
    model.graph.node[0].name = "node"
    return load(model, folder)


def test_names_that_another_tool_splits_are_told(tmp_path: Path) -> None:
    with pytest.raises(PlanError, match=r"^tensor 'a: b' has ': ' in its name, where ModelOpt splits .*; rename it$"):
        modelopt_json(int8(product(tmp_path)))
    model = relu(tmp_path, "-x")
    shapes = {"-x": Profile((1, 3), (1, 3), (1, 3))}
    asked = Subject(model, PrecisionPlan(model.sha256, Precision.FP16), None, shapes, {}, "10.16.1")
    with pytest.raises(PlanError, match=r"^input '-x' begins with '-', and Polygraphy .* an option; rename it$"):
        polygraphy_words(asked, "pins.py")


def test_an_export_that_one_file_cannot_hold_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def too_large(_: object) -> None:
        raise ValueError("exceeds maximum protobuf size of 2GB")

    asked = int8(product(tmp_path))
    monkeypatch.setattr("precisionlab.export.onnxruntime.ir.to_proto", too_large)
    with pytest.raises(ModelError, match=r"model\.onnx: with its weights the Q/DQ model is larger than the 2 GiB"):
        onnxruntime_model(asked)


# Typed models


def test_a_typed_model_that_cannot_be_written_is_told_with_its_place(tmp_path: Path) -> None:
    model = relu(tmp_path)
    typed = typed_model(model, PrecisionPlan(model.sha256, Precision.FP16), None)
    (tmp_path / "out.onnx").mkdir()
    with pytest.raises(ModelError, match=r"out\.onnx: cannot be written \(.*\); choose another place$"):
        save_typed(typed, tmp_path / "out.onnx")


def test_what_the_converter_cannot_do_is_told_with_the_opset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = relu(tmp_path)

    def refuses(*_: object) -> None:
        raise RuntimeError("no adapter for Relu\nand more")

    with monkeypatch.context() as patched:
        patched.setattr("precisionlab.rewrite.typed.opset.onnx.version_converter.convert_version", refuses)
        with pytest.raises(ModelError) as caught:
            convert(model, 21)
    assert str(caught.value) == (
        f"{model.path}: opset 17 cannot be converted to 21, which the plan needs; export the model anew at "
        'opset 21; the ONNX converter says: "no adapter for Relu and more"'
    )

    def loses(found: onnx.ModelProto, _: int) -> onnx.ModelProto:
        found.graph.node[0].name = "another"
        return found

    monkeypatch.setattr("precisionlab.rewrite.typed.opset.onnx.version_converter.convert_version", loses)
    with pytest.raises(ModelError, match=r"opset 17 .* to 21, .*: the converter loses node .*; export the model anew$"):
        convert(model, 21)


@pytest.mark.parametrize(
    ("body", "told"),
    [
        ("(float[1,3] x) => (float[1,3] z) { z = Relu(x) }", "the typed model's interface is .*'z'.*, not .*'y'"),
        (
            "(float[1,3] x) => (float[1,3] y) { y = Nothing(x) }",
            "the typed model is not valid; please report .*Nothing",
        ),
        (
            "(float[1,3] x) => (float[1,3] y) { y = Not(x) }",
            "the typed model's types disagree; please report .*Not",
        ),
    ],
)
def test_a_typed_model_that_is_wrong_is_never_written_and_is_to_be_reported(
    tmp_path: Path, body: str, told: str
) -> None:
    with pytest.raises(ModelError, match=rf"model\.onnx: {told}[^\n]*$"):
        check_typed(relu(tmp_path), ir.from_proto(proto(body)))
