"""Tensors of two models are twins where that is certain, and nowhere else."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx
import pytest
from models import DIGITS, Array, load, proto

from precisionlab.errors import ModelError, OptionError
from precisionlab.model import load_model
from precisionlab.model.other import load_other
from precisionlab.model.twins import By, Twins, twins_of

RNG = np.random.default_rng(0)
WEIGHTS = {name: RNG.standard_normal((4, 4)).astype(np.float32) for name in ("q", "k", "v")}
BODY = """(float[N,4] x) => (float[N,4] y) {
    a = MatMul(x, q) b = MatMul(x, k) c = MatMul(x, v) d = Relu(a) e = Mul(d, b) y = Add(e, c) }"""


def found(
    ours: onnx.ModelProto, theirs: onnx.ModelProto, folder: Path, given: Mapping[str, str] | None = None
) -> Twins:
    onnx.save_model(theirs, folder / "other.onnx")
    return twins_of(load(ours, folder), load_other(folder / "other.onnx"), given or {})


def renamed(body: str, names: Mapping[str, str], weights: Mapping[str, Array]) -> onnx.ModelProto:
    model = proto(body, weights)
    for node in model.graph.node:
        node.name = ""
        for values in (node.input, node.output):
            values[:] = [names.get(value, value) for value in values]
    return model


def test_tensors_of_one_name_are_twins(tmp_path: Path) -> None:
    twins = found(proto(BODY, WEIGHTS), proto(BODY, WEIGHTS), tmp_path)
    assert {twin.ours: twin.theirs for twin in twins.tensors.values()} == {name: name for name in "xabcdey"}
    assert {twin.by for twin in twins.tensors.values()} == {By.NAME}


def test_tensors_of_other_names_are_twins_by_what_computes_them_and_weights_tell_siblings_apart(tmp_path: Path) -> None:
    names = {name: f"t{i}" for i, name in enumerate("cbaed")}
    twins = found(proto(BODY, WEIGHTS), renamed(BODY, names, WEIGHTS), tmp_path)
    assert {twin.ours: twin.theirs for twin in twins.tensors.values() if twin.by is By.COMPUTED} == names


@pytest.mark.parametrize("decimals", [7, 2])
def test_rounded_weights_are_the_same_weights(decimals: int, tmp_path: Path) -> None:
    names = {name: f"t{i}" for i, name in enumerate("cbaed")}
    rounded = {name: value.round(decimals) for name, value in WEIGHTS.items()}
    assert len(found(proto(BODY, WEIGHTS), renamed(BODY, names, rounded), tmp_path).tensors) == 7


def test_other_weights_are_not(tmp_path: Path) -> None:
    names = {name: f"t{i}" for i, name in enumerate("cbaed")}
    others = {name: value * np.float32(1.5) for name, value in WEIGHTS.items()}
    twins = found(proto(BODY, WEIGHTS), renamed(BODY, names, others), tmp_path)
    assert set(twins.tensors) == {"x", "y"}


def test_a_scale_that_is_folded_into_weights_makes_no_twin_of_the_product(tmp_path: Path) -> None:
    ours = "(float[N,4] x) => (float[N,4] y) { a = MatMul(x, q) b = Mul(a, s) y = Relu(b) }"
    theirs = "(float[N,4] x) => (float[N,4] y) { t = MatMul(x, q) y = Relu(t) }"
    scale = np.linspace(0.9, 1.1, 4, dtype=np.float32)
    twins = found(proto(ours, {"q": WEIGHTS["q"], "s": scale}), proto(theirs, {"q": WEIGHTS["q"] * scale}), tmp_path)
    assert set(twins.tensors) == {"x", "y"}


def test_a_name_with_another_shape_is_no_twin_and_is_told(tmp_path: Path) -> None:
    ours = "(float[2,4] x) => (float[2,4] y) { a = MatMul(x, q) y = Relu(a) }"
    theirs = """(float[2,4] x) => (float[2,4] y) { t = Transpose(x) a = MatMul(k, t) b = Transpose(a) y = Relu(b) }"""
    twins = found(proto(ours, WEIGHTS), proto(theirs, WEIGHTS), tmp_path)
    assert twins.other_shape == ("a",)
    assert set(twins.tensors) == {"x", "y"}


def test_quantised_values_stand_for_a_tensor_that_nothing_else_takes(tmp_path: Path) -> None:
    ours = "(float[N,4] x) => (float[N,4] y) { a = MatMul(x, q) b = Relu(a) y = MatMul(b, k) }"
    theirs = """(float[N,4] x) => (float[N,4] y) { b = MatMul(x, q) c = QuantizeLinear(b, s, z)
        d = DequantizeLinear(c, s, z) y = MatMul(d, k) }"""
    more = {"s": np.float32(0.1), "z": np.int8(-128)}
    twins = found(proto(ours, WEIGHTS), proto(theirs, {**WEIGHTS, **more}), tmp_path)
    assert (twins.tensors["b"].theirs, twins.tensors["b"].read) == ("b", "d")


def test_a_tensor_that_both_quantise_stands_for_itself(tmp_path: Path) -> None:
    body = """(float[N,4] x) => (float[N,4] y) { a = MatMul(x, q) c = QuantizeLinear(a, s, z)
        d = DequantizeLinear(c, s, z) y = MatMul(d, k) }"""
    model = proto(body, {**WEIGHTS, "s": np.float32(0.1), "z": np.int8(0)})
    assert all(not twin.taken for twin in found(model, model, tmp_path).tensors.values())


def test_a_file_of_old_with_its_weights_among_the_inputs_is_read(tmp_path: Path) -> None:
    model = proto(BODY, WEIGHTS, opset=8, ir_version=3)
    model.graph.input.extend(
        onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [4, 4]) for name in WEIGHTS
    )
    assert len(found(model, model, tmp_path).tensors) == 7


def test_a_tensor_that_others_take_too_stands_for_itself(tmp_path: Path) -> None:
    theirs = """(float[N,4] x) => (float[N,4] y) { a = MatMul(x, q) c = QuantizeLinear(a, s, z)
        d = DequantizeLinear(c, s, z) e = MatMul(d, k) y = Add(e, a) }"""
    ours = "(float[N,4] x) => (float[N,4] y) { a = MatMul(x, q) e = MatMul(a, k) y = Add(e, a) }"
    twins = found(proto(ours, WEIGHTS), proto(theirs, {**WEIGHTS, "s": np.float32(0.1), "z": np.int8(0)}), tmp_path)
    assert twins.tensors["a"].read == "a"


def test_an_only_input_and_an_only_output_are_twins_whatever_they_are_called(tmp_path: Path) -> None:
    twins = found(proto(BODY, WEIGHTS), renamed_ends(), tmp_path)
    assert [(t.ours, t.theirs, t.by) for t in (*twins.inputs, *twins.outputs)] == [
        ("x", "pixels", By.LEFT), ("y", "scores", By.LEFT),
    ]  # fmt: skip
    assert twins.notes == (
        "input x is pixels there (the only one left)",
        "output y is scores there (the only one left)",
    )


def renamed_ends() -> onnx.ModelProto:
    model = renamed(BODY, {"x": "pixels", "y": "scores"}, WEIGHTS)
    model.graph.input[0].name, model.graph.output[0].name = "pixels", "scores"
    return model


def test_what_the_user_says_goes_first(tmp_path: Path) -> None:
    twins = found(proto(BODY, WEIGHTS), proto(BODY, WEIGHTS), tmp_path, {"a": "b"})
    assert (twins.tensors["a"].theirs, twins.tensors["a"].by) == ("b", By.GIVEN)
    assert "b" not in twins.tensors or twins.tensors["b"].theirs != "b"


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"nosuch": "a"}, "has no tensor 'nosuch'"),
        ({"a": "nosuch"}, "has no tensor 'nosuch'"),
        ({"a": "b", "c": "b"}, "two tensors cannot have the same twin"),
    ],
)
def test_what_the_user_says_of_tensors_that_are_not_there_is_refused(
    given: dict[str, str], said: str, tmp_path: Path
) -> None:
    with pytest.raises(OptionError, match=said):
        found(proto(BODY, WEIGHTS), proto(BODY, WEIGHTS), tmp_path, given)


@pytest.mark.parametrize(
    ("theirs", "said"),
    [
        ("(float[N,4] x, float[N,4] z) => (float[N,4] y) { y = Add(x, z) }", r"takes inputs that .*: z \(FLOAT"),
        ("(float[N,4] x) => (float[N,4] y, float[N,4] w) { y = Relu(x) w = Neg(x) }", ""),
        ("(float[N,4] x) => (float[N,4] p, float[N,4] w) { p = Relu(x) w = Neg(x) }", r"lacks outputs .*: y \(FLOAT"),
        ("(float[N,5] x) => (float[N,5] y) { y = Relu(x) }", r"input 'x' is FLOAT\[N, 5\], and FLOAT\[N, 4\]"),
        ("(int64[N,4] x) => (float[N,4] y) { y = Cast <to = 1> (x) }", "floats and whole numbers are not compared"),
    ],
)
def test_ends_that_do_not_fit_are_refused_with_both_sides(theirs: str, said: str, tmp_path: Path) -> None:
    if said:
        with pytest.raises(ModelError, match=said):
            found(proto(BODY, WEIGHTS), proto(theirs), tmp_path)
        return
    assert found(proto(BODY, WEIGHTS), proto(theirs), tmp_path).notes == (
        "outputs of the second model alone, which are not compared: w",
    )


def test_every_tensor_of_a_real_model_is_found_again_under_other_names_and_the_right_one(tmp_path: Path) -> None:
    model = onnx.load(DIGITS / "digits.onnx")
    kept = {v.name for v in (*model.graph.input, *model.graph.output)} | {w.name for w in model.graph.initializer}
    names = {
        out: f"t{i}_{j}" for i, node in enumerate(model.graph.node) for j, out in enumerate(node.output)
    }  # fmt: skip
    names = {name: new for name, new in names.items() if name not in kept}
    for i, node in enumerate(model.graph.node):
        node.name = f"n{i}"
        for values in (node.input, node.output):
            values[:] = [names.get(value, value) for value in values]
    del model.graph.value_info[:]
    onnx.save_model(model, tmp_path / "other.onnx")
    ours = load_model(DIGITS / "digits.onnx")
    twins = twins_of(ours, load_other(tmp_path / "other.onnx"), {})
    assert {name for layer in ours.layers for name in layer.outputs} <= twins.tensors.keys()
    assert all(twin.theirs == names.get(twin.ours, twin.ours) for twin in twins.tensors.values())


def test_a_file_whose_nodes_are_not_sorted_is_read_all_the_same(tmp_path: Path) -> None:
    model = proto(BODY, WEIGHTS)
    nodes = list(model.graph.node)
    del model.graph.node[:]
    model.graph.node.extend(nodes[::-1])
    assert len(found(proto(BODY, WEIGHTS), model, tmp_path).tensors) == 7
