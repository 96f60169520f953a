"""`verify` measures a plan and its certificate again, and says where either is not what the file claims."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result
from models import DIGITS
from polygraphy.comparator import RunResults

from precisionlab.cli import cli
from precisionlab.errors import PlanError
from precisionlab.jobs.result import SweepResult
from precisionlab.jobs.sweep import sweep
from precisionlab.jobs.verify import verify

MODEL = DIGITS / "digits.onnx"
PLAN = "plan.fp16.json"


@pytest.fixture
def found(swept_digits: SweepResult) -> Path:
    """A swept run: FP16 breaks the bundled model, and pins fix it."""
    assert swept_digits.met
    assert swept_digits.plans["fp16"].pins
    assert swept_digits.folder is not None
    return swept_digits.folder


def edited(found: Path, folder: Path, change: Any) -> Path:
    """A copy of the run whose plan somebody has changed."""
    content = json.loads((found / PLAN).read_text())
    change(content)
    (folder / "plan.json").write_text(json.dumps(content))
    (folder / "run.json").write_text((found / "run.json").read_text())
    return folder / "plan.json"


def command(*args: str | Path) -> Result:
    return CliRunner().invoke(cli, ["verify", *map(str, args)], catch_exceptions=False)


def test_a_plan_that_a_sweep_proved_is_verified_to_the_last_digit(found: Path) -> None:
    again = verify(found / PLAN, threads=1)
    assert again.holds
    assert again.certificate.proven
    claimed = json.loads((found / PLAN).read_text())["certificate"]
    assert again.certificate.to_dict() == claimed
    assert again.claimed[""]["sqnr"] == again.certificate.figures.values["sqnr"]
    assert again.samples == (48, 16)


@pytest.mark.slow
def test_verifying_writes_nothing(found: Path) -> None:
    before = {path: path.read_bytes() for path in found.iterdir()}
    verify(found / PLAN, threads=2)
    assert {path: path.read_bytes() for path in found.iterdir()} == before


@pytest.mark.slow
def test_a_pin_too_many_is_found_to_be_needless(found: Path, tmp_path: Path) -> None:
    run = json.loads((found / PLAN).read_text())
    pinned = {pin["layer"] for pin in run["pins"]}
    from precisionlab.model import load_model

    spare = next(layer for layer in load_model(MODEL).layers if layer.fixed is None and layer.name not in pinned)

    def add(content: Any) -> None:
        content["pins"].append({"layer": spare.name, "nodes": list(spare.nodes), "precision": "fp32", "reason": "mine"})

    plan = edited(found, tmp_path, add)
    again = verify(plan, threads=2)
    assert not again.holds
    assert [r.layer for r in again.certificate.releases if r.figures.met] == [spare.name]
    printed = command(plan)
    assert printed.exit_code == 1
    assert f"the pin of {spare.name} is not needed" in " ".join(printed.output.split())


def test_a_plan_without_its_pins_is_not_right(found: Path, tmp_path: Path) -> None:
    plan = edited(found, tmp_path, lambda content: content.update(pins=[]))
    printed = command(plan)
    assert printed.exit_code == 1
    assert "does not hold its tolerance" in printed.output


@pytest.mark.slow
def test_a_claim_that_was_made_up_stands_beside_the_measured_figure(found: Path, tmp_path: Path) -> None:
    plan = edited(found, tmp_path, lambda content: content["certificate"]["figures"].update(sqnr=99.0))
    again = verify(plan, threads=2)
    assert again.claimed[""]["sqnr"] == 99.0
    assert again.certificate.figures.values["sqnr"] < 90
    assert "99.0000" in command(plan).output


@pytest.mark.slow
def test_a_plan_that_stands_alone_wants_model_and_data(found: Path, tmp_path: Path) -> None:
    alone = tmp_path / "plan.json"
    alone.write_text((found / PLAN).read_text())
    with pytest.raises(PlanError, match="give --model and --data"):
        verify(alone)
    assert verify(alone, model=MODEL, data=DIGITS, threads=2).holds


@pytest.mark.slow
def test_int8_ranges_are_found_anew_by_the_plans_method(tmp_path: Path) -> None:
    result = sweep(
        MODEL,
        DIGITS,
        precisions="int8",
        tolerance="sqnr>=33",
        calibration="max",
        out=tmp_path,
        threads=2,
        ladder="fp32",
        samples=12,
        repair=False,
    )
    assert result.plans["int8"].pins
    again = verify(tmp_path / "plan.json", threads=2)
    assert again.plan.calibration == "max"
    assert again.certificate.to_dict() == json.loads((tmp_path / "plan.json").read_text())["certificate"]


@pytest.mark.parametrize("file", ["plan.json", "run.json"])
def test_files_of_another_kind_are_refused_in_a_sentence(found: Path, tmp_path: Path, file: str) -> None:
    plan = edited(found, tmp_path, lambda content: None)
    (tmp_path / file).write_text("[1, 2]")
    printed = command(plan)
    assert printed.exit_code == 2
    assert file in printed.output
    (tmp_path / file).write_text("no json")
    assert command(plan).exit_code == 2


@pytest.mark.slow
@pytest.mark.parametrize(
    "change",
    [
        {"certificate": "none"},
        {"certificate": {"figures": [1], "releases": "x"}},
        {"certificate": {"figures": {"sqnr": "much"}, "releases": [3, {"layer": None}]}},
    ],
)
def test_a_certificate_of_no_use_claims_nothing_and_hinders_nothing(found: Path, tmp_path: Path, change: Any) -> None:
    plan = edited(found, tmp_path, lambda content: content.update(change))
    assert verify(plan, threads=2).holds


def test_a_tolerance_of_another_kind_is_refused(found: Path, tmp_path: Path) -> None:
    plan = edited(found, tmp_path, lambda content: content.update(certificate=None, tolerance={"sqnr": 30}))
    with pytest.raises(PlanError, match="tolerance"):
        verify(plan)


@pytest.mark.parametrize(
    ("key", "named", "option"), [("folder", "trap:samples", "--data"), ("metric", "trap.py:metric", "--metric")]
)
def test_code_that_only_the_runs_folder_names_is_not_run(
    found: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, key: str, named: str, option: str
) -> None:
    (tmp_path / "trap.py").write_text("from pathlib import Path\nPath('sprung').touch()\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    run = json.loads((found / "run.json").read_text())
    run["data"][key] = named
    (tmp_path / "run.json").write_text(json.dumps(run))
    (tmp_path / "plan.json").write_text((found / PLAN).read_text())
    for words in (["verify", "plan.json"], ["export", "plan.json", "--format", "onnxruntime", "--out", "out.onnx"]):
        if words[0] == "export" and key == "metric":
            continue  # an export measures nothing
        printed = CliRunner().invoke(cli, words)
        assert printed.exit_code == 2
        assert f"if the code is yours, give it again: {option} {named}" in printed.output
    assert not (tmp_path / "sprung").exists()


@pytest.mark.slow
def test_the_outputs_of_a_plan_can_be_saved_for_polygraphy(found: Path, tmp_path: Path) -> None:
    verify(found / PLAN, threads=2, save_outputs=tmp_path / "outputs.json")
    results = RunResults.load(str(tmp_path / "outputs.json"))
    assert list(results.keys()) == ["precisionlab float32", "precisionlab fp16 plan, emulated"]
    true, low = (np.concatenate([one["logits"] for one in iterations]) for iterations in results.values())
    assert true.shape == (64, 10)
    assert 0 < np.square(low - true).sum() < 1e-3 * np.square(true).sum()
