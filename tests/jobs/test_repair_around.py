"""What breaks in half around quantized layers is repaired as half's own, and channels are scaled behind that."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from models import DIGITS, Array, proto

from precisionlab import sweep, verify
from precisionlab.cli.summary import print_summary
from precisionlab.jobs.repair import repair
from precisionlab.jobs.result import SweepResult

NET = """(float[4,64] x) => (float[4,16] y) {
    [first] a = MatMul(x, u) [far] b = Mul(a, thousand) [square] c = Mul(b, b) [mean] d = ReduceMean<axes = [-1]>(c)
    [small] e = Add(d, epsilon) [root] f = Sqrt(e) [unit] g = Div(b, f) [gain] h = Mul(g, gain)
    [last] y = MatMul(h, v) }"""
RNG = np.random.default_rng(0)
CONSTANTS: dict[str, Array] = {
    "u": (RNG.standard_normal((64, 64)) / 8).astype(np.float32),
    "v": (RNG.standard_normal((64, 16)) / 8).astype(np.float32),
    "thousand": np.float32(1000),
    "epsilon": np.float32(1e-3),
    "gain": np.ones(64, np.float32),
}


def written(folder: Path, **constants: Array) -> tuple[Path, Path]:
    """An RMSNorm whose squares pass half's end, between two products that can be quantised."""
    onnx.save(proto(NET, {**CONSTANTS, **constants}), folder / "net.onnx")
    (folder / "data").mkdir()
    for i in range(8):
        x = np.random.default_rng(i).standard_normal((4, 64)).astype(np.float32)
        np.save(folder / "data" / f"{i:02}.npy", x)
    return folder / "net.onnx", folder / "data"


@pytest.mark.parametrize("precision", ["int4", "int8", "fp8"])
def test_a_sum_of_squares_beyond_half_around_quantized_layers_is_scaled(precision: str, tmp_path: Path) -> None:
    model, data = written(tmp_path)
    bound = "sqnr>=15" if precision == "int4" else "sqnr>=20"
    found = repair(
        model, data, precision=precision, around="fp16", tolerance=bound, out=tmp_path / "fixed.onnx", threads=1
    )
    assert found.before.nonfinite > 0
    assert found.met
    assert [one.kind for one in found.found.repairs] == ["scale_sum_of_squares"]
    assert found.same is not None
    assert found.same.is_bitwise


@pytest.mark.parametrize("precision", ["int4", "int8"])
def test_among_float32_nothing_of_it_breaks_and_nothing_is_repaired(precision: str, tmp_path: Path) -> None:
    model, data = written(tmp_path)
    options = {"precision": precision, "around": "fp32", "tolerance": "sqnr>=15", "out": tmp_path / "fixed.onnx"}
    found = repair(model, data, threads=1, **options)  # type: ignore[arg-type]
    assert found.met
    assert found.found.repairs == ()


@pytest.mark.thorough
def test_channels_are_scaled_behind_what_half_needs(tmp_path: Path) -> None:
    """Two of the channels of what the second product takes are 60 times as large as the others."""
    gain = np.where(np.arange(64) % 32 == 3, 60, 1).astype(np.float32)
    model, data = written(tmp_path, gain=gain)
    found = repair(
        model, data, precision="int8", around="fp16", tolerance="sqnr>=36", out=tmp_path / "fixed.onnx", threads=1
    )
    assert [one.kind for one in found.found.repairs] == ["scale_sum_of_squares", "migrate_channels"]
    assert found.same is not None
    assert found.same.is_bitwise


def swept(folder: Path, *, is_repaired: bool) -> SweepResult:
    model, data = written(folder)
    return sweep(
        model, data, precisions="fp8", around="fp16", repair=is_repaired, out=folder / "run", threads=1,
        backend="onnxruntime",
    )  # fmt: skip


@pytest.mark.thorough
def test_a_sweep_takes_the_repair_in_the_place_of_pins_and_its_plan_is_verified(tmp_path: Path) -> None:
    (result,) = swept(tmp_path, is_repaired=True).precisions
    assert [one.kind for one in result.plan.repairs] == ["scale_sum_of_squares"]
    assert result.plan.pins == ()
    assert result.certificate is not None
    assert [one.is_needed for one in result.certificate.repairs] == [True]
    assert verify(tmp_path / "run" / "plan.json", threads=1).holds


@pytest.mark.thorough
def test_a_sweep_without_repairs_pins_and_names_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = swept(tmp_path, is_repaired=False)
    (result,) = found.precisions
    assert {pin.layer for pin in result.plan.pins} >= {"square"}
    print_summary(found, sys.stdout)
    assert "--precision fp8 --around fp16" in capsys.readouterr().out


@pytest.mark.thorough
def test_pins_that_nobody_has_released_are_not_said_to_be_proven_beside_repairs(tmp_path: Path) -> None:
    """digits in FP8: no smallest set of pins that holds on the samples that choose holds on those held out."""
    (result,) = sweep(
        DIGITS / "digits.onnx", DIGITS, precisions="fp8", around="fp16", samples=32, threads=1, out=tmp_path / "run",
        backend="onnxruntime",
    ).precisions  # fmt: skip
    assert result.met
    assert "longer prefixes of the ranking are taken instead" in result.remark
    assert result.plan.pins
    assert result.certificate is not None
    assert (result.certificate.releases, result.certificate.proven) == ((), False)


NORM = "(float[8,256] x) => (float[8,48] y) { h = LayerNormalization(x, g, b) [last] y = MatMul(h, w) }"


@pytest.mark.thorough
@pytest.mark.parametrize("is_uneven", [True, False])
def test_weights_in_int4_are_larger_where_they_are_multiplied_with_more(is_uneven: bool, tmp_path: Path) -> None:
    """One channel in 128 is 40 times as large as the others, and its weights are as the others'."""
    rng = np.random.default_rng(1)
    g = np.where((np.arange(256) % 128 == 5) & is_uneven, 40, 1).astype(np.float32)
    weights = {"g": g, "b": np.zeros(256, np.float32), "w": rng.standard_normal((256, 48)).astype(np.float32)}
    onnx.save(proto(NORM, weights), tmp_path / "net.onnx")
    (tmp_path / "data").mkdir()
    for i in range(4):
        np.save(tmp_path / "data" / f"{i}.npy", rng.standard_normal((8, 256)).astype(np.float32))
    found = repair(
        tmp_path / "net.onnx", tmp_path / "data", precision="int4", around="fp32", tolerance="sqnr>=40",
        out=tmp_path / "fixed.onnx", threads=1,
    )  # fmt: skip
    gained = found.after.values["sqnr"] - found.before.values["sqnr"]
    assert [one.kind for one in found.found.repairs] == ["migrate_channels"] * is_uneven
    assert (gained > 1) if is_uneven else (gained == 0)
    if is_uneven:
        assert found.same is not None
        assert found.same.is_bitwise
