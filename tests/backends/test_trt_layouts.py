"""How inputs and outputs are stored that are not stored row by row, and what a user may ask of that.

The layouts are held against what TensorRT's documentation says of each format by its letters (`gpu/stub.py`).
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from doubled import arrange
from gpu.hostcuda import FakeCudart
from gpu.stub import LANES, Spec, StubTensorRT, Tensor, TensorFormat, read_back, stored
from hypothesis import given
from hypothesis import strategies as st
from models import DIGITS, plan_for
from rtx import needs_rtx

from precisionlab.backends.options import EngineOptions
from precisionlab.backends.tensorrt.cuda import Cuda
from precisionlab.backends.tensorrt.execution import Engine
from precisionlab.backends.tensorrt.layouts import Layout, packed, unpacked, values_in
from precisionlab.backends.tuning import Tuning, parse_formats
from precisionlab.cli import cli
from precisionlab.errors import OptionError
from precisionlab.export.tuned import polygraphy_tuning, trtexec_tuning
from precisionlab.jobs.sweep import sweep
from precisionlab.model import load_model
from precisionlab.precision import Precision

OTHERS = [form for form in TensorFormat if form is not TensorFormat.LINEAR]


def layout(form: TensorFormat) -> Layout:
    return Layout(form.name, 1 if LANES[form] > 1 else -1, LANES[form])


def strides(shape: tuple[int, ...], form: TensorFormat) -> tuple[int, ...]:
    _, channels, rows, columns = shape
    groups = -(-channels // LANES[form])
    if form is TensorFormat.CHW4:
        return (groups * rows * columns, rows * columns, columns, 1)
    return (groups * rows * columns, 1, columns * groups, groups)


@given(st.tuples(*[st.integers(1, 9)] * 4), st.sampled_from(OTHERS))
def test_an_array_is_stored_as_the_documentation_says_and_comes_back(
    shape: tuple[int, ...], form: TensorFormat
) -> None:
    array = np.arange(1, np.prod(shape) + 1, dtype=np.float32).reshape(shape)
    expected = np.ascontiguousarray(stored(array, form)).reshape(-1)
    memory = packed(array, strides(shape, form), layout(form))
    assert memory.tolist() == expected.tolist()
    assert values_in(shape, strides(shape, form), layout(form)) == expected.size
    assert unpacked(memory, shape, strides(shape, form), layout(form)).tolist() == array.tolist()
    assert read_back(memory, shape, form).tolist() == array.tolist()


def test_rows_may_be_longer_than_their_values_and_an_empty_array_is_none() -> None:
    array = np.arange(6, dtype=np.float32).reshape(1, 2, 3)
    row = Layout("DLA_LINEAR", -1, 1)
    memory = packed(array, (32, 16, 1), row)
    assert memory.size == 32
    assert memory[[0, 1, 2, 16, 17, 18]].tolist() == list(range(6))
    assert unpacked(memory, (1, 2, 3), (32, 16, 1), row).tolist() == array.tolist()
    nothing = np.zeros((0, 3, 2, 2), np.float32)
    for form in OTHERS:
        assert packed(nothing, strides(nothing.shape, form), layout(form)).size == 0
        assert unpacked(np.zeros(0), nothing.shape, strides(nothing.shape, form), layout(form)).shape == nothing.shape


@pytest.mark.parametrize("given", OTHERS)
@pytest.mark.parametrize("taken", [TensorFormat.LINEAR, TensorFormat.CHW4])
def test_an_engine_takes_and_gives_what_it_stores_otherwise(
    taken: TensorFormat, given: TensorFormat, tmp_path: Path
) -> None:
    shape = (2, 5, 3, 4)
    x = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    spec = Spec([Tensor("x", shape, format=taken)], [Tensor("y", shape, format=given)], lambda v: {"y": v["x"] * 2})
    path = tmp_path / "e"
    path.write_bytes(b"engine")
    cudart = FakeCudart()
    with Engine(StubTensorRT(cudart, {b"engine": spec}), Cuda(cudart), None, path) as engine:
        assert engine.run({"x": x})["y"].tolist() == (x * 2).tolist()


# What a user asks


def test_formats_are_read_as_they_are_written() -> None:
    assert parse_formats(["scope:x:0:hwc", "y:CHW32", "z:chw"]) == (
        ("scope:x:0", "HWC"),
        ("y", "CHW32"),
        ("z", "LINEAR"),
    )
    for text in ("hwc", ":hwc", "x:"):
        with pytest.raises(OptionError, match="write NAME:FORMAT"):
            parse_formats([text])
    with pytest.raises(OptionError, match="the format of x is given twice"):
        parse_formats(["x:hwc", "x:chw"])


def test_trtexec_is_told_type_and_format_of_all_inputs_or_of_none() -> None:
    model = load_model(DIGITS / "digits.onnx")
    assert trtexec_tuning(Tuning(formats=parse_formats(["image:hwc"])), [], model) == ["--inputIOFormats=fp32:hwc"]
    assert trtexec_tuning(Tuning(formats=parse_formats(["logits:chw"])), [], model) == ["--outputIOFormats=fp32:chw"]
    with pytest.raises(OptionError, match="--io-format other: the model has no such input or output; it has image"):
        trtexec_tuning(Tuning(formats=parse_formats(["other:hwc"])), [], model)
    with pytest.raises(OptionError, match="--io-format: Polygraphy has no such option"):
        polygraphy_tuning(Tuning(formats=parse_formats(["image:hwc"])), [])
    assert plan_for(model, Precision.FP16).default is Precision.FP16


def test_a_sweep_measures_the_same_with_channels_last(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    arrange(monkeypatch, tmp_path)
    found = {}
    for form in ("chw", "chw4"):
        result = sweep(
            DIGITS / "digits.onnx", DIGITS, precisions="fp16", backend="tensorrt", out=tmp_path / form, samples=4,
            threads=1, repair=False,
            engine=EngineOptions(observe=0, builds=2, tuning=Tuning(formats=parse_formats([f"image:{form}"]))),
        )  # fmt: skip
        rows = result.variants.set_index("variant")
        found[form] = rows.loc["fp16 mixed engine", "sqnr_db"]
        facts = json.loads((tmp_path / form / "run.json").read_text())["engines"]
        assert facts["format of image"] == {"chw": "LINEAR", "chw4": "CHW4"}[form]
    assert found["chw"] == found["chw4"]


@needs_rtx
@pytest.mark.parametrize(
    ("form", "code", "words"),
    [
        ("image:hwc", 0, ""),
        ("image:hwc77", 2, "--io-format image:hwc77: TensorRT 1.7.1.116 has no such format; it has linear, chw2,"),
        ("images:hwc", 2, "--io-format images: the model has no such input or output; it has image, logits"),
    ],
)
def test_the_real_rtx_builds_with_a_format_and_what_it_has_not_is_refused(
    tmp_path: Path, form: str, code: int, words: str
) -> None:
    command = ["sweep", str(DIGITS / "digits.onnx"), "--data", str(DIGITS), "--samples", "4", "--precisions", "fp16"]
    rtx = ["--backend", "tensorrt-rtx", "--target", "l4", "--threads", "1", "--out", str(tmp_path)]
    printed = CliRunner().invoke(cli, [*command, *rtx, "--io-format", form])
    assert printed.exit_code == code, printed.output
    assert words in printed.output
