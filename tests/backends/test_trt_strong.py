"""Strongly typed networks by choice: on a TensorRT that has both kinds the plan stands in the types of the model."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
from click.testing import CliRunner, Result
from doubled import arrange
from models import DIGITS, plan_for
from quantized import explicit

from precisionlab.backends.options import EngineOptions
from precisionlab.backends.tensorrt.api import Features
from precisionlab.cli import cli
from precisionlab.errors import EngineError, OptionError
from precisionlab.jobs.result import SweepResult
from precisionlab.jobs.sweep import sweep
from precisionlab.jobs.verify import verify
from precisionlab.model import load_model
from precisionlab.precision import Precision
from precisionlab.search.alternatives import AlternativeKind

MODEL = DIGITS / "digits.onnx"


@pytest.fixture(autouse=True)
def _double(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    arrange(monkeypatch, tmp_path)


def swept(out: Path, precisions: str, **engine: Any) -> SweepResult:
    return sweep(
        MODEL, DIGITS, precisions=precisions, backend="tensorrt", out=out, samples=8, threads=1, repair=False,
        engine=EngineOptions(observe=0, typed=True, **engine),
    )  # fmt: skip


def test_a_sweep_builds_the_plan_as_types_and_pins_are_kept(tmp_path: Path) -> None:
    out = tmp_path / "run"
    result = swept(out, "fp16")
    (found,) = result.precisions
    assert found.engine is not None
    assert found.engine.mixed is not None, found.engine.notes
    assert found.engine.met
    assert found.mixed is not None
    assert found.mixed.plan.pins
    assert {report.verdict for report in found.engine.mixed.inside.pins} == {"honoured"}
    figures = dict(zip(result.variants["variant"], result.variants["sqnr_db"], strict=True))
    measured, emulated = (figures[name] for name in ("fp16 mixed engine", "fp16 mixed"))
    # The double rounds after each node of a typed file, where the emulation fuses nodes as TensorRT does.
    assert emulated - 6 < measured < emulated + 1, "it computes in the types that the model has"
    assert AlternativeKind.ROUNDED_CONSTANTS not in {other.kind for other in found.low.alternatives}
    run = json.loads((out / "run.json").read_text())
    assert run["engines"]["network"] == "strongly typed"
    assert "constraints" not in run["engines"]
    for page in ("report.html", "summary.md"):
        assert "strongly typed: each layer" in (out / page).read_text(encoding="utf-8")
    keys = [json.loads(path.read_text())["key"] for path in (out / "engines").glob("*.json")]
    assert keys
    assert all(key["typed"] and not key["enabled"] and not key["pins"] for key in keys)
    again = verify(out / "plan.json", backend="tensorrt", threads=1, engine=EngineOptions(observe=0, typed=True))
    assert again.holds
    assert again.figures == "measured"


def test_int8_stands_as_nodes_in_the_model_and_its_own_nodes_are_no_obstacle(tmp_path: Path) -> None:
    """Without the choice, further layers in int8 are refused beside the model's own Q/DQ nodes."""
    path = tmp_path / "model.onnx"
    onnx.save_model(explicit(whole=False), path)
    data = tmp_path / "data"
    data.mkdir()
    for index in range(4):
        values = np.random.default_rng(index).standard_normal((1, 3, 8, 8)).astype(np.float32)
        np.save(data / f"{index}.npy", values)
    result = sweep(
        path, data, precisions="int8", backend="tensorrt", out=tmp_path / "out", threads=1, holdout=0,
        engine=EngineOptions(observe=0, typed=True),
    )  # fmt: skip
    (found,) = result.precisions
    assert found.engine is not None
    assert found.engine.met, found.engine.notes


@pytest.mark.parametrize("engine", [{"prefer": True}, {"hold_float": True}, {"calibrate": True}])
def test_options_of_weakly_typed_networks_are_refused_beside_it(engine: dict[str, bool], tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="of no use with --typed"):
        swept(tmp_path / "run", "fp16", **engine)


def test_the_double_refuses_flags_and_pins_in_a_strongly_typed_network(tmp_path: Path) -> None:
    script = f"""
import tensorrt as trt
said = []
class Logger(trt.ILogger):
    def log(self, severity, msg): said.append(msg)
def build(flag=None, pin=False, flags=1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)):
    builder = trt.Builder(Logger())
    network = builder.create_network(flags)
    assert trt.OnnxParser(network, Logger()).parse_from_file({str(MODEL)!r})
    config = builder.create_builder_config()
    profile = builder.create_optimization_profile()
    profile.set_shape("image", (1, 1, 8, 8), (1, 1, 8, 8), (1, 1, 8, 8))
    config.add_optimization_profile(profile)
    if flag is not None:
        config.set_flag(flag)
    if pin:
        network.get_layer(0).precision = trt.DataType.FLOAT
    said.clear()
    built = builder.build_serialized_network(network, config)
    assert (built is None) is bool([line for line in said if "API Usage Error" in line]), said
    return built is not None
assert build()
for name in ("FP16", "INT8", "OBEY_PRECISION_CONSTRAINTS", "PREFER_PRECISION_CONSTRAINTS"):
    assert not build(getattr(trt.BuilderFlag, name)), name
assert not build(pin=True)
assert build(trt.BuilderFlag.FP16, flags=0)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr


def test_a_tensorrt_without_such_networks_says_so_in_a_sentence(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """8.6 has weakly typed networks alone."""

    class Old:
        features = Features("8.6.1", pins=True, calibrators=True, precisions=frozenset(), debug_tensors=False,
                            implicit_batch=True)  # fmt: skip
        device, notes = "a GPU", ()

        def __init__(self, *given: Any) -> None:
            pass

        def __enter__(self) -> Old:
            return self

        def __exit__(self, *_: object) -> None:
            pass

    monkeypatch.setattr("precisionlab.backends.tensorrt.child.ChildEngines", Old)
    with pytest.raises(EngineError, match=r"TensorRT 8\.6\.1 has no strongly typed networks, .*leave --typed$"):
        swept(tmp_path / "run", "fp16")


class TestExports:
    @pytest.fixture
    def plan(self, tmp_path: Path) -> Path:
        model = load_model(MODEL)
        asked = plan_for(model, Precision.FP16, ["/norm/square"])
        (tmp_path / "plan.json").write_text(json.dumps(asked.to_dict()))
        return tmp_path / "plan.json"

    def export(self, plan: Path, *words: str) -> Result:
        shapes = "image:1x1x8x8,1x1x8x8,1x1x8x8"
        return CliRunner().invoke(cli, ["export", str(plan), "--model", str(MODEL), "--shapes", shapes, *words])

    def test_trtexec_is_given_the_typed_model_and_no_flag_or_pin(self, plan: Path, tmp_path: Path) -> None:
        done = self.export(plan, "--format", "trtexec", "--typed", "--out", str(tmp_path / "to" / "build.sh"))
        assert done.exit_code == 0, done.output
        text = (tmp_path / "to" / "build.sh").read_text(encoding="utf-8")
        words = shlex.split(text[text.index("exec ") :], comments=True)
        typed = tmp_path / "to" / "digits.typed.onnx"
        assert f"--onnx={typed.resolve()}" in words
        assert "--stronglyTyped" in words
        assert not {"--fp16", "--int8", "--precisionConstraints=obey"}.intersection(words)
        assert not any(word.startswith(("--layer", "--calib")) for word in words)
        assert any(node.op_type == "Cast" for node in onnx.load_model(typed).graph.node)

    def test_polygraphy_marks_the_network_and_its_script_sets_no_flag(
        self, plan: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        done = self.export(plan, "--format", "polygraphy", "--typed", "--out", str(tmp_path / "to" / "build_it.py"))
        assert done.exit_code == 0, done.output
        text = (tmp_path / "to" / "build_it.py").read_text(encoding="utf-8")
        words = shlex.split(text.split("\n")[1].removeprefix("#   "))
        assert "--strongly-typed" in words
        assert not {"--fp16", "--precision-constraints", "--trt-network-postprocess-script"}.intersection(words)
        script = ModuleType("exported")
        exec(text, script.__dict__)
        flags: list[str] = []
        kinds = SimpleNamespace(STRONGLY_TYPED=1)
        trt = SimpleNamespace(
            BuilderFlag=SimpleNamespace(STRICT_NANS="nans", INT8="int8"), NetworkDefinitionCreationFlag=kinds
        )
        monkeypatch.setitem(sys.modules, "tensorrt", trt)
        tensor = SimpleNamespace(
            name="q", dtype=SimpleNamespace(name="INT8"), is_execution_tensor=True, is_network_output=False
        )
        layer = SimpleNamespace(
            name="q", type=SimpleNamespace(name="QUANTIZE"), metadata="", num_inputs=0, num_outputs=1,
            get_output=lambda index: tensor,
        )  # fmt: skip
        for is_typed, expected in ((True, ["nans"]), (False, ["int8", "nans"])):
            flags.clear()
            network = SimpleNamespace(num_layers=1, get_layer=lambda i: layer, get_flag=lambda kind, t=is_typed: t)
            script.configure(None, network, SimpleNamespace(set_flag=flags.append))
            assert flags == expected

    @pytest.mark.parametrize(
        ("words", "said"),
        [
            (["--format", "typed-onnx"], "is so by itself"),
            (["--format", "json"], "--typed is for"),
            (["--format", "trtexec"], "--out is needed"),
            (["--format", "trtexec", "--hold-float", "--out", "b.sh"], "--hold-float"),
            (["--format", "trtexec", "--tensorrt", "8.6.1", "--out", "b.sh"], "8.6.1 has no strongly typed networks"),
        ],
    )
    def test_what_cannot_be_asked_for_is_refused(self, words: list[str], said: str, plan: Path) -> None:
        done = self.export(plan, "--typed", *words)
        assert done.exit_code == 2
        assert said in done.output
