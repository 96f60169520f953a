"""Repairs: the same bits in float32, and nothing that leaves half."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from models import examples
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from precisionlab.backends.session import Session
from precisionlab.calibration.coarse import CoarseHistogram
from precisionlab.calibration.histogram import histogram_of
from precisionlab.errors import PlanError
from precisionlab.model import Model, load_model
from precisionlab.model.inference import infer_tensors
from precisionlab.model.repair import Exactness, Repair
from precisionlab.precision import Precision
from precisionlab.rewrite.observe import shapes_beside
from precisionlab.rewrite.repairs import Sight, found_repairs, repaired_graph, repaired_model

FLOAT = TensorProto.FLOAT
HALF = Precision.FP16.number_format
Array = NDArray[np.float32]


def saved(
    folder: Path,
    nodes: list[onnx.NodeProto],
    shapes: Mapping[str, tuple[int, ...]],
    output: str,
    shape: tuple[int, ...],
    constants: Mapping[str, Array],
    opset: int = 17,
) -> Model:
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info(name, FLOAT, shape) for name, shape in shapes.items()],
        [helper.make_tensor_value_info(output, FLOAT, shape)],
        [numpy_helper.from_array(np.asarray(array), name) for name, array in constants.items()],
    )
    path = folder / "m.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8), path)
    return load_model(path)


def every_value(graph: ir.Model, inputs: Mapping[str, Array]) -> dict[str, Array]:
    """All float32 tensors that the graph computes."""
    shown = graph.clone()
    shown.graph.outputs.clear()
    for node in shown.graph:
        for value in node.outputs if node.op_type not in ("QuantizeLinear", "Greater") else ():
            value.type = ir.TensorType(ir.DataType.FLOAT)
            shown.graph.outputs.append(value)
    session = Session(shown, 1)
    try:
        return session.run(inputs)
    finally:
        session.close()


def outputs(graph: ir.Model, inputs: Mapping[str, Array]) -> list[Array]:
    session = Session(graph.clone(), 1)
    try:
        return list(session.run(inputs).values())
    finally:
        session.close()


def sight_of(model: Model, inputs: Mapping[str, Array]) -> Sight:
    """As a sweep sees the model on one sample: what leaves half is broken."""
    values = every_value(model.onnx, inputs)
    held = {name: CoarseHistogram.of(histogram_of(array)) for name, array in {**inputs, **values}.items()}
    broken = frozenset(
        layer.name
        for layer in model.layers
        if any(np.abs(values[name]).max() > HALF.largest for name in layer.outputs if name in values)
    )
    return Sight(model, held, broken, HALF)


def only(model: Model, inputs: Mapping[str, Array]) -> Repair:
    (repair,) = found_repairs(sight_of(model, inputs))
    return repair


def random(*shape: int, scale: float = 1.0, seed: int = 0) -> Array:
    return (np.random.default_rng(seed).standard_normal(shape) * scale).astype(np.float32)


NORMS: dict[str, tuple[list[onnx.NodeProto], dict[str, Array]]] = {
    "an RMSNorm by a reciprocal": (
        [
            helper.make_node("Pow", ["h", "two"], ["sq"], "sq"),
            helper.make_node("ReduceMean", ["sq"], ["ms"], "mean", axes=[-1]),
            helper.make_node("Add", ["ms", "eps"], ["me"], "add"),
            helper.make_node("Sqrt", ["me"], ["rt"], "sqrt"),
            helper.make_node("Reciprocal", ["rt"], ["ri"], "rec"),
            helper.make_node("Mul", ["h", "ri"], ["hn"], "norm"),
        ],
        {"two": np.float32(2), "eps": np.float32(1e-6)},
    ),
    "an RMSNorm by a quotient": (
        [
            helper.make_node("Mul", ["h", "h"], ["sq"], "sq"),
            helper.make_node("ReduceMean", ["sq"], ["ms"], "mean", axes=[-1]),
            helper.make_node("Add", ["eps", "ms"], ["me"], "add"),
            helper.make_node("Sqrt", ["me"], ["rt"], "sqrt"),
            helper.make_node("Div", ["h", "rt"], ["hn"], "norm"),
        ],
        {"eps": np.float32(1e-5)},
    ),
    "an L2 normalisation": (
        [
            helper.make_node("Mul", ["h", "h"], ["sq"], "sq"),
            helper.make_node("ReduceSum", ["sq", "axes"], ["ss"], "sum"),
            helper.make_node("Sqrt", ["ss"], ["rt"], "sqrt"),
            helper.make_node("Clip", ["rt", "least"], ["rc"], "clip"),
            helper.make_node("Div", ["h", "rc"], ["hn"], "norm"),
        ],
        {"axes": np.array([-1]), "least": np.float32(1e-12)},
    ),
    "a decomposed LayerNorm": (
        [
            helper.make_node("ReduceMean", ["h"], ["mu"], "mu", axes=[-1]),
            helper.make_node("Sub", ["h", "mu"], ["d"], "sub"),
            helper.make_node("Pow", ["d", "two"], ["sq"], "sq"),
            helper.make_node("ReduceMean", ["sq"], ["ms"], "mean", axes=[-1]),
            helper.make_node("Add", ["ms", "eps"], ["me"], "add"),
            helper.make_node("Sqrt", ["me"], ["rt"], "sqrt"),
            helper.make_node("Div", ["d", "rt"], ["hn"], "norm"),
        ],
        {"two": np.float32(2), "eps": np.float32(1e-5)},
    ),
}


def normalising(folder: Path, kind: str) -> Model:
    nodes, constants = NORMS[kind]
    weights = {"w": random(32, 32, scale=0.2), "w2": random(32, 8, scale=0.2, seed=1)}
    return saved(
        folder,
        [
            helper.make_node("MatMul", ["x", "w"], ["h"], "first"),
            *nodes,
            helper.make_node("MatMul", ["hn", "w2"], ["y"], "last"),
        ],
        {"x": (4, 32)},
        "y",
        (4, 8),
        {**weights, **constants},
    )


class TestSumOfSquares:
    @pytest.mark.parametrize("kind", NORMS)
    def test_is_the_same_bit_for_bit_and_stays_within_half(self, tmp_path: Path, kind: str) -> None:
        model, inputs = normalising(tmp_path, kind), {"x": random(4, 32, scale=2000, seed=2)}

        repair = only(model, inputs)
        repaired = repaired_graph(model.onnx, [repair])

        assert (repair.kind, repair.exactness, repair.nodes[0]) == ("scale_sum_of_squares", Exactness.BITWISE, "sq")
        assert np.array_equal(outputs(model.onnx, inputs)[0], outputs(repaired, inputs)[0])
        assert max(float(np.abs(v).max()) for v in every_value(model.onnx, inputs).values()) > HALF.largest
        assert max(float(np.abs(v).max()) for v in every_value(repaired, inputs).values()) < HALF.largest

    @settings(max_examples=examples(25))
    @given(st.sampled_from(sorted(NORMS)), st.integers(-20, 20), st.integers(0, 2**31))
    def test_at_any_scale_of_the_input_gives_the_same_bits(
        self, tmp_path_factory: pytest.TempPathFactory, kind: str, power: int, seed: int
    ) -> None:
        model = normalising(tmp_path_factory.mktemp("m"), kind)
        repair = only(model, {"x": random(4, 32, scale=2000)})
        inputs = {"x": random(4, 32, scale=2.0**power, seed=seed)}

        repaired = repaired_graph(model.onnx, [repair])

        assert np.array_equal(outputs(model.onnx, inputs)[0], outputs(repaired, inputs)[0])

    def test_types_and_shapes_are_inferred_where_it_makes_new_tensors(self, tmp_path: Path) -> None:
        model, inputs = normalising(tmp_path, "an L2 normalisation"), {"x": random(4, 32, scale=2000)}

        repaired = repaired_model(model, (only(model, inputs),))

        assert repaired.tensors.keys() - model.tensors.keys()
        assert repaired.declared == infer_tensors(repaired.onnx)
        assert shapes_beside(repaired, model) is None

    def test_is_taken_back_by_the_factor_behind_where_the_mean_fits(self, tmp_path: Path) -> None:
        nodes = [
            helper.make_node("MatMul", ["x", "w"], ["h"], "first"),
            helper.make_node("Mul", ["h", "h"], ["sq"], "sq"),
            helper.make_node("ReduceSum", ["sq", "axes"], ["ss"], "sum"),
            helper.make_node("Mul", ["ss", "inverse"], ["ms"], "factor"),
            helper.make_node("Sqrt", ["ms"], ["y"], "sqrt"),
        ]
        constants = {"w": random(64, 64), "axes": np.array([-1]), "inverse": np.float32(1 / 64)}
        model, inputs = saved(tmp_path, nodes, {"x": (4, 64)}, "y", (4, 1), constants), {"x": random(4, 64, scale=8)}

        repair = only(model, inputs)

        assert repair.nodes == ("sq", "factor")
        assert np.array_equal(outputs(model.onnx, inputs)[0], outputs(repaired_graph(model.onnx, [repair]), inputs)[0])

    def test_is_not_found_where_nothing_breaks(self, tmp_path: Path) -> None:
        model = normalising(tmp_path, "an L2 normalisation")

        assert found_repairs(sight_of(model, {"x": random(4, 32)})) == ()

    def test_is_not_found_where_the_squares_themselves_are_what_the_model_gives(self, tmp_path: Path) -> None:
        nodes = [helper.make_node("Mul", ["x", "x"], ["y"], "sq")]
        model = saved(tmp_path, nodes, {"x": (4, 32)}, "y", (4, 32), {})

        assert found_repairs(sight_of(model, {"x": random(4, 32, scale=2000)})) == ()


class TestScalePair:
    def model(self, folder: Path, *between: str) -> Model:
        nodes = [helper.make_node("MatMul", ["x", "w"], ["h0"], "first")]
        for number, kind in enumerate(between):
            nodes.append(helper.make_node(kind, [f"h{number}"], [f"h{number + 1}"], f"between{number}"))
        nodes.append(helper.make_node("MatMul", [f"h{len(between)}", "w2"], ["y"], "last"))
        constants = {"w": random(32, 32, scale=3e4), "w2": random(32, 8, scale=1e-4, seed=1)}
        return saved(folder, nodes, {"x": (4, 32)}, "y", (4, 8), constants)

    @pytest.mark.parametrize("between", [(), ("Relu",), ("LeakyRelu", "Identity"), ("Abs", "Neg")])
    def test_scales_the_first_down_and_the_next_up(self, tmp_path: Path, between: tuple[str, ...]) -> None:
        model, inputs = self.model(tmp_path, *between), {"x": random(4, 32, seed=3)}

        repair = only(model, inputs)
        repaired = repaired_graph(model.onnx, [repair])

        assert (repair.kind, repair.nodes) == ("scale_pair", ("first", "last"))
        assert len(list(repaired.graph)) == len(list(model.onnx.graph))
        assert np.array_equal(outputs(model.onnx, inputs)[0], outputs(repaired, inputs)[0])
        assert max(float(np.abs(v).max()) for v in every_value(repaired, inputs).values()) < HALF.largest

    def test_goes_through_no_activation_that_depends_on_the_scale(self, tmp_path: Path) -> None:
        model = self.model(tmp_path, "Sigmoid")

        assert found_repairs(sight_of(model, {"x": random(4, 32, seed=3)})) == ()

    def test_leaves_what_is_an_output_too(self, tmp_path: Path) -> None:
        model = self.model(tmp_path, "Relu")
        proto = onnx.load(model.path)
        proto.graph.output.append(helper.make_tensor_value_info("h1", FLOAT, (4, 32)))
        onnx.save(proto, model.path)
        two = load_model(model.path)

        assert found_repairs(sight_of(two, {"x": random(4, 32, seed=3)})) == ()


class TestReduceMean:
    @pytest.mark.parametrize(("length", "exactness"), [(64, Exactness.BITWISE), (48, Exactness.ROUNDING)])
    @pytest.mark.parametrize("opset", [17, 18])
    def test_stands_for_a_sum_and_a_factor(self, tmp_path: Path, length: int, exactness: Exactness, opset: int) -> None:
        nodes = [
            helper.make_node("MatMul", ["x", "w"], ["h"], "first"),
            helper.make_node("ReduceSum", ["h", "axes"], ["s"], "sum", keepdims=0),
            helper.make_node("Mul", ["s", "inverse"], ["m"], "factor"),
            helper.make_node("MatMul", ["m", "w2"], ["y"], "last"),
        ]
        constants = {
            "w": np.abs(random(16, 16, scale=300)),
            "w2": random(16, 4, seed=1),
            "axes": np.array([1]),
            "inverse": np.float32(1 / length),
        }
        model = saved(tmp_path, nodes, {"x": (2, length, 16)}, "y", (2, 4), constants, opset)
        inputs = {"x": np.abs(random(2, length, 16))}

        repair = only(model, inputs)
        was, now = outputs(model.onnx, inputs)[0], outputs(repaired_graph(model.onnx, [repair]), inputs)[0]

        assert (repair.kind, repair.exactness, repair.nodes) == ("reduce_mean", exactness, ("sum", "factor"))
        np.testing.assert_allclose(now, was, rtol=1e-5)
        if exactness is Exactness.BITWISE:
            assert np.array_equal(now, was)

    def test_is_not_found_where_the_factor_is_another(self, tmp_path: Path) -> None:
        nodes = [
            helper.make_node("ReduceSum", ["x", "axes"], ["s"], "sum"),
            helper.make_node("Mul", ["s", "third"], ["y"], "factor"),
        ]
        constants = {"axes": np.array([1]), "third": np.float32(1 / 3)}
        model = saved(tmp_path, nodes, {"x": (2, 64)}, "y", (2, 1), constants)

        assert found_repairs(sight_of(model, {"x": np.abs(random(2, 64, scale=1e4))})) == ()


class TestLogHypot:
    @pytest.mark.parametrize("opset", [17, 18])
    @pytest.mark.parametrize("keepdims", [0, 1])
    @pytest.mark.parametrize("power", [-30, -8, 0, 4])
    def test_gives_the_logarithm_of_a_sum_of_squares_of_any_size(
        self, tmp_path: Path, opset: int, keepdims: int, power: int
    ) -> None:
        nodes = [
            helper.make_node("Mul", ["x", "x"], ["sq"], "sq"),
            helper.make_node("ReduceSum", ["sq", "axes"], ["ss"], "sum", keepdims=keepdims),
            helper.make_node("Add", ["ss", "eps"], ["se"], "add"),
            helper.make_node("Log", ["se"], ["y"], "log"),
        ]
        constants = {"axes": np.array([-1]), "eps": np.float32(1e-10)}
        model = saved(tmp_path, nodes, {"x": (4, 32)}, "y", (4, 1)[: 1 + keepdims], constants, opset)
        repair = only(model, {"x": random(4, 32, scale=2000)})
        repaired = repaired_graph(model.onnx, [repair])
        inputs = {"x": random(4, 32, scale=1000 * 2.0**power, seed=1)}

        was, now = outputs(model.onnx, inputs)[0], outputs(repaired, inputs)[0]

        assert (repair.kind, repair.exactness, repair.nodes) == ("log_hypot", Exactness.ROUNDING, ("log",))
        assert was.shape == now.shape
        np.testing.assert_allclose(now, was, rtol=1e-5, atol=1e-5)
        assert max(float(np.abs(v).max()) for v in every_value(repaired, inputs).values()) < HALF.largest


class TestClampConstant:
    def model(self, folder: Path, end: str) -> Model:
        nodes = [
            helper.make_node("Mul", ["mask", "far"], ["m"], "mul"),
            helper.make_node("Add", ["x", "m"], ["s"], "add"),
            helper.make_node(end, ["s"], ["y"], "end"),
        ]
        return saved(folder, nodes, {"x": (4, 8), "mask": (4, 8)}, "y", (4, 8), {"far": np.float32(-3.4028235e38)})

    def test_masks_as_well_bit_for_bit(self, tmp_path: Path) -> None:
        model = self.model(tmp_path, "Softmax")
        inputs = {"x": random(4, 8), "mask": np.triu(np.ones((4, 8), np.float32), 4)}

        repair = only(model, inputs)
        repaired = repaired_graph(model.onnx, [repair])

        assert (repair.kind, repair.nodes) == ("clamp_constant", ("mul",))
        assert np.array_equal(outputs(model.onnx, inputs)[0], outputs(repaired, inputs)[0])
        assert max(float(np.abs(v).max()) for v in every_value(repaired, inputs).values()) < HALF.largest

    def test_is_not_found_in_front_of_anything_but_a_softmax(self, tmp_path: Path) -> None:
        inputs = {"x": random(4, 8), "mask": np.triu(np.ones((4, 8), np.float32), 4)}

        assert found_repairs(sight_of(self.model(tmp_path, "Tanh"), inputs)) == ()


class TestApplying:
    def test_refuses_a_repair_of_a_node_that_the_model_has_not(self, tmp_path: Path) -> None:
        model = normalising(tmp_path, "an L2 normalisation")
        strange = Repair("scale_sum_of_squares", Exactness.BITWISE, "l", ("nowhere",), (("x", -4),))

        with pytest.raises(PlanError, match="the model has no node 'nowhere'"):
            repaired_graph(model.onnx, [strange])

    def test_refuses_a_repair_of_a_node_of_another_kind(self, tmp_path: Path) -> None:
        model = normalising(tmp_path, "an L2 normalisation")
        strange = Repair("scale_sum_of_squares", Exactness.BITWISE, "l", ("sum",), (("x", -4),))

        with pytest.raises(PlanError, match=r"'sum'.*squares nothing"):
            repaired_graph(model.onnx, [strange])

    def test_refuses_a_kind_that_it_does_not_know(self, tmp_path: Path) -> None:
        model = normalising(tmp_path, "an L2 normalisation")

        with pytest.raises(PlanError, match="of no kind"):
            repaired_graph(model.onnx, [Repair("magic", Exactness.BITWISE, "l", ("sum",))])

    def test_leaves_the_model_as_it_was(self, tmp_path: Path) -> None:
        model, inputs = normalising(tmp_path, "an L2 normalisation"), {"x": random(4, 32, scale=2000)}
        before = [node.name for node in model.onnx.graph]

        repaired_graph(model.onnx, [only(model, inputs)])

        assert [node.name for node in model.onnx.graph] == before
