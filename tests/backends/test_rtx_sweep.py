"""A sweep with TensorRT-RTX where no GPU is: engines are compiled for real, and told of as what they are."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pytest
from click.testing import CliRunner
from models import DIGITS
from rtx import needs_rtx

from precisionlab.cli import cli
from precisionlab.errors import OptionError
from precisionlab.jobs.result import SweepResult
from precisionlab.jobs.sweep import sweep
from precisionlab.jobs.verify import verify
from precisionlab.search.verdict import State

pytestmark = needs_rtx
MODEL = DIGITS / "digits.onnx"


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> SweepResult:
    return swept(tmp_path_factory.mktemp("run"))


def swept(out: Path) -> SweepResult:
    options = {"backend": "tensorrt-rtx", "target": "l4", "threads": 2, "repair": False, "samples": 8}
    return sweep(MODEL, DIGITS, precisions="fp16,int8", out=out, **options)  # type: ignore[arg-type]


@pytest.mark.thorough
def test_both_engines_of_a_precision_are_compiled_and_every_pin_is_taken(found: SweepResult) -> None:
    fp16, int8 = found.precisions
    assert [compiled.name for compiled in fp16.compiled] == ["fp16", "fp16 mixed"]
    assert [compiled.name for compiled in int8.compiled] == ["int8"]
    for compiled in (*fp16.compiled, *int8.compiled):
        assert compiled.inside is not None, compiled.refused
        assert compiled.target == "SM89"
        assert len(compiled.inside.built.layers) > 5
    pins = fp16.compiled[1].inside.pins  # type: ignore[union-attr]
    assert {pin.layer for pin in pins} == set(fp16.mixed.plan.pinned())
    assert [pin.verdict for pin in pins] == ["honoured"] * len(pins)


def test_no_figure_of_it_is_called_measured(found: SweepResult) -> None:
    assert set(found.variants["figures"]) == {"emulated"}
    assert found.variants["latency_ms"].isna().all()
    assert found.precisions[0].engine is None
    run = json.loads((Path(str(found.folder)) / "run.json").read_text())
    assert run["figures"] == "emulated"
    assert run["engines"]["measured"] is False
    assert run["engines"]["backend"] == "tensorrt-rtx"
    html = (Path(str(found.folder)) / "report.html").read_text()
    assert "EMULATED" in html
    assert "nobody has run them" in html


def test_what_each_layer_runs_in_is_read_from_the_compiled_engine(found: SweepResult) -> None:
    layers = found.layers[found.layers["precision"] == "fp16"]
    types = dict(zip(layers["layer"], layers["engine_types"], strict=True))
    assert "fp16" in types["/stem/conv"]
    assert (layers["engine_types"] != "").mean() > 0.8
    quantised = found.layers[found.layers["precision"] == "int8"]
    assert quantised["engine_types"].str.contains("int8").any()


def test_an_engine_is_compiled_once(found: SweepResult) -> None:
    folder = Path(str(found.folder))
    before = {path: path.stat().st_mtime_ns for path in (folder / "engines").glob("*.engine")}
    assert len(before) == 4  # those of fp16, fp16 mixed and int8, and the one that the layers are read from
    again = swept(folder)
    assert {path: path.stat().st_mtime_ns for path in (folder / "engines").glob("*.engine")} == before
    pd.testing.assert_frame_equal(again.layers, found.layers)


@pytest.mark.parametrize("target", ["h100", pytest.param("orin", marks=pytest.mark.thorough)])
def test_a_gpu_that_it_does_not_compile_for_is_told_and_the_sweep_goes_on(tmp_path: Path, target: str) -> None:
    options = {"precisions": "fp16", "backend": "tensorrt-rtx", "samples": 4, "threads": 2, "repair": False}
    result = sweep(MODEL, DIGITS, target=target, out=tmp_path, **options)  # type: ignore[arg-type]
    for compiled in result.precisions[0].compiled:
        assert compiled.inside is None
        assert "does not compile for" in compiled.refused
        assert "sm89" in compiled.refused
    verdict = result.precisions[0].verdict
    assert (verdict.state, result.met) == (State.NOT_COMPILED, False), "no engine, no plan for that GPU"
    assert verdict.sentence.startswith("NOT compiled for SM")
    assert "in the emulation alone" in verdict.sentence
    assert "❌ **FP16: NOT compiled.**" in (tmp_path / "summary.md").read_text()


def test_verify_does_not_measure_without_a_gpu(found: SweepResult) -> None:
    plan = Path(str(found.folder)) / "plan.fp16.json"
    printed = CliRunner().invoke(cli, ["verify", str(plan), "--backend", "tensorrt-rtx"])
    assert printed.exit_code == 2
    assert "no GPU is here" in printed.output


def test_the_kernels_of_an_engine_are_the_layers_where_that_is_asked(tmp_path: Path) -> None:
    options = {"precisions": "fp16", "layers": "compiled", "target": "l4", "samples": 12, "repair": False}
    result = sweep(MODEL, DIGITS, out=tmp_path, threads=2, **options)  # type: ignore[arg-type]
    run = json.loads((tmp_path / "run.json").read_text())
    assert run["layers"]["from"] == "a compiled engine"
    assert "where our patterns make 17" in run["layers"]["difference"]
    assert len(result.model.layers) < 17
    assert {tuple(group) for group in run["layers"]["groups"]} == {layer.nodes for layer in result.model.layers}
    assert result.met
    fused = [pin for pin in result.plans["fp16"].pins if len(pin.nodes) > 1]
    assert fused, "the normalisation is one kernel"
    found = verify(tmp_path / "plan.json", threads=2)
    assert found.holds
    assert found.certificate.to_dict() == json.loads((tmp_path / "plan.json").read_text())["certificate"]


def test_compiled_layers_are_not_to_be_had_in_several_processes(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="this process alone"):
        sweep(MODEL, DIGITS, layers="compiled", processes=2, out=tmp_path)
    with pytest.raises(OptionError, match="unknown layers"):
        sweep(MODEL, DIGITS, layers="fused", out=tmp_path)
