"""What is refused of FP8, each in one sentence, before a sample is read; and its twin that is taken."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from models import load, plan_for, proto

from precisionlab import fidelity
from precisionlab.errors import ModelError, OptionError, PlanError
from precisionlab.jobs.repair import repair
from precisionlab.jobs.sweep_checks import check_target
from precisionlab.jobs.sweep_request import run_options, sweep_options
from precisionlab.model import Model
from precisionlab.plan.assign import can_have, check_opset
from precisionlab.plan.plan import Pin
from precisionlab.plan.weak import check_weak, explicit_layer
from precisionlab.precision import Precision
from precisionlab.search.devices import DEVICES, find_device
from precisionlab.search.options import Options

FP8, INT8, FP16 = Precision.FP8, Precision.INT8, Precision.FP16
TEXT = "(float[2,8] x) => (float[2,8] y) { [m] a = MatMul(x, w) [r] y = Exp(a) }"


@pytest.fixture
def model(tmp_path: Path) -> Model:
    return load(proto(TEXT, {"w": np.eye(8, dtype=np.float32)}), tmp_path)


def refused(call: Callable[[], object]) -> str:
    with pytest.raises((OptionError, PlanError, ModelError)) as caught:
        call()
    said = str(caught.value)
    assert "\n" not in said
    return said


def test_weakly_typed_tensorrt_has_it_by_nodes_alone(model: Model) -> None:
    said = refused(lambda: check_weak(model, plan_for(model, FP8)))
    assert "the plan has layer 'm' in fp8" in said
    assert "by Q/DQ nodes in the model alone; have it strongly typed" in said
    mixed = plan_for(model, INT8).with_pins([Pin("m", ("m",), FP8, "test")])
    assert refused(lambda: check_weak(model, mixed)) == said
    check_weak(model, plan_for(model, INT8))
    check_weak(model, plan_for(model, FP8, ["m"]))  # no layer is left in it
    assert explicit_layer(model, plan_for(model, FP8, ["m"])) is None


@pytest.mark.parametrize("target", sorted(DEVICES))
def test_targets_without_it_are_refused(target: str) -> None:
    options, device = Options(precisions=(FP8,)), find_device(target)
    if device.capability in ("sm89", "sm90"):
        check_target(options, device)
        assert device.peak(FP8) == device.peak(INT8)
    else:
        assert refused(lambda: check_target(Options(precisions=(INT8,), ladder=(FP8, Precision.FP32)), device))
        said = refused(lambda: check_target(options, device))
        assert said == f"target {target} has no fp8; choose another --target (h100, l4) or precision"


@pytest.mark.parametrize(
    ("precisions", "ladder", "taken"),
    [("fp16,int8", None, "a100"), ("fp8", None, "h100"), ("int8,fp8,bf16", None, "h100"), ("int8", "fp8,fp32", "h100")],
)
def test_the_usual_target_is_one_that_has_what_is_asked_for(precisions: str, ladder: str | None, taken: str) -> None:
    found = run_options(
        backend="onnxruntime", out=None, threads=1, memory=None, device="cpu", batch=1, processes=None, dask=None,
        layers=None, target=None, precisions=precisions, ladder=ladder, plan=None, engine=None,
    )  # fmt: skip
    assert found.target.name == taken


def options_of(**changes: object) -> Options:
    given = {
        "precisions": "int8,fp8", "tolerance": (), "max_pins": None, "repair": True, "around": "fp32",
        "calibration": None, "metric": None, "minimize": "pins", "spend": None, "ladder": None, "budget": None,
        "max_evaluations": None, "each_layer": None, "max_cost": None, "kernels": "tensorrt", "sums": "float32",
    }  # fmt: skip
    return sweep_options(**{**given, **changes})  # type: ignore[arg-type]


def test_methods_that_count_levels_are_refused_and_others_taken() -> None:
    assert "use max, percentile, mse or auto with fp8" in refused(lambda: options_of(calibration="capped"))
    assert options_of(calibration="mse").calibration == "mse"
    assert options_of(ladder="int8,fp16,fp32", precisions="fp8").quantized == (FP8, INT8)
    assert "is the precision of the float layers" in refused(lambda: options_of(around="fp8"))


def test_repairs_and_real_arithmetic_that_there_are_none_of_are_refused(tmp_path: Path) -> None:
    nowhere = tmp_path / "model.onnx"
    said = refused(lambda: repair(nowhere, tmp_path, precision="fp8"))
    assert "precision fp8: among fp32 there are no repairs for it" in said
    assert "repairs are for fp16 or bf16, and for fp8, int8 or int4 among these" in refused(
        lambda: repair(nowhere, tmp_path, precision="fp32")
    )
    assert "fp8 needs a GPU" in refused(lambda: fidelity(nowhere, tmp_path, precisions="fp8"))


def test_the_emulation_needs_opset_9(tmp_path: Path) -> None:
    for opset in (8, 9, 23):
        (tmp_path / str(opset)).mkdir()
        model = load(proto(TEXT, {"w": np.eye(8, dtype=np.float32)}, opset=opset), tmp_path / str(opset))
        check_opset(model.onnx, plan_for(model, INT8))
        if opset < 9:
            said = refused(lambda model=model: check_opset(model.onnx, plan_for(model, FP8)))  # type: ignore[misc]
            assert said.startswith("fp8 needs opset 9 or newer, the model has 8; convert it")
        else:
            check_opset(model.onnx, plan_for(model, FP8, around=FP16))


def test_a_pin_to_a_quantized_precision_is_for_layers_that_have_products(model: Model) -> None:
    assert can_have(model.layer["m"], FP8)
    assert not can_have(model.layer["r"], FP8)
