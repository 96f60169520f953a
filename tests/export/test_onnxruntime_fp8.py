"""FP8 in a Q/DQ model for ONNX Runtime: as it is loaded by default, it gives what the emulation does."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest
from models import Flows, load, plan_for, proto

from precisionlab.calibration.release_here import default_release
from precisionlab.calibration.table import CalibrationTable, Range
from precisionlab.errors import PlanError
from precisionlab.export.offers import names_in_file
from precisionlab.export.onnxruntime import onnxruntime_model
from precisionlab.export.subject import Subject
from precisionlab.model import Model
from precisionlab.model.layers import quantized_operands
from precisionlab.precision import Precision

BODY = "(float[4,8] x) => (float[4,8] y) {{ n = Neg(x) a = {op} [m] c = MatMul(a, w) y = Tanh(c) }}"
OPS = {"Relu": "Relu(n)", "Clip": "Clip(n, low, high)", "HardSwish": "HardSwish(n)", "nothing": "Identity(n)"}


def made(op: str, folder: Path, opset: int = 19) -> Model:
    limits = {"low": np.float32(0), "high": np.float32(1)} if op == "Clip" else {}
    weight = np.random.default_rng(1).standard_normal((8, 8)).astype(np.float32)
    return load(proto(BODY.format(op=OPS[op]), {"w": weight, **limits}, opset=opset), folder)


def exported(model: Model) -> tuple[bytes, CalibrationTable]:
    ranges = {name: Range(2.0) for layer in model.layers for name in quantized_operands(model, layer)}
    table = CalibrationTable(ranges, 1, Precision.FP8)
    plan = plan_for(model, Precision.FP8)
    subject = Subject(model, plan, table, {}, names_in_file(model), default_release())
    content = onnxruntime_model(subject).content
    assert isinstance(content, bytes)
    return content, table


@pytest.mark.parametrize("op", OPS)
def test_no_optimiser_changes_what_stands_before_a_quantizer(op: str, tmp_path: Path) -> None:
    model = made(op, tmp_path)
    content, table = exported(model)
    x = np.random.default_rng(2).standard_normal((4, 8)).astype(np.float32)
    (given,) = ort.InferenceSession(content, providers=["CPUExecutionProvider"]).run(None, {"x": x})
    emulated = Flows(model, plan_for(model, Precision.FP8), table)(x=x)["variant", "y"]
    assert np.allclose(given, emulated, rtol=1e-5, atol=1e-6)


def test_an_opset_without_the_type_is_refused_in_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(PlanError, match="needs opset 19 or newer, this one has 17; export the plan as typed-onnx"):
        exported(made("Relu", tmp_path, 17))
