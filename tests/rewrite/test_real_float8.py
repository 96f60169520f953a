"""Real products of E4M3: what the graph for ONNX Runtime's GemmFloat8 gives, by ONNX's own reference evaluator."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx_ir as ir
import pytest
from models import Array, load, plan_for, proto, sample
from onnx.reference import ReferenceEvaluator
from onnx.reference.op_run import OpRun

from precisionlab.backends.real import RealDevice, check_float8, check_real
from precisionlab.calibration.table import CalibrationTable, Range
from precisionlab.errors import OptionError
from precisionlab.model import Model
from precisionlab.precision import Precision
from precisionlab.rewrite.observe import Flow, segments
from precisionlab.rewrite.real import RealCopier
from precisionlab.rewrite.real_refusals import unsupported

R = np.random.default_rng(8)
AMAX = 3.0


class GemmFloat8(OpRun):
    """com.microsoft's, as its documentation has it, with exact sums."""

    op_domain = "com.microsoft"

    def _run(self, a: Array, b: Array, c: Any = None, *scales: Array, **attributes: Any) -> tuple[Array]:
        assert a.dtype == b.dtype == ml_dtypes.float8_e4m3fn
        assert (attributes["transA"], attributes["transB"], attributes["dtype"]) == (0, 1, 1)
        assert c is None
        assert a.shape[1] == b.shape[1]
        assert not any(length % 16 for length in (*b.shape, a.shape[1]))
        assert all(scale.tolist() == [1.0] for scale in scales[:2])
        return ((a.astype(np.float64) @ b.astype(np.float64).T).astype(np.float32),)


def real(model: Model, **inputs: Any) -> Array:
    """What the variant gives as `y`."""
    table = CalibrationTable({"x": Range(AMAX)}, 1, Precision.FP8)
    plan = plan_for(model, Precision.FP8)
    (segment,) = segments(model, plan, table, [list(model.layers)], Flow, Flow, RealCopier)
    run = ReferenceEvaluator(ir.to_proto(segment.graph), new_ops=[GemmFloat8])
    arrays = sample(**inputs).inputs
    found = run.run(list(segment.fetches), {name: arrays[key[1]] for name, key in segment.feeds.items()})
    return dict(zip(segment.fetches.values(), found, strict=True))[Flow.VARIANT, "y"]


def rounded(array: Array, scale: Array) -> Array:
    """In steps of the scale, saturated: float64."""
    steps = np.clip(array / scale, np.float32(-448), np.float32(448))
    return steps.astype(ml_dtypes.float8_e4m3fn).astype(np.float64) * scale.astype(np.float64)


def drawn(*shape: int) -> Array:
    return R.standard_normal(shape).astype(np.float32) * 2


SCALE = np.float32(AMAX / 448)


@pytest.mark.parametrize(("k", "n"), [(32, 48), (17, 48), (32, 3), (15, 1)])
@pytest.mark.parametrize("leading", [(5,), (2, 3), (2, 1, 4)])
def test_a_product_with_a_constant_is_that_of_the_rounded_operands(
    tmp_path: Path, leading: tuple[int, ...], k: int, n: int
) -> None:
    x, weight = drawn(*leading, k), drawn(k, n)
    dims = ",".join(map(str, leading))
    body = f"(float[{dims},{k}] x) => (float[{dims},{n}] y) {{ y = MatMul(x, w) }}"
    model = load(proto(body, {"w": weight}, opset=19), tmp_path)
    assert unsupported(model, plan_for(model, Precision.FP8)) == {}
    channels = (np.abs(weight).max(0) / np.float32(448)).astype(np.float32)
    wanted = rounded(x, SCALE) @ rounded(weight, channels)
    assert np.allclose(real(model, x=x), wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("turned", [0, 1])
def test_a_gemm_has_its_factors_and_its_bias(tmp_path: Path, turned: int) -> None:
    x, weight, bias = drawn(7, 16), drawn(*((32, 16) if turned else (16, 32))), drawn(32)
    body = f"""(float[7,16] x) => (float[7,32] y) {{
        y = Gemm<alpha = 0.5, beta = 2.0, transB = {turned}>(x, w, c)
    }}"""
    model = load(proto(body, {"w": weight, "c": bias}, opset=19), tmp_path)
    matrix = weight.T if turned else weight
    channels = (np.abs(matrix).max(0) / np.float32(448)).astype(np.float32)
    wanted = 0.5 * (rounded(x, SCALE) @ rounded(matrix, channels)) + 2 * bias
    assert np.allclose(real(model, x=x), wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("body", "weight", "told"),
    [
        ("(float[4,24] x, float[24,8] w) => (float[4,8] y) { y = MatMul(x, w) }", (), "a matrix and a constant one"),
        ("(float[16,4] x) => (float[32,4] y) { y = MatMul(w, x) }", (32, 16), "a constant one, which stands behind it"),
        ("(float[16,4] x) => (float[4,32] y) { y = Gemm<transA = 1>(x, w) }", (16, 32), "no first matrix that is"),
        ("(float[1,16,8,8] x) => (float[1,16,8,8] y) { y = Conv(x, w) }", (16, 16, 1, 1), "no Conv in fp8"),
    ],
)
def test_products_that_no_kernel_has_are_told_with_the_reason(
    tmp_path: Path, body: str, weight: tuple[int, ...], told: str
) -> None:
    model = load(proto(body, {"w": drawn(*weight)} if weight else {}, opset=19), tmp_path)
    (reason,) = unsupported(model, plan_for(model, Precision.FP8)).values()
    assert told in reason


def test_a_machine_without_a_gpu_has_no_real_fp8_and_says_so() -> None:
    with pytest.raises(OptionError, match="fp8 is not real on the cpu"):
        check_real(Precision.FP8, RealDevice(None))
    with pytest.raises(OptionError, match="products of E4M3 need a GPU"):
        check_float8(RealDevice(None))
    check_real(Precision.INT8, RealDevice(None))
