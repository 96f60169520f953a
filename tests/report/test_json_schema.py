"""What `sweep --json` prints is what its schema says: of real runs, and in the file that the documentation has."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import onnx
import pytest
from click.testing import CliRunner
from models import proto

from precisionlab.cli import cli
from precisionlab.jobs.result import SweepResult
from precisionlab.report.json_schema import sweep_schema, text
from precisionlab.report.machine import to_json

FILE = Path(__file__).parents[2] / "docs" / "reference" / "sweep.schema.json"


def validator() -> jsonschema.Draft202012Validator:
    return jsonschema.Draft202012Validator(sweep_schema())


def printed(*arguments: str) -> Any:
    found = CliRunner().invoke(cli, ["sweep", *arguments, "--json"], catch_exceptions=False)
    assert found.exit_code in (0, 1)
    return json.loads(found.stdout, parse_constant=lambda word: pytest.fail(word))


def test_the_file_in_the_documentation_is_the_schema_and_a_valid_one() -> None:
    assert FILE.read_text(encoding="utf-8") == text()
    jsonschema.Draft202012Validator.check_schema(sweep_schema())


def test_real_runs_with_pins_and_with_repairs_are_valid(
    swept_digits: SweepResult, repaired_digits: SweepResult
) -> None:
    for result in (swept_digits, repaired_digits):
        validator().validate(json.loads(to_json(result)))


def test_what_the_command_prints_is_valid_with_nan_and_without_data(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    body = "(float[N,4] x) => (float[N,4] y) { a = MatMul(x, w) b = Exp(a) c = Exp(b) y = Div(c, c) }"
    onnx.save_model(proto(body, {"w": np.full((4, 4), 2, np.float32)}), "model.onnx")
    (tmp_path / "data").mkdir()
    for index in range(2):
        np.savez(tmp_path / "data" / f"{index}.npz", x=np.full((1, 4), index + 0.5, np.float32))
    for arguments in (["--data", "data"], ["--shape", "x:1x4"]):
        found = printed(
            "model.onnx", *arguments, "--precisions", "fp16,int8", "--threads", "1", "--max-evaluations", "2"
        )
        validator().validate(found)


def _without(*path: str) -> Callable[[Any], None]:
    def change(content: Any) -> None:
        *ahead, last = path
        for key in ahead:
            content = content[int(key)] if isinstance(content, list) else content[key]
        del content[last]

    return change


def _with(value: Any, *path: str) -> Callable[[Any], None]:
    def change(content: Any) -> None:
        *ahead, last = path
        for key in ahead:
            content = content[int(key)] if isinstance(content, list) else content[key]
        content[last] = value

    return change


@pytest.mark.parametrize(
    "change",
    [
        _without("met"),
        _without("variants", "0", "sqnr_db"),
        _with("many", "layers", "0", "introduced_sqnr_db"),
        _with(None, "run", "model", "sha256"),
        _with("perhaps", "run", "precisions", "fp16", "verdict", "state"),
        _with("fp99", "plans", "fp16", "default"),
        _with([1], "plans", "fp16", "pins"),
    ],
)
def test_what_is_something_else_is_not_valid(change: Callable[[Any], None], repaired_digits: SweepResult) -> None:
    content = json.loads(to_json(repaired_digits))
    assert validator().is_valid(content)
    change(content)
    assert not validator().is_valid(content)


def test_what_a_later_version_adds_is_valid(repaired_digits: SweepResult) -> None:
    content = copy.deepcopy(json.loads(to_json(repaired_digits)))
    content["more"] = content["run"]["more"] = content["layers"][0]["more"] = 1
    validator().validate(content)
