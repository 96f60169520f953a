"""A tool is offered for a plan exactly where the export for it can be had."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
from models import digits, load, proto
from test_export import BF16, FP16, FP32, INT8, chain, plan_of

from precisionlab.errors import PrecisionLabError
from precisionlab.export.offers import names_in_file, refusals
from precisionlab.jobs.export import export_plan
from precisionlab.model import Model
from precisionlab.plan.plan import PrecisionPlan
from precisionlab.precision import Precision

FILES = {"trtexec": "a.sh", "polygraphy": "pins.py", "modelopt": "a.json", "onnxruntime": "a.onnx"}
NAMES = ["first", "second", "third", "fourth"]


@dataclass(frozen=True)
class Case:
    """A plan, and the formats that it cannot be had in."""

    plan: Callable[[Model], PrecisionPlan]
    refused: set[str]
    names: list[str] = field(default_factory=lambda: NAMES)


CASES = {
    "pins with plain names": Case(lambda m: plan_of(m, FP16, ["second"]), {"onnxruntime"}),
    "a comma in a pinned name": Case(
        lambda m: plan_of(m, FP16, ["se,cond"]), {"onnxruntime", "trtexec"}, ["first", "se,cond", "third", "fourth"]
    ),
    "a comma elsewhere": Case(lambda m: plan_of(m, FP16, ["first"]), {"onnxruntime"}, ["first", "a", "b,c", "d"]),
    "nodes without names": Case(
        lambda m: plan_of(m, FP16, [m.layers[1].name]), {"modelopt", "onnxruntime"}, ["", "", "", ""]
    ),
    "two halves": Case(lambda m: plan_of(m, FP16, {"second": BF16}), {"modelopt", "onnxruntime"}),
    "float32 throughout": Case(lambda m: plan_of(m, FP32), {"modelopt", "onnxruntime"}),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_what_is_offered_can_be_had_and_what_is_not_is_refused_for_the_same_reason(case: Case, tmp_path: Path) -> None:
    model = chain(case.names, tmp_path)
    plan = case.plan(model)
    found = refusals(model, plan, None, names_in_file(model))
    assert found.keys() == case.refused
    (tmp_path / "plan.json").write_text(json.dumps(plan.to_dict()))
    for target, file in FILES.items():
        with nullcontext() if target not in found else pytest.raises(PrecisionLabError, match=re.escape(found[target])):
            export_plan(tmp_path / "plan.json", target, out=tmp_path / file, model=model.path, threads=1)


def test_int8_without_a_layer_that_can_have_it_is_no_model_for_onnx_runtime(tmp_path: Path) -> None:
    model, _ = digits()
    assert "onnxruntime" not in refusals(model, plan_of(model, INT8), None, names_in_file(model))
    plain = chain(NAMES, tmp_path)
    assert "no quantized layer" in refusals(plain, plan_of(plain, INT8), None, names_in_file(plain))["onnxruntime"]


@pytest.mark.parametrize("opset", [17, 19])
def test_fp8_is_offered_to_what_holds_its_scales_alone(opset: int, tmp_path: Path) -> None:
    text = "(float[2,8] x) => (float[2,8] y) { [m] a = MatMul(x, w) [r] y = Exp(a) }"
    model = load(proto(text, {"w": np.eye(8, dtype=np.float32)}, opset=opset), tmp_path)
    found = refusals(model, plan_of(model, Precision.FP8), None, names_in_file(model))
    older = {"onnxruntime"} if opset < 19 else set[str]()
    assert found.keys() == {"trtexec", "polygraphy", "modelopt"} | older
    assert all("\n" not in sentence for sentence in found.values())
