from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from models import compared, examples, load, plan_for, proto, sample
from numpy.typing import NDArray
from recurrent import FUNCTIONS, GATES, Case, Rounding, bf16, exact, fp16, run

from precisionlab.backends.base import SensitivityRequest
from precisionlab.backends.onnxruntime import OnnxRuntimeBackend
from precisionlab.backends.session import Session
from precisionlab.compare.judging import judging_of
from precisionlab.compare.sensitivity import merged
from precisionlab.data import Sample
from precisionlab.errors import ModelError
from precisionlab.model import Model
from precisionlab.plan.plan import PrecisionPlan
from precisionlab.precision import Precision
from precisionlab.rewrite.builder import GraphBuilder
from precisionlab.rewrite.recurrent import stepped
from precisionlab.rewrite.toggle import whole
from precisionlab.rewrite.typed import typed_model
from precisionlab.search.causes import causes

Array = NDArray[Any]
NAMES = [
    "Affine",
    "Elu",
    "HardSigmoid",
    "LeakyRelu",
    "Relu",
    "ScaledTanh",
    "Sigmoid",
    "Softplus",
    "Softsign",
    "Tanh",
    "ThresholdedRelu",
]
SMALL = st.floats(-1.5, 1.5, width=32)


@st.composite
def cases(draw: st.DrawFn, longest: int = 4, hidden: tuple[int, int] = (1, 4)) -> tuple[Case, int]:
    """A node with any of its attributes and inputs, and an opset."""
    op_type = draw(st.sampled_from(sorted(GATES)))
    direction = draw(st.sampled_from(["forward", "reverse", "bidirectional"]))
    ways = 2 if direction == "bidirectional" else 1
    size, width = draw(st.integers(*hidden)), draw(st.integers(1, 4))
    steps, batch = draw(st.integers(1, longest)), draw(st.integers(1, 3))
    opset = draw(st.sampled_from([7, 9, 11, 13, 14, 17, 22]))
    layout = draw(st.integers(0, 1)) if opset >= 14 else 0
    rng = np.random.default_rng(draw(st.integers(0, 2**31)))

    def some(*shape: int) -> Array:
        return (rng.standard_normal(shape) * 0.6).astype(np.float32)

    rows = GATES[op_type] * size
    inputs = {"X": some(steps, batch, width), "W": some(ways, rows, width), "R": some(ways, rows, size)}
    kinds = ["B", "sequence_lens", "initial_h"] + ["initial_c", "P"] * (op_type == "LSTM")
    made = {
        "B": some(ways, 2 * rows),
        "sequence_lens": rng.integers(0, steps + 1, batch).astype(np.int32),
        "initial_h": some(ways, batch, size),
        "initial_c": some(ways, batch, size),
        "P": some(ways, 3 * size),
    }
    inputs |= {kind: made[kind] for kind in kinds if draw(st.booleans())}
    if layout:
        inputs |= {k: inputs[k].swapaxes(0, 1).copy() for k in ("X", "initial_h", "initial_c") if k in inputs}
    functions: tuple[tuple[str, float, float], ...] = ()
    if draw(st.booleans()):
        count = FUNCTIONS[op_type] * ways
        functions = tuple((draw(st.sampled_from(NAMES)), draw(SMALL), draw(SMALL)) for _ in range(count))
    attributes = {}
    if op_type == "LSTM" and draw(st.booleans()):
        attributes["input_forget"] = 1
    if op_type == "GRU" and draw(st.booleans()):
        attributes["linear_before_reset"] = 1
    clip = draw(st.none() | st.sampled_from([0.25, 1.0, 5.0]))
    outputs = draw(st.lists(st.sampled_from(["Y", "Y_h", "Y_c"]), min_size=1, unique=True))
    if op_type != "LSTM" and outputs == ["Y_c"]:
        outputs = ["Y_h"]
    return Case(op_type, size, inputs, direction, layout, clip, functions, attributes, tuple(outputs)), opset


def reference(model: onnx.ModelProto, feeds: dict[str, Array]) -> dict[str, Array]:
    options = ort.SessionOptions()
    options.log_severity_level = 4
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, feeds), strict=True))


def unrounded(model: onnx.ModelProto, feeds: dict[str, Array], folder: Path) -> dict[str, Array]:
    """The node's steps with nothing rounded."""
    loaded = load(model, folder)
    builder = GraphBuilder(loaded.onnx)
    environment = {v: builder.input(v, str(v.name), v.dtype) for v in loaded.onnx.graph.inputs}
    for value in loaded.onnx.graph.initializers.values():
        builder.weight(value, environment)
    (node,) = loaded.onnx.graph
    inputs = [None if v is None else environment[v] for v in node.inputs]
    outputs = stepped(builder, node, inputs, Precision.FP32, "")
    shown = {str(old.name): new for old, new in zip(node.outputs, outputs, strict=True) if old.name}
    found = Session(builder.model(shown.values()), 1).run(feeds)
    return {name: found[str(value.name)] for name, value in shown.items()}


def variant(model: onnx.ModelProto, feeds: dict[str, Array], folder: Path, precision: Precision) -> dict[str, Array]:
    """The model in a precision, as a sweep emulates it."""
    loaded = load(model, folder)
    graph, names = whole(loaded, PrecisionPlan(loaded.sha256, precision), None)
    found = Session(graph, 1).run(feeds)
    return {name: found[own] for name, own in names.items()}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("recurrent")


@settings(max_examples=examples(60), deadline=None)
@given(cases(), st.booleans())
@pytest.mark.newest
def test_the_steps_are_the_operator_where_nothing_is_rounded(folder: Path, drawn: tuple[Case, int], fed: bool) -> None:
    case, opset = drawn
    names = tuple(case.inputs) if fed else ("X",)  # weights may be computed, too
    model = case.model(opset, names)
    feeds = {name: case.inputs[name] for name in names}
    found = unrounded(model, feeds, folder)
    truth = run(case, exact)
    for name, value in found.items():
        assert value.shape == truth[name].shape
        np.testing.assert_allclose(value, truth[name], rtol=2e-6, atol=2e-6)
    if not case.layout:  # ONNX Runtime has no other
        for name, value in reference(model, feeds).items():
            np.testing.assert_allclose(found[name], value, rtol=2e-6, atol=2e-6)


def sqnr(truth: Array, found: Array) -> float:
    """10·log10(Σ truth² / Σ (found − truth)²), in dB."""
    error = np.sum(np.square(found.astype(np.float64) - truth))
    return float(10 * np.log10(np.sum(np.square(truth)) / error)) if error else np.inf


@settings(max_examples=examples(40), deadline=None)
@given(cases(longest=16, hidden=(6, 12)), st.sampled_from([Precision.FP16, Precision.BF16]))
@pytest.mark.newest
def test_the_steps_round_as_an_independent_emulation_does(
    folder: Path, drawn: tuple[Case, int], precision: Precision
) -> None:
    case, opset = drawn
    if precision is Precision.BF16:
        opset = max(opset, 13)
    found = variant(case.model(opset), {"X": case.inputs["X"]}, folder, precision)
    truth, emulated = run(case, exact), run(case, fp16 if precision is Precision.FP16 else bf16)
    for name, value in found.items():
        if np.any(truth[name]):
            assert sqnr(truth[name], value) == pytest.approx(sqnr(truth[name], emulated[name]), abs=0.3)
        else:
            np.testing.assert_array_equal(value, 0)


def integrating(steps: int) -> Case:
    """An LSTM with its input and forget gates wide open: its cell adds up what it sees."""
    rng = np.random.default_rng(16)
    size, width = 16, 8
    bias = np.zeros((1, 8 * size), np.float32)
    bias[0, :size] = bias[0, 2 * size : 3 * size] = 20  # i and f of i, o, f, c
    inputs = {
        "X": np.abs(rng.standard_normal((steps, 1, width))).astype(np.float32),
        "W": (rng.standard_normal((1, 4 * size, width)) * 0.3).astype(np.float32),
        "R": np.zeros((1, 4 * size, size), np.float32),
        "B": bias,
    }
    return Case("LSTM", size, inputs)


def test_a_cell_that_grows_sticks_where_half_has_no_step_so_small(tmp_path: Path) -> None:
    case = integrating(2500)
    found = variant(case.model(17), {"X": case.inputs["X"]}, tmp_path, Precision.FP16)
    truth, emulated = run(case), run(case, fp16)
    # 2048 + 1 is halfway to 2050, and goes to the even one of both.
    assert np.abs(found["Y_c"]).max() == np.abs(emulated["Y_c"]).max() == 2048 < np.abs(truth["Y_c"]).max()
    assert sqnr(truth["Y_c"], found["Y_c"]) == pytest.approx(sqnr(truth["Y_c"], emulated["Y_c"]), abs=0.3)
    assert sqnr(truth["Y_c"], found["Y_c"]) < 30
    # Where it does not grow so far, half is good enough.
    short = integrating(100)
    close = variant(short.model(17), {"X": short.inputs["X"]}, tmp_path, Precision.FP16)
    assert sqnr(run(short)["Y_c"], close["Y_c"]) > 50


def test_a_long_bidirectional_gru(tmp_path: Path) -> None:
    rng = np.random.default_rng(16)
    size, width = 16, 8
    inputs = {
        "X": rng.standard_normal((64, 1, width)).astype(np.float32),
        "W": (rng.standard_normal((2, 3 * size, width)) * 0.3).astype(np.float32),
        "R": (rng.standard_normal((2, 3 * size, size)) * 0.3).astype(np.float32),
        "B": (rng.standard_normal((2, 6 * size)) * 0.3).astype(np.float32),
    }
    case = Case("GRU", size, inputs, "bidirectional", attributes={"linear_before_reset": 1})
    found = variant(case.model(17), {"X": inputs["X"]}, tmp_path, Precision.FP16)
    truth, emulated = run(case), run(case, fp16)
    for name in ("Y", "Y_h"):
        assert sqnr(truth[name], found[name]) == pytest.approx(sqnr(truth[name], emulated[name]), abs=0.3)


@pytest.mark.parametrize("opset", [7, 17])
@pytest.mark.parametrize("direction", ["forward", "bidirectional"])
@pytest.mark.parametrize("op_type", sorted(GATES))
def test_of_no_steps_the_states_are_the_initial_ones(tmp_path: Path, op_type: str, direction: str, opset: int) -> None:
    rng = np.random.default_rng(0)
    ways, rows = (2 if direction == "bidirectional" else 1), 3 * GATES[op_type]
    held = rng.standard_normal((2, ways, 2, 3)).astype(np.float16).astype(np.float32)
    inputs = {
        "X": rng.standard_normal((4, 2, 5)).astype(np.float32),
        "W": rng.standard_normal((ways, rows, 5)).astype(np.float32),
        "R": rng.standard_normal((ways, rows, 3)).astype(np.float32),
        "initial_h": held[0],
    }
    if op_type == "LSTM":
        inputs["initial_c"] = held[1]
    case = Case(op_type, 3, inputs, direction)
    found = variant(case.model(opset), {"X": inputs["X"][:0]}, tmp_path, Precision.FP16)
    plain = variant(case.model(opset), {"X": inputs["X"][:0]}, tmp_path, Precision.FP32) if opset >= 10 else found
    for values in (found, plain):
        assert values["Y"].shape == (0, ways, 2, 3)
        np.testing.assert_array_equal(values["Y_h"], held[0])
        if op_type == "LSTM":
            np.testing.assert_array_equal(values["Y_c"], held[1])
    # Where there are steps, the reference is ONNX Runtime's own, bit for bit.
    some = variant(case.model(opset), {"X": inputs["X"]}, tmp_path, Precision.FP32)
    for name, value in reference(case.model(opset), {"X": inputs["X"]}).items():
        np.testing.assert_array_equal(some[name], value)


def overflowing(opset: int, lengths: Sequence[int] | None = None) -> Case:
    """An LSTM whose cell doubles at each step without bound, and is multiplied with 0 where it is given out."""
    size = 2
    weights = np.zeros((1, 4 * size, 1), np.float32)
    weights[0, 3 * size :] = 1
    bias = np.zeros((1, 8 * size), np.float32)
    bias[0, :size], bias[0, size : 2 * size], bias[0, 2 * size : 3 * size] = 1, -1, 2
    inputs = {
        "X": np.full((40, 2, 1), 10, np.float32),
        "W": weights,
        "R": np.zeros((1, 4 * size, size), np.float32),
        "B": bias,
    }
    if lengths is not None:
        inputs["sequence_lens"] = np.array(lengths, np.int32)
    return Case("LSTM", size, inputs, functions=(("Relu", 0.0, 0.0), ("Affine", 1.0, 0.0), ("Affine", 1.0, 0.0)))


@pytest.mark.filterwarnings("ignore:invalid value encountered in multiply:RuntimeWarning")
@pytest.mark.parametrize("opset", [7, 9, 17])
def test_nan_and_inf_go_on_through_the_states(tmp_path: Path, opset: int) -> None:
    case = overflowing(opset)
    found = variant(case.model(opset), {"X": case.inputs["X"]}, tmp_path, Precision.FP16)
    emulated = run(case, fp16)  # 0 · Inf is NaN, which stays, as 0 · NaN is one in the next step's sums
    assert np.isfinite(run(case)["Y_c"]).all()
    assert np.isnan(found["Y"]).any()
    assert np.isnan(found["Y_c"]).all()
    np.testing.assert_array_equal(found["Y"], emulated["Y"])
    # A sample that ends before keeps what it has.
    case = overflowing(opset, [40, 5])
    found = variant(case.model(opset), {"X": case.inputs["X"]}, tmp_path, Precision.FP16)
    assert np.isnan(found["Y_c"][0, 0]).all()
    if opset >= 9:  # before there is nothing that chooses, and 0 · NaN is NaN
        np.testing.assert_array_equal(found["Y_c"][0, 1], run(case, fp16)["Y_c"][0, 1])


def test_the_reference_of_layout_1_is_that_of_layout_0(tmp_path: Path) -> None:
    case = integrating(20)
    lying = Case("LSTM", 16, {**case.inputs, "X": case.inputs["X"].swapaxes(0, 1)}, layout=1)
    expected = reference(case.model(17), {"X": case.inputs["X"]})
    found = variant(lying.model(17), {"X": lying.inputs["X"]}, tmp_path, Precision.FP32)
    np.testing.assert_array_equal(found["Y"], expected["Y"].transpose(2, 0, 1, 3))
    for name in ("Y_h", "Y_c"):
        np.testing.assert_array_equal(found[name], expected[name].swapaxes(0, 1))


BETWEEN = (
    "(float[L,1,10] x, float[1,1,8] h0, float[1,1,8] c0, int32[1] n) => (float[L,1,4] y, float[1,1,8] h1) {"
    '["lstm0"] y0, h1, c1 = LSTM <hidden_size = 8> (x, W, R, B, n, h0, c0) ["sq0"] s0 = Squeeze(y0, one) '
    '["lstm1"] y1 = LSTM <hidden_size = 8, direction = "reverse"> (s0, W2, R2, B2) ["sq1"] s1 = Squeeze(y1, one) '
    '["mm"] y = MatMul(s1, Wo) }'
)


def between(tmp_path: Path) -> tuple[Model, list[Sample], dict[str, Array]]:
    """Two LSTMs in a model, states as inputs, lengths of samples, and one in reverse."""
    rng = np.random.default_rng(73)
    shapes = {
        "W": (1, 32, 10),
        "R": (1, 32, 8),
        "B": (1, 64),
        "W2": (1, 32, 8),
        "R2": (1, 32, 8),
        "B2": (1, 64),
        "Wo": (8, 4),
    }
    weights = {name: (rng.standard_normal(shape) * 0.25).astype(np.float32) for name, shape in shapes.items()}
    model = load(proto(BETWEEN, {**weights, "one": np.array([1])}), tmp_path)
    samples = [
        Sample(
            str(i),
            {
                "x": rng.standard_normal((9, 1, 10)).astype(np.float32),
                "h0": np.zeros((1, 1, 8), np.float32),
                "c0": np.zeros((1, 1, 8), np.float32),
                "n": np.array([6 + i], np.int32),
            },
        )
        for i in range(4)
    ]
    return model, samples, weights


def test_what_a_sweep_says_of_recurrent_layers_is_what_the_steps_lose(tmp_path: Path) -> None:
    model, samples, weights = between(tmp_path)
    errors, powers = ({"y0": 0.0, "h1": 0.0, "y": 0.0} for _ in range(2))
    for given_ in samples:
        x, n = given_.inputs["x"], given_.inputs["n"]
        states = {"initial_h": given_.inputs["h0"], "initial_c": given_.inputs["c0"]}
        first = Case("LSTM", 8, {"X": x, **{k: weights[k] for k in "WRB"}, "sequence_lens": n, **states})

        def through(rounded: Rounding, first: Case = first) -> dict[str, Array]:
            own = run(first, rounded)
            second = Case("LSTM", 8, {"X": own["Y"][:, 0], **{k: weights[f"{k}2"] for k in "WRB"}}, "reverse")
            last = run(second, rounded)["Y"][:, 0]
            return {"y0": own["Y"], "h1": own["Y_h"], "y": rounded(last @ rounded(weights["Wo"].astype(np.float64)))}

        truth, emulated = through(exact), through(fp16)
        for name in errors:
            errors[name] += np.sum(np.square(emulated[name] - truth[name]))
            powers[name] += np.sum(np.square(truth[name]))
    found = compared(model, samples)
    for name in errors:
        assert found.inherited[name].sqnr == pytest.approx(10 * np.log10(powers[name] / errors[name]), abs=0.3)
    # The first layer has inherited nothing but its input's rounding, which it does itself.
    assert found.introduced["y0"] == found.inherited["y0"]
    assert found.introduced["y1"].sqnr > found.inherited["y1"].sqnr


def test_the_cause_is_told_where_a_state_drifts(tmp_path: Path) -> None:
    told = {}
    for steps in (2500, 100):
        case = integrating(steps)
        model = load(case.model(17), tmp_path)
        found = compared(model, [sample(X=case.inputs["X"])])
        told[steps] = causes(model, plan_for(model, Precision.FP16), found.inherited, found.introduced)
    truth, emulated = (run(integrating(2500), rounded)["Y_c"] for rounded in (exact, fp16))
    largest, off = np.abs(truth).max(), np.abs(truth - emulated).max()
    assert told[2500]["cell"].text.startswith("its state is rounded to fp16 at each step, and drifts: ")
    assert f"values up to {largest:.4g} are up to {off:.3g} off, where fp16 has steps of 2" in told[2500]["cell"].text
    assert told[100] == {}


@pytest.mark.parametrize("precision", [Precision.FP16, Precision.BF16])
def test_a_typed_model_keeps_layers_with_lengths_in_float32(tmp_path: Path, precision: Precision) -> None:
    model, _, _ = between(tmp_path)
    typed = typed_model(model, PrecisionPlan(model.sha256, precision), None)
    low = ir.DataType.FLOAT16 if precision is Precision.FP16 else ir.DataType.BFLOAT16
    taken = {node.name: node.inputs[1].dtype for node in typed.onnx.graph if node.op_type == "LSTM" and node.inputs[1]}
    assert taken == {"lstm0": ir.DataType.FLOAT, "lstm1": low}  # the second has no lengths
    assert [note for note in typed.notes if "lstm0" in note] == [
        f"layer lstm0 is left in fp32: TensorRT has no LSTM with sequence_lens in {precision}"
    ]


def test_the_sensitivity_to_a_recurrent_layer_is_that_of_comparing_the_plan_with_that_pin(tmp_path: Path) -> None:
    model, samples, _ = between(tmp_path)
    backend = OnnxRuntimeBackend(model, samples[0], threads=1)
    low, names = plan_for(model, Precision.FP16), tuple(layer.name for layer in model.layers)
    request = SensitivityRequest(low, plan_for(model, Precision.FP32), names, None, judging_of(backend.model))
    total = merged(list(backend.sensitivities(request, samples)))
    for name in ("lstm0", "lstm1"):
        errors = compared(model, samples, pinned=[name], introduced=False).outputs["y"].errors
        assert errors is not None
        assert total[name]["y"].errors.sqnr == pytest.approx(errors.sqnr, abs=0.01)


BAD = {
    "hidden_size": ({"hidden_size": 0}, "no hidden_size above 0"),
    "direction": ({"direction": "sideways"}, "'sideways'; ONNX knows forward, reverse, bidirectional"),
    "layout": ({"layout": 2}, "layout 2"),
    "clip": ({"clip": -1.0}, "clip -1"),
    "count": ({"activations": ["Tanh"]}, "names 1 activations, and 3 for each of 1 direction"),
    "name": ({"activations": ["Tanh", "Softmax", "Tanh"]}, "'Softmax'; ONNX knows Affine"),
    "W": ({"hidden_size": 15}, r"'W' for W, of shape \[1, 64, 8\]; with hidden_size 15 .* must be \[1, 60, any\]"),
    "directions": ({"direction": "bidirectional"}, r"must be \[2, 64, any\]"),
}


@pytest.mark.parametrize("what", BAD)
def test_a_node_that_says_what_onnx_does_not_define_is_refused(tmp_path: Path, what: str) -> None:
    attributes, told = BAD[what]
    model = integrating(3).model(17)
    assert load(model, tmp_path).layers  # as it is, it is read
    (node,) = model.graph.node
    for name, value in attributes.items():
        for old in [a for a in node.attribute if a.name == name]:
            node.attribute.remove(old)
        node.attribute.append(onnx.helper.make_attribute(name, value))
    with pytest.raises(ModelError, match=f"node 'cell' \\(LSTM\\) .*{told}"):
        load(model, tmp_path)
