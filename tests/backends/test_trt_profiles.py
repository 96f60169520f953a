"""An engine with several optimization profiles has kernels of its own for each, and all of them are read."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from doubled import arrange
from models import DIGITS
from rtx import needs_rtx

from precisionlab.backends.options import EngineOptions
from precisionlab.backends.tensorrt.buildlog import layers_of
from precisionlab.backends.tensorrt.jobs import EngineLayer, EngineTensor, LayerPin
from precisionlab.backends.tensorrt.latency import times_of_layers
from precisionlab.backends.tensorrt.pin_report import reports_of
from precisionlab.backends.tensorrt.profile_names import told_apart, without_profile
from precisionlab.jobs.sweep import sweep
from precisionlab.model import load_model
from precisionlab.precision import Precision

HALF = "Dimensions: [-1,32], Strides: [32,1], StrideOrder: [1,0], Datatype: Half, Format: (Linear) Row major"
LOG = f"""Layers:
Name: __myl_ReshMulSum_myl0_0, LayerType: kgen, Inputs: [ {{ Name: x, {HALF} }}], Constants: [], Outputs: [ {{ Name: \
__arg_myl0, {HALF} }}], TacticName: t, StreamId: 0, Metadata: [ONNX Layer: mm1]
Name: __myl_MoveTopk_myl0_1, LayerType: kgen, Inputs: [ {{ Name: __arg_myl0, {HALF} }}], Constants: [], Outputs: [ \
{{ Name: y, {HALF} }}], TacticName: t, StreamId: 0, Metadata: [ONNX Layer: topk]
Name: __mye163_0_myl1_0, LayerType: shape_call, Inputs: [], Constants: [], Outputs: [], TacticName: , StreamId: 0, \
Metadata: 
Name: mm1 [profile 1]_myl1_1, LayerType: gemm, Inputs: [ {{ Name: x [profile 1], {HALF} }}], Constants: [], Outputs: [ \
{{ Name: __arg_myl1, {HALF} }}], TacticName: t, StreamId: 0, Metadata: [ONNX Layer: mm1]
Name: __myl_Topk_myl1_2, LayerType: kgen, Inputs: [ {{ Name: __arg_myl1, {HALF} }}], Constants: [], Outputs: [ \
{{ Name: b [profile 1].1_6_myl1, {HALF} }}], TacticName: t, StreamId: 0, Metadata: [ONNX Layer: topk]
Name: __myl_Relu_myl2_0, LayerType: kgen, Inputs: [ {{ Name: b [profile 2], {HALF} }}], Constants: [], Outputs: [ \
{{ Name: y [profile 2], {HALF} }}], TacticName: t, StreamId: 0, Metadata: [ONNX Layer: relu]

I/O Tensors:
 Name: x"""  # noqa: W291 - in the manner of TensorRT-RTX 1.7.1


def test_the_kernels_of_a_log_are_told_apart_by_profile() -> None:
    layers = told_apart(layers_of(LOG), 3)
    assert [(layer.profile, layer.nodes) for layer in layers] == [
        (0, ("mm1",)),
        (0, ("topk",)),
        (1, ()),
        (1, ("mm1",)),
        (1, ("topk",)),
        (2, ("relu",)),
    ]
    assert [layer.inputs[0].name for layer in layers if layer.inputs] == ["x", "__arg_myl0", "x", "__arg_myl1", "b"]
    assert [layer.outputs[0].name for layer in layers if layer.profile == 2] == ["y"]
    assert layers[3].name == "mm1 [profile 1]_myl1_1"  # as a profiler calls it
    assert without_profile(layers[3]) == "mm1_myl1_1"


@pytest.mark.parametrize("count", [0, 1])
def test_names_of_an_engine_with_one_profile_are_the_models_own(count: int) -> None:
    layers = layers_of(LOG)
    assert told_apart(layers, count) == layers


def layer(name: str, gives: str, dtype: str = "fp16", profile: int = 0) -> EngineLayer:
    return EngineLayer(name, "CaskConvolution", (), (), (EngineTensor(gives, dtype, (1,)),), profile=profile)


def test_a_name_with_a_mark_beyond_the_engines_profiles_is_the_models_own() -> None:
    (found,) = told_apart([layer("conv [profile 7]", "y")], 2)
    assert (found.profile, found.name) == (0, "conv [profile 7]")


def test_a_pin_that_one_profile_overrides_is_overridden() -> None:
    """TensorRT 8.6 names layers without metadata: the mark is no part of a node's name."""
    pin = LayerPin("conv", ("conv", "relu"), ("y",), Precision.FP32)
    first = layer("conv + relu", "y", "fp32")
    second = layer("conv + relu [profile 1]", "y [profile 1]", "fp32")
    (report,) = reports_of([pin], (), told_apart([first, second], 2))
    assert (report.verdict, report.got, report.fused_with) == ("honoured", ("fp32",), ())
    lower = replace(second, outputs=(EngineTensor("y [profile 1]", "fp16", (1,)),))
    (report,) = reports_of([pin], (), told_apart([first, lower], 2))
    assert report.verdict == "overridden"


def test_times_in_another_profile_are_the_same_layers(tmp_path: Path) -> None:
    model = load_model(DIGITS / "digits.onnx")
    some = model.layers[0]
    name = " + ".join(some.nodes)
    layers = told_apart([layer(name, "a"), layer(f"{name} [profile 1]", "a [profile 1]")], 2)
    assert times_of_layers({f"{name} [profile 1]": 2.0}, layers, model.layers).times == {some.name: 2.0}


def test_the_types_of_every_profile_are_read_from_the_engine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The double tells them of the profile that a context is in alone."""
    arrange(monkeypatch, tmp_path)
    shapes = ("image:1x1x8x8,1x1x8x8,2x1x8x8", "image:4x1x8x8,4x1x8x8,4x1x8x8")
    result = sweep(
        DIGITS / "digits.onnx", DIGITS, precisions="fp16", backend="tensorrt", out=tmp_path / "run", threads=1,
        samples=4, engine=EngineOptions(observe=0, builds=2, shapes=shapes), repair=False,
    )  # fmt: skip
    engine = result.precisions[0].engine
    assert engine is not None
    assert engine.mixed is not None, engine.notes
    first, second = engine.mixed.inside.built.by_profile
    assert len(first) == len(second) > 5
    assert [x.outputs for x in first] == [x.outputs for x in second]
    assert all(t.dtype is not None for x in second for t in (*x.inputs, *x.outputs))
    assert {pin.verdict for pin in engine.mixed.inside.pins} == {"honoured"}


BODY = """
<ir_version: 8, opset_import: ["" : 17]>
g (float[N,64] x) => (float[N,16] y) {
    [one] a = MatMul (x, w)
    [root] b = Sqrt (a)
    [two] y = MatMul (b, v)
}
"""


def dynamic(folder: Path) -> Path:
    """Two products and an operation between: one row is fused otherwise than many. With samples of 1 row and of 16."""
    rng = np.random.default_rng(0)
    model = onnx.parser.parse_model(BODY)
    weights = {"w": rng.random((64, 64)), "v": rng.random((64, 16))}
    model.graph.initializer.extend(onnx.numpy_helper.from_array(v.astype(np.float32), k) for k, v in weights.items())
    folder.mkdir(exist_ok=True)
    onnx.save(model, folder / "m.onnx")
    (folder / "data").mkdir()
    for number, rows in enumerate((1, 16) * 4):
        np.save(folder / "data" / f"{number}.npy", rng.random((rows, 64)).astype(np.float32))
    return folder / "m.onnx"


@needs_rtx
@pytest.mark.thorough
def test_a_real_engine_of_three_profiles_is_read_whole_and_layers_are_what_all_fuse(tmp_path: Path) -> None:
    model = dynamic(tmp_path)
    given: dict[str, Any] = {"precisions": "fp16", "backend": "tensorrt-rtx", "target": "l4", "threads": 1}

    def run(out: str, *shapes: str) -> tuple[list[int], set[tuple[str, ...]]]:
        engine = EngineOptions(shapes=tuple(f"x:{text}" for text in shapes))
        result = sweep(model, tmp_path / "data", out=tmp_path / out, engine=engine, **given)
        (compiled,) = json.loads((tmp_path / out / "run.json").read_text())["precisions"]["fp16"]["compiled"]
        assert compiled["kernels"] == sum(compiled["kernels_by_profile"])
        return compiled["kernels_by_profile"], {layer.nodes for layer in result.model.layers}

    one, many, more = "1x64,1x64,1x64", "1x64,16x64,16x64", "16x64,16x64,64x64"
    alone = [run("one", "1x64,1x64,16x64"), run("many", many)]
    (first, *rest), layers = run("all", one, many, more)
    assert len(rest) == 2
    assert min(first, *rest) >= 1
    # Whatever one of them keeps apart is apart.
    for _, single in alone:
        assert all(any(set(nodes) <= set(other) for other in single) for nodes in layers)
