"""What cannot be emulated is held at float32 by every export, and pins of bodies reach the nodes inside of them."""

from __future__ import annotations

import io
import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from models import Array, load, plan_for, proto

from precisionlab.backends.tensorrt.pins import pins_of
from precisionlab.cli.summary import print_summary
from precisionlab.errors import ModelError, PlanError
from precisionlab.export import Subject
from precisionlab.export.constraints import constraints_of
from precisionlab.export.modelopt import modelopt_json
from precisionlab.export.offers import names_in_file
from precisionlab.export.polygraphy import polygraphy_script
from precisionlab.export.trtexec import trtexec_command
from precisionlab.jobs.plan_source import run_beside
from precisionlab.jobs.sweep import sweep
from precisionlab.model import Model
from precisionlab.model.graph import Obstacle
from precisionlab.model.held import held_layers, held_text
from precisionlab.model.measurable import check_lowerable
from precisionlab.plan.assign import precision_of
from precisionlab.plan.file import read_plan
from precisionlab.precision import Precision

rng = np.random.default_rng(2)
W = rng.standard_normal((8, 8)).astype(np.float32)

# Operators of ONNX Runtime's own whose results have no declared type, in the main graph and in a branch; all else can
# be emulated. Integers, shapes and conversions have no arithmetic.
UNKNOWN = """(float[4,8] x, bool flag) => (float[4,8] y, int64[4] best) {
    [mm] h = MatMul(x, w) [gelu] e = com.microsoft.Gelu(h) [known] f = Cast<to = 1>(e)
    [iff] c = If (flag) <then_branch = t () => (float[4,8] p) {
            [quick] b = com.microsoft.QuickGelu(f) [known2] g = Cast<to = 1>(b) [exp] p = Exp(g) },
        else_branch = o () => (float[4,8] q) { [neg] q = Neg(f) }>
    [arg] best = ArgMax<axis = 1, keepdims = 0>(c) [last] y = Tanh(c) }"""
DOMAIN = ', "com.microsoft": 1'
BRANCHES = """(float[4,8] x, bool flag) => (float[4,8] y) {
    [mm] h = MatMul(x, w)
    [iff] c = If (flag) <then_branch = t () => (float[4,8] p) {
            [square] s = Mul(h, h) [shape] n = Shape(s) [same] r = Reshape(s, n)
            [inner] p = If (flag) <then_branch = t2 () => (float[4,8] p2) { [deep] p2 = Sqrt(r) },
                                   else_branch = o2 () => (float[4,8] q2) { [flat] q2 = Exp(r) }> },
        else_branch = o () => (float[4,8] q) { q = Neg(h) }>
    [last] y = Tanh(c) }"""


def _subject(model: Model, pinned: Iterable[str] = ()) -> Subject:
    return Subject(model, plan_for(model, Precision.FP16, pinned), None, {}, names_in_file(model), "10.16.1")


def _text(content: str | bytes) -> str:
    assert isinstance(content, str)
    return content


@pytest.fixture
def unknown(tmp_path: Path) -> Model:
    return load(proto(UNKNOWN, {"w": W}, domains=DOMAIN), tmp_path)


def test_only_what_computes_in_floats_is_held(unknown: Model) -> None:
    assert [layer.name for layer in held_layers(unknown)] == ["gelu", "iff"]
    assert unknown.layer["iff"].fixed == (
        "output type not known; declare it in the model's value_info ('quick' in then_branch of iff)"
    )
    assert held_text(unknown).startswith("2 layers could not be emulated (output type not known; declare")
    assert held_text(unknown).endswith("held at float32 in every export")
    plain = load(proto(BRANCHES, {"w": W}), Path(unknown.path).parent, "plain.onnx")
    assert held_layers(plain) == ()
    assert held_text(plain) == ""


def test_every_export_holds_it(unknown: Model) -> None:
    subject = _subject(unknown)
    assert {pin.layer: pin.precision for pin in pins_of(unknown, subject.plan)} == {
        "gelu": Precision.FP32, "iff": Precision.FP32
    }  # fmt: skip
    command = _text(trtexec_command(subject).content)
    words = {word.split("=")[0]: word.split("=", 1)[1].strip("'") for word in command.split() if "=" in word}
    for option in ("--layerPrecisions", "--layerOutputTypes"):
        held = [entry for entry in words[option].split(",") if "*" not in entry]
        assert held == ["gelu:fp32", "quick:fp32", "exp:fp32", "neg:fp32"], option
    script = _text(polygraphy_script(subject, "pins.py").content)
    assert "('gelu', ('gelu',), ('e',), 'FLOAT')" in script
    assert "('iff', ('iff',), ('c',), 'FLOAT')" in script
    excluded = json.loads(_text(modelopt_json(subject).content))["autocast"]["nodes_to_exclude"]
    assert excluded == [r"^gelu\Z", r"^iff\Z"]
    # A plan of float32 alone asks for nothing.
    whole = Subject(unknown, plan_for(unknown, Precision.FP32), None, {}, names_in_file(unknown), "10.16.1")
    assert pins_of(unknown, whole.plan) == ()


def test_a_plan_has_it_in_float32(unknown: Model) -> None:
    plan = plan_for(unknown, Precision.INT8, around=Precision.FP16)
    assert {layer.name for layer in unknown.layers if precision_of(layer, plan) is Precision.FP32} >= {"gelu", "iff"}
    assert precision_of(unknown.layer["last"], plan) is Precision.FP16


def test_the_verdict_says_so(unknown: Model, tmp_path: Path) -> None:
    for i in range(4):
        values: dict[str, Array] = {"x": rng.standard_normal((4, 8)).astype(np.float32), "flag": np.array(i % 2 == 0)}
        (tmp_path / "data").mkdir(exist_ok=True)
        np.savez(tmp_path / "data" / f"{i}.npz", **values)
    out = tmp_path / "out"
    result = sweep(unknown.path, tmp_path / "data", precisions="fp16", out=out, threads=1)
    stream = io.StringIO()
    print_summary(result, stream)
    said = " ".join(stream.getvalue().split())
    assert held_text(unknown) in said
    assert "2 layers could not be emulated" in (out / "summary.md").read_text()
    assert "2 layers could not be emulated" in (out / "report.html").read_text()
    content = json.loads((out / "plan.json").read_text())
    assert [held["layer"] for held in content["held"]] == ["gelu", "iff"]
    layers = {layer.name: layer.nodes for layer in unknown.layers}
    assert read_plan(out / "plan.json", unknown.sha256, layers).pins == ()
    assert run_beside(out / "plan.json")["layers"]["held"] == held_text(unknown)


# Pins of bodies


def test_a_pin_of_a_body_names_the_nodes_inside(tmp_path: Path) -> None:
    model = load(proto(BRANCHES, {"w": W}), tmp_path)
    found = constraints_of(_subject(model, ["iff"]))
    assert [(node.node, node.layer) for node in found.nodes] == [
        (name, "iff") for name in ("square", "same", "deep", "flat", "node_of_q")
    ]
    assert found.left_alone == {"shape": "its output 'n' is int64"}
    command = _text(trtexec_command(_subject(model, ["iff"])).content)
    assert "deep:fp32" in command
    assert "iff:fp32" not in command


def test_names_that_branches_share_cannot_be_told_to_trtexec(tmp_path: Path) -> None:
    model = proto(BRANCHES, {"w": W})
    (iff,) = (node for node in model.graph.node if node.name == "iff")
    iff.attribute[1].g.node[0].name = "square"
    loaded = load(model, tmp_path)
    with pytest.raises(PlanError, match=r"'square': several nodes .*polygraphy"):
        trtexec_command(_subject(loaded, ["iff"]))
    assert "('iff', ('iff',)" in _text(polygraphy_script(_subject(loaded, ["iff"]), "pins.py").content)
    # What is not held may be called as it likes.
    assert "last:fp32" in _text(trtexec_command(_subject(loaded, ["last"])).content)


def test_names_are_counted_in_bodies_too(tmp_path: Path) -> None:
    model = load(proto(BRANCHES, {"w": W}), tmp_path)
    file = onnx.load_model(model.path)
    assert len(file.graph.node) == 3
    assert names_in_file(model) == Counter(["mm", "iff", "square", "shape", "same", "inner", "deep", "flat", "last"])


QUANTISED = """(int8[2,2] x) => (float[2,2] y) {
    d = DequantizeLinear(x, scale) e = DequantizeLinear(k, scale) y = MatMul(d, e) }"""


@pytest.mark.parametrize(
    ("obstacle", "advice"),
    [
        (Obstacle.QUANTIZED, "sweep the model before it was quantised"),
        (Obstacle.OTHER_TYPE, "sweep the float32 model that it was made from"),
        (Obstacle.FUNCTION, "export it without functions"),
        (Obstacle.OTHER, "there is nothing to sweep"),
    ],
)
def test_the_advice_for_a_model_without_layers_goes_by_what_is_in_the_way(
    tmp_path: Path, obstacle: Obstacle, advice: str
) -> None:
    """By the kind of the reason, not its words: an operator may be called anything."""
    model = load(proto("(float[4] x) => (float[4] y) { y = Exp(x) }"), tmp_path)
    check_lowerable(model)
    layers = tuple(
        replace(layer, fixed="computes in int8 in model-local function", obstacle=obstacle) for layer in model.layers
    )
    with pytest.raises(ModelError, match=advice):
        check_lowerable(replace(model, layers=layers))


def test_a_layer_that_the_model_quantised_says_so(tmp_path: Path) -> None:
    weights = {"scale": np.float32(0.1), "k": np.ones((2, 2), np.int8)}
    model = load(proto(QUANTISED, weights), tmp_path)
    assert [layer.obstacle for layer in model.layers if "MatMul" in layer.op_types] == [Obstacle.QUANTIZED]
