"""Sums that overflow in half are had in float32 by a pin, where the target can be told so."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from models import proto
from rtx import needs_rtx

from precisionlab.backends.tensorrt.pins import pins_of
from precisionlab.errors import OptionError, PlanError
from precisionlab.jobs.export import export_plan
from precisionlab.jobs.result import SweepResult
from precisionlab.jobs.sweep import sweep
from precisionlab.jobs.verify import verify
from precisionlab.model.load import load_model
from precisionlab.plan.assign import read_plan_for
from precisionlab.plan.file import plan_from_dict
from precisionlab.plan.plan import Pin, PrecisionPlan
from precisionlab.precision import Precision
from precisionlab.search.options import Options, check_ladder, parse_around, parse_ladder, parse_precisions

SUMS32 = Precision.FP16_SUMS32


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A product whose running sum passes 65504 on inputs near 15, and comes back; a healthy one behind it."""
    folder = tmp_path_factory.mktemp("toy")
    rng = np.random.default_rng(0)
    w = np.zeros((64, 8), np.float32)
    w[:16], w[16:32] = 300, -300
    w[32:] = rng.integers(-8, 9, (32, 8)) / 8
    weights = {"w": w, "v": rng.integers(-8, 9, (8, 8)).astype(np.float32) / 8}
    nodes = '["act"] a = Relu(x) ["far"] h = MatMul(a, w) ["near"] y = MatMul(h, v)'
    body = f"(float[2,64] x) => (float[2,8] y) {{ {nodes} }}"
    onnx.save_model(proto(body, weights), folder / "toy.onnx")
    data = folder / "data"
    data.mkdir()
    for index in range(4):
        x = np.full((2, 64), 15.5, np.float32) + rng.integers(-16, 17, (2, 64)).astype(np.float32) / 64
        x[:, 16:32] = x[:, :16]
        np.save(data / f"{index}.npy", x)
    return folder / "toy.onnx", data


@pytest.fixture(scope="module")
def found(toy: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> SweepResult:
    model, data = toy
    out = tmp_path_factory.mktemp("run")
    return sweep(model, data, precisions="fp16", sums="half", ladder="fp16-sums32,fp32", out=out, threads=2)


def plan_file(found: SweepResult) -> Path:
    return Path(str(found.folder)) / "plan.json"


@pytest.mark.slow
def test_the_product_that_overflows_is_pinned_to_it_and_the_plan_is_proven(found: SweepResult) -> None:
    (result,) = found.precisions
    assert result.met
    assert result.mixed.plan.pinned() == {"far": SUMS32}
    assert result.certificate is not None
    assert result.certificate.proven
    assert result.mixed.cost.seconds == result.low.cost.seconds
    (pin,) = json.loads(plan_file(found).read_text())["pins"]
    assert pin["precision"] == "fp16-sums32"
    assert "fp16-sums32 is enough" in pin["reason"]
    assert "FP16-SUMS32" in (plan_file(found).parent / "report.html").read_text()


def test_the_plan_is_verified_under_its_own_arithmetic(found: SweepResult) -> None:
    verified = verify(plan_file(found), threads=2)
    assert verified.holds
    assert verified.plan.pinned() == {"far": SUMS32}


def test_a_plan_of_its_own_is_measured(found: SweepResult, toy: tuple[Path, Path], tmp_path: Path) -> None:
    model, data = toy
    assert sweep(model, data, plan=plan_file(found), sums="half", out=tmp_path, threads=2).met


def test_the_typed_export_has_it(found: SweepResult, tmp_path: Path) -> None:
    out = tmp_path / "typed.onnx"
    export_plan(plan_file(found), "typed-onnx", out=out)
    written = onnx.load_model(out)
    types = {info.name: info.data_type for info in written.graph.initializer}
    assert types == {"w": onnx.TensorProto.FLOAT16, "v": onnx.TensorProto.FLOAT16}
    taken = {node.name: list(node.input) for node in written.graph.node if node.op_type == "MatMul"}
    assert "v" in taken["near"]  # in half as it is
    assert "w" not in taken["far"]  # by way of a Cast


@pytest.mark.parametrize("target", ["trtexec", "polygraphy", "json", "modelopt"])
def test_what_cannot_be_told_so_refuses_the_plan_in_a_sentence(found: SweepResult, target: str, tmp_path: Path) -> None:
    out = tmp_path / ("pins.py" if target == "polygraphy" else "out")
    with pytest.raises(PlanError, match=r"layer 'far'.* fp16-sums32.*typed-onnx") as caught:
        export_plan(plan_file(found), target, out=out)
    assert "\n" not in str(caught.value)
    content = json.loads(plan_file(found).read_text())
    content["pins"][0]["precision"] = "fp32"
    other = plan_file(found).parent / f"fp32-{target}.json"
    other.write_text(json.dumps(content))
    assert export_plan(other, target, out=out).files


# Where it is offered


def test_the_ladder_has_it_of_itself_only_where_sums_are_in_half_and_engines_take_types_from_the_model() -> None:
    half = replace(Options().arithmetic, sums="half")  # type: ignore[arg-type]
    assert Options(typed=True, arithmetic=half).chooses_sums
    assert not Options(typed=False, arithmetic=half).chooses_sums
    assert not Options(typed=True).chooses_sums


@pytest.mark.slow
@needs_rtx
@pytest.mark.thorough
def test_a_sweep_for_typed_engines_offers_it_and_the_engine_is_compiled(toy: tuple[Path, Path], tmp_path: Path) -> None:
    model, data = toy
    options = {"precisions": "fp16", "minimize": "cost", "backend": "tensorrt-rtx", "target": "l4", "threads": 2}
    half = sweep(model, data, sums="half", out=tmp_path / "half", **options)  # type: ignore[arg-type]
    (result,) = half.precisions
    assert result.mixed.plan.pinned() == {"far": SUMS32}
    inside = result.compiled[1].inside
    assert inside is not None
    assert [(pin.layer, pin.verdict, pin.advice) for pin in inside.pins] == [("far", "honoured", "")]
    float32 = sweep(model, data, out=tmp_path / "float32", **options)  # type: ignore[arg-type]
    assert SUMS32 not in float32.precisions[0].mixed.plan.precisions


@pytest.mark.slow
@needs_rtx
@pytest.mark.parametrize(
    ("pinned", "verdict", "advice"),
    [(["s"], "unknown", "does not tell what it adds up in"), (["s", "y"], "honoured", "may take longer")],
)
def test_of_a_pin_inside_a_fused_attention_nothing_is_claimed(
    pinned: list[str], verdict: str, advice: str, tmp_path: Path
) -> None:
    nodes = "t = Transpose <perm = [0, 2, 1]> (x) s = MatMul(x, t) p = Softmax <axis = -1> (s) y = MatMul(p, x)"
    onnx.save_model(proto(f"(float[4,64,32] x) => (float[4,64,32] y) {{ {nodes} }}"), tmp_path / "attention.onnx")
    model = load_model(tmp_path / "attention.onnx")
    pins = tuple(Pin(f"node_of_{name}", (f"node_of_{name}",), SUMS32, "test") for name in pinned)
    path = tmp_path / "plan.json"
    path.write_text(json.dumps(PrecisionPlan(model.sha256, Precision.FP16, pins).to_dict()))
    found = sweep(model.path, plan=path, sums="half", backend="tensorrt-rtx", target="l4", out=tmp_path, threads=2)
    inside = found.precisions[0].compiled[-1].inside
    assert inside is not None
    assert [pin.verdict for pin in inside.pins] == [verdict] * len(pins)
    assert all(advice in pin.advice for pin in inside.pins)


def test_it_is_for_pins_alone() -> None:
    assert SUMS32 not in (*Precision.low(), *Precision.floats(), *Precision.formats())
    with pytest.raises(OptionError, match="fp16-sums32 is for pins alone, by --ladder"):
        parse_precisions("fp16,fp16-sums32")
    with pytest.raises(OptionError, match="around is the precision of the float layers: fp32, fp16 or bf16"):
        parse_around("fp16-sums32")
    assert parse_ladder("fp16-sums32,fp32") == (SUMS32, Precision.FP32)
    content = {"schema": 1, "model": {"sha256": "0"}, "default": "fp16", "pins": []}
    for key, words in (("default", "is for pins alone"), ("around", "fp32, fp16 or bf16")):
        with pytest.raises(PlanError, match=words):
            plan_from_dict({**content, key: "fp16-sums32"})
    assert plan_from_dict({**content, "pins": [{"nodes": ["a"], "precision": "fp16-sums32"}]}).precisions == {
        Precision.FP16,
        SUMS32,
    }


def test_on_the_ladder_it_needs_sums_in_half() -> None:
    ladder = parse_ladder("fp16-sums32,fp32")
    with pytest.raises(OptionError, match="give --sums half with it"):
        check_ladder(ladder, Options().precisions, Options().arithmetic)
    check_ladder(parse_ladder("bf16,fp32"), Options().precisions, Options().arithmetic)


def test_a_pin_of_what_is_no_matrix_product_is_refused(
    found: SweepResult, toy: tuple[Path, Path], tmp_path: Path
) -> None:
    model = load_model(toy[0])
    content = json.loads(plan_file(found).read_text())
    path = tmp_path / "plan.json"
    path.write_text(json.dumps(content))
    assert read_plan_for(model, path).pinned() == {"far": SUMS32}
    content["pins"][0] |= {"layer": "act", "nodes": ["act"]}
    path.write_text(json.dumps(content))
    with pytest.raises(PlanError, match=r"'act' \(Relu\) to fp16-sums32, which is for MatMul and Gemm"):
        read_plan_for(model, path)


def test_pins_of_a_typed_engine_are_told_of(found: SweepResult) -> None:
    (result,) = found.precisions
    pins = {pin.layer: pin.precision for pin in pins_of(found.model, result.mixed.plan)}
    assert pins["far"] is SUMS32
