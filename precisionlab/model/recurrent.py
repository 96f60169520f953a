"""What a recurrent node says: LSTM, GRU and RNN, their attributes read once and checked."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import onnx_ir as ir

from precisionlab.errors import ModelError
from precisionlab.model.flow import ONNX_DOMAINS

GATES: Mapping[str, int] = {"LSTM": 4, "GRU": 3, "RNN": 1}
"""Operator → how many blocks of hidden_size rows W and R have: iofc, zrh, i."""

_DEFAULTS: Mapping[str, tuple[str, ...]] = {
    "LSTM": ("Sigmoid", "Tanh", "Tanh"),
    "GRU": ("Sigmoid", "Tanh"),
    "RNN": ("Tanh",),
}
_DIRECTIONS: Mapping[str, tuple[bool, ...]] = {"forward": (False,), "reverse": (True,), "bidirectional": (False, True)}

# Whether an activation takes alpha and beta, and what ONNX Runtime takes for those that are not given.
_ACTIVATIONS: Mapping[str, tuple[float | None, float | None]] = {
    "Affine": (0.0, 0.0),
    "Elu": (1.0, None),
    "HardSigmoid": (0.2, 0.5),
    "LeakyRelu": (0.01, None),
    "Relu": (None, None),
    "ScaledTanh": (0.0, 0.0),
    "Sigmoid": (None, None),
    "Softplus": (None, None),
    "Softsign": (None, None),
    "Tanh": (None, None),
    "ThresholdedRelu": (0.0, None),
}
_BY_NAME = {name.lower(): name for name in _ACTIVATIONS}

# The inputs that hold numbers of a known shape, by index: rows are gates · hidden_size, or the multiple given.
_SHAPES: Mapping[int, str] = {1: "W", 2: "R", 3: "B", 7: "P"}


@dataclass(frozen=True)
class Activation:
    """One activation function, with its own alpha and beta (0 where it takes none)."""

    name: str
    alpha: float
    beta: float


@dataclass(frozen=True)
class Direction:
    """One way through the sequence: `reverse` runs from its end, with these activations."""

    reverse: bool
    activations: tuple[Activation, ...]


@dataclass(frozen=True)
class Recurrence:
    """What a recurrent node computes.

    `op_type` is LSTM, GRU or RNN. `batch_first` is ONNX's layout 1. `clip` bounds what goes into the gates'
    activations (inf: nothing). `coupled` is an LSTM's input_forget, `linear_before_reset` a GRU's.
    """

    op_type: str
    hidden_size: int
    directions: tuple[Direction, ...]
    batch_first: bool
    clip: float
    coupled: bool
    linear_before_reset: bool


def is_recurrent(node: ir.Node) -> bool:
    """Whether the node is an LSTM, a GRU or an RNN of ONNX's own."""
    return node.domain in ONNX_DOMAINS and node.op_type in GATES


def recurrence_of(node: ir.Node, where: str = "") -> Recurrence:
    """Read a recurrent node. Alphas and betas are handed in order to those activations that take one.

    As ONNX Runtime does (onnxruntime/core/providers/cpu/rnn/rnn_helpers.cc), whose defaults they are: the reference is
    computed with them.

    Raises ModelError, which begins with `where`, where the node says what ONNX does not define.
    """
    where = where or f"node {node.name!r} ({node.op_type})"
    size = _int(node, "hidden_size", 0)
    if size <= 0:
        raise ModelError(f"{where} has no hidden_size above 0; export the model again, with the attribute")
    told = node.attributes["direction"].as_string() if "direction" in node.attributes else "forward"
    if told not in _DIRECTIONS:
        raise ModelError(f"{where} has the direction {told!r}; ONNX knows {', '.join(_DIRECTIONS)}")
    layout = _int(node, "layout", 0)
    if layout not in (0, 1):
        raise ModelError(f"{where} has the layout {layout}; ONNX knows 0 (sequence first) and 1 (batch first)")
    clip = node.attributes["clip"].as_float() if "clip" in node.attributes else math.inf
    if not clip > 0 and node.op_type == "RNN" and clip < 0:
        clip = math.inf
    elif not clip > 0:
        raise ModelError(f"{where} has the clip {clip:g}; it bounds what goes into an activation, and must be above 0")
    reverses = _DIRECTIONS[told]
    activations = _activations(node, len(reverses), where)
    each = len(_DEFAULTS[node.op_type])
    recurrence = Recurrence(
        node.op_type,
        size,
        tuple(Direction(way, activations[i * each : (i + 1) * each]) for i, way in enumerate(reverses)),
        bool(layout),
        clip,
        bool(_int(node, "input_forget", 0)),
        bool(_int(node, "linear_before_reset", 0)),
    )
    _check_shapes(node, recurrence, where)
    return recurrence


def _activations(node: ir.Node, directions: int, where: str) -> tuple[Activation, ...]:
    names: Sequence[str] = node.attributes["activations"].as_strings() if "activations" in node.attributes else ()
    defaults = _DEFAULTS[node.op_type]
    names = names or defaults * directions
    if node.op_type == "RNN" and len(names) == 2 and directions == 1:
        names = names[:1]  # ONNX's own default names two
    if len(names) != len(defaults) * directions:
        raise ModelError(
            f"{where} names {len(names)} activations, and {len(defaults)} for each of {directions} "
            f"direction{'s' if directions > 1 else ''} are needed: {', '.join(names)}"
        )
    for name in names:
        # ONNX Runtime takes any spelling of an LSTM's and a GRU's.
        if name not in _ACTIVATIONS and (node.op_type == "RNN" or name.lower() not in _BY_NAME):
            raise ModelError(f"{where} has the activation {name!r}; ONNX knows {', '.join(_ACTIVATIONS)}")
    alphas, betas = (
        list(node.attributes[key].as_floats()) if key in node.attributes else []
        for key in ("activation_alpha", "activation_beta")
    )
    names = [_BY_NAME[name.lower()] for name in names]
    functions = []
    for name in names:
        alpha, beta = _ACTIVATIONS[name]
        functions.append(Activation(name, _next(alphas, alpha), _next(betas, beta)))
    return tuple(functions)


def _next(given: list[float], default: float | None) -> float:
    if default is None:
        return 0.0
    return given.pop(0) if given else default


def _check_shapes(node: ir.Node, recurrence: Recurrence, where: str) -> None:
    """Constants alone: their shapes are known, and those of activations may only be known when the model runs."""
    directions, size = len(recurrence.directions), recurrence.hidden_size
    rows = GATES[node.op_type] * size
    wanted: Mapping[str, tuple[int | None, ...]] = {
        "W": (directions, rows, None),
        "R": (directions, rows, size),
        "B": (directions, 2 * rows),
        "P": (directions, 3 * size),
    }
    for index, name in _SHAPES.items():
        value = node.inputs[index] if index < len(node.inputs) else None
        if value is None or value.const_value is None:
            continue
        found = tuple(value.const_value.shape.numpy())
        needed = wanted[name]
        if len(found) != len(needed) or any(n is not None and n != f for n, f in zip(needed, found, strict=True)):
            told = ", ".join("any" if n is None else str(n) for n in needed)
            raise ModelError(
                f"{where} takes {value.name!r} for {name}, of shape {list(found)}; with hidden_size {size} and "
                f"{directions} direction{'s' if directions > 1 else ''} it must be [{told}]"
            )


def _int(node: ir.Node, name: str, default: int) -> int:
    return node.attributes[name].as_int() if name in node.attributes else default
