"""What other libraries say stands behind a sentence of ours, quoted, and never in its place."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from models import load, proto

from precisionlab.backends.refusals import why_not_loaded
from precisionlab.backends.session import Session
from precisionlab.errors import ModelError
from precisionlab.model import load_model
from precisionlab.system.quoting import cause, quotable

RESHAPE = (
    "[ONNXRuntimeError] : 6 : RUNTIME_EXCEPTION : Non-zero status code returned while running Reshape node. "
    "Name:'r' Status Message: /onnxruntime_src/onnxruntime/core/providers/cpu/tensor/reshape_helper.h:47 "
    "onnxruntime::ReshapeHelper::ReshapeHelper(const onnxruntime::TensorShape&, onnxruntime::TensorShapeVector&, bool) "
    "input_shape_size == size was false. The input tensor cannot be reshaped to the requested shape. "
    "Input shape:{1,3}, requested shape:{2,2}\n"
)
OPSET = (
    "[ONNXRuntimeError] : 1 : FAIL : Load model from m.onnx failed:/onnxruntime_src/onnxruntime/core/graph/"
    "model_load_utils.h:46 void onnxruntime::model_load_utils::ValidateOpsetForDomain(const std::unordered_map<"
    "std::__cxx11::basic_string<char>, int>&, const onnxruntime::logging::Logger&, bool, const std::string&, int) "
    "ONNX Runtime only *guarantees* support for models stamped with official released onnx opset versions. "
    "Opset 99 is under development and support for this is limited."
)


@pytest.mark.parametrize(
    ("text", "left"),
    [
        (
            RESHAPE,
            "The input tensor cannot be reshaped to the requested shape. Input shape:{1,3}, requested shape:{2,2}",
        ),
        (
            "concatbase.h:135 PrepareForComputeImpl Non concat axis dimensions must match: Axis 1 has 3 and 4",
            "Non concat axis dimensions must match: Axis 1 has 3 and 4",
        ),
        (
            "/github/onnx/BaseConverter.h:68: adapter_lookup: Assertion `false` failed: No Adapter For X",
            "No Adapter For X",
        ),
        ('Unrecognized attribute: "a"\n\n==> Context: Bad\tspec', "Unrecognized attribute: 'a' Context: Bad spec"),
        ("idx=5 must be within the range [-3,2]", "idx=5 must be within the range [-3,2]"),
    ],
)
def test_a_quotation_is_one_line_without_what_only_its_makers_read(text: str, left: str) -> None:
    assert quotable(text) == left


def test_a_quotation_says_whose_it_is() -> None:
    assert cause("Pillow", ValueError("cut off")) == 'Pillow says: "cut off"'
    assert cause("Pillow", ValueError()) == "Pillow says no more than ValueError"


def test_an_opset_and_an_ir_version_that_are_too_new_are_told_with_what_to_do() -> None:
    told = why_not_loaded(RuntimeError(OPSET))
    assert "does not know opset 99 yet; convert the model to an older one" in told
    assert "::" not in told
    told = why_not_loaded(RuntimeError("Unsupported model IR version: 99, max supported IR version: 13"))
    assert "the file's IR version is 99" in told
    assert "save the model with ir_version = 13" in told


def test_a_node_that_onnx_runtime_refuses_is_named(tmp_path: Path) -> None:
    good, bad = (
        load(proto(f"(float[1,4] x) => (float[1,4] y) {{ [soft] y = Softmax <axis: int = {axis}> (x) }}"), tmp_path)
        for axis in (1, 7)
    )
    Session(good.onnx, 1)
    with pytest.raises(ModelError) as caught:
        Session(bad.onnx, 1)
    told = str(caught.value)
    assert told.startswith(
        "ONNX Runtime cannot load the model: node 'soft' (Softmax) is not what its operator allows; "
    )
    assert 'export the model again; ONNX Runtime says: "' in told
    assert "\n" not in told


def test_a_node_that_fails_on_a_sample_is_named(tmp_path: Path) -> None:
    body = "(float[1,N] x) => (float[P,2] y) { [flat] y = Reshape(x, s) }"
    session = Session(load(proto(body, {"s": np.array([2, 2])}), tmp_path).onnx, 1)
    assert session.run({"x": np.ones((1, 4), np.float32)})["y"].shape == (2, 2)
    with pytest.raises(ModelError) as caught:
        session.run({"x": np.ones((1, 3), np.float32)})
    told = str(caught.value)
    assert told.startswith("ONNX Runtime cannot run the model: node 'flat' (Reshape) fails on a sample; see whether ")
    assert all(word not in told for word in ("onnxruntime_src", "::", "[ONNXRuntimeError]", "\n"))
    assert told.endswith('requested shape:{2,2}"')


@pytest.mark.parametrize("fault", [TypeError, KeyError, AttributeError])
def test_a_fault_of_ours_is_not_told_as_the_models(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: type[Exception]
) -> None:
    model = load(proto("(float[1,4] x) => (float[1,4] y) { y = Relu(x) }"), tmp_path)

    def broken(*_: object, **__: object) -> object:
        raise fault("ours")

    with monkeypatch.context() as patched:
        patched.setattr(ort, "InferenceSession", broken)
        with pytest.raises(fault):
            Session(model.onnx, 1)
    with monkeypatch.context() as patched:
        patched.setattr("precisionlab.model.load.fold_constants", broken)
        with pytest.raises(fault):
            load_model(model.path)
    session = Session(model.onnx, 1)
    monkeypatch.setattr(session, "_values", broken)
    with pytest.raises(fault):
        session.run({"x": np.ones((1, 4), np.float32)})


def misspelt(model: onnx.ModelProto) -> None:
    model.graph.node[0].attribute.add(name="blah", type=onnx.AttributeProto.INT, i=1)


def cut(model: onnx.ModelProto) -> None:
    model.graph.node[0].input[0] = "nowhere"


@pytest.mark.parametrize(("damage", "named"), [(misspelt, "blah"), (cut, "nowhere")])
def test_what_the_checker_says_is_quoted_behind_what_to_do(
    tmp_path: Path, damage: Callable[[onnx.ModelProto], None], named: str
) -> None:
    model = proto("(float[1,4] x) => (float[1,4] y) { y = Relu(x) }")
    load(model, tmp_path)
    damage(model)
    with pytest.raises(ModelError) as caught:
        load(model, tmp_path)
    told = str(caught.value)
    assert 'not a valid ONNX model; fix what it names, or export the model again; the ONNX checker says: "' in told
    assert named in told.split("says: ")[1]
    assert "\n" not in told
