"""Operators that ONNX Runtime does not know: a plugin at the end is cut off, judged in front of, and exported again."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from models import load, proto, sample
from onnx import TensorProto, helper, numpy_helper

from precisionlab import sweep
from precisionlab.backends.onnxruntime import OnnxRuntimeBackend
from precisionlab.errors import ModelError
from precisionlab.jobs.export import export_plan
from precisionlab.model import Model, load_model
from precisionlab.model.prepared import exported_file, file_for

R = np.random.default_rng(74)


def detector(domain: str = "TRT", function: bool = False, kind: int = TensorProto.FLOAT) -> onnx.ModelProto:
    """Boxes and scores, and behind them TensorRT's EfficientNMS_TRT, as exporters write it."""

    def weight(name: str, *shape: int) -> onnx.TensorProto:
        return numpy_helper.from_array((R.standard_normal(shape) * 0.25).astype(np.float32), name)

    info = helper.make_tensor_value_info
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"], "conv", pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["c"], ["f"], "relu"),
        helper.make_node("Conv", ["f", "wb"], ["b"], "conv_box"),
        helper.make_node("Reshape", ["b", "sb"], ["boxes"], "boxes_of"),
        helper.make_node("Conv", ["f", "ws"], ["s"], "conv_score"),
        helper.make_node("Sigmoid", ["s"], ["p"], "sigmoid"),
        helper.make_node("Reshape", ["p", "ss"], ["scores"], "scores_of"),
        helper.make_node(
            "EfficientNMS_TRT",
            ["boxes", "scores"],
            ["count", "kept", "kept_scores", "classes"],
            "nms",
            domain=domain,
            plugin_version="1",
            max_output_boxes=10,
            score_threshold=0.25,
            iou_threshold=0.45,
        ),
        helper.make_node("Mul", ["kept", "stride"], ["pixels"], "to_pixels"),
    ]
    weights = [weight("w", 8, 3, 3, 3), weight("wb", 4, 8, 1, 1), weight("ws", 2, 8, 1, 1)]
    for name, shape in (("sb", [1, 64, 4]), ("ss", [1, 64, 2])):
        weights.append(numpy_helper.from_array(np.array(shape), name))
    weights.append(numpy_helper.from_array(np.float32(8), "stride"))
    outputs = [
        info("count", TensorProto.INT32, [1, 1]),
        info("pixels", kind, [1, 10, 4]),
        info("kept_scores", kind, [1, 10]),
        info("classes", TensorProto.INT32, [1, 10]),
    ]
    functions, opsets = [], [helper.make_opsetid("", 17)]
    if domain:
        opsets.append(helper.make_opsetid(domain, 1))
    if function:
        body = [helper.make_node("Relu", ["a"], ["b"], "inside")]
        functions.append(helper.make_function("own", "Act", ["a"], ["b"], body, opsets[:1]))
        nodes[1] = helper.make_node("Act", ["c"], ["f"], "relu", domain="own")
        opsets.append(helper.make_opsetid("own", 1))
    graph = helper.make_graph(nodes, "g", [info("x", TensorProto.FLOAT, [1, 3, 8, 8])], outputs, weights)
    return helper.make_model(graph, opset_imports=opsets, ir_version=9, functions=functions)


def names(path: Path) -> tuple[list[str], list[str]]:
    """The file's operators and its outputs."""
    model = onnx.load(path)
    return [node.op_type for node in model.graph.node], [value.name for value in model.graph.output]


@pytest.mark.parametrize("domain", ["TRT", "", "my.plugins"])
def test_what_a_plugin_takes_is_judged_in_its_place(domain: str, tmp_path: Path) -> None:
    model = load(detector(domain), tmp_path)
    assert [info.name for info in model.outputs] == ["boxes", "scores"]
    assert model.tail is not None
    assert "'nms'" in model.tail.text
    assert "1 node behind" in model.tail.text
    assert "(boxes, scores)" in model.tail.text
    assert {"kept", "pixels"} <= model.gone.keys()
    reference = OnnxRuntimeBackend(model, sample(x=np.zeros((1, 3, 8, 8)).tolist()))
    assert {layer.name for layer in reference.model.layers} == {
        *("conv", "conv_box", "boxes_of", "conv_score", "scores_of")
    }


@pytest.fixture(scope="module")
def swept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("plugins")
    onnx.save_model(detector(), folder / "model.onnx")
    (folder / "data").mkdir()
    for i in range(8):
        np.save(folder / "data" / f"{i}.npy", R.random((1, 3, 8, 8)).astype(np.float32))
    result = sweep(folder / "model.onnx", folder / "data", precisions="int8", out=folder / "run", threads=1)
    assert set(result.precisions[0].low.comparison.outputs) == {"boxes", "scores"}
    return folder


@pytest.mark.slow
def test_exports_refer_to_the_whole_file(swept: Path, tmp_path: Path) -> None:
    exported = export_plan(swept / "run" / "plan.json", "trtexec", out=tmp_path / "e.sh")
    assert str((swept / "model.onnx").resolve()) in (tmp_path / "e.sh").read_text()
    assert {file.name for file in exported.files} == {"e.sh", "calibration.cache"}


@pytest.mark.parametrize("target", ["typed-onnx", "onnxruntime"])
def test_models_that_are_exported_have_the_plugin_again(target: str, swept: Path, tmp_path: Path) -> None:
    export_plan(swept / "run" / "plan.json", target, out=tmp_path / "e.onnx")
    operators, outputs = names(tmp_path / "e.onnx")
    assert operators[-2:] == ["EfficientNMS_TRT", "Mul"]
    assert "DequantizeLinear" in operators
    assert outputs == ["count", "pixels", "kept_scores", "classes"]
    again = load_model(tmp_path / "e.onnx")
    assert [info.name for info in again.outputs] == ["boxes", "scores"]


def test_our_engines_are_built_without_it_and_others_with_it(tmp_path: Path) -> None:
    model = load(detector(function=True), tmp_path)
    ours, theirs = file_for(model, tmp_path / "ours"), exported_file(model, tmp_path / "theirs")
    assert names(ours)[1] == ["boxes", "scores"]
    assert "EfficientNMS_TRT" not in names(ours)[0]
    assert names(theirs)[1] == ["count", "pixels", "kept_scores", "classes"]
    assert "relu/inside" in {node.name for node in onnx.load(theirs).graph.node}
    plain = load(detector(), tmp_path, "plain.onnx")
    assert exported_file(plain, tmp_path) == plain.path.resolve()


def custom(body: str, folder: Path) -> Model:
    weights = {"w": R.standard_normal((4, 4)).astype(np.float32)}
    return load(proto(body, weights, domains=', "my.ops" : 1'), folder)


def test_outputs_beside_it_stay_the_first_ones(tmp_path: Path) -> None:
    body = "(float[4] x) => (float[4] y, float[4] z) { h = Exp(x) y = my.ops.Frobnicate(h) z = Neg(h) }"
    model = custom(body, tmp_path)
    assert [info.name for info in model.outputs] == ["z", "h"]


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ("{ h = Exp(x) f = my.ops.Frobnicate(h) y = MatMul(f, w) }", "1 layer with weights from 'node_of_y' on depend"),
        ("{ y = my.ops.Frobnicate(x) }", "nothing is computed in front of it"),
    ],
)
def test_one_that_cannot_be_cut_off_is_refused_by_name(body: str, words: str, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"\(my\.ops::Frobnicate\) is no operator that ONNX Runtime knows") as caught:
        custom(f"(float[4] x) => (float[4] y) {body}", tmp_path)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_model_that_is_not_valid_is_refused_with_a_plugin_too(tmp_path: Path) -> None:
    broken = detector()
    broken.graph.node[0].input[0] = "nowhere"
    with pytest.raises(ModelError, match="cannot be read as a graph"):
        load(broken, tmp_path)
