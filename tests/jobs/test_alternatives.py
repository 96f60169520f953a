"""What a verdict hangs on of the kernels' arithmetic is measured, said, and searched around where that is asked for."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from click.testing import CliRunner, Result
from models import ROUNDED, Array, load, plan_for, proto, read_table

from precisionlab.cli import cli
from precisionlab.errors import OptionError, PlanError
from precisionlab.jobs.result import SweepResult
from precisionlab.jobs.sweep import sweep
from precisionlab.jobs.verify import verify
from precisionlab.plan.arithmetic import ONNXRUNTIME, TENSORRT, Arithmetic, Constants, Sums, parse_arithmetic
from precisionlab.precision import Precision
from precisionlab.search.alternatives import AlternativeKind, alternatives
from precisionlab.search.verdict import Mark, Tone
from precisionlab.system.observer import Silent

FP32, FP16, BF16, INT8 = Precision.FP32, Precision.FP16, Precision.BF16, Precision.INT8
HALF = Arithmetic(sums=Sums.HALF)

LONG = (
    '(float[4,2048] x) => (float[4,8] y) { ["long"] a = MatMul(x, w) ["square"] b = Mul(a, a) '
    '["short"] y = MatMul(b, v) }'
)
"""With sums in float32 some 65 dB; with sums in half the long product alone has about 55."""
BETWEEN = "sqnr>=60"
MASKED = (
    '(float[2,8] x, float[2,8] m) => (float[2,8] y) { ["mask"] a = Mul(m, low) ["add"] b = Add(x, a) '
    '["soft"] y = Softmax(b) }'
)
BOTH = (
    '(float[2,8] x, float[2,8] m) => (float[2,8] y) { ["mask"] a = Mul(m, low) ["product"] p = MatMul(x, v) '
    '["add"] b = Add(p, a) ["soft"] y = Softmax(b) }'
)
CANCELS = (
    '(float[1,64] x) => (float[1,8] y) { ["sum"] a = MatMul(x, w) ["scale"] b = Mul(a, c) ["last"] y = MatMul(b, v) }'
)


class Heard(Silent):
    """Remembers the stages."""

    def __init__(self) -> None:
        self.stages: list[str] = []

    def stage(self, title: str, total: int, unit: str = "sample") -> None:
        self.stages.append(title)


def normal(*shape: int, seed: int = 0, scale: float = 1.0) -> Array:
    return (np.random.default_rng(seed).standard_normal(shape) * scale).astype(np.float32)


def saved(kind: str, folder: Path) -> tuple[Path, Path]:
    """A model and its data."""
    body, weights = {
        "long": (LONG, {"w": normal(2048, 8, seed=1, scale=0.03), "v": normal(8, 8, seed=2)}),
        "masked": (MASKED, {"low": np.float32(-3e38)}),
        "both": (BOTH, {"low": np.float32(-3e38), "v": normal(8, 8, seed=2)}),
        "cancels": (CANCELS, {"w": cancelling(), "c": np.float32(0.01), "v": normal(8, 8, seed=2, scale=0.1)}),
    }[kind]
    onnx.save_model(proto(body, weights), folder / "model.onnx")
    data = folder / "data"
    data.mkdir()
    for index in range(3):
        np.savez(data / f"{index}.npz", **inputs(kind, index))
    return folder / "model.onnx", data


def cancelling() -> Array:
    """Two columns pass 65504 on the way to a result near 0, the others are small."""
    w = normal(64, 8, seed=1, scale=0.1)
    w[:16, :2], w[16:32, :2], w[32:, :2] = 300, -300, 0
    return w


def inputs(kind: str, index: int) -> Mapping[str, Array]:
    if kind in ("masked", "both"):
        mask = np.zeros((2, 8), np.float32)
        mask[:, 6:] = 1
        return {"x": normal(2, 8, seed=index), "m": mask}
    if kind == "cancels":
        return {"x": np.random.default_rng(index).uniform(14, 16, (1, 64)).astype(np.float32)}
    return {"x": normal(4, 2048, seed=index)}


def swept(kind: str, folder: Path, **options: Any) -> tuple[SweepResult, list[str]]:
    model, data = saved(kind, folder)
    heard = Heard()
    options = {"precisions": "fp16", "holdout": 0.0, **options}
    return sweep(model, data, out=folder / "run", observer=heard, threads=1, **options), heard.stages


def row(result: SweepResult, variant: str) -> Mapping[str, Any]:
    found = result.variants[result.variants["variant"] == variant]
    assert len(found) == 1
    return {str(name): value for name, value in found.iloc[0].items()}


def command(*args: str | Path) -> Result:
    return CliRunner().invoke(cli, [str(arg) for arg in args], catch_exceptions=False)


# Sums in half


@pytest.fixture(scope="module")
def long(tmp_path_factory: pytest.TempPathFactory) -> tuple[SweepResult, list[str]]:
    return swept("long", tmp_path_factory.mktemp("long"), tolerance=BETWEEN)


def test_what_is_right_only_with_sums_in_float32_is_met_and_says_so_and_is_never_green(
    long: tuple[SweepResult, list[str]],
) -> None:
    result, stages = long
    (found,) = result.precisions
    halves = row(result, "fp16")["half_sums_sqnr_db"]
    assert row(result, "fp16")["sqnr_db"] >= 60 > halves > 45
    assert result.met
    assert found.verdict.sentence == (
        f"right as it is: no layer needs a pin; but NOT with sums in half ({halves:.1f} dB), as most FP16 kernels of "
        "weakly typed TensorRT keep them: --sums half searches for a plan that holds then"
    )
    assert found.verdict.figure.endswith(f"{halves:.1f} dB with sums in half")
    mark = found.verdict.mark
    assert str(mark) == "met with sums in float32"
    assert (mark.tone, mark.sign) == (Tone.OPEN, "?")
    assert Mark.parse(str(mark)) == mark
    assert stages.count("fp16, sums in half") == 1
    assert [stage for stage in stages if "clamped" in stage] == [], "no constant is clamped"


def test_the_tables_and_the_plan_hold_the_figures_under_sums_in_half(long: tuple[SweepResult, list[str]]) -> None:
    result, _ = long
    assert result.folder is not None
    variants = read_table(result.folder / "variants.csv").set_index("variant")
    assert variants.loc["fp16", "verdict"] == "met with sums in float32"
    assert variants.loc["fp16", "half_sums_verdict"] == "NOT met"
    assert variants.loc["fp16", "half_sums_sqnr_db"] == pytest.approx(row(result, "fp16")["half_sums_sqnr_db"])
    assert variants["rounded_constants_verdict"].isna().all()
    assert variants["rounded_constants_sqnr_db"].isna().all()
    assert np.isnan(variants.loc["fp32", "half_sums_sqnr_db"])
    layers = read_table(result.folder / "layers.csv").set_index("layer")
    assert layers.loc["long", "blocks"] == 128
    assert layers.loc["short", "blocks"] == 1
    assert np.isnan(layers.loc["square", "blocks"])
    assert layers.loc["long", "half_sums_sqnr_db"] == pytest.approx(55.6, abs=0.1)
    plan = json.loads((result.folder / "plan.json").read_text())
    assert plan["arithmetic"] == {"kernels": "tensorrt", "sums": "float32", "constants": "clamped"}
    (other,) = plan["alternatives"]
    assert (other["sums"], other["constants"], other["met"]) == ("half", "clamped", False)
    assert other["with_pins"]["sqnr"] == pytest.approx(row(result, "fp16")["half_sums_sqnr_db"])


def test_the_exit_code_stays_0_and_the_summary_says_it(tmp_path: Path) -> None:
    model, data = saved("long", tmp_path)
    base = ("sweep", model, "--data", data, "--precisions", "fp16", "--holdout", "0", "--tolerance", BETWEEN)
    found = command(*base, "--out", tmp_path / "run")
    assert found.exit_code == 0
    assert "but NOT with sums in half" in " ".join(found.stdout.split())
    assert "100% met with sums in float32" in " ".join(found.stdout.split())
    assert "met with sums in float32" in (tmp_path / "run" / "report.html").read_text()


@pytest.mark.slow
@pytest.mark.parametrize("sums", ["half", "half-single"])
def test_pins_that_are_searched_for_under_sums_in_half_hold_and_are_verified_under_them(
    tmp_path: Path, sums: str
) -> None:
    result, stages = swept("long", tmp_path, tolerance=BETWEEN, sums=sums)
    assert [pin.layer for pin in result.plans["fp16"].pins] == ["long"]
    (found,) = result.precisions
    assert str(found.verdict.mark) == "met"
    assert found.verdict.mark.tone is Tone.GOOD
    assert row(result, "fp16")["sqnr_db"] < 60 <= row(result, "fp16 mixed")["sqnr_db"]
    assert row(result, "fp16 mixed")["half_sums_verdict"] == "", "that is what it was judged by"
    assert not [stage for stage in stages if stage.endswith("sums in half")]
    assert result.folder is not None
    plan = json.loads((result.folder / "plan.json").read_text())
    assert plan["arithmetic"]["sums"] == sums
    assert plan["alternatives"] == []
    again = verify(result.folder / "plan.json", threads=1)
    assert again.holds
    assert again.certificate.to_dict() == plan["certificate"]
    plan["arithmetic"]["sums"] = "float32"
    (result.folder / "plan.json").write_text(json.dumps(plan))
    assert not verify(result.folder / "plan.json", threads=1).holds, "with sums in float32 no pin is needed"


@pytest.mark.slow
def test_a_sum_that_passes_half_on_the_way_is_pinned_for_that_reason(tmp_path: Path) -> None:
    (tmp_path / "plain").mkdir()
    plain, _ = swept("cancels", tmp_path / "plain")
    assert str(plain.precisions[0].verdict.mark) == "met with sums in float32"
    assert plain.layers.set_index("layer").loc["sum", "largest_running_sum"] > 65504
    result, _ = swept("cancels", tmp_path, sums="half")
    (pin,) = result.plans["fp16"].pins
    assert pin.layer == "sum"
    assert "its sum passes 65504 on the way" in pin.reason
    assert "although the result is" in pin.reason
    assert "infinite where the kernel keeps its sums in fp16" in pin.reason


@pytest.mark.slow
def test_a_plan_of_ones_own_is_measured_under_the_alternatives_too(
    long: tuple[SweepResult, list[str]], tmp_path: Path
) -> None:
    assert long[0].folder is not None
    result, stages = swept("long", tmp_path, tolerance=BETWEEN, plan=long[0].folder / "plan.json")
    assert str(result.precisions[0].verdict.mark) == "met with sums in float32"
    assert stages.count("fp16, sums in half") == 1, "the plan is the bare one: that is measured once"


# Constants


def test_what_hangs_on_clamped_constants_says_so_and_has_no_figure_of_sums(tmp_path: Path) -> None:
    result, stages = swept("masked", tmp_path, repair=False)
    (found,) = result.precisions
    assert found.verdict.sentence == (
        "right as it is: no layer needs a pin; this hangs on TensorRT clamping constants that FP16 cannot hold, as its "
        "builder's logs say it does (without that: NaN)"
    )
    assert str(found.verdict.mark) == "met"
    assert found.verdict.mark.tone is Tone.GOOD
    assert row(result, "fp16")["rounded_constants_verdict"] == "NOT met"
    assert np.isnan(row(result, "fp16")["rounded_constants_sqnr_db"])
    assert row(result, "fp16")["half_sums_verdict"] == ""
    assert [stage for stage in stages if stage.startswith("fp16, ")] == ["fp16, constants not clamped"]


def test_a_mask_that_the_precision_holds_hangs_on_no_clamping(tmp_path: Path) -> None:
    result, _ = swept("masked", tmp_path)
    (found,) = result.precisions
    assert found.verdict.sentence == "right with 1 repair: no layer needs a pin"
    assert [repair.kind for repair in found.plan.repairs] == ["clamp_constant"]
    assert found.mixed.alternatives == ()
    assert found.certificate is not None
    assert found.certificate.proven, "without it, and without clamping, it is NaN"
    assert "as it is NaN with constants not clamped" in found.verdict.figure


def test_under_sums_in_half_what_hangs_on_constants_is_not_laid_to_the_sums(tmp_path: Path) -> None:
    result, stages = swept("both", tmp_path, sums="half", repair=False)
    (found,) = result.precisions
    (other,) = found.mixed.alternatives
    assert other.kind is AlternativeKind.ROUNDED_CONSTANTS
    assert other.arithmetic == Arithmetic(sums=Sums.HALF, constants=Constants.ROUNDED)
    assert "this hangs on TensorRT clamping constants" in found.verdict.sentence
    assert "sums in half" not in found.verdict.sentence
    assert str(found.verdict.mark) == "met"
    assert row(result, "fp16")["half_sums_verdict"] == ""
    assert row(result, "fp16")["rounded_constants_verdict"] == "NOT met"
    assert "fp16, constants not clamped" in stages


@pytest.mark.slow
def test_both_are_said_where_both_matter(tmp_path: Path) -> None:
    result, stages = swept("both", tmp_path, repair=False)
    assert [other.kind.value for other in result.precisions[0].mixed.alternatives] == ["half_sums", "rounded_constants"]
    assert row(result, "fp16")["half_sums_verdict"] == "met"
    assert {"fp16, sums in half", "fp16, constants not clamped"} <= set(stages)


# Nothing is measured for nothing


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["bf16", "int8"])
def test_where_nothing_can_change_nothing_is_measured_again(tmp_path: Path, precision: str) -> None:
    result, stages = swept("both", tmp_path, precisions=precision, tolerance="sqnr>=1")
    assert all(not variant.alternatives for found in result.precisions for variant in (found.low, found.mixed))
    assert not [stage for stage in stages if "sums" in stage or "clamped" in stage]


def test_alternatives_are_those_that_can_change_a_figure(tmp_path: Path) -> None:
    weights = {"low": np.float32(-3e38), "v": normal(8, 8)}
    model = load(proto(BOTH, weights), tmp_path)

    def kinds(arithmetic: Arithmetic, precision: Precision, *pinned: str, typed: bool = False) -> list[str]:
        found = alternatives(model, plan_for(model, precision, pinned), arithmetic, typed=typed)
        return [kind.value for kind in found]

    assert kinds(TENSORRT, FP16) == ["half_sums", "rounded_constants"]
    assert kinds(TENSORRT, FP16, typed=True) == ["half_sums"], "an engine computes with the file's, clamped already"
    assert kinds(TENSORRT, FP16, "product") == ["rounded_constants"]
    assert kinds(TENSORRT, FP16, "mask") == ["half_sums"]
    assert kinds(HALF, FP16) == ["rounded_constants"]
    assert kinds(Arithmetic(sums=Sums.HALF_SINGLE), FP16) == ["rounded_constants"]
    assert kinds(ROUNDED, FP16) == ["half_sums"]
    assert kinds(ONNXRUNTIME, FP16) == kinds(TENSORRT, BF16) == kinds(TENSORRT, INT8) == kinds(TENSORRT, FP32) == []


# What can be asked for


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--sums", "half", "--kernels", "onnxruntime"], "ONNX Runtime's kernels add in float32; leave --sums"),
        (["--sums", "double"], "unknown sums 'double'; use float32, half or half-single"),
        (["--kernels", "cudnn"], "unknown kernels 'cudnn'; use tensorrt or onnxruntime"),
    ],
)
def test_what_there_is_not_is_refused_in_a_sentence(tmp_path: Path, options: list[str], said: str) -> None:
    model, data = saved("masked", tmp_path)
    for name, more in (("sweep", ["--out", tmp_path / "run"]), ("fidelity", [])):
        found = command(name, model, "--data", data, *options, *more)
        assert found.exit_code == 2
        assert said in " ".join(found.stderr.split())
    assert not (tmp_path / "run").exists()


def test_what_there_is_is_taken(tmp_path: Path) -> None:
    assert parse_arithmetic("tensorrt", "float32") == TENSORRT
    assert parse_arithmetic("tensorrt", "half") == HALF
    assert parse_arithmetic("tensorrt", "half-single").sums is Sums.HALF_SINGLE
    assert parse_arithmetic("onnxruntime", "float32") == ONNXRUNTIME
    with pytest.raises(OptionError, match="half-single: ONNX Runtime's kernels add in float32"):
        parse_arithmetic("onnxruntime", "half-single")
    model, data = saved("long", tmp_path)
    base = ("sweep", model, "--data", data, "--precisions", "fp16", "--holdout", "0", "--tolerance", BETWEEN)
    found = command(*base, "--kernels", "onnxruntime", "--sums", "float32", "--out", tmp_path / "run")
    assert found.exit_code == 0
    assert "sums in half" not in found.stdout
    layers = read_table(tmp_path / "run" / "layers.csv")
    assert layers["sum_bound"].isna().all()


@pytest.mark.parametrize("arithmetic", [[], {"kernels": "tensorrt"}, {**TENSORRT.to_plain(), "sums": "double"}])
def test_a_plan_whose_arithmetic_is_none_is_refused_with_its_file(
    long: tuple[SweepResult, list[str]], tmp_path: Path, arithmetic: Any
) -> None:
    assert long[0].folder is not None
    plan = json.loads((long[0].folder / "plan.json").read_text())
    (tmp_path / "run.json").write_text((long[0].folder / "run.json").read_text())
    for content, is_refused in (({**plan, "arithmetic": arithmetic}, True), (plan, False)):
        (tmp_path / "plan.json").write_text(json.dumps(content))
        if is_refused:
            with pytest.raises(PlanError, match=r"plan\.json"):
                verify(tmp_path / "plan.json", threads=1)
        else:
            assert verify(tmp_path / "plan.json", threads=1).certificate.figures.met


def test_an_arithmetic_is_read_back_as_it_was_written() -> None:
    for arithmetic in (TENSORRT, ONNXRUNTIME, HALF, Arithmetic(sums=Sums.HALF_SINGLE, constants=Constants.ROUNDED)):
        assert Arithmetic.from_plain(json.loads(json.dumps(arithmetic.to_plain()))) == arithmetic
    assert Arithmetic.from_plain(None) == TENSORRT
    for wrong in ([], {"kernels": "tensorrt"}, {**TENSORRT.to_plain(), "sums": "double"}):
        with pytest.raises(ValueError, match=r"arithmetic|double"):
            Arithmetic.from_plain(wrong)
