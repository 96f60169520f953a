"""An engine that does not keep to a pin is not the plan's, however right its outputs are; nor is one that is not there.

On the double of TensorRT, which takes lone products back to half as TensorRT-RTX does.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import pytest
from click.testing import CliRunner, Result
from doubled import arrange
from models import proto

from precisionlab.cli import cli
from precisionlab.model import load_model
from precisionlab.plan.plan import Pin, PrecisionPlan
from precisionlab.precision import Precision

RNG = np.random.default_rng(0)
SAMPLES = 6


def made(folder: Path, scale: float) -> tuple[Path, Path]:
    """Three MatMuls in a row, the one in the middle with weights of that scale, and samples."""
    weights = {
        "w0": (RNG.standard_normal((64, 64)) / (8 * scale)).astype(np.float32),
        "w1": (RNG.standard_normal((64, 32)) * scale).astype(np.float32),
        "w2": (RNG.standard_normal((32, 16)) * 0.2).astype(np.float32),
    }
    body = "(float[4,64] x) => (float[4,16] y) { [first] h = MatMul(x, w0) [big] m = MatMul(h, w1) "
    model = proto(f"{body} [last] y = MatMul(m, w2) }}", weights)
    onnx.save_model(model, folder / "m.onnx")
    (folder / "data").mkdir()
    for index in range(SAMPLES):
        np.save(folder / "data" / f"{index}.npy", RNG.standard_normal((4, 64)).astype(np.float32))
    return folder / "m.onnx", folder / "data"


def plan_of(model: Path, layer: str) -> Path:
    plan = PrecisionPlan(load_model(model).sha256, Precision.FP16, (Pin(layer, (layer,), Precision.FP32, "asked"),))
    path = model.with_name("asked.json")
    path.write_text(json.dumps(plan.to_dict()))
    return path


def ran(*arguments: str | Path) -> Result:
    return CliRunner().invoke(cli, list(map(str, arguments)))


@dataclass(frozen=True)
class Runs:
    """The same plan, measured on an engine that keeps to its pin and on one that does not."""

    kept: Path
    overridden: Path
    printed: tuple[Result, Result]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runs]:
    """The outputs are right in both: half holds all weights."""
    folder = tmp_path_factory.mktemp("runs")
    model, data = made(folder, 1.0)
    plan = plan_of(model, "big")
    printed = []
    with pytest.MonkeyPatch.context() as patch:
        for name, takes_back in (("kept", False), ("overridden", True)):
            arrange(patch, folder, takes_back=takes_back)
            command = ("sweep", model, "--data", data, "--plan", plan, "--backend", "tensorrt", "--observe", "0")
            printed.append(ran(*command, "--out", folder / name))
        yield Runs(folder / "kept", folder / "overridden", (printed[0], printed[1]))


def test_an_engine_that_keeps_to_its_pin_and_is_right_is_met(runs: Runs) -> None:
    assert runs.printed[0].exit_code == 0, runs.printed[0].output
    run = json.loads((runs.kept / "run.json").read_text())
    assert run["precisions"]["fp16"]["met"] is True


def test_an_engine_that_overrides_a_pin_is_not_met_wherever_it_is_told(runs: Runs) -> None:
    printed = runs.printed[1]
    assert printed.exit_code == 1, printed.output
    words = " ".join(printed.output.split())
    assert "NOT as planned: the engine overrides 1 of 1 pin: big runs in fp16, not fp32" in words
    assert "NOT as planned, with 1 pin" in words
    found = json.loads((runs.overridden / "run.json").read_text())["precisions"]["fp16"]
    assert (found["met"], found["engine"]["met"]) == (False, False)
    assert (found["verdict"]["state"], found["verdict"]["overridden"]) == ("not met", True)
    summary = (runs.overridden / "summary.md").read_text()
    assert "❌ **FP16: NOT met.** NOT as planned: the engine overrides 1 of 1 pin" in summary
    assert "| fp16 mixed engine | measured | 1 |" in summary
    assert "✅" not in summary.split("fp16 mixed engine")[1].splitlines()[0]
    page = (runs.overridden / "report.html").read_text()
    assert "NOT as planned: the engine overrides 1 of 1 pin: big runs in fp16" in page
    assert "its engine does not keep to the pins" in page
    assert "holds on the samples that chose, but not on those held out" not in page
    assert json.loads((runs.overridden / "plan.json").read_text())["met"] is False


def test_diff_and_verify_say_so_too(runs: Runs, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    worse = ran("diff", runs.kept, runs.overridden)
    assert worse.exit_code == 1
    assert "fp16: the tolerance was met, and is not met any more" in " ".join(worse.output.split())
    for takes_back, words in ((True, ["NOT verified: the engine overrides a pin: big runs in fp16"]), (False, [])):
        arrange(monkeypatch, tmp_path, takes_back=takes_back)
        engines = ("--backend", "tensorrt", "--observe", "0", "--engines", tmp_path / str(takes_back))
        checked = ran("verify", runs.kept / "plan.json", *engines)
        assert checked.exit_code == 1, "the pin is not needed, which verify tells as well"
        text = " ".join(checked.output.split())
        assert [
            said for said in ["NOT verified: the engine overrides a pin: big runs in fp16"] if said in text
        ] == words


def test_a_search_pins_more_until_the_engine_keeps_to_its_pins(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """With weights beyond half the pin is needed; its neighbour, pinned too, computes in float32 beside it."""
    model, data = made(tmp_path, 1e5)
    arrange(monkeypatch, tmp_path, takes_back=True)
    command = ("sweep", model, "--data", data, "--precisions", "fp16", "--ladder", "fp32", "--backend", "tensorrt")
    printed = ran(*command, "--observe", "0", "--no-repair", "--out", tmp_path / "out")
    assert printed.exit_code == 0, printed.output
    found = json.loads((tmp_path / "out" / "run.json").read_text())["precisions"]["fp16"]
    assert found["pins"] == 2
    assert {pin["verdict"] for pin in found["engine"]["pins"]} == {"honoured"}
    once = ran(*command, "--no-repair", "--observe", "0", "--builds", "1", "--out", tmp_path / "once")
    assert once.exit_code == 1
    assert "NOT" in once.output
