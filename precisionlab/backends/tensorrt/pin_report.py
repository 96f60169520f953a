"""What pins asked for, against what the engine does: a pin can be overridden by a fusion, and TensorRT does not say so.

How an engine's layer is known to run a node: it gives one of the tensors that the node gives; or its metadata names the
node; or, where it has no metadata, its own name is made of that node's (`a + b`, `PWN(a)`, `{ForeignNode[a...b]}` for a
and b). **Names are compared whole, never by substring or position**: `conv1` stands in `conv10`, fusions reorder, and a
comparison of the wrong tensors looks like any other.

What is known of an engine's layer is what it takes and gives, not how it computes. That settles most pins, not all: a
kernel that converts inside itself, or runs other nodes as well, may take and give fp16 and still compute a pinned node
in fp32. Those are "unknown"; the measured error decides.
"""

from __future__ import annotations

import re
from collections.abc import Container, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

from precisionlab.backends.tensorrt.inspector import ARITHMETIC, DOUBLE
from precisionlab.backends.tensorrt.jobs import EngineLayer, LayerPin, PinOutcome
from precisionlab.backends.tensorrt.profile_names import without_profile
from precisionlab.precision import Precision

if TYPE_CHECKING:
    from precisionlab.model import Layer

Verdict = Literal["honoured", "overridden", "unknown", "not found"]


_COPY = re.compile(r"Reformatting CopyNode for (?:Input|Output) Tensor \d+ to (?P<layer>.*)", re.DOTALL)
_FOREIGN = re.compile(r"\{ForeignNode\[(?P<range>.*)\]\}", re.DOTALL)
_MYELIN = re.compile(r"__myl_(?P<steps>[A-Za-z]+)_myl\d+_\d+")
_STEP = re.compile(r"[A-Z][a-z]*")


@dataclass(frozen=True)
class PinReport:
    """What became of one pin in the engine.

    `got` are the types (`fp32`, `fp16`, …, best first) of what the engine's layers that run its nodes take and give.
    `verdict` is "honoured" (they lose no more than was asked for); "overridden" (they take or give a lower type);
    "unknown" (the engine does not tell its types, or these do not settle it); "not found" (no layer of the engine is
    known to run its nodes, or none of the network was).
    `fused_with` are the ONNX nodes that these layers run as well. `reformats` is how many reformatting copies stand at
    their borders. `advice` is what to do; empty where there is nothing.
    """

    layer: str
    asked: Precision
    got: tuple[str, ...]
    verdict: Verdict
    fused_with: tuple[str, ...]
    reformats: int
    advice: str


def reports_of(
    pins: Sequence[LayerPin],
    outcomes: Iterable[PinOutcome],
    layers: Sequence[EngineLayer],
    original: Container[str] | None = None,
) -> tuple[PinReport, ...]:
    """What became of each pin, in the order of `pins`.

    `outcomes` is what became of them in the network (none where types stand in the ONNX graph), `layers` the engine's.
    `original` are the model's own nodes, where the engine runs others too (Casts of a typed model): those are nobody's
    to pin, and not named.
    """
    engine = _Engine(layers)
    known = {outcome.layer: outcome for outcome in outcomes}
    return tuple(_report(pin, known.get(pin.layer), engine, original) for pin in pins)


def ran_in(model_layers: Iterable[Layer], layers: Sequence[EngineLayer]) -> dict[str, tuple[str, ...]]:
    """Layer name → the types of what the engine's layers that run its nodes take and give, best first.

    Empty where no layer of the engine is known to run it, or the engine does not tell its types.
    """
    engine = _Engine(layers)
    return {layer.name: _types(engine.running(layer.nodes, layer.outputs, layer.nodes)) for layer in model_layers}


def layers_running(
    layers: Sequence[EngineLayer], asked: Iterable[tuple[Sequence[str], Sequence[str], Sequence[str]]]
) -> list[list[EngineLayer]]:
    """For each (ONNX nodes, tensors that they give, names without metadata) the engine's layers that run it."""
    engine = _Engine(layers)
    return [engine.running(*each) for each in asked]


def reformats_of(layers: Iterable[EngineLayer]) -> int:
    """How many layers do nothing but copy a tensor into another type or memory layout."""
    return sum(_is_copy(layer) and layer.kind != "NoOp" for layer in layers)


def _keeping(asked: Precision) -> frozenset[str]:
    """The types that lose nothing of it. fp16 has not the range of bf16, nor bf16 the digits of fp16."""
    wanted = asked.number_format
    return frozenset({DOUBLE, *(p.value for p in Precision.formats() if p.number_format.holds(wanted))})


class _Engine:
    """An engine's layers, to be found by what they run."""

    def __init__(self, layers: Sequence[EngineLayer]) -> None:
        self.layers = [layer for layer in layers if not _is_copy(layer)]
        self.copies = [layer for layer in layers if _is_copy(layer) and layer.kind != "NoOp"]
        self._by_node: dict[str, list[int]] = {}
        self._by_tensor: dict[str, list[int]] = {}
        self._by_name: dict[str, list[int]] = {}
        for i, layer in enumerate(self.layers):
            for node in layer.nodes:
                self._by_node.setdefault(node, []).append(i)
            for tensor in layer.outputs:
                self._by_tensor.setdefault(tensor.name, []).append(i)
            for name in () if layer.nodes else {without_profile(layer), *parts_of(without_profile(layer))}:
                self._by_name.setdefault(name, []).append(i)

    def running(self, nodes: Sequence[str], tensors: Sequence[str], names: Sequence[str]) -> list[EngineLayer]:
        """The layers that run these ONNX nodes, give these tensors or, without metadata, have one of these names."""
        found = {i for node in nodes for i in self._by_node.get(node, ())}
        found |= {i for tensor in tensors for i in self._by_tensor.get(tensor, ())}
        found |= {i for name in names for i in self._by_name.get(name, ())}
        return [self.layers[i] for i in sorted(found)]

    def copies_at(self, running: Sequence[EngineLayer]) -> int:
        """How many reformatting copies give what these layers take, or take what they give."""
        taken = {tensor.name for layer in running for tensor in layer.inputs}
        given = {tensor.name for layer in running for tensor in layer.outputs}
        names = {layer.name for layer in running}
        return sum(
            any(tensor.name in taken for tensor in copy.outputs)
            or any(tensor.name in given for tensor in copy.inputs)
            or ((to := _COPY.fullmatch(copy.name)) is not None and to["layer"] in names)
            for copy in self.copies
        )


def parts_of(name: str) -> tuple[str, ...]:
    """The names that an engine layer's name is made of: `a`, `b`, `c` of `a + PWN(b, PWN(c))`.

    Of `{ForeignNode[a...b]}`, which stands for a and b and all between them, it is a and b.
    """
    foreign = _FOREIGN.fullmatch(name)
    if foreign is None:
        return tuple(dict.fromkeys(_elements(name)))
    ends = foreign["range"].split("...")
    # With three dots in a name, where the first ends is not known.
    return tuple(dict.fromkeys(part for end in ends for part in _elements(end))) if len(ends) <= 2 else ()


def _elements(name: str) -> Iterator[str]:
    for part in _split(name, " + "):
        if part.startswith("PWN(") and part.endswith(")"):
            for piece in _split(part[len("PWN(") : -1], ", "):
                yield from _elements(piece)
        else:
            yield part


def _split(text: str, separator: str) -> list[str]:
    """The parts between separators that stand in no parentheses."""
    parts, depth, start = [], 0, 0
    for i, sign in enumerate(text):
        depth += (sign == "(") - (sign == ")")
        if depth == 0 and text.startswith(separator, i):
            parts.append(text[start:i])
            start = i + len(separator)
    return [*parts, text[start:]]


@dataclass(frozen=True)
class _Own:
    """What belongs to one pin: its ONNX nodes, and the layers of the network that were made of them."""

    nodes: frozenset[str]
    names: frozenset[str]

    def others(self, layer: EngineLayer) -> tuple[str, ...]:
        """What else a layer runs: other nodes of its metadata, or without any other names that its own is made of."""
        if layer.nodes:
            return tuple(node for node in layer.nodes if node not in self.nodes)
        title = without_profile(layer)
        if title in self.names:
            return ()
        return tuple(name for name in parts_of(title) if name not in self.names)


def _is_copy(layer: EngineLayer) -> bool:
    """A copy that TensorRT added; what runs an ONNX node (a Cast, a Concat) is none, though of kind Reformat too."""
    return not layer.nodes and (layer.kind == "Reformat" or _COPY.fullmatch(layer.name) is not None)


def _types(layers: Iterable[EngineLayer]) -> tuple[str, ...]:
    found = {tensor.dtype for layer in layers for tensor in (*layer.inputs, *layer.outputs)}
    return tuple(name for name in ARITHMETIC if name in found)


def _report(pin: LayerPin, outcome: PinOutcome | None, engine: _Engine, original: Container[str] | None) -> PinReport:
    # An engine's layer is called after layers of the network, and these are not always called after their own nodes.
    names = pin.nodes if outcome is None else (*outcome.network_layers, *outcome.skipped) or pin.nodes
    running = engine.running(pin.nodes, pin.tensors, names)
    own = _Own(frozenset(pin.nodes), frozenset(names))
    others = (name for layer in running for name in own.others(layer) if original is None or name in original)
    report = PinReport(
        layer=pin.layer,
        asked=pin.precision,
        got=_types(running),
        verdict=_verdict(pin, running, outcome, own, engine),
        fused_with=tuple(dict.fromkeys(others)),
        reformats=engine.copies_at(running),
        advice="",
    )
    return replace(report, advice=_advice(report, outcome, running, engine))


def _verdict(
    pin: LayerPin, running: Sequence[EngineLayer], outcome: PinOutcome | None, own: _Own, engine: _Engine
) -> Verdict:
    if outcome is not None and outcome.unmatched is not None:
        return "not found"
    if not running:
        return "not found" if engine.layers else "unknown"
    verdicts = {_verdict_of(pin, layer, own) for layer in running}
    if "overridden" in verdicts:
        return "overridden"
    return "honoured" if "honoured" in verdicts and "unknown" not in verdicts else "unknown"


def _verdict_of(pin: LayerPin, layer: EngineLayer, own: _Own) -> Verdict | None:
    """What one layer of the engine says; None where it has no arithmetic (a copy of indices, a jump)."""
    tensors = (*layer.inputs, *layer.outputs)
    types = {tensor.dtype for tensor in tensors if tensor.dtype in ARITHMETIC}
    low = types - _keeping(pin.precision)
    if not low:
        if any(tensor.dtype is None for tensor in tensors) or not (layer.kind or tensors):
            return "unknown"
        return "honoured" if types else None
    if any(tensor.name in pin.tensors and tensor.dtype in low for tensor in layer.outputs):
        return "overridden"  # its result is stored in the lower type, whatever it was computed in
    if _converts(layer) or (own.others(layer) and low != types):
        return "unknown"
    return "overridden"


def _converts(layer: EngineLayer) -> bool:
    """Whether a generated kernel converts between types inside itself, as its name tells: `__myl_CastMulAdd_myl0_1`.

    The name lists the kernel's steps; where it ends in Etc, it does not list all.
    """
    kernel = _MYELIN.fullmatch(layer.name)
    return kernel is not None and not {"Cast", "Etc"}.isdisjoint(_STEP.findall(kernel["steps"]))


def _advice(report: PinReport, outcome: PinOutcome | None, running: Sequence[EngineLayer], engine: _Engine) -> str:
    if outcome is not None and outcome.unmatched is not None:
        return f"it was not pinned: {outcome.unmatched}"
    if report.verdict == "honoured":
        if report.asked.stored_as.value in report.got:
            return ""
        return f"it runs in {' and '.join(report.got)}, which loses no more than was asked for, and may take longer"
    if report.verdict == "not found" or not engine.layers:
        return _advice_not_found(engine)
    if outcome is not None and outcome.skipped and not outcome.network_layers:
        return f"it was left alone: {next(iter(outcome.skipped.values()))}; pin the layers that take its result instead"
    if report.verdict == "unknown":
        return _advice_unknown(report, running)
    lower = " and ".join(name for name in report.got if name not in _keeping(report.asked))
    if not report.fused_with:
        return (
            f"it takes or gives {lower}: pin the layers before and after it as well, with the types of their outputs, "
            "so that no conversion is left at its borders"
        )
    return (
        f"it runs in one kernel with {_named(report.fused_with)}, which takes or gives {lower}: pin those as well; "
        "where they make up a LayerNorm, export the model at opset 17 or later, where it is one LayerNormalization node"
    )


def _advice_unknown(report: PinReport, running: Sequence[EngineLayer]) -> str:
    if not report.got or any(tensor.dtype is None for layer in running for tensor in (*layer.inputs, *layer.outputs)):
        return (
            "the engine does not tell its types: it does where it is built with detailed profiling verbosity and "
            "inspected at known input shapes; go by the measured error"
        )
    return (
        f"its kernel takes and gives {' and '.join(report.got)}, and may convert inside: go by the measured error, and "
        f"where that is too large pin {_named(report.fused_with) or 'the layers before and after it'} as well"
    )


def _advice_not_found(engine: _Engine) -> str:
    if not engine.layers:
        return "the engine does not tell its layers, see its warnings: go by the measured error"
    titles = dict.fromkeys(without_profile(layer) for layer in engine.layers if not layer.nodes)
    hiding = [title for title in titles if _FOREIGN.fullmatch(title)]
    where = f"it may be within {_named(hiding)}" if hiding else "it may have been folded into a constant, or removed"
    return f"no layer of the engine names its nodes: {where}; go by the measured error"


def _named(names: Sequence[str], most: int = 4) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
