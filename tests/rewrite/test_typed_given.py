"""What a model says by itself and TensorRT does not take, or not well, a typed model says otherwise, with a note."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
import pytest
from models import load, plan_for, proto
from rtx import drive, needs_rtx

from precisionlab.backends.converted import SourceRun
from precisionlab.data import random_dataset
from precisionlab.model import Model
from precisionlab.model.portable import tensorrt_notes
from precisionlab.precision import Precision
from precisionlab.rewrite.typed import TypedModel, save_typed, typed_model

RNG = np.random.default_rng(0)
ATTENTION = """(float[2,8,32] x) => (float[2,8,32] y) {
    q = MatMul(x, a) k = MatMul(x, b) v = MatMul(x, c) y = Attention<q_num_heads=4, kv_num_heads=4%s>(q, k, v) }"""
FP16, FP32 = Precision.FP16, Precision.FP32


def int4(folder: Path, scales: Any = None, tail: str = "y = Relu(m)", opset: int = 21) -> Model:
    """A product with an int4 weight in blocks of 32, between two others."""
    weight = RNG.standard_normal((64, 32)).astype(np.float32) / 8
    found = np.abs(weight).reshape(2, 32, 32).max(1) / 7 if scales is None else scales
    levels = np.clip(np.rint(weight / np.repeat(found, 32, 0)), -8, 7).astype(ml_dtypes.int4)
    body = f"""(float[8,64] x) => (float[8,32] y) {{
        h = MatMul(x, a) w = DequantizeLinear<axis=0, block_size=32>(q, s) m = MatMul(h, w) {tail} }}"""
    first = RNG.standard_normal((64, 64)).astype(np.float32) / 8
    made = proto(body, {"a": first, "s": np.asarray(found, np.float32)}, opset=opset, ir_version=10)
    made.graph.initializer.append(ir.serde.serialize_tensor(ir.tensor(levels, name="q", dtype=ir.DataType.INT4)))
    return load(made, folder)


def attention(folder: Path, attributes: str = "") -> Model:
    """A self-attention of four heads."""
    weights = {name: RNG.standard_normal((32, 32)).astype(np.float32) / 6 for name in "abc"}
    return load(proto(ATTENTION % attributes, weights, opset=23, ir_version=10), folder)


def typed(model: Model, precision: Precision = FP16, pinned: tuple[str, ...] = ()) -> TypedModel:
    shapes = {info.name: tuple(map(int, info.shape or ())) for info in model.inputs}
    beside = SourceRun(model, random_dataset(model, shapes, 0), 1)
    return typed_model(model, plan_for(model, precision, pinned), None, beside=beside)


def scale_of(found: TypedModel) -> ir.DataType | None:
    (node,) = (node for node in found.onnx.graph if node.op_type == "DequantizeLinear")
    assert node.inputs[1] is not None
    assert node.inputs[1].const_value is not None
    return node.inputs[1].const_value.dtype


@pytest.mark.parametrize("opset", [21, 23])
@pytest.mark.parametrize(("precision", "dtype"), [(FP16, ir.DataType.FLOAT16), (Precision.BF16, ir.DataType.BFLOAT16)])
def test_int4_weights_of_a_half_product_are_dequantised_in_half(
    precision: Precision, dtype: ir.DataType, opset: int, tmp_path: Path
) -> None:
    found = typed(int4(tmp_path, opset=opset), precision)
    assert scale_of(found) == dtype
    (note,) = found.notes
    assert note.startswith(
        f"1 DequantizeLinear of int4 weights has scales in {precision}, so that they fuse with their"
    )
    assert 45 < float(note.rsplit("to ", 1)[1].removesuffix(" dB")) < 100
    onnx.checker.check_model(ir.to_proto(found.onnx), full_check=True)


@pytest.mark.parametrize(
    ("tail", "pinned"), [("y = Relu(m)", "node_of_m"), ("f = MatMul(x, w) y = Add(m, f)", "node_of_f")]
)
def test_what_a_float32_product_takes_keeps_its_float32_scales(tail: str, pinned: str, tmp_path: Path) -> None:
    found = typed(int4(tmp_path, tail=tail), FP16, (pinned,))
    assert (scale_of(found), found.notes) == (ir.DataType.FLOAT, ())


def test_scales_that_half_cannot_hold_stay_in_float32_with_a_note(tmp_path: Path) -> None:
    model = int4(
        tmp_path,
        scales=np.full((2, 32), 3e-8, np.float32),
        tail="n = Mul(m, g) y = Relu(n)".replace("Mul(m, g)", "Neg(m)"),
    )
    found = typed(model)
    assert scale_of(found) == ir.DataType.FLOAT
    assert found.notes[0].startswith("1 DequantizeLinear of int4 weights: scales stay in fp32, as in fp16 the outputs")


@pytest.mark.slow
@needs_rtx
def test_tensorrt_fuses_int4_weights_with_half_scales_into_their_product(tmp_path: Path) -> None:
    for name, found in {"half": typed(int4(tmp_path)), "float": typed(int4(tmp_path), FP32)}.items():
        save_typed(found, tmp_path / f"{name}.onnx")
    half, single = drive("typed", "build", tmp_path / "half.onnx", tmp_path / "float.onnx")
    assert (half["errors"], single["errors"]) == ([], [])
    (kernel,) = (line for line in half["layers"].splitlines() if "Int4" in line)
    assert "Fc" in kernel.partition(",")[0]


@pytest.mark.parametrize("precision", [FP16, FP32])
def test_softmax_precision_of_an_attention_goes_with_a_note(precision: Precision, tmp_path: Path) -> None:
    model = attention(tmp_path, ", softmax_precision=1")
    found = typed(model, precision)
    assert found.notes == (
        "softmax_precision of 1 node, node_of_y (Attention) is left out, as TensorRT refuses it: what the softmax "
        "computes in is its kernel's choice",
    )
    assert [node.attributes.get("softmax_precision") for node in found.onnx.graph if node.op_type == "Attention"] == [
        None
    ]
    assert str(tensorrt_notes(model)[0]).startswith(
        "1 node, 'node_of_y' (Attention): TensorRT refuses softmax_precision"
    )


def test_an_attention_without_it_is_left_as_it_is(tmp_path: Path) -> None:
    model = attention(tmp_path)
    assert (typed(model).notes, tensorrt_notes(model)) == ((), ())


FOUR = "(float[1,4,8,16] x) => (float[1,4,8,16] y) { a = Relu(x) y = Attention(a, a, a) }"
REFUSED = "1 Attention node in float32, node_of_y: TensorRT-RTX 1.7.1 refuses most of these"


@pytest.mark.parametrize(
    "body",
    [
        FOUR,
        FOUR.replace("Attention", "Attention<is_causal=1>"),
        ATTENTION % ", is_causal=1",
        (ATTENTION % "").replace("[2,8", "[N,8"),
        (ATTENTION % "").replace("x) =>", "x, float[8,8] m) =>").replace("(q, k, v)", "(q, k, v, m)"),
    ],
)
def test_attention_that_tensorrt_has_in_half_alone_is_told_where_it_is_float32(body: str, tmp_path: Path) -> None:
    weights = {name: RNG.standard_normal((32, 32)).astype(np.float32) for name in "abc"} if "MatMul" in body else {}
    model = load(proto(body, weights, opset=23, ir_version=10), tmp_path)

    def notes(precision: Precision) -> tuple[str, ...]:
        return typed_model(model, plan_for(model, precision), None).notes

    assert [note.startswith(REFUSED) for note in notes(FP32)] == [True]
    assert notes(FP16) == notes(Precision.BF16) == ()


LENGTHS: Mapping[str, int] = {"LSTM": 4, "GRU": 3, "RNN": 1}


@pytest.mark.slow
@pytest.mark.thorough
@needs_rtx
def test_tensorrt_builds_attention_and_recurrent_nodes_with_lengths(tmp_path: Path) -> None:
    files = []
    for name, gates in LENGTHS.items():
        body = f"""(float[6,2,4] x, int32[2] l) => (float[6,1,2,8] y) {{
            a = Relu(x) y = {name}<hidden_size=8>(a, w, r, "", l) }}""".replace('""', "")
        shapes = {"w": (1, 8 * gates, 4), "r": (1, 8 * gates, 8)}
        weights = {key: RNG.standard_normal(shape).astype(np.float32) for key, shape in shapes.items()}
        model = load(proto(body, weights), tmp_path, f"{name}.onnx")
        for precision in (FP16, Precision.BF16):
            found = typed_model(model, plan_for(model, precision), None)
            assert any(f"TensorRT has no {name} with sequence_lens in {precision}" in note for note in found.notes)
            files.append(tmp_path / f"{name}.{precision}.onnx")
            save_typed(found, files[-1])
    model = attention(tmp_path, ", softmax_precision=1")
    files.append(tmp_path / "attention.onnx")
    save_typed(typed(model), files[-1])
    assert [answer["errors"] for answer in drive("typed", "build", *files)] == [[]] * len(files)


@pytest.mark.slow
@pytest.mark.thorough
@needs_rtx
@pytest.mark.parametrize("name", LENGTHS)
def test_tensorrt_builds_a_recurrent_node_that_is_pinned_to_float32_among_half_ones(name: str, tmp_path: Path) -> None:
    """Without a subtraction between, its builder fails on what reads forward out of a Cast."""
    files = []
    for direction, ways in (("forward", 1), ("reverse", 1), ("bidirectional", 2)):
        body = f"""(float[6,2,4] x) => (float[6,{ways},2,8] y) {{
            a = Relu(x) h = {name}<hidden_size=8, direction="{direction}">(a, w, r) y = Neg(h) }}"""
        shapes = {"w": (ways, 8 * LENGTHS[name], 4), "r": (ways, 8 * LENGTHS[name], 8)}
        weights = {key: RNG.standard_normal(shape).astype(np.float32) for key, shape in shapes.items()}
        found = typed_model(model := load(proto(body, weights), tmp_path), plan_for(model, FP16, ["node_of_h"]), None)
        assert sum(node.op_type == "Sub" for node in found.onnx.graph) == (direction == "forward")
        files.append(tmp_path / f"{direction}.onnx")
        save_typed(found, files[-1])
    assert [answer["errors"] for answer in drive("typed", "build", *files)] == [[]] * 3
