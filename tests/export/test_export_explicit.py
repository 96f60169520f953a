"""Exports of models with Q/DQ nodes of their own: flags for these, and no calibration cache beside them."""

from __future__ import annotations

import json
import shlex
import sys
from collections import Counter
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import onnx
import pytest
from click.testing import CliRunner
from models import load, plan_for
from quantized import explicit, in_body

from precisionlab.cli import cli
from precisionlab.errors import PlanError
from precisionlab.export import Subject
from precisionlab.export.plain import plan_json
from precisionlab.export.polygraphy import polygraphy_script, polygraphy_words
from precisionlab.export.trtexec import trtexec_command, trtexec_script
from precisionlab.model import Model
from precisionlab.plan.plan import PrecisionPlan
from precisionlab.precision import Precision

FP16, INT8 = Precision.FP16, Precision.INT8


def subject(model: Model, plan: PrecisionPlan) -> Subject:
    return Subject(model, plan, None, {}, Counter(model.node), "10.16.1")


@pytest.mark.parametrize("plan", [FP16, INT8])
@pytest.mark.parametrize("model", [explicit(whole=True), in_body()], ids=["graph", "body"])
def test_the_flag_is_given_and_no_cache(model: onnx.ModelProto, plan: Precision, tmp_path: Path) -> None:
    loaded = load(model, tmp_path)
    asked = subject(loaded, plan_for(loaded, plan))
    command, script = trtexec_command(asked), trtexec_script(asked)
    words = shlex.split(str(command.content))
    assert words.count("--int8") == 1
    assert ("--fp16" in words) is (plan is FP16)
    assert not any(word.startswith("--calib") for word in words)
    assert command.beside == script.beside == {}
    assert any("own Q/DQ nodes" in note for note in command.notes)
    words = polygraphy_words(asked, "p.py")
    assert words.count("--int8") == 1
    assert "--calibration-cache" not in words
    assert polygraphy_script(asked, "p.py").beside == {}
    assert json.loads(str(plan_json(asked).content))["tensorrt"]["own_flags"] == ["INT8"]


def test_int8_beside_them_is_refused_and_an_fp16_plan_of_the_same_model_is_not(tmp_path: Path) -> None:
    model = load(explicit(whole=False), tmp_path)
    with pytest.raises(PlanError, match="typed-onnx"):
        trtexec_command(subject(model, plan_for(model, INT8)))
    assert "--int8" in str(trtexec_command(subject(model, plan_for(model, FP16))).content)


def test_the_network_script_sets_the_flags_that_this_tensorrt_has(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = load(explicit(whole=True), tmp_path)
    module = ModuleType("exported")
    exec(str(polygraphy_script(subject(model, plan_for(model, FP16)), "p.py").content), module.__dict__)

    def tensor(name: str, dtype: str) -> SimpleNamespace:
        return SimpleNamespace(
            name=name, dtype=SimpleNamespace(name=dtype), is_execution_tensor=True, is_network_output=False
        )

    def layer(kind: str, takes: str, gives: str) -> SimpleNamespace:
        return SimpleNamespace(
            name="l", type=SimpleNamespace(name=kind), metadata="[ONNX Layer: l]", num_inputs=1, num_outputs=1,
            get_input=lambda i: tensor("a", takes), get_output=lambda i: tensor("b", gives),
        )  # fmt: skip

    layers = [layer("QUANTIZE", "FLOAT", "INT8"), layer("DEQUANTIZE", "INT4", "FLOAT"), layer("UNARY", "FP8", "FP8")]
    network = SimpleNamespace(num_layers=len(layers), get_layer=layers.__getitem__)
    flags: list[str] = []
    kinds = SimpleNamespace(EXPLICIT_BATCH=0)
    trt = SimpleNamespace(BuilderFlag=SimpleNamespace(INT8="i8", FP8="f8"), NetworkDefinitionCreationFlag=kinds)
    monkeypatch.setitem(sys.modules, "tensorrt", trt)
    module.configure(None, network, SimpleNamespace(set_flag=flags.append))
    assert flags == ["i8"], "it has no INT4, and nothing is quantised to FP8"


def test_with_data_named_the_command_no_longer_asks_for_data(tmp_path: Path) -> None:
    """The plan's int8 touches no layer, so that no range is needed."""
    onnx.save_model(explicit(whole=True), tmp_path / "m.onnx")
    model = load(explicit(whole=True), tmp_path, "m.onnx")
    (tmp_path / "data").mkdir()
    np.save(tmp_path / "data" / "0.npy", np.zeros((1, 3, 8, 8), np.float32))
    (tmp_path / "plan.json").write_text(json.dumps(plan_for(model, INT8).to_dict()))
    words = [str(tmp_path / "plan.json"), "--model", str(model.path), "--data", str(tmp_path / "data")]
    for target in ("trtexec", "polygraphy"):
        done = CliRunner().invoke(cli, ["export", *words, "--format", target])
        assert done.exit_code == 0, done.output
        assert "--int8" in done.stdout
