"""How many integer sums of int8 products half could not hold: counted as numpy counts them, and told of."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from models import Array, load, plan_for, proto

from precisionlab.backends.onnxruntime import OnnxRuntimeBackend
from precisionlab.calibration.table import CalibrationTable, Range, weight_scales
from precisionlab.compare.judging import judging_of
from precisionlab.compare.tolerance import parse_tolerance
from precisionlab.data import open_dataset
from precisionlab.evaluate.evaluator import Evaluator
from precisionlab.evaluate.integer_sums import IntegerSums, integer_sums
from precisionlab.evaluate.journal import NoJournal
from precisionlab.model import Model
from precisionlab.model.layers import quantized_operands
from precisionlab.plan.arithmetic import ONNXRUNTIME, TENSORRT, Arithmetic
from precisionlab.plan.plan import Pin
from precisionlab.precision import Precision
from precisionlab.search.unscaled import unscaled_sums
from precisionlab.system.observer import Silent

FP32, FP16, INT8 = Precision.FP32, Precision.FP16, Precision.INT8
K, N = 256, 6
RNG = np.random.default_rng(3)
WEIGHT = (RNG.standard_normal((K, N)) / 16).astype(np.float32)
SAMPLES = [RNG.standard_normal((4, K)).astype(np.float32) for _ in range(3)]
BODIES = {
    "MatMul": "[m] y = MatMul(x, w)",
    "Gemm": "[m] y = Gemm<transB = 1>(x, w)",
    "left": "[t] z = Transpose<perm = [1, 0]>(x) [m] y = MatMul(w, z)",
}


def evaluator_of(model: Model, folder: Path, arithmetic: Arithmetic = TENSORRT) -> Evaluator:
    (folder / "data").mkdir()
    for place, array in enumerate(SAMPLES):
        np.save(folder / "data" / f"{place}.npy", array)
    dataset = open_dataset(folder / "data", model, None, 0).checked()
    backend = OnnxRuntimeBackend(model, next(iter(dataset)), 1)
    judging = judging_of(backend.model)
    return Evaluator(backend, dataset, None, None, NoJournal(), Silent(), judging, arithmetic)


def table_of(model: Model, amax: float) -> CalibrationTable:
    return CalibrationTable({n: Range(amax) for layer in model.layers for n in quantized_operands(model, layer)}, 3)


def model_of(kind: str, folder: Path, weight: Array = WEIGHT) -> Model:
    given = np.ascontiguousarray(weight.T) if kind != "MatMul" else weight
    shape = f"{N},4" if kind == "left" else f"4,{N}"
    return load(proto(f"(float[4,{K}] x) => (float[{shape}] y) {{ {BODIES[kind]} }}", {"w": given}), folder)


def counted(evaluator: Evaluator, table: CalibrationTable, around: Precision = FP16) -> dict[str, IntegerSums]:
    backend = evaluator.backend
    assert isinstance(backend, OnnxRuntimeBackend)
    return integer_sums(evaluator, plan_for(evaluator.model, INT8, around=around), table, backend.look)


@pytest.mark.parametrize("kind", BODIES)
def test_the_share_and_the_largest_are_numpys(kind: str, tmp_path: Path) -> None:
    model = model_of(kind, tmp_path)
    table = table_of(model, 2.5)
    found = counted(evaluator_of(model, tmp_path), table)["m"]
    levels = np.clip(np.rint(WEIGHT / weight_scales(WEIGHT, 1, Precision.INT8.number_format)), -128, 127)
    sums = np.abs([np.clip(np.rint(x / np.float32(2.5 / 127)), -128, 127) @ levels for x in SAMPLES])
    assert found.beyond == (sums > 65504).mean() > 0
    assert found.largest == sums.max()
    assert found.lost == 0


def test_scales_whose_product_is_0_in_half_are_counted_by_channel(tmp_path: Path) -> None:
    small = WEIGHT * np.array([1e-7] * 2 + [1] * 4, np.float32)
    model = model_of("MatMul", tmp_path, small)
    assert counted(evaluator_of(model, tmp_path), table_of(model, 2.5))["m"].lost == pytest.approx(1 / 3)


@pytest.mark.parametrize("around", [FP32, Precision.BF16])
def test_around_other_floats_there_are_none(around: Precision, tmp_path: Path) -> None:
    model = model_of("MatMul", tmp_path)
    assert counted(evaluator_of(model, tmp_path), table_of(model, 2.5), around) == {}


def test_onnxruntimes_kernels_and_pinned_layers_have_none(tmp_path: Path) -> None:
    model = model_of("MatMul", tmp_path)
    evaluator = evaluator_of(model, tmp_path, ONNXRUNTIME)
    assert counted(evaluator, table_of(model, 2.5)) == {}
    backend = evaluator.backend
    assert isinstance(backend, OnnxRuntimeBackend)
    plan = plan_for(model, INT8, around=FP16).with_pins([Pin("m", ("m",), FP16, "test")])
    (tmp_path / "again").mkdir()
    again = evaluator_of(model, tmp_path / "again")
    assert integer_sums(again, plan, table_of(model, 2.5), backend.look) == {}


def test_what_they_do_to_the_plan_is_told_with_share_layer_and_figure(tmp_path: Path) -> None:
    model = model_of("MatMul", tmp_path)
    evaluator, table = evaluator_of(model, tmp_path), table_of(model, 2.5)
    backend = evaluator.backend
    assert isinstance(backend, OnnxRuntimeBackend)
    plan = plan_for(model, INT8, around=FP16)
    known = evaluator.compare("int8", plan, table)
    found = unscaled_sums(evaluator, plan, table, parse_tolerance(["sqnr>=20"]), known, backend.look)
    assert found is not None
    assert not found.met
    assert found.sqnr == -np.inf
    share = 100 * found.layers["m"].beyond
    assert found.title.startswith(f"{share:.2g} % of m's integer sums pass 65504, up to ")
    assert "−∞ dB, emulated" in found.why
    small = model_of("MatMul", tmp_path)
    wide = table_of(small, 250.0)  # few levels are left, and no sum is large
    assert unscaled_sums(evaluator, plan, wide, parse_tolerance(["sqnr>=20"]), known, backend.look) is None
