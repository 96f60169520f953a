"""FP8 from a sweep to exports: what it finds, what holds it, and one sentence wherever it cannot be had."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from doubled import arrange
from models import Array, proto

from precisionlab import sweep, verify
from precisionlab.backends.options import EngineOptions
from precisionlab.errors import ModelError, OptionError, PlanError
from precisionlab.jobs.export import export_plan as export
from precisionlab.jobs.result import SweepResult
from precisionlab.precision import Precision

BODY = """(float[N,3,12,12] x) => (float[N,10] y) {
    [stem] a = Conv<pads = [1,1,1,1]>(x, k) b = Relu(a) [deep] c = Conv<pads = [1,1,1,1]>(b, l)
    d = Relu(c) p = GlobalAveragePool(d) f = Flatten(p) [head] y = Gemm<transB = 1>(f, w, o) }"""
RNG = np.random.default_rng(7)
WEIGHTS: dict[str, Array] = {
    "k": RNG.standard_normal((16, 3, 3, 3)).astype(np.float32) / 5,
    "l": RNG.standard_normal((16, 16, 3, 3)).astype(np.float32) / 12,
    "w": RNG.standard_normal((10, 16)).astype(np.float32),
    "o": RNG.standard_normal(10).astype(np.float32),
}


def written(folder: Path, opset: int = 19) -> tuple[Path, Path]:
    """The model and its samples."""
    model, data = folder / f"net{opset}.onnx", folder / "data" / "x"
    onnx.save(proto(BODY, WEIGHTS, opset=opset), model)
    if not data.exists():
        data.mkdir(parents=True)
        for i in range(40):
            np.save(data / f"{i:02}.npy", np.random.default_rng(i).standard_normal((1, 3, 12, 12)).astype(np.float32))
    return model, data.parent


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("fp8")


@pytest.fixture(scope="module")
def found(folder: Path) -> SweepResult:
    model, data = written(folder)
    return sweep(
        model, data, precisions="int8,fp8", around="fp16", out=folder / "run", threads=1, backend="onnxruntime"
    )


def refused(call: Callable[[], object]) -> str:
    with pytest.raises((OptionError, PlanError, ModelError)) as caught:
        call()
    said = str(caught.value)
    assert "\n" not in said
    return said


def test_a_sweep_measures_it_beside_int8(found: SweepResult, folder: Path) -> None:
    figures = dict(zip(found.variants["variant"], found.variants["sqnr_db"], strict=True))
    assert 20 < figures["fp8"] < 35
    layers = found.layers[found.layers["precision"] == "fp8"]
    runs = dict(zip(layers["layer"], layers["runs_in"], strict=True))
    assert (runs["stem"], runs["deep"], runs["head"]) == ("fp8", "fp8", "fp8")
    assert set(layers["format"]) == {"fp16"}
    alone = layers.set_index("layer").loc[["stem", "deep", "head"], "introduced_sqnr_db"]
    assert ((alone > 25) & (alone < 35)).all()
    assert found.run["target"]["name"] == "h100"
    plan = json.loads((folder / "run" / "plan.fp8.json").read_text())
    assert (plan["default"], plan["around"], plan["calibration"]) == ("fp8", "fp16", "max")
    page = (folder / "run" / "report.html").read_text()
    assert "FP8" in page
    histograms = json.loads((folder / "run" / "histograms.json").read_text())
    assert set(histograms["tensors"]["x"]["ranges"]) == {"int8", "fp8"}


def test_the_page_and_summary_answer_which_of_the_two(found: SweepResult, folder: Path) -> None:
    page, summary = ((folder / "run" / name).read_text() for name in ("report.html", "summary.md"))
    assert '<h2 id="choice">INT8 or FP8?</h2>' in page
    assert "Of 3 layers by themselves, more exact: INT8 in 3, FP8 in 0" in page
    assert "short tails" in page
    assert "**INT8 or FP8?** Of 3 layers by themselves" in summary


def test_pins_of_one_may_have_the_other_where_it_is_asked_for(folder: Path) -> None:
    model, data = written(folder)
    options = {"around": "fp16", "threads": 1, "samples": 8, "backend": "onnxruntime", "tolerance": "sqnr>=38"}
    out = folder / "mixed"
    result = sweep(model, data, precisions="fp8", ladder="int8,fp32", out=out, **options)  # type: ignore[arg-type]
    (one,) = result.precisions
    assert Precision.INT8 in one.mixed.plan.precisions
    assert one.mixed.met
    assert {pin.precision for pin in one.mixed.plan.pins} <= {Precision.INT8, Precision.FP32}
    assert verify(out / "plan.json", threads=1).holds
    export(out / "plan.json", "typed-onnx", out=folder / "mixed.onnx", threads=1)
    kinds = {value.data_type for value in onnx.load(folder / "mixed.onnx").graph.initializer}
    assert {onnx.TensorProto.FLOAT8E4M3FN, onnx.TensorProto.INT8} <= kinds
    export(out / "plan.json", "json", out=folder / "mixed.json", threads=1)
    assert set(json.loads((folder / "mixed.json").read_text())["other_scales"]) == {"int8"}
    assert "ladder: int8: pins of fp8 or int4 alone may have it" in refused(
        lambda: sweep(model, data, precisions="fp16", ladder="int8,fp32")
    )


def test_what_was_found_is_verified(found: SweepResult, folder: Path) -> None:
    again = verify(folder / "run" / "plan.fp8.json", threads=1)
    assert again.holds, again.sentence
    assert again.plan.default is Precision.FP8
    figures = dict(zip(found.variants["variant"], found.variants["sqnr_db"], strict=True))
    assert again.certificate.figures.values["sqnr"] == pytest.approx(figures["fp8"], abs=1e-6)


def test_exports_that_hold_it_hold_its_own_scales(found: SweepResult, folder: Path) -> None:
    plan, x = folder / "run" / "plan.fp8.json", np.load(folder / "data" / "x" / "00.npy")
    plain = export(plan, "json", out=folder / "plan.exported.json", threads=1)
    assert plain.files
    content = json.loads((folder / "plan.exported.json").read_text())
    assert content["scales_of"] == "fp8"
    amax = found.values.methods[Precision.FP8]["max"].ranges["x"].amax
    assert content["scales"]["x"] == pytest.approx(amax / 448)
    assert content["tensorrt"] is None
    outputs = {}
    for target in ("onnxruntime", "typed-onnx"):
        file = folder / f"{target}.onnx"
        export(plan, target, out=file, threads=1)
        kinds = {value.data_type for value in onnx.load(file).graph.initializer}
        assert onnx.TensorProto.FLOAT8E4M3FN in kinds
        outputs[target] = ort.InferenceSession(file, providers=["CPUExecutionProvider"]).run(None, {"x": x})[0]
    exact = ort.InferenceSession(folder / "net19.onnx", providers=["CPUExecutionProvider"]).run(None, {"x": x})[0]
    for given in outputs.values():
        assert 20 < 10 * np.log10((exact**2).sum() / ((given - exact) ** 2).sum()) < 45


def test_what_cannot_hold_it_says_so_and_typed_exports_are_taken(found: SweepResult, folder: Path) -> None:
    plan = folder / "run" / "plan.fp8.json"
    for target in ("trtexec", "polygraphy"):
        said = refused(lambda target=target: export(plan, target, out=folder / f"{target}_pins.py"))  # type: ignore[misc]
        assert "quantises to fp8 by Q/DQ nodes in the model alone; have it strongly typed" in said
        export(plan, target, out=folder / f"{target}_typed.py", typed=True, threads=1)
    assert "int8 alone, by a calibration cache; export it as typed-onnx" in refused(
        lambda: export(plan, "modelopt", out=folder / "modelopt.json", threads=1)
    )
    older, data = written(folder, 17)
    sweep(older, data, precisions="fp8", out=folder / "older", threads=1, samples=8, backend="onnxruntime")
    plan = folder / "older" / "plan.json"
    assert "fp8 in a Q/DQ model needs opset 19 or newer, this one has 17" in refused(
        lambda: export(plan, "onnxruntime", out=folder / "o.onnx", threads=1)
    )
    export(plan, "typed-onnx", out=folder / "older.onnx", threads=1)


def test_weakly_typed_tensorrt_refuses_it_and_strongly_typed_builds_it(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arrange(monkeypatch, tmp_path)
    model, data = written(folder)
    options = {"precisions": "fp8", "around": "fp16", "backend": "tensorrt", "samples": 8, "threads": 1}
    assert "quantises to fp8 by Q/DQ nodes" in refused(
        lambda: sweep(model, data, out=tmp_path / "weak", **options)  # type: ignore[arg-type]
    )
    typed = EngineOptions(observe=0, typed=True)
    result = sweep(model, data, out=tmp_path / "typed", engine=typed, **options)  # type: ignore[arg-type]
    figures = dict(zip(result.variants["variant"], result.variants["sqnr_db"], strict=True))
    assert figures["fp8 engine"] == pytest.approx(figures["fp8"], abs=1.5)


def test_the_emulation_needs_opset_9(folder: Path, tmp_path: Path) -> None:
    older, data = written(folder, 8)
    assert "fp8 needs opset 9 or newer, the model has 8" in refused(
        lambda: sweep(older, data, precisions="fp8", out=tmp_path / "run")
    )
    model, data = written(folder, 9)
    sweep(model, data, precisions="fp8", out=tmp_path / "run", samples=8, threads=1, backend="onnxruntime")
