"""A typed model that is handed over has been run beside its source, where its opset is another."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from models import load, plan_for, proto

from precisionlab.errors import ModelError, OptionError
from precisionlab.jobs.export import TYPED, export_plan
from precisionlab.plan.arithmetic import Arithmetic, Fusing
from precisionlab.precision import Precision
from precisionlab.system.observer import Silent

RNG = np.random.default_rng(0)
UPSAMPLED = """(float[1,2,8,8] x) => (float[1,3,16,16] y) {
    c = Conv<pads=[1,1,1,1]>(x, w) u = Upsample<mode="linear">(c, s) y = Conv(u, v) }"""
WEIGHTS = {
    "w": RNG.standard_normal((4, 2, 3, 3)).astype(np.float32),
    "s": np.array([1, 1, 2, 2], np.float32),
    "v": RNG.standard_normal((3, 4, 1, 1)).astype(np.float32),
}


def planned(made: onnx.ModelProto, folder: Path) -> tuple[Path, Path, Path]:
    """An int8 plan of the model, the model, and samples for it."""
    model = load(made, folder)
    plan = folder / "plan.json"
    plan.write_text(json.dumps(replace(plan_for(model, Precision.INT8), calibration="max").to_dict()))
    data = folder / "data"
    data.mkdir()
    for index in range(4):
        shape = tuple(map(int, model.inputs[0].shape or ()))
        np.save(data / f"{index}.npy", RNG.standard_normal(shape).astype(np.float32))
    return plan, model.path, data


def test_an_old_upsample_keeps_its_coordinates_in_what_is_handed_over(tmp_path: Path) -> None:
    plan, model, data = planned(proto(UPSAMPLED, WEIGHTS, opset=9), tmp_path)
    done = export_plan(plan, TYPED, out=tmp_path / "typed.onnx", model=model, data=data)
    assert done.notes == ("converted from opset 9 to 13",)
    x = np.load(data / "0.npy")
    true, low = (ort.InferenceSession(p).run(None, {"x": x})[0] for p in (model, tmp_path / "typed.onnx"))
    assert 10 * np.log10((true**2).sum() / ((true - low) ** 2).sum()) > 25


def test_what_differs_from_its_source_is_not_handed_over(tmp_path: Path) -> None:
    body = "(float[2,3] x) => (float[2,2] y, bool[2,3] k) { d, k = Dropout(x) y = MatMul(d, w) }"
    plan, model, data = planned(proto(body, {"w": np.ones((3, 2), np.float32)}, opset=10), tmp_path)
    with pytest.raises(ModelError, match=r"opset 10 cannot be converted to 13.*output k of sample 0\.npy differs in 6"):
        export_plan(plan, TYPED, out=tmp_path / "typed.onnx", model=model, data=data)
    assert not (tmp_path / "typed.onnx").exists()


def test_without_samples_nothing_can_be_compared(tmp_path: Path) -> None:
    made = proto("(float[2,3] x) => (float[2,3] y) { y = HardSwish(x) }", opset=14)
    plan, model, data = planned(made, tmp_path)
    plan.write_text(json.dumps(plan_for(load(made, tmp_path), Precision.BF16).to_dict()))
    with pytest.raises(OptionError, match="the plan needs opset 22, and that is tried on samples; give --data"):
        export_plan(plan, TYPED, out=tmp_path / "typed.onnx", model=model)
    done = export_plan(plan, TYPED, out=tmp_path / "typed.onnx", model=model, data=data)
    assert done.notes == ("converted from opset 14 to 22",)


CONV_BN = """(float[1, 4, 8, 8] x) => (float[1, 4, 8, 8] y) {
    c = Conv <pads = [1, 1, 1, 1]> (x, w)
    y = BatchNormalization (c, scale, shift, mean, variance)
}"""


@pytest.mark.parametrize(("fusing", "is_told"), [("folded", True), ("compiled", False)])
def test_a_plan_that_was_found_with_folded_layers_is_exported_typed_with_a_word_on_what_is_rounded_between(
    tmp_path: Path, fusing: str, is_told: bool
) -> None:
    weights = {
        "w": np.random.default_rng(0).standard_normal((4, 4, 3, 3)).astype(np.float32),
        **{name: np.ones(4, np.float32) for name in ("scale", "variance")},
        **{name: np.zeros(4, np.float32) for name in ("shift", "mean")},
    }
    model = load(proto(CONV_BN, weights), tmp_path)
    plan = plan_for(model, Precision.FP16)
    arithmetic = Arithmetic(fusing=Fusing(fusing))
    (tmp_path / "plan.json").write_text(json.dumps({**plan.to_dict(), "arithmetic": arithmetic.to_plain()}))
    notes: list[str] = []

    class Noting(Silent):
        def note(self, text: str) -> None:
            notes.append(text)

    out = tmp_path / "typed.onnx"
    export_plan(tmp_path / "plan.json", "typed-onnx", out=out, model=model.path, observer=Noting())

    said = "strongly typed TensorRT rounds inside of 1 layer, such as 'node_of_c' (Conv+BatchNormalization)"
    assert any(said in note for note in notes) is is_told
