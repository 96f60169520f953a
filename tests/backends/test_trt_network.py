"""From the ONNX file to a network with pins: what belongs to which layer, what is pinned, what is refused and how."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from enum import Enum
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
from bindings.versions import TensorRT, parameters
from models import DIGITS
from onnx import TensorProto, helper, numpy_helper
from rtx import drive, needs_rtx

from precisionlab.backends.tensorrt.api import Features
from precisionlab.backends.tensorrt.constraints import apply_pins, clear_pins, skip_reason
from precisionlab.backends.tensorrt.jobs import LayerPin
from precisionlab.backends.tensorrt.matching import PinMatch, match_pins
from precisionlab.backends.tensorrt.metadata import network_nodes
from precisionlab.backends.tensorrt.network import NetworkLayer, NetworkTensor, describe, parse
from precisionlab.backends.tensorrt.pins import enabled_of, pins_of
from precisionlab.errors import BuildError
from precisionlab.model import Model, load_model
from precisionlab.plan.plan import Pin, PrecisionPlan
from precisionlab.precision import Precision

FP32, FP16, BF16, INT8 = Precision.FP32, Precision.FP16, Precision.BF16, Precision.INT8
PREPARED = Path(__file__).parents[2] / "examples" / "prepared"
REAL = ["digits", "magika", "minilm_l3", "orient", "ppocr4_det", "ppocr4_rec"]


def tensor(name: str, dtype: str = "fp32", **more: bool) -> NetworkTensor:
    return NetworkTensor(name, dtype, **more)


def layers(*rows: tuple[Any, ...]) -> tuple[NetworkLayer, ...]:
    """Layers from (name, kind, metadata, inputs, outputs); tensors are float32 where they are only named."""

    def tensors(names: Sequence[str | NetworkTensor]) -> tuple[NetworkTensor, ...]:
        return tuple(tensor(name) if isinstance(name, str) else name for name in names)

    return tuple(
        NetworkLayer(index, name, kind, network_nodes(metadata), tensors(inputs), tensors(outputs))
        for index, (name, kind, metadata, inputs, outputs) in enumerate(rows)
    )


def of(node: str) -> str:
    return f"[ONNX Layer: {node}]"


def pin(node: str, *tensors: str, precision: Precision = FP32) -> LayerPin:
    return LayerPin(node, (node,), tensors, precision)


def names(match: PinMatch) -> list[str]:
    return [layer.name for layer in match.layers]


def matched(network: Sequence[NetworkLayer], *pins: LayerPin) -> list[list[str]]:
    return [names(match) for match in match_pins(pins, network)]


class TestMatching:
    def test_one_node_may_be_several_layers(self) -> None:
        network = layers(
            ("fc", "MATRIX_MULTIPLY", of("fc"), ["x"], ["fc_output"]),
            ("fc_1", "ELEMENTWISE", of("fc"), ["fc_output"], ["y"]),
            ("fc_2", "ACTIVATION", of("fc_2"), ["y"], ["z"]),
        )
        assert matched(network, pin("fc", "y")) == [["fc", "fc_1"]]

    def test_the_name_of_a_layer_may_be_that_of_another_node(self) -> None:
        network = layers(
            ("conv_1", "CONVOLUTION", of("conv"), ["x"], ["a"]),
            ("conv_1_3", "CONVOLUTION", of("conv_1"), ["a"], ["b"]),
        )
        assert matched(network, pin("conv_1", "gone")) == [["conv_1_3"]]

    def test_a_tensor_is_better_evidence_than_a_name(self) -> None:
        network = layers(
            ("r", "ACTIVATION", of("r"), ["x"], ["a"]),
            ("r_0", "ACTIVATION", of("r"), ["a"], ["r_0_output"]),
            ("r_1", "ELEMENTWISE", of("r"), ["a", "r_0_output"], ["b"]),
        )
        # Two nodes are called r; loaded, the second is r_1. It is two layers, and both are its own.
        assert matched(network, pin("r", "a"), pin("r_1", "b")) == [["r"], ["r_0", "r_1"]]

    def test_never_by_a_part_of_a_name(self) -> None:
        network = layers(
            ("layer.1/fc", "MATRIX_MULTIPLY", of("layer.1/fc"), ["x"], ["layer.1/fc_out"]),
            ("layer.10/fc", "MATRIX_MULTIPLY", of("layer.10/fc"), ["x"], ["layer.10/fc_out"]),
            ("fcs", "MATRIX_MULTIPLY", "", ["x"], ["q"]),
        )
        assert matched(network, pin("fc", "fc_out"), pin("layer.1/f")) == [[], []]

    def test_without_metadata_a_layer_is_known_by_its_name_and_the_parsers_suffix(self) -> None:
        network = layers(
            ("fc", "MATRIX_MULTIPLY", "", ["x"], ["p"]),
            ("fc_3", "ELEMENTWISE", "", ["p"], ["q"]),
            ("fc_out", "ELEMENTWISE", "", ["q"], ["r"]),
            ("fc_7", "ELEMENTWISE", "", ["r"], ["s"]),
        )
        # fc_7 is a node of its own.
        assert matched(network, pin("fc", "gone"), pin("fc_7", "lost")) == [["fc", "fc_3"], ["fc_7"]]

    def test_a_constant_is_not_known_by_its_name(self) -> None:
        network = layers(
            ("fc", "CONSTANT", "", [], ["fc_output"]),
            ("other", "ELEMENTWISE", of("other"), ["x", "fc_output"], ["y"]),
        )
        assert matched(network, pin("fc", "fc_output")) == [[]]

    def test_a_helper_that_gives_the_pins_tensor_belongs_to_it(self) -> None:
        network = layers(
            ("ONNXTRT_identity", "IDENTITY", "", ["x"], ["s"]),
            ("next", "SHUFFLE", of("next"), ["s"], ["t"]),
        )
        assert matched(network, pin("drop", "s"), pin("next", "t")) == [["ONNXTRT_identity"], ["next"]]

    def test_a_helper_in_between_belongs_to_the_only_node_that_takes_from_it(self) -> None:
        network = layers(
            ("eps", "CONSTANT", "", [], ["eps_output"]),
            ("ONNXTRT_Broadcast", "SHUFFLE", "", ["eps_output"], ["ONNXTRT_Broadcast_output"]),
            ("add", "ELEMENTWISE", of("add"), ["x", "ONNXTRT_Broadcast_output"], ["y"]),
            ("two", "CONSTANT", "", [], ["two_output"]),
            ("(Unnamed Layer* 4) [Shuffle]", "SHUFFLE", "", ["two_output"], ["(Unnamed Layer* 4) [Shuffle]_output"]),
            ("mul", "ELEMENTWISE", of("mul"), ["y", "(Unnamed Layer* 4) [Shuffle]_output"], ["z"]),
            ("pow", "ELEMENTWISE", of("pow"), ["z", "(Unnamed Layer* 4) [Shuffle]_output"], ["out"]),
        )
        assert matched(network, pin("add", "y"), pin("mul", "z")) == [["ONNXTRT_Broadcast", "add"], ["mul"]]
        both = LayerPin("mul", ("mul", "pow"), ("z", "out"), FP32)
        assert matched(network, both) == [["(Unnamed Layer* 4) [Shuffle]", "mul", "pow"]]

    def test_what_a_pin_takes_from_other_nodes_is_not_its_own(self) -> None:
        network = layers(
            ("ONNXTRT_identity", "IDENTITY", "", ["x"], ["s"]),  # gives a tensor of the model
            ("ONNXTRT_ShapeCast", "CAST", "", ["x"], [tensor("ONNXTRT_ShapeCast_output", "int64")]),
            ("size", "SHUFFLE", "", ["x"], [tensor("size_output", is_execution=False)]),
            ("a", "ACTIVATION", of("a"), ["s"], ["a_output"]),
            ("b", "ELEMENTWISE", of("b"), ["a_output", "ONNXTRT_ShapeCast_output", "size_output"], ["y"]),
        )
        assert matched(network, pin("b", "y")) == [["b"]]

    def test_the_layers_of_a_recurrence_have_neither_name_nor_metadata(self) -> None:
        def unnamed(number: int, inputs: list[str]) -> tuple[Any, ...]:
            name = f"(Unnamed Layer* {number}) [ElementWise]"
            return name, "ELEMENTWISE", "", inputs, [f"{name}_output"]

        def given(number: int) -> str:
            return f"(Unnamed Layer* {number}) [ElementWise]_output"

        network = layers(
            ("before", "ACTIVATION", of("before"), ["x"], ["b"]),
            ("lstm", "RECURRENCE", of("lstm"), ["h0", given(3)], ["lstm_output"]),
            unnamed(2, ["b", "lstm_output", given(3)]),
            unnamed(3, [given(2)]),
            ("out", "LOOP_OUTPUT", "", [given(3)], ["y"]),
            ("after", "ACTIVATION", of("after"), ["y"], ["z"]),
        )
        inside = [layer.name for layer in network[1:5]]
        assert matched(network, pin("lstm", "y"), pin("after", "z")) == [inside, ["after"]]
        assert matched(network, pin("after", "z")) == [["after"]]

    def test_a_node_of_a_subgraph_is_not_that_of_the_main_graph_with_the_same_name(self) -> None:
        network = layers(
            ("add", "ELEMENTWISE", "[ONNX Layer: add | tb (then_branch) | iff (If)]", ["x"], ["t"]),
            ("iff_OutputLayer", "CONDITIONAL_OUTPUT", of("iff"), ["t"], ["z"]),
            ("add_0", "ELEMENTWISE", of("add"), ["z"], ["t_0"]),
        )
        # The tensor t of the main graph is t_0 here, as a subgraph has one that is called so, too.
        assert matched(network, pin("add", "t")) == [["add_0"]]
        assert matched(network, pin("iff", "z")) == [["add", "iff_OutputLayer"]]

    def test_a_pin_that_no_layer_belongs_to_has_a_reason(self) -> None:
        network = layers(
            ("k", "CONSTANT", "", [], ["k_output"]),
            ("add", "ELEMENTWISE", of("add"), ["x", "k_output"], ["y"]),
        )
        folded, gone, source, twice = match_pins(
            [pin("kk", "k"), pin("drop", "lost"), pin("in", "x"), pin("add", "y")], network
        )
        assert "constant" in str(folded.unmatched)
        assert "'k'" in str(folded.unmatched)
        assert "'lost'" in str(gone.unmatched)
        assert "'drop'" in str(gone.unmatched)
        assert "input of the network" in str(source.unmatched)
        assert twice.unmatched is None

    def test_no_layer_belongs_to_two_pins(self) -> None:
        network = layers(("a", "ACTIVATION", of("a"), ["x"], ["b"]))
        first, second = match_pins([pin("b", "b"), pin("a", "gone")], network)
        assert (names(first), names(second)) == (["a"], [])
        assert "another node" in str(second.unmatched)


class TestSkipRules:
    def layer(self, kind: str, *outputs: NetworkTensor) -> NetworkLayer:
        return NetworkLayer(0, "layer", kind, ("layer",), (), outputs)

    @pytest.mark.parametrize("dtype", ["fp32", "fp16", "bf16", "int8"])
    def test_a_layer_with_such_an_output_is_pinned(self, dtype: str) -> None:
        assert skip_reason(self.layer("ELEMENTWISE", tensor("y", dtype))) is None

    @pytest.mark.parametrize(
        "kind", ["CONSTANT", "SHAPE", "CAST", "QUANTIZE", "DEQUANTIZE", "LOOP_OUTPUT", "CONDITIONAL_INPUT"]
    )
    def test_a_layer_of_these_kinds_is_left_alone(self, kind: str) -> None:
        assert skip_reason(self.layer(kind, tensor("y")))

    def test_a_second_output_of_another_type_is_enough(self) -> None:
        assert "'i' is int32" in str(skip_reason(self.layer("TOPK", tensor("v"), tensor("i", "int32"))))

    def test_what_is_computed_on_the_host_is_left_alone(self) -> None:
        assert "shape" in str(skip_reason(self.layer("GATHER", tensor("y", is_execution=False))))

    def test_a_layer_that_gives_nothing_is_left_alone(self) -> None:
        assert skip_reason(self.layer("PLUGIN_V2"))


class DataType(Enum):
    FLOAT = "FLOAT"
    HALF = "HALF"
    BF16 = "BF16"
    INT8 = "INT8"
    INT32 = "INT32"


class FakeLayer:
    """An ILayer, as far as pins go: what was set, and nothing else."""

    def __init__(self, kind: str, outputs: Sequence[Any]) -> None:
        self.name = self.metadata = ""
        self.type = SimpleNamespace(name=kind)
        self._outputs = outputs
        self.num_inputs, self.num_outputs = 1, len(outputs)
        self.precision: DataType | None = None
        self.types: dict[int, DataType] = {}

    def get_input(self, index: int) -> None:
        assert index == 0  # an optional input that is not there

    def get_output(self, index: int) -> Any:
        return self._outputs[index]

    def set_output_type(self, index: int, dtype: DataType) -> None:
        self.types[index] = dtype

    def reset_precision(self) -> None:
        self.precision = None

    def reset_output_type(self, index: int) -> None:
        self.types.pop(index, None)


class FakeNetwork:
    """An INetworkDefinition of such layers."""

    def __init__(self, **kinds: Sequence[Any]) -> None:
        self.layers = {name: FakeLayer(kind, outputs) for name, (kind, *outputs) in kinds.items()}
        for name, layer in self.layers.items():
            layer.name, layer.metadata = name, of(name)
        self.num_layers = len(self.layers)

    def get_layer(self, index: int) -> FakeLayer:
        return list(self.layers.values())[index]


def output(name: str, dtype: DataType = DataType.FLOAT, final: bool = False) -> Any:
    return SimpleNamespace(name=name, dtype=dtype, is_execution_tensor=True, is_network_output=final)


TRT: Any = SimpleNamespace(DataType=DataType)


class TestPinning:
    def apply(self, network: FakeNetwork, *pins: LayerPin) -> Any:
        return apply_pins(TRT, network, match_pins(pins, describe(network)))

    def test_the_precision_and_the_type_of_all_outputs_are_set(self) -> None:
        network = FakeNetwork(
            conv=("CONVOLUTION", output("a")), split=("SLICE", output("b"), output("c")), last=("UNARY", output("d"))
        )
        outcomes = self.apply(network, pin("split", "b", "c"), pin("last", "d", precision=BF16))
        assert network.layers["conv"].precision is None
        assert network.layers["split"].precision is DataType.FLOAT
        assert network.layers["split"].types == {0: DataType.FLOAT, 1: DataType.FLOAT}
        assert network.layers["last"].types == {0: DataType.BF16}
        assert [outcome.network_layers for outcome in outcomes] == [("split",), ("last",)]
        assert outcomes[0].skipped == {}
        assert outcomes[0].unmatched is None

    def test_a_layer_that_must_be_left_alone_is_told_with_the_reason(self) -> None:
        network = FakeNetwork(topk=("TOPK", output("v"), output("i", DataType.INT32)))
        (outcome,) = self.apply(network, pin("topk", "v"))
        assert network.layers["topk"].precision is None
        assert network.layers["topk"].types == {}
        assert outcome.network_layers == ()
        assert outcome.skipped == {"topk": "its output 'i' is int32"}
        assert outcome.unmatched is None

    def test_an_output_of_the_network_keeps_its_type(self) -> None:
        network = FakeNetwork(
            full=("UNARY", output("y", final=True)), half=("UNARY", output("z", DataType.HALF, final=True))
        )
        self.apply(network, pin("full", "y"), pin("half", "z"))
        assert network.layers["full"].types == {0: DataType.FLOAT}
        assert network.layers["half"].precision is DataType.FLOAT
        assert network.layers["half"].types == {}

    def test_int8_is_for_what_has_int8_arithmetic(self) -> None:
        network = FakeNetwork(conv=("CONVOLUTION", output("a")), relu=("ACTIVATION", output("b")))
        (outcome,) = self.apply(network, LayerPin("conv", ("conv", "relu"), ("a", "b"), INT8))
        assert network.layers["conv"].precision is DataType.INT8
        assert network.layers["conv"].types == {}
        assert network.layers["relu"].precision is None
        assert outcome.network_layers == ("conv",)
        assert list(outcome.skipped) == ["relu"]

    def test_what_is_not_found_is_told(self) -> None:
        (outcome,) = self.apply(FakeNetwork(conv=("CONVOLUTION", output("a"))), pin("gone", "g"))
        assert (outcome.layer, outcome.network_layers) == ("gone", ())
        assert outcome.unmatched is not None

    def test_cleared_pins_leave_nothing(self) -> None:
        network = FakeNetwork(conv=("CONVOLUTION", output("a")), split=("SLICE", output("b"), output("c")))
        self.apply(network, pin("conv", "a"), pin("split", "b", "c", precision=FP16))
        clear_pins(network)
        assert all(layer.precision is None and layer.types == {} for layer in network.layers.values())


class TestPlans:
    AROUND = dict.fromkeys(["exp", "log", "flatten", "back"], FP32)
    """The layers of `small_model` that int8 does not touch."""

    def plan(self, model: Model, default: Precision, around: Precision = FP32, **pins: Precision) -> PrecisionPlan:
        made = [Pin(n, model.layer[n].nodes, p, "") for n, p in pins.items()]
        return PrecisionPlan(model.sha256, default, tuple(made), around)

    @pytest.fixture
    def model(self, tmp_path: Path) -> Model:
        """Layers conv (with its relu), exp, log, shape, flatten, gemm and back."""
        return load_model(saved(tmp_path, "model", small_model()))

    def test_a_pin_has_all_float_tensors_of_its_nodes(self, model: Model) -> None:
        (found,) = pins_of(model, self.plan(model, FP16, conv=FP32))
        assert found == LayerPin("conv", ("conv", "relu"), ("c", "r"), FP32)

    @pytest.mark.parametrize("default", [FP16, BF16, INT8, FP32])
    def test_a_plan_without_pins_needs_none(self, model: Model, default: Precision) -> None:
        plan = self.plan(model, default)
        assert pins_of(model, plan) == ()
        assert enabled_of(plan) == {default} - {FP32}

    def test_fp16_may_stand_around_int8_without_pins(self, model: Model) -> None:
        plan = self.plan(model, INT8, around=FP16, gemm=FP32)
        assert enabled_of(plan) == {INT8, FP16}
        assert [p.layer for p in pins_of(model, plan)] == ["gemm"]

    def test_what_is_around_int8_is_held_where_a_pin_brings_in_fp16(self, model: Model) -> None:
        plan = self.plan(model, INT8, gemm=FP16)
        assert enabled_of(plan) == {INT8, FP16}
        assert {p.layer: p.precision for p in pins_of(model, plan)} == {**self.AROUND, "gemm": FP16}

    def test_all_others_are_held_where_one_layer_alone_is_low(self, model: Model) -> None:
        plan = self.plan(model, FP32, exp=FP16)
        assert enabled_of(plan) == {FP16}
        held = {p.layer: p.precision for p in pins_of(model, plan)}
        assert held == {**self.AROUND, "conv": FP32, "exp": FP16, "gemm": FP32}

    def test_two_half_precisions_are_kept_apart(self, model: Model) -> None:
        plan = self.plan(model, FP16, exp=BF16)
        assert enabled_of(plan) == {FP16, BF16}
        held = {p.layer: p.precision for p in pins_of(model, plan)}
        assert held == {**dict.fromkeys(self.AROUND, FP16), "conv": FP16, "exp": BF16, "gemm": FP16}

    def test_one_int8_layer_leaves_no_other_to_int8(self, model: Model) -> None:
        plan = self.plan(model, FP16, gemm=INT8)
        assert enabled_of(plan) == {FP16, INT8}
        assert {p.layer: p.precision for p in pins_of(model, plan)} == {"conv": FP16, "gemm": INT8}

    def test_around_does_not_matter_without_int8(self, model: Model) -> None:
        assert enabled_of(self.plan(model, FP32, around=FP16)) == frozenset()


def value(name: str, *shape: int, dtype: int = TensorProto.FLOAT) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, dtype, shape)


def graph_model(
    nodes: Sequence[onnx.NodeProto],
    *shape: int,
    weights: dict[str, Any] | None = None,
    opset: int = 17,
    **domains: int,
) -> onnx.ModelProto:
    """A model from `x` to `y`, both float32 of this shape."""
    initializers = [numpy_helper.from_array(np.asarray(array), name) for name, array in (weights or {}).items()]
    graph = helper.make_graph(nodes, "g", [value("x", *shape)], [value("y", *shape)], initializers)
    opsets = [helper.make_opsetid("", opset), *(helper.make_opsetid(d, v) for d, v in domains.items())]
    return helper.make_model(graph, opset_imports=opsets, ir_version=8)


def small_model() -> onnx.ModelProto:
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"], name="conv"),
        helper.make_node("Relu", ["c"], ["r"], name="relu"),
        helper.make_node("Exp", ["r"], ["e"], name="exp"),
        helper.make_node("Log", ["e"], ["l"], name="log"),
        helper.make_node("Shape", ["x"], ["s"], name="shape"),
        helper.make_node("Reshape", ["l", "flat"], ["f"], name="flatten"),
        helper.make_node("Gemm", ["f", "g"], ["m"], name="gemm"),
        helper.make_node("Reshape", ["m", "s"], ["y"], name="back"),
    ]
    weights = {
        "w": np.ones((3, 3, 1, 1), np.float32),
        "g": np.ones((48, 48), np.float32),
        "flat": np.array([1, 48], np.int64),
    }
    return graph_model(nodes, 1, 3, 4, 4, weights=weights)


def saved(folder: Path, name: str, model: onnx.ModelProto) -> Path:
    onnx.save_model(model, folder / f"{name}.onnx")
    return folder / f"{name}.onnx"


def parsed(*paths: Path) -> list[Any]:
    """For each model the layers of the network that TensorRT-RTX makes of it, or the error's text."""
    answers = drive("parse_models", *paths)
    return [answer.get("error") or tuple(map(network_layer, answer["layers"])) for answer in answers]


def network_layer(data: dict[str, Any]) -> NetworkLayer:
    tensors = {key: tuple(NetworkTensor(**entry) for entry in data[key]) for key in ("inputs", "outputs")}
    return NetworkLayer(data["index"], data["name"], data["kind"], tuple(data["nodes"]), **tensors)


def real_models() -> dict[str, Path]:
    """The bundled model, and those that `python -m examples.prepare` has made."""
    paths = {"digits": DIGITS / "digits.onnx", **{name: PREPARED / name / f"{name}.onnx" for name in REAL[1:]}}
    return {name: path for name, path in paths.items() if path.is_file()}


@pytest.fixture(scope="module")
def networks() -> dict[str, tuple[NetworkLayer, ...]]:
    paths = real_models()
    return dict(zip(paths, parsed(*paths.values()), strict=True))


@needs_rtx
class TestRealNetworks:
    @pytest.mark.parametrize("name", REAL)
    def test_each_layer_with_a_float_output_is_found_or_has_a_reason(
        self, name: str, networks: dict[str, tuple[NetworkLayer, ...]]
    ) -> None:
        if name not in networks:
            pytest.skip(f"{name} is not prepared: python -m examples.prepare {name}")
        network = networks[name]
        model = load_model(real_models()[name])
        plan = PrecisionPlan(model.sha256, FP16, tuple(Pin(x.name, x.nodes, FP32, "") for x in model.layers))
        pins = pins_of(model, plan)
        matches = match_pins(pins, network)
        assert len(pins) >= {"digits": 17, "magika": 79, "minilm_l3": 94, "orient": 41}.get(name, 50)
        assert [match.pin.layer for match in matches if match.unmatched is not None] == []
        assert all(match.layers for match in matches)
        # No layer is given away twice, and a layer that says of which node it is goes to that node, or to the one
        # whose result it hands on.
        owned = [layer for match in matches for layer in match.layers]
        assert len(owned) == len({layer.index for layer in owned})
        for match in matches:
            behind = {idle.name for tensor in match.pin.tensors for idle in model.idle_behind.get(tensor, ())}
            assert {layer.node for layer in match.layers} <= {*match.pin.nodes, *behind, None}
        # Each layer that the plan can give a precision to is pinned by at least one layer of the network.
        free = [match for match in matches if model.layer[match.pin.layer].fixed is None]
        assert all(any(skip_reason(layer) is None for layer in match.layers) for match in free)
        # With all layers pinned, nothing that computes floats is left, the parser's helpers included.
        left = [layer.name for layer in network if layer not in set(owned) and skip_reason(layer) is None]
        assert left == []

    def test_the_helper_that_hands_on_an_epsilon_is_pinned_with_the_sum(
        self, networks: dict[str, tuple[NetworkLayer, ...]]
    ) -> None:
        found = matched(networks["digits"], pin("/norm/add_eps", "/norm/add_eps_out"))
        assert found == [["ONNXTRT_Broadcast_1", "/norm/add_eps"]]


@needs_rtx
class TestSmallNetworks:
    def test_the_real_parsers_names_are_those_of_the_facts(self, tmp_path: Path) -> None:
        make = helper.make_node
        names_model = graph_model(
            [
                make("Relu", ["x"], ["a"]),
                make("Relu", ["a"], ["b"], name="r"),
                make("HardSwish", ["b"], ["c"], name="r"),
                make("Dropout", ["c"], ["d"], name="drop"),
                make("Sigmoid", ["d"], ["y"], name="s"),
            ],
            2,
            3,
        )
        then = helper.make_graph([make("Relu", ["x"], ["t"], name="n")], "tb", [], [value("t", 2, 3)])
        other = helper.make_graph([make("Neg", ["x"], ["u"], name="m")], "eb", [], [value("u", 2, 3)])
        branch_model = graph_model(
            [make("If", ["c"], ["z"], name="iff", then_branch=then, else_branch=other), make("Exp", ["z"], ["y"], "n")],
            2,
            3,
        )
        branch_model.graph.input.append(helper.make_tensor_value_info("c", TensorProto.BOOL, []))
        lstm = [
            make("LSTM", ["x", "W", "R"], ["h"], name="lstm", hidden_size=3),
            make("Squeeze", ["h", "one"], ["q"], name="sq"),
            make("Exp", ["q"], ["y"], name="exp"),
        ]
        weights = {"W": np.ones((1, 12, 3), np.float32), "R": np.ones((1, 12, 3), np.float32)}
        lstm_model = graph_model(lstm, 2, 1, 3, weights={**weights, "one": np.array([1], np.int64)})
        named, branches, loop = parsed(
            saved(tmp_path, "names", names_model),
            saved(tmp_path, "if", branch_model),
            saved(tmp_path, "lstm", lstm_model),
        )

        model = load_model(tmp_path / "names.onnx")
        pins = [LayerPin(x.name, x.nodes, x.outputs, FP32) for x in model.layers]
        assert [p.layer for p in pins] == ["node_of_a", "r", "r_1", "s"]
        found = matched(named, *pins)
        assert [len(own) for own in found] == [1, 1, 2, 1]
        assert (found[0], found[3]) == (["node_of_a"], ["s"])

        (inner,) = (layer for layer in branches if layer.name == "n")
        assert inner.nodes == ("n", "iff")
        (outer,) = match_pins([pin("n", "y")], branches)
        assert [layer.kind for layer in outer.layers] == ["UNARY"]
        assert outer.layers[0].nodes == ("n",)

        (recurrent,) = match_pins([pin("lstm", "h")], loop)
        assert [layer.kind for layer in recurrent.layers].count("MATRIX_MULTIPLY") == 2
        assert matched(loop, pin("exp", "y")) == [["exp"]]

    def test_what_the_parser_refuses_is_told_with_node_and_operator(self, tmp_path: Path) -> None:
        make = helper.make_node
        foo = [make("Foo", ["x"], ["a"], "foo", domain="cust"), make("Foo", ["a"], ["y"], domain="cust")]
        quantized = [
            make("DynamicQuantizeLinear", ["x"], ["q", "s", "z"], "dynamic"),
            make("DequantizeLinear", ["q", "s", "z"], ["y"], "back"),
        ]
        mixed = [make("Cast", ["x"], ["h"], "c", to=TensorProto.FLOAT16), make("Add", ["x", "h"], ["y"], "addmix")]
        half = saved(tmp_path, "mixed", graph_model(mixed, 2, 3))
        data = graph_model([make("Add", ["x", "w"], ["y"], "add")], 2, 3, weights={"w": np.ones((2, 3), np.float32)})
        onnx.save(data, tmp_path / "data.onnx", save_as_external_data=True, location="data.bin", size_threshold=0)
        (tmp_path / "data.bin").unlink()
        (tmp_path / "empty.onnx").touch()
        (tmp_path / "text.onnx").write_text("hello world\n")
        unknown, dynamic, sums, missing, empty, text, nothing = parsed(
            saved(tmp_path, "unknown", graph_model(foo, 2, 3, cust=1)),
            saved(tmp_path, "dynamic", graph_model(quantized, 2, 3)),
            half,
            *(tmp_path / f"{name}.onnx" for name in ("data", "empty", "text", "nothing")),
        )
        assert "unknown.onnx: TensorRT's parser refuses the model: node 'foo' (Foo) is no operator" in unknown
        assert "; a Foo node is no operator" in unknown
        assert "node 'dynamic' (DynamicQuantizeLinear) is not supported" in dynamic
        assert "node 'addmix' (Add)" in sums
        assert "must have same input types" in sums
        assert "elementWiseNode.cpp" not in sums
        assert f"the initializer w cannot be imported; its data cannot be read from {tmp_path / 'data.bin'}" in missing
        assert "not an ONNX model" in empty
        assert "not an ONNX model" in text
        assert "cannot be read: No such file" in nothing


class OldParser:
    """The parser of 8.6 with two errors: they tell the node's place in the file, and not its name."""

    def __init__(self, network: Any, logger: Any) -> None:
        self.num_errors = 2

    def parse_from_file(self, path: str) -> bool:
        return False

    def get_error(self, index: int) -> Any:
        return SimpleNamespace(
            desc=lambda: ["false", "Failed to parse"][index],
            node=lambda: [1, -1][index],
        )


class OldBuilder:
    """The builder of 8.6."""

    def create_network(self, flags: int) -> Any:
        self.flags = flags
        return SimpleNamespace(num_layers=0, num_outputs=0)


class TestOlderTensorRT:
    FEATURES = Features(
        "8.6.1", pins=True, calibrators=True, precisions=frozenset({FP16}), debug_tensors=False, implicit_batch=True
    )

    def module(self, parser: Any) -> Any:
        # The number is not that of any TensorRT: it must be looked up.
        return SimpleNamespace(
            NetworkDefinitionCreationFlag=SimpleNamespace(EXPLICIT_BATCH=5),
            DataType=SimpleNamespace(FLOAT=0),
            OnnxParser=parser,
        )

    def test_an_error_without_a_name_is_told_with_the_files_node_and_its_opset(self, tmp_path: Path) -> None:
        nodes = [helper.make_node("Relu", ["x"], ["a"], "r"), helper.make_node("Mish", ["a"], ["y"])]
        path = saved(tmp_path, "new", graph_model(nodes, 2, 3, opset=18))
        builder = OldBuilder()
        with pytest.raises(BuildError) as raised:
            parse(self.module(OldParser), None, builder, path, self.FEATURES)
        assert builder.flags == 1 << 5
        assert "node 'node_of_y' (Mish) is not supported by this TensorRT" in str(raised.value)
        assert "; Failed to parse; " in str(raised.value)
        assert "has opset 18, this TensorRT's parser knows operators up to opset 17" in str(raised.value)

    def test_a_network_without_layers_or_outputs_is_refused(self, tmp_path: Path) -> None:
        class Silent(OldParser):
            def parse_from_file(self, path: str) -> bool:
                return True

        path = saved(tmp_path, "small", small_model())
        with pytest.raises(BuildError, match="a network with no layers"):
            parse(self.module(Silent), None, OldBuilder(), path, replace(self.FEATURES, implicit_batch=False))


def test_a_strongly_typed_network_is_asked_for_by_the_flag_that_the_version_has(tmp_path: Path) -> None:
    # Bit 1 in 10.x, bit 0 in 11: it must be looked up.
    path = saved(tmp_path, "small", small_model())
    old = TestOlderTensorRT()
    module = old.module(OldParser)
    module.NetworkDefinitionCreationFlag.STRONGLY_TYPED = 3
    features = replace(old.FEATURES, implicit_batch=False, strongly_typed=True)
    for typed, flags in ((True, 1 << 3), (False, 0)):
        builder = OldBuilder()
        with pytest.raises(BuildError, match="parser refuses the model"):
            parse(module, None, builder, path, features, typed=typed)
        assert builder.flags == flags


@pytest.mark.parametrize("version", parameters(lambda tested: not tested.is_rtx))
def test_the_real_parsers_errors_have_what_we_ask_them_for(version: TensorRT) -> None:
    script = (
        f"import json, {version.module} as trt;"
        "print(json.dumps([dir(trt.ParserError), dir(trt.DataType), dir(trt.NetworkDefinitionCreationFlag)]))"
    )
    errors, types, flags = map(set, json.loads(version.run("-c", script)))
    assert {"desc", "node"} <= errors
    more = {"node_name", "node_operator", "local_function_stack", "local_function_stack_size"}
    # The one version that tells less is the one that needs to be told that the batch is explicit, and has no int64.
    assert (more & errors) == (set() if version.is_old else more)
    assert ("INT64" in types) == (not version.is_old)
    assert not version.is_old or "EXPLICIT_BATCH" in flags
    assert {"FLOAT", "HALF", "INT8"} <= types
