"""LSTM, GRU and RNN in float64 numpy, written from ONNX's formulas, with a rounding where a device stores a value.

Independent of the package: what the graphs of `rewrite/recurrent` are held against.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import ml_dtypes
import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

Array = NDArray[Any]
Rounding = Callable[[Array], Array]

GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}
FUNCTIONS = {"LSTM": 3, "GRU": 2, "RNN": 1}
ACTIVATIONS: dict[str, Callable[[Array, float, float], Array]] = {
    "Affine": lambda v, a, b: a * v + b,
    "Elu": lambda v, a, b: np.where(v < 0, a * np.expm1(np.minimum(v, 0)), v),
    "HardSigmoid": lambda v, a, b: np.minimum(1, np.maximum(0, a * v + b)),
    "LeakyRelu": lambda v, a, b: np.where(v < 0, a * v, v),
    "Relu": lambda v, a, b: np.maximum(v, 0),
    "ScaledTanh": lambda v, a, b: a * np.tanh(b * v),
    "Sigmoid": lambda v, a, b: 1 / (1 + np.exp(-v)),
    "Softplus": lambda v, a, b: np.logaddexp(0, v),
    "Softsign": lambda v, a, b: v / (1 + np.abs(v)),
    "Tanh": lambda v, a, b: np.tanh(v),
    "ThresholdedRelu": lambda v, a, b: np.where(v > a, v, 0),
}
"""ONNX's activation functions, of a value and their alpha and beta."""
TAKES = {"Affine": 3, "ScaledTanh": 3, "HardSigmoid": 3, "LeakyRelu": 1, "Elu": 1, "ThresholdedRelu": 1}
"""Activation → 1: it takes an alpha, 3: and a beta."""
INPUTS = ("X", "W", "R", "B", "sequence_lens", "initial_h", "initial_c", "P")


def exact(array: Array) -> Array:
    """Not rounded."""
    return array


def fp16(array: Array) -> Array:
    """As float16 stores it."""
    with np.errstate(over="ignore"):
        return np.asarray(array).astype(np.float16).astype(np.float64)


def bf16(array: Array) -> Array:
    """As bfloat16 stores it."""
    return np.asarray(array).astype(np.float32).astype(ml_dtypes.bfloat16).astype(np.float64)


@dataclass(frozen=True)
class Case:
    """A recurrent node with its inputs, by ONNX's names for them; those left out are not there."""

    op_type: str
    hidden_size: int
    inputs: dict[str, Array]
    direction: str = "forward"
    layout: int = 0
    clip: float | None = None
    functions: tuple[tuple[str, float, float], ...] = ()
    attributes: dict[str, int] = field(default_factory=dict)
    outputs: tuple[str, ...] = ("Y", "Y_h", "Y_c")

    def model(self, opset: int, fed: Sequence[str] = ("X",)) -> onnx.ModelProto:
        """The node alone: `fed` are inputs of the model, all else is constant."""
        known = self.outputs if self.op_type == "LSTM" else tuple(name for name in self.outputs if name != "Y_c")
        names = ("Y", "Y_h", "Y_c")[: 3 if self.op_type == "LSTM" else 2]
        outputs = [name if name in known else "" for name in names]
        while not outputs[-1]:
            outputs.pop()
        inputs = [name if name in self.inputs else "" for name in INPUTS]
        while not inputs[-1]:
            inputs.pop()
        attributes: dict[str, Any] = {"hidden_size": self.hidden_size, "direction": self.direction, **self.attributes}
        if self.layout:
            attributes["layout"] = self.layout
        if self.clip is not None:
            attributes["clip"] = self.clip
        if self.functions:
            attributes["activations"] = [name for name, _, _ in self.functions]
            takes = [TAKES.get(name, 0) for name, _, _ in self.functions]
            attributes["activation_alpha"] = [a for (_, a, _), t in zip(self.functions, takes, strict=True) if t & 1]
            attributes["activation_beta"] = [b for (_, _, b), t in zip(self.functions, takes, strict=True) if t & 2]
            attributes = {key: value for key, value in attributes.items() if value != []}
        node = helper.make_node(self.op_type, inputs, outputs, name="cell", **attributes)

        def info(name: str, rank: int) -> onnx.ValueInfoProto:
            kind = TensorProto.INT32 if name == "sequence_lens" else TensorProto.FLOAT
            return helper.make_tensor_value_info(name, kind, [f"{name}{i}" for i in range(rank)])

        graph = helper.make_graph(
            [node],
            "g",
            [info(name, self.inputs[name].ndim) for name in fed],
            [info(name, 4 if name == "Y" else 3) for name in outputs if name],
            [numpy_helper.from_array(value, name) for name, value in self.inputs.items() if name not in fed],
        )
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


def run(case: Case, rounded: Rounding = exact) -> dict[str, Array]:
    """Y, Y_h and Y_c of the node in float64, each value that a device stores rounded."""
    given = {k: v if k == "sequence_lens" else rounded(v.astype(np.float64)) for k, v in case.inputs.items()}
    x = given["X"]
    first = [given.get("initial_h"), given.get("initial_c")]
    if case.layout:
        x = x.swapaxes(0, 1)
        first = [None if state is None else state.swapaxes(0, 1) for state in first]
    steps, batch = x.shape[:2]
    size, each = case.hidden_size, FUNCTIONS[case.op_type]
    lengths = given.get("sequence_lens", np.full(batch, steps))
    ways = {"forward": [False], "reverse": [True], "bidirectional": [False, True]}[case.direction]
    defaults = [("Sigmoid", 0.0, 0.0), ("Tanh", 0.0, 0.0), ("Tanh", 0.0, 0.0)]
    defaults = defaults[:each] if case.op_type != "RNN" else defaults[1:2]
    functions = case.functions or tuple(defaults) * len(ways)
    y = np.zeros((steps, len(ways), batch, size))
    last = np.zeros((2, len(ways), batch, size))
    for d, is_reverse in enumerate(ways):
        own = {name: given[name][d] if name in given else None for name in ("W", "R", "B", "P")}
        for b in range(batch):
            h, c = (np.zeros(size) if state is None else state[d, b] for state in first)
            places = range(int(lengths[b]))
            for t in reversed(places) if is_reverse else places:
                h, c = _step(case, own, functions[d * each : (d + 1) * each], x[t, b], h, c, rounded)
                y[t, d, b] = h
            if lengths[b]:  # ONNX Runtime gives 0 for a sample of no steps
                last[:, d, b] = h, c
    outputs = {"Y": y, "Y_h": last[0], "Y_c": last[1]}
    if case.layout:
        outputs = {"Y": y.transpose(2, 0, 1, 3), "Y_h": last[0].swapaxes(0, 1), "Y_c": last[1].swapaxes(0, 1)}
    return outputs


def _step(
    case: Case,
    own: dict[str, Array | None],
    functions: Sequence[tuple[str, float, float]],
    x: Array,
    h: Array,
    c: Array,
    rounded: Rounding,
) -> tuple[Array, Array]:
    size, gates = case.hidden_size, GATES[case.op_type]
    w, r = own["W"], own["R"]
    assert w is not None
    assert r is not None
    bias = np.zeros(2 * gates * size) if own["B"] is None else own["B"]
    wb, rb = np.split(bias, 2)

    def gate(total: Array, which: int) -> Array:
        bound = np.inf if case.clip is None else np.float64(np.float32(case.clip))
        return rounded(_function(*functions[which])(rounded(np.clip(total, -bound, bound))))

    if case.op_type == "RNN":
        return gate(w @ x + r @ h + wb + rb, 0), c
    if case.op_type == "GRU":
        wz, wr, wh = np.split(w, 3)
        rz, rr, rh = np.split(r, 3)
        bz, br, bh = np.split(wb, 3)
        cz, cr, ch = np.split(rb, 3)
        z = gate(wz @ x + rz @ h + bz + cz, 0)
        reset = gate(wr @ x + rr @ h + br + cr, 0)
        if case.attributes.get("linear_before_reset"):
            new = gate(wh @ x + reset * rounded(rh @ h + ch) + bh, 1)
        else:
            new = gate(wh @ x + rh @ rounded(reset * h) + ch + bh, 1)
        return rounded((1 - z) * new + z * h), c
    wi, wo, wf, wc = np.split(w @ x + wb + rb + r @ h, 4)
    peepholes = None if own["P"] is None else np.split(own["P"], 3)

    def peeped(which: int) -> Array | float:
        return 0.0 if peepholes is None else peepholes[which] * c  # without them there is no 0 · Inf

    i = gate(wi + peeped(0), 0)
    f = rounded(1 - i) if case.attributes.get("input_forget") else gate(wf + peeped(2), 0)
    c = rounded(f * c + i * gate(wc, 1))
    o = gate(wo + peeped(1), 0)
    return rounded(o * rounded(_function(*functions[2])(c))), c


def _function(name: str, alpha: float, beta: float) -> Callable[[Array], Array]:
    return lambda value: ACTIVATIONS[name](value, alpha, beta)
