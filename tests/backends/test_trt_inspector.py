"""What TensorRT says of an engine's layers: the inspector's JSON of each version, and the builder's log of real builds.

The JSON is in the shape of what users and NVIDIA's own tools have published of TensorRT 8.2 to 11; an engine can be
inspected on a GPU alone. The log is TensorRT-RTX's own.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from models import DIGITS, proto
from rtx import drive, needs_rtx

from precisionlab.backends.tensorrt import buildlog, inspector
from precisionlab.backends.tensorrt.jobs import EngineLayer, EngineTensor, LayerPin
from precisionlab.backends.tensorrt.pin_report import ran_in, reports_of
from precisionlab.errors import EngineError
from precisionlab.model import load_model
from precisionlab.precision import Precision

PREPARED = DIGITS.parent / "examples" / "prepared"
REAL = {
    "digits": DIGITS / "digits.onnx",
    **{name: PREPARED / name / f"{name}.onnx" for name in ("magika", "minilm_l3", "orient")},
}


def tensor(name: str, description: str | None, dims: list[int] | None = None, key: str = "Format/Datatype") -> Any:
    """One tensor as 8.x and 10.x have it; with another key as 11 has it."""
    said = {} if description is None else {key: description}
    return {"Name": name, "Location": "GpuFacts", "Dimensions": [1, 8, 4, 4] if dims is None else dims, **said}


def layers_of(*layers: Any, **rest: Any) -> tuple[EngineLayer, ...]:
    return inspector.layers_of(json.dumps({"Layers": list(layers), **rest}))


# The inspector


def test_8_6_and_10_name_type_and_layout_in_one_sentence() -> None:
    copy, conv = layers_of(
        {
            "Name": "Reformatting CopyNode for Input Tensor 0 to stem/conv + stem/relu",
            "LayerType": "Reformat",
            "Inputs": [tensor("image", "Row major linear FP32")],
            "Outputs": [tensor("Reformatted Input Tensor 0 to stem/conv + stem/relu", "Row major Int8 format")],
            "ParameterType": "Reformat",
            "Origin": "REFORMAT",
            "TacticValue": "0x00000000000003e8",
            "StreamId": 0,
            "Metadata": "",
        },
        {
            "Name": "stem/conv + stem/relu",
            "LayerType": "CaskConvolution",
            "Inputs": [tensor("Reformatted Input Tensor 0 to stem/conv + stem/relu", "Row major Int8 format")],
            "Outputs": [tensor("stem/out", "Channel major FP16 format where channel % 8 == 0", [1, 64, 2, 2])],
            "Weights": {"Type": "Int8", "Count": 9408},
            "Bias": {"Type": "Float", "Count": 64},
            "TacticName": "sm80_xmma_fprop_implicit_gemm_interleaved_i8i8",
            "Metadata": "[ONNX Layer: stem/conv]\x1e[ONNX Layer: stem/relu]",
        },
        Bindings=["image", "logits"],
    )
    assert (copy.kind, copy.nodes, copy.tactic) == ("Reformat", (), None)
    assert [t.dtype for t in (*copy.inputs, *copy.outputs)] == ["fp32", "int8"]
    assert conv == EngineLayer(
        name="stem/conv + stem/relu",
        kind="CaskConvolution",
        nodes=("stem/conv", "stem/relu"),
        inputs=(
            EngineTensor("Reformatted Input Tensor 0 to stem/conv + stem/relu", "int8", (1, 8, 4, 4), is_linear=False),
            EngineTensor("weights of stem/conv + stem/relu", "int8", None),
        ),
        outputs=(EngineTensor("stem/out", "fp16", (1, 64, 2, 2), is_linear=False),),
        tactic="sm80_xmma_fprop_implicit_gemm_interleaved_i8i8",
    )


def test_11_names_type_and_layout_apart_and_its_inputs_and_outputs_as_objects() -> None:
    (layer,) = layers_of(
        {
            "Name": "__myl_MulAdd_myl0_1",
            "LayerType": "kgen",
            "Inputs": [
                {"Name": "x", "Dimensions": [4, 8], "Strides": [8, 1], "Datatype": "Half", "Format": "(Linear)"},
                tensor("scale", "BFloat16", [8], key="DataType"),
            ],
            "Constants": [{"Name": "c", "Dimensions": [1], "Datatype": "Float"}],
            "Outputs": [tensor("y", "Float", [4, 8], key="Datatype")],
            "Metadata": "[ONNX Layer: mul][ONNX Layer: add]",
        },
        **{"I/O Tensors": [{"Name": "x", "IOMode": "Input", "DataType": "Half"}], "Engine Metadata": {}},
    )
    assert layer.nodes == ("mul", "add")
    assert [(t.name, t.dtype, t.shape) for t in layer.inputs] == [("x", "fp16", (4, 8)), ("scale", "bf16", (8,))]
    assert layer.outputs == (EngineTensor("y", "fp32", (4, 8)),)


def test_what_dynamic_shapes_hide_is_unknown_but_for_the_type_of_the_weights() -> None:
    hidden = tensor("x", "N/A due to dynamic shapes", [-1, 8, 4, 4])
    conv, deconv = layers_of(
        {
            "Name": "conv",
            "LayerType": "CaskConvolution",
            "Inputs": [hidden],
            "Outputs": [hidden],
            "Weights": {"Type": "Half", "Count": 12},
        },
        {
            "Name": "deconv",
            "LayerType": "CaskDeconvolutionV2",
            "Inputs": [tensor("x", None, []), {"Name": "y"}],
            "Outputs": [],
            "Weights": {"Type": "Float", "Count": 0},
        },
    )
    assert conv.outputs == (EngineTensor("x", None, None),)
    assert conv.inputs[1] == EngineTensor("weights of conv", "fp16", None)
    assert deconv.inputs == (EngineTensor("x", None, ()), EngineTensor("y", None, None))


def test_an_engine_that_has_names_alone_gives_layers_of_no_kind_and_no_tensors() -> None:
    names = ["Reformatting CopyNode for Input Tensor 0 to conv + relu", "conv + relu", "{ForeignNode[a.../Concat_1]}"]
    assert layers_of(*names, Bindings=["in", "out"]) == tuple(EngineLayer(name, "", (), (), ()) for name in names)


@pytest.mark.parametrize("key", ["\x1e", "\x1f"])
def test_the_separators_that_tensorrt_does_not_escape_are_read(key: str) -> None:
    text = '{"Layers": [{"Name": "a' + key + 'b", "Metadata": "[ONNX Layer: a]' + key + '[ONNX Layer: b]"}]}'
    with pytest.raises(ValueError, match="control character"):
        json.loads(text)
    (layer,) = inspector.layers_of(text)
    assert (layer.name, layer.nodes) == (f"a{key}b", ("a", "b"))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "is not JSON"),
        ("Layer(CaskConvolution): conv", "is not JSON"),
        ("[]", "no list `Layers`"),
        ('{"Bindings": []}', "no list `Layers`"),
        ('{"Layers": {}}', "no list `Layers`"),
        ('{"Layers": [7]}', "a layer without a name"),
        ('{"Layers": [{"LayerType": "kgen"}]}', "a layer without a name"),
        ('{"Layers": [{"Name": "conv", "Inputs": ["x"]}]}', "the tensors of 'conv'"),
    ],
)
def test_what_is_no_inspector_s_text_is_refused_in_words(text: str, said: str) -> None:
    with pytest.raises(EngineError, match=said):
        inspector.layers_of(text)


@pytest.mark.parametrize(
    ("description", "dtype"),
    [
        ("Half", "fp16"),
        ("Float", "fp32"),
        ("BFloat16", "bf16"),
        ("FP8", "fp8"),
        ("Int64", "int64"),
        ("Bool", "bool"),
        ("Half(64,1:8,8)", "fp16"),
        ("Row major linear FP32", "fp32"),
        ("Row major linear FP16 format", "fp16"),
        ("Row major linear BFloat16 format", "bf16"),
        ("Row major linear UInt8 format", "uint8"),
        ("Row major linear BOOL", "bool"),
        ("Row major linear INT32 format (kLINEAR)", "int32"),
        ("Two wide channel vectorized row major FP16 format", "fp16"),
        ("Thirty-two wide channel vectorized row major Int8 format.", "int8"),
        ("Channel major INT8 format where channel == 4 and column stride % 32 == 0", "int8"),
        ("Channel major FP32 format where channel % 4 == 0 with 3 spatial dimensions", "fp32"),
        ("N/A due to dynamic shapes", None),
        ("Unknown format", None),
        ("None", None),
        ("", None),
        ("FP16 or FP32", None),  # two types are none
        ("AFP16x", None),  # no part of a word
    ],
)
def test_types_are_read_word_by_word(description: str, dtype: str | None) -> None:
    assert inspector.dtype_of(description) == dtype


# The builder's log

_TENSOR = (
    "{{ Name: {}, Dimensions: [4,8], Strides: [8,1], StrideOrder: [1,0], Datatype: {}, Format: (Linear) Row major }}"
)
_LINE = (
    "Name: {0}_myl0_0, LayerType: gemm, Inputs: [ {1}, {1}], Constants: [ {2}], Outputs: [ {1}], "
    "TacticName: t, StreamId: 0, Metadata: [ONNX Layer: {0}]"
)


@given(
    st.lists(
        st.one_of(
            st.text(st.characters(blacklist_categories=["Cs", "Cc"]), min_size=1),
            st.sampled_from(
                [
                    "a: b, c",
                    "], Constants: [",
                    "{ Name: z",
                    "q }, { Name: r",
                    "x, LayerType: y",
                    "Name: n, LayerType: k, Inputs: [",
                    "n, Location: Device, Dimensions: 2",
                    "\"q\" 's' {b}",
                    "[ONNX Layer: p]",
                    "o: [2], Datatype: Float }, { Name: q",
                    " sp ",
                    "], TacticName: t, StreamId: 0, Metadata: ",
                ]
            ),
        ),
        min_size=1,
        max_size=3,
    )
)
def test_names_of_any_kind_come_through_the_log(names: list[str]) -> None:
    lines = [_LINE.format(name, _TENSOR.format(name, "Half"), _TENSOR.format(f"c {name}", "Float")) for name in names]
    layers = buildlog.layers_of(
        "Layers:\n" + "\n".join(lines) + "\n\nI/O Tensors:\n Name: x\n\nEngine Metadata:\n none"
    )
    given = [EngineTensor(name, "fp16", (4, 8)) for name in names]
    assert [layer.name for layer in layers] == [f"{name}_myl0_0" for name in names]
    assert [layer.inputs for layer in layers] == [(tensor, tensor) for tensor in given]
    assert [layer.outputs for layer in layers] == [(tensor,) for tensor in given]


@pytest.mark.parametrize(
    "text",
    [
        "Engine Layer Information:\nLayer(kgen): a",
        "Layers:\nwhat is this",
        "Layers:\nName: a, LayerType: kgen, Inputs: [ half of it",
        "Layers:\nName: a, LayerType: kgen, Inputs: [], Constants: [], Outputs: [ { Name: x }], TacticName: ",
        "Layers:\nName: a, LayerType: kgen, Inputs: [], Constants: [], Outputs: []",
    ],
)
def test_a_log_in_another_form_is_refused_and_shown(text: str) -> None:
    with pytest.raises(EngineError, match="TensorRT's log of an engine's layers"):
        buildlog.layers_of(text)


def test_layers_that_are_none_of_the_compilers_own_are_read_too() -> None:
    """As TensorRT-RTX logs them of a Loop whose length is a shape's."""
    tensor = (
        "{ Name: (Unnamed Layer* 4) [Cast]_output, Location: Device, Dimensions: [], Datatype: Int32, Format: Format"
    )
    line = (
        f"Name: [ShapeHostToDeviceCopy 0], LayerType: ShapeHostToDevice, Inputs: [], Outputs: [ {tensor} not available "
        "due to dynamic shapes }], ParameterType: ShapeH2D, shapeValues0: [-4], TacticValue: 0x0000000000000000, "
        "StreamId: 0, Metadata: "
    )
    kernel = _LINE.format("m", _TENSOR.format("x [profile 1]", "Half"), _TENSOR.format("c", "Float"))
    copy, found = buildlog.layers_of(f"Layers:\n{line}\n{kernel}\n\nI/O Tensors:\n Name: x")
    assert (copy.name, copy.kind) == ("[ShapeHostToDeviceCopy 0]", "ShapeHostToDevice")
    assert copy.outputs == (EngineTensor("(Unnamed Layer* 4) [Cast]_output", "int32", ()),)
    assert (copy.nodes, copy.tactic, found.nodes, found.tactic) == ((), None, ("m",), "t")


DYNAMIC = {
    "a recurrence": (
        "(float[S,N,8] x) => (float[S,1,N,8] y) { y, h = LSTM <hidden_size = 8> (x, w, r) }",
        {"w": np.ones((1, 32, 8), np.float32), "r": np.ones((1, 32, 8), np.float32)},
    ),
    "a loop": (
        "(float[N,8] x) => (float[N,8] y) { sh = Shape(x) m = Gather(sh, zero) y = Loop(m, true, x) <body = b(int64 i, "
        "bool c, float[N,8] s) => (bool d, float[N,8] t) { d = Identity(c) q = MatMul(s, w) t = Tanh(q) }> }",
        {"zero": np.int64(0), "true": np.bool_(True), "w": np.ones((8, 8), np.float32)},
    ),
    "a scan": (
        "(float[N,8] x) => (float[N,8] y) { a = Identity(z) b, y = Scan <num_scan_inputs = 1, body = g(float[8] h, "
        "float[8] e) => (float[8] k, float[8] o) { q = Add(h, e) k = Tanh(q) o = Identity(k) }> (a, x) }",
        {"z": np.zeros(8, np.float32)},
    ),
    "shapes": (
        "(float[N,8] x) => (float[M] y, int64[2] s) { s = Shape(x) p = ReduceProd(s) y = Reshape(x, p) }",
        {},
    ),
}


@needs_rtx
def test_engines_of_dynamic_shapes_are_read_whole(tmp_path: Path) -> None:
    paths = [tmp_path / f"{index}.onnx" for index in range(len(DYNAMIC))]
    for path, (body, weights) in zip(paths, DYNAMIC.values(), strict=True):
        onnx.save_model(proto(body, weights), path)
    for name, built in zip(DYNAMIC, drive("typed", "build", *paths), strict=True):
        lines = [
            line for line in built["layers"].partition("I/O Tensors:")[0].splitlines() if line.startswith("Name: ")
        ]
        assert [layer.name for layer in buildlog.layers_of(built["layers"])] == [
            line[len("Name: ") :].partition(", LayerType: ")[0] for line in lines
        ], name
        assert lines


def test_a_log_of_no_layers_is_none() -> None:
    assert buildlog.layers_of("Layers:\n\nI/O Tensors:\n Name: x\n") == ()


@needs_rtx
@pytest.mark.parametrize(
    "name", ["digits", *(pytest.param(name, marks=pytest.mark.thorough) for name in REAL if name != "digits")]
)
def test_a_real_engine_s_layers_are_all_read(name: str) -> None:
    if not REAL[name].exists():
        pytest.skip(f"`make {name}` prepares it")
    model, (answer,) = load_model(REAL[name]), drive("layers", REAL[name])
    layers = buildlog.layers_of(answer["plain"])
    taken = {tensor.name: tensor for layer in layers for tensor in layer.inputs}
    given = {tensor.name: tensor for layer in layers for tensor in layer.outputs}
    assert {info.name for info in model.inputs} <= set(taken)
    assert {info.name for info in model.outputs} <= set(given)
    assert all(tensor.dtype is not None and tensor.shape is not None for tensor in (*taken.values(), *given.values()))
    # The nodes that metadata names are the model's own, by the very names that load_model gives them.
    named = {node for layer in layers for node in layer.nodes}
    assert named <= set(model.node)
    got = ran_in(model.layers, layers)
    quantizable = [layer.name for layer in model.layers if layer.quantizable]
    assert quantizable
    assert {got[layer] for layer in quantizable} == {("fp32",)}


@needs_rtx
def test_a_real_mixed_engine_tells_each_layer_s_type_and_what_was_swallowed(tmp_path: Path) -> None:
    names = ["a: b", "c, d", "e] [f", "{ Name: z"]
    body = """(float[64,64] x) => (float16[64,64] z, float[64,64] s) {
        m = MatMul(x, w) a = Softmax(m) n = MatMul(a, w) s = Softmax(n)
        h = Cast <to: int = 10> (a) z = MatMul(h, v)
    }"""
    rng = np.random.default_rng(0)
    model = proto(body, {"w": rng.random((64, 64), np.float32), "v": rng.random((64, 64)).astype(np.float16)})
    for node, name in zip(model.graph.node, [*names, "to half", "half one"], strict=True):
        node.name = name
    onnx.save_model(model, tmp_path / "mixed.onnx")
    (answer,) = drive("layers", tmp_path / "mixed.onnx")
    layers = buildlog.layers_of(answer["plain"])
    assert {node for layer in layers for node in layer.nodes} == {*names, "to half", "half one"}
    pins = [LayerPin(name, (name,), (), Precision.FP32) for name in ("a: b", "e] [f", "half one", "half")]
    reports = {report.layer: report for report in reports_of(pins, (), layers)}
    assert {name: report.verdict for name, report in reports.items()} == {
        "a: b": "honoured",
        "e] [f": "honoured",
        "half one": "overridden",
        "half": "not found",  # no part of a name is that name
    }
    assert (reports["a: b"].got, reports["half one"].got) == (("fp32",), ("fp16",))
