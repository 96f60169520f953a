"""A refused build names the node that it is about, also where TensorRT does not."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import onnx
import pytest
from models import proto
from rtx import drive, needs_rtx

from precisionlab.backends.tensorrt.culprit import at_nodes, first_refused, named_nodes
from precisionlab.backends.tensorrt.network import NetworkLayer, NetworkTensor

OPERATORS = {"conv1": "Conv", "conv10": "Conv", "/head/fc": "MatMul", "add": "Add", "node_of_y": "TopK", "a [b]": "Mul"}


def layer(index: int, node: str, *inputs: str, kind: str = "ELEMENTWISE") -> NetworkLayer:
    taken = tuple(NetworkTensor(name, "fp32") for name in inputs)
    return NetworkLayer(
        index, f"{node}_layer", kind, (node,) if node else (), taken, (NetworkTensor(f"t{index}", "fp32"),)
    )


# What the errors name


@pytest.mark.parametrize(
    ("error", "nodes"),
    [
        ("Cannot compile operation 'conv10' for Turing", ["conv10"]),
        ("conv1 has no runners that implement it", ["conv1"]),
        ("In node /head/fc: bad", ["/head/fc"]),
        ("node_of_y_0 has no runners", ["node_of_y"]),
        ("could not add two of them", []),
        ("Cannot compile operation 'add'", ["add"]),
        ("Cannot compile operation 'a [b]'", ["a [b]"]),
        ("conv1_layer_x or xconv1 or block/conv1", []),
        ("conv1_layer cannot run", ["conv1"]),
        ("/head/fc/bias is missing", []),
        ("Myelin ([myelin_graph.h:1295: attachExceptionMsgToGraph]", []),
    ],
)
def test_names_in_an_error_are_taken_whole(error: str, nodes: list[str]) -> None:
    assert list(named_nodes([error], [layer(0, "conv1")], OPERATORS)) == nodes


def test_a_node_is_told_with_its_operator_and_of_many_a_few() -> None:
    assert at_nodes(["conv1"], OPERATORS) == " at Conv 'conv1'"
    assert at_nodes([], OPERATORS) == ""
    assert at_nodes(list(OPERATORS), OPERATORS) == " at Conv 'conv1', Conv 'conv10', MatMul '/head/fc', …"


# What is looked for


@dataclass(frozen=True)
class FakeTensor:
    name: str


@dataclass(frozen=True)
class FakeLayer:
    index: int

    def get_output(self, place: int) -> FakeTensor:
        return FakeTensor(f"t{self.index}")


@dataclass
class FakeNetwork:
    """Of layers in a row; only its outputs count."""

    outputs: list[FakeTensor] = field(default_factory=list)

    @property
    def num_outputs(self) -> int:
        return len(self.outputs)

    def get_output(self, index: int) -> FakeTensor:
        return self.outputs[index]

    def get_layer(self, index: int) -> FakeLayer:
        return FakeLayer(index)

    def mark_output(self, tensor: FakeTensor) -> None:
        self.outputs.append(tensor)

    def unmark_output(self, tensor: FakeTensor) -> None:
        self.outputs.remove(tensor)


def chain(count: int, kind: str = "ELEMENTWISE") -> list[NetworkLayer]:
    return [layer(i, f"n{i}", f"t{i - 1}" if i else "x", kind=kind) for i in range(count)]


def looked_for(bad: int, layers: list[NetworkLayer], seconds: float = 0.1, other: str = "") -> tuple[str | None, int]:
    """What is found where the build fails from layer `bad` on, and after how many builds."""
    network, builds = FakeNetwork([FakeTensor(f"t{len(layers) - 1}")]), 0

    def refusal() -> list[str] | None:
        nonlocal builds
        builds += 1
        last = max(int(tensor.name[1:]) for tensor in network.outputs)
        return [other or f"check {last} failed at 0x{last}"] if last >= bad else None

    return first_refused(network, layers, refusal, ["check 7 failed at 0x7"], seconds), builds


@pytest.mark.parametrize("bad", [0, 1, 37, 63])
def test_the_first_layer_that_is_refused_is_found_in_few_builds(bad: int) -> None:
    found, builds = looked_for(bad, chain(64))
    assert found == f"n{bad}"
    assert builds <= 7


def test_where_it_would_take_long_where_another_error_comes_or_inside_loops_nothing_is_told() -> None:
    assert looked_for(5, chain(64), seconds=60) == (None, 0)
    assert looked_for(5, chain(64), other="an output cannot be marked") == (None, 1)
    assert looked_for(5, chain(64, kind="RECURRENCE")) == (None, 0)


@needs_rtx
def test_tensorrt_rtxs_refusals_are_told_with_node_and_operator(tmp_path: Path) -> None:
    """One that its compiler names, on a target without float32 products, and one that it does not name."""
    rng = np.random.default_rng(0)
    product = proto(
        "(float[4,64] x) => (float[4,64] y) { [fc] a = MatMul(x, w) [end] y = Relu(a) }",
        {"w": rng.standard_normal((64, 64)).astype(np.float32)},
    )
    shifted = proto(
        "(float16[4,8,32] x) => (float16[4,8,32] y) { [start] a = Tanh(x) [c] c = Cast <to = 1> (a) "
        "[conv] q = Conv <kernel_shape = [3], pads = [1,1]> (c, k) [shift] m = Sub(q, s) [d] d = Cast <to = 10> (m) "
        "[end] y = Tanh(d) }",
        {"k": rng.standard_normal((8, 8, 3)).astype(np.float32), "s": np.float32(2)},
    )
    told = []
    for name, model, target in (("product", product, "SM75"), ("shifted", shifted, "SM89")):
        onnx.save_model(model, tmp_path / f"{name}.onnx")
        told.append(drive("build", "reason", tmp_path / f"{name}.onnx", tmp_path, target))
    assert [kind for kind, _ in told] == ["BuildError", "BuildError"]
    assert "gives no engine at MatMul 'fc': " in told[0][1]
    assert "gives no engine at Sub 'shift': " in told[1][1]
