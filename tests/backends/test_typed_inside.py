"""What is said of pins in a strongly typed engine, by the log of its kernels."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from models import load, plan_for, proto, sample

from precisionlab.backends.onnxruntime import OnnxRuntimeBackend
from precisionlab.backends.tensorrt.api import Features
from precisionlab.backends.tensorrt.backend import EngineSettings
from precisionlab.backends.tensorrt.jobs import BuildJob, Built, EngineLayer, EngineTensor
from precisionlab.backends.tensorrt.network import NetworkLayer, NetworkTensor
from precisionlab.backends.tensorrt.pin_report import PinReport
from precisionlab.backends.tensorrt.typed import TypedBackend
from precisionlab.precision import Precision

BODY = "(float[4,8] x) => (float[4,8] y) { [start] a = Exp(x) [big] m = MatMul(a, w) [end] y = Sin(m) }"


class Same:
    """Every other form of the model gives the same."""

    def fault(self, converted: ir.Model) -> None:
        return None

    def agreement(self, changed: ir.Model) -> float:
        return float("inf")


class Engines:
    """Gives every engine these kernels; its network has the MatMul in float32."""

    features = Features(
        "1.7.1",
        pins=False,
        calibrators=False,
        precisions=frozenset(Precision),
        debug_tensors=True,
        implicit_batch=False,
    )
    device = None

    def __init__(self, layers: tuple[EngineLayer, ...]) -> None:
        self.layers = layers

    def describe(self, model: Path, typed: bool = False) -> tuple[NetworkLayer, ...]:
        return (NetworkLayer(0, "big", "MATRIX_MULTIPLY", ("big",), (), (NetworkTensor("m", "fp32"),)),)

    def build(self, job: BuildJob) -> Built:
        return Built(job.engine / "e", 0.1, 1000, (), self.layers, ("the log cannot be read",))


def kernel(name: str, takes: str, gives: str, *nodes: str) -> EngineLayer:
    given, taken = EngineTensor("t1", gives, (4, 8)), EngineTensor("t0", takes, (4, 8))
    return EngineLayer(name, "kgen", nodes, (taken,), (given,))


def told(folder: Path, default: Precision, *layers: EngineLayer) -> PinReport:
    model = load(proto(BODY, {"w": np.eye(8, dtype=np.float32)}, opset=22), folder)
    reference = OnnxRuntimeBackend(model, sample(x=np.ones((4, 8), np.float32)), threads=1)
    engines: Any = Engines(layers)
    backend = TypedBackend(reference, engines, EngineSettings(folder), "tensorrt-rtx", Same())
    (report,) = backend.inside(plan_for(model, default, ["big"]), None).pins
    return report


def test_a_kernel_that_casts_inside_is_settled_by_the_networks_types(tmp_path: Path) -> None:
    found = told(tmp_path, Precision.FP16, kernel("__myl_CastReshMulSumCast_myl0_1", "fp16", "fp16", "big", "a_fp16"))
    assert (found.verdict, found.got) == ("honoured", ("fp32",))


def test_of_an_engine_that_cannot_be_read_nothing_is_known(tmp_path: Path) -> None:
    found = told(tmp_path, Precision.FP16)
    assert (found.verdict, found.got) == ("unknown", ())
    assert "does not tell its layers" in found.advice


@pytest.mark.parametrize(("default", "bf16"), [(Precision.FP16, True), (Precision.BF16, False)], ids=str)
def test_an_overridden_pin_is_told_what_helps_and_no_cast_of_ours_is_named(
    default: Precision, bf16: bool, tmp_path: Path
) -> None:
    low = default.value
    found = told(tmp_path, default, kernel("__mye77_myl0_1", low, low, "big", "a_fp32", f"m_{low}", "end"))
    assert (found.verdict, found.got, found.fused_with) == ("overridden", (low,), ("end",))
    assert ("pin it to bf16" in found.advice) == bf16
    assert "pin the layer before or behind it as well" in found.advice
    assert "a_fp32" not in found.advice
