"""INT4 from a sweep to exports: what it finds, what holds it, and one sentence wherever it cannot be had."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from models import Array, load, plan_for, proto

from precisionlab import fidelity, sweep, verify
from precisionlab.cli.summary import print_summary
from precisionlab.errors import ModelError, OptionError, PlanError
from precisionlab.jobs.export import export_plan as export
from precisionlab.jobs.result import SweepResult
from precisionlab.jobs.sweep_checks import check_target
from precisionlab.plan.file import plan_from_dict
from precisionlab.plan.weak import check_weak
from precisionlab.precision import Precision
from precisionlab.search.devices import DEVICES, find_device
from precisionlab.search.options import Options, parse_block
from precisionlab.search.size import weight_bytes

INT4, INT8, FP16, FP32 = Precision.INT4, Precision.INT8, Precision.FP16, Precision.FP32
BODY = """(float[N,64] x) => (float[N,10] y) {
    [deep] a = MatMul(x, u) b = Relu(a) [wide] c = Gemm<transB = 1>(b, v, o) d = Relu(c) [few] e = MatMul(d, w)
    [soft] y = Softmax(e) }"""
RNG = np.random.default_rng(7)
WEIGHTS: dict[str, Array] = {
    "u": RNG.standard_normal((64, 96)).astype(np.float32) / 8,
    "v": (RNG.standard_t(2, (64, 96)) / 30).astype(np.float32),
    "o": RNG.standard_normal(64).astype(np.float32) / 10,
    "w": RNG.standard_normal((64, 10)).astype(np.float32) / 4,
}


def written(folder: Path) -> tuple[Path, Path]:
    """The model and its samples."""
    model, data = folder / "net.onnx", folder / "data" / "x"
    onnx.save(proto(BODY, WEIGHTS), model)
    if not data.exists():
        data.mkdir(parents=True)
        for i in range(16):
            np.save(data / f"{i:02}.npy", np.random.default_rng(i).standard_normal((1, 64)).astype(np.float32))
    return model, data.parent


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("int4")


@pytest.fixture(scope="module")
def found(folder: Path) -> SweepResult:
    model, data = written(folder)
    return sweep(
        model,
        data,
        precisions="int4",
        calibration="mse",
        tolerance="sqnr>=21",
        out=folder / "run",
        threads=1,
        backend="onnxruntime",
    )


def plan_file(found: SweepResult) -> Path:
    assert found.folder is not None
    return found.folder / "plan.json"


def refused(call: Callable[[], object]) -> str:
    with pytest.raises((OptionError, PlanError, ModelError)) as caught:
        call()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def summary(found: SweepResult) -> str:
    assert found.folder is not None
    return (found.folder / "summary.md").read_text()


def sqnr(true: Array, given: Array) -> float:
    signal, noise = (float(np.square(part, dtype=np.float64).sum()) for part in (true, given - true))
    return 10 * np.log10(signal / noise)


def test_a_sweep_needs_no_ranges_and_pins_go_to_the_float_around(found: SweepResult) -> None:
    (result,) = found.precisions
    assert result.precision is INT4
    assert (result.plan.around, result.plan.block, result.plan.calibration) == (FP16, 128, "mse")
    assert found.met
    assert 0 < len(result.plan.pins) < 3
    assert {pin.precision for pin in result.plan.pins} == {FP16}
    assert result.table is not None
    assert result.table.ranges == {}
    assert found.values.methods == {}


def test_the_plan_is_verified_and_says_how_weights_are_stored(found: SweepResult) -> None:
    content = json.loads(plan_file(found).read_text())
    assert (content["default"], content["around"], content["block"]) == ("int4", "fp16", 128)
    assert plan_from_dict({**content, "block": 32}).block == 32
    for block in (0, 8, 100, True, "64"):
        said = refused(lambda block=block: plan_from_dict({**content, "block": block}))  # type: ignore[misc]
        assert "`block` is the most numbers of a weight with one scale: 128, 64, 32 or 16" in said
    assert verify(plan_file(found), threads=1).holds


def test_the_report_tells_the_bytes_that_are_saved(found: SweepResult) -> None:
    assert found.folder is not None
    (result,) = found.precisions
    run = json.loads((found.folder / "run.json").read_text())
    facts = run["precisions"]["int4"]
    assert facts["table"] == "of blocks of up to 128 weights, by mse"
    size = weight_bytes(found.model, result.plan)
    assert facts["weights"].startswith(
        f"{3 - len(result.plan.pins)} of 3 products in INT4; {size / 1e3:.3g} kB with their scales, of "
    )
    assert facts["weights"] in (found.folder / "report.html").read_text()


def test_a_typed_model_and_one_for_onnx_runtime_give_what_was_emulated(found: SweepResult, tmp_path: Path) -> None:
    (result,) = found.precisions
    data = found.folder.parent / "data" / "x"  # type: ignore[union-attr]
    x = np.concatenate([np.load(file) for file in sorted(data.glob("*.npy"))])
    true = ort.InferenceSession(data.parent.parent / "net.onnx").run(None, {"x": x})[0]
    for target in ("typed-onnx", "onnxruntime"):
        path = tmp_path / f"{target}.onnx"
        export(plan_file(found), target, out=path)
        given = ort.InferenceSession(path).run(None, {"x": x})[0]
        noise = float(np.square(given - true, dtype=np.float64).sum())
        assert (
            abs(10 * np.log10(np.square(true, dtype=np.float64).sum() / noise) - result.after.comparison.worst("sqnr"))
            < 1
        )
    kinds = [node.op_type for node in onnx.load(tmp_path / "onnxruntime.onnx").graph.node]
    assert kinds.count("MatMulNBits") + len(result.plan.pins) == 3


def test_the_export_takes_no_samples(found: SweepResult, tmp_path: Path) -> None:
    model, _ = written(tmp_path)
    plan = json.loads(plan_file(found).read_text())
    (tmp_path / "plan.json").write_text(json.dumps(plan))
    assert export(tmp_path / "plan.json", "onnxruntime", model=model, out=tmp_path / "q.onnx").files
    (tmp_path / "auto.json").write_text(json.dumps({**plan, "calibration": "auto"}))
    said = refused(lambda: export(tmp_path / "auto.json", "onnxruntime", model=model, out=tmp_path / "r.onnx"))
    assert "name mse, max or output in it" in said


def test_where_weights_alone_do_not_choose_well_samples_do_before_any_pin(folder: Path, tmp_path: Path) -> None:
    model, data = written(folder)
    options = {"precisions": "int4", "threads": 1, "backend": "onnxruntime"}
    figures = {
        method: sweep(model, data, calibration=method, tolerance="sqnr>=1", out=tmp_path / method, **options)  # type: ignore[arg-type]
        .precisions[0].low.comparison.worst("sqnr")
        for method in ("mse", "output")
    }  # fmt: skip
    assert figures["output"] > figures["mse"]
    between = (figures["output"] + figures["mse"]) / 2
    found = sweep(model, data, tolerance=f"sqnr>={between}", out=tmp_path / "run", **options)  # type: ignore[arg-type]
    (result,) = found.precisions
    assert (result.plan.calibration, result.plan.pins) == ("output", ())
    assert verify(plan_file(found), threads=1).holds
    for target in ("typed-onnx", "onnxruntime"):
        export(plan_file(found), target, out=tmp_path / f"{target}.onnx", threads=1)
        x = np.concatenate([np.load(file) for file in sorted((data / "x").glob("*.npy"))])
        true, given = (
            ort.InferenceSession(file).run(None, {"x": x})[0] for file in (model, tmp_path / f"{target}.onnx")
        )
        assert sqnr(true, given) == pytest.approx(figures["output"], abs=0.5)


def test_int4_alone_of_a_model_without_such_weights_is_refused_and_beside_others_these_are_swept(
    found: SweepResult, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = "(float[N,8] x) => (float[N,4] y) { [fc] y = MatMul(x, w) }"
    onnx.save(proto(text, {"w": WEIGHTS["w"][:8, :4]}), tmp_path / "few.onnx")
    (tmp_path / "data").mkdir()
    np.save(tmp_path / "data" / "x.npy", WEIGHTS["u"][:16, :8])
    asked = partial(sweep, tmp_path / "few.onnx", tmp_path / "data", threads=1, backend="onnxruntime")
    why = "no layer can have its weight in int4, which is for constants of MatMul and Gemm whose rows are a multiple of"
    assert why in refused(lambda: asked(precisions="int4", out=tmp_path / "none"))
    assert "ladder: int8: pins of" in refused(lambda: asked(precisions="fp16,int4", ladder="int8,fp32"))
    others = asked(precisions="fp16,int4", out=tmp_path / "others")
    assert [result.precision for result in others.precisions] == [FP16]
    assert others.run["not_swept"]["int4"].startswith(why)
    assert found.run["not_swept"] == {}
    print_summary(others, sys.stdout)
    assert "int4: no layer can have its weight in int4" in capsys.readouterr().out
    for shown in (others._repr_html_(), (tmp_path / "others" / "report.html").read_text(), summary(others)):
        assert why in shown
    assert "no layer can have its weight" not in summary(found)


@pytest.mark.parametrize(("target", "said"), [
    ("trtexec", "weakly typed TensorRT (8.6 to 10.16) quantises to int4 by Q/DQ nodes in the model alone"),
    ("polygraphy", "weakly typed TensorRT (8.6 to 10.16) quantises to int4 by Q/DQ nodes in the model alone"),
    ("modelopt", "ModelOpt takes a plan's own scales for int8 alone"),
])  # fmt: skip
def test_what_cannot_hold_it_says_so(found: SweepResult, target: str, said: str, tmp_path: Path) -> None:
    assert said in refused(lambda: export(plan_file(found), target, out=tmp_path / "out.py"))


def test_weakly_typed_tensorrt_is_refused_it_before_a_sample_is_read(tmp_path: Path) -> None:
    model = load(proto(BODY, WEIGHTS), tmp_path)
    assert "have it strongly typed (--typed" in refused(lambda: check_weak(model, plan_for(model, INT4)))
    check_weak(model, plan_for(model, INT4, ["deep", "wide", "few"]))  # no layer is left in it


def test_pins_are_in_int8_only_where_its_ranges_are_asked_for(folder: Path) -> None:
    model, data = written(folder)
    (_, result) = sweep(
        model, data, precisions="int8,int4", tolerance="sqnr>=21", out=folder / "both", threads=1, backend="onnxruntime"
    ).precisions
    assert {pin.precision for pin in result.plan.pins} == {INT8}
    (result,) = sweep(
        model, data, precisions="int4", ladder="int8,fp32", tolerance="sqnr>=21", out=folder / "ladder", threads=1,
        backend="onnxruntime",
    ).precisions  # fmt: skip
    assert {pin.precision for pin in result.plan.pins} == {INT8}
    assert result.table is not None
    assert [table.precision for table in result.table.others] == [INT8]


def test_options_that_cannot_be_are_refused_and_others_taken(tmp_path: Path) -> None:
    assert parse_block(64) == 64
    assert refused(lambda: parse_block(48)) == (
        "block is how many numbers of a weight have one scale: 128, 64, 32 or 16, not 48"
    )
    nowhere = tmp_path / "model.onnx"
    said = refused(lambda: sweep(nowhere, tmp_path, precisions="int4", calibration="entropy"))
    assert said == (
        "calibration entropy: int4 has scales of blocks of weights, and no ranges of tensors; use mse, max, output "
        "or auto with int4"
    )
    assert "int4 is for weights alone" in refused(lambda: fidelity(nowhere, tmp_path, precisions="int4"))


def test_targets_compute_it_in_half_and_turing_is_refused(tmp_path: Path) -> None:
    for name in DEVICES:
        device, options = find_device(name), Options(precisions=(INT4,))
        if device.capability == "sm75":
            said = refused(lambda options=options, device=device: check_target(options, device))  # type: ignore[misc]
            assert said == "target t4 has no int4; choose another --target (a100, h100, orin, l4) or precision"
        else:
            check_target(options, device)
            assert device.peak(INT4) == device.peak(FP16)
    model = load(proto(BODY, WEIGHTS), tmp_path)
    assert [layer.name for layer in model.layers if layer.takes(INT4)] == ["deep", "wide", "few"]
