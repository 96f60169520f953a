"""What TensorRT-RTX makes of a typed model: its kernels, what they fuse, and those of the repaired sub-graph."""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx

from precisionlab.backends.tensorrt.child import ChildEngines
from precisionlab.backends.tensorrt.jobs import BuildJob, EngineLayer, Profile
from precisionlab.backends.tensorrt.pin_report import reformats_of
from precisionlab.errors import PrecisionLabError
from precisionlab.model.repair import Repair

COMPUTES = ("SM89", "SM120")
_PRODUCTS = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})
_NORMS = frozenset({"LayerNormalization", "RMSNormalization", "InstanceNormalization", "Sqrt", "ReduceL2"})
_GELUS = frozenset({"Erf", "Tanh", "Gelu"})
FUSIONS = ("attention", "normalisation", "GELU", "product with more")
_NUMBER = re.compile(r"_myl\d+_\d+$")

Row = dict[str, Any]


@dataclass(frozen=True)
class Kernels:
    """An engine's kernels, or why there is no engine: `of` has the original's nodes in each, `steps` its operators."""

    layers: tuple[EngineLayer, ...] = ()
    of: tuple[frozenset[str], ...] = ()
    steps: tuple[tuple[str, ...], ...] = ()
    failed: str = ""

    def row(self, beside: Kernels, region: frozenset[str]) -> Row:
        """What the tables tell of it, beside the kernels of the original without pins."""
        if self.failed:
            return {"failed": self.failed}
        inside = [layer for layer in self.layers if region.intersection(layer.nodes)]
        return {
            "kernels": len(self.layers) - reformats_of(self.layers),
            "reformats": reformats_of(self.layers),
            "fused": {kind: sum(_fuses(kind, steps) for steps in self.steps) for kind in FUSIONS},
            "same": sum((Counter(beside.of) & Counter(self.of)).values()),
            "region": [_described(layer) for layer in inside],
            "types": sorted({t.dtype or "?" for layer in inside for t in (*layer.inputs, *layer.outputs)}),
            "gone": _listed(beside.of, self.of),
            "new": _listed(self.of, beside.of),
        }


def build(
    engines: ChildEngines, path: Path, profiles: Mapping[str, Profile], compute: str, own: Iterable[str]
) -> Kernels:
    """The kernels of a typed model; `own` are the names of the original's nodes."""
    content = hashlib.sha256(path.read_bytes()).hexdigest()
    job = BuildJob(path, path.parent / "engines", content, profiles=profiles, compute=compute, label=path.stem)
    try:
        layers = engines.build(job).layers
    except PrecisionLabError as refused:
        return Kernels(failed=str(refused))
    kinds = {node.name: node.op_type for node in onnx.load(path, load_external_data=False).graph.node}
    names = frozenset(own)
    return Kernels(
        layers,
        tuple(names.intersection(layer.nodes) for layer in layers),
        tuple(tuple(kinds.get(node, "?") for node in layer.nodes) for layer in layers),
    )


def _fuses(kind: str, steps: Sequence[str]) -> bool:
    """Whether a kernel of these operators is one of the kind: several nodes in one, by what they are."""
    own = [step for step in steps if step != "Cast"]
    products = sum(step in _PRODUCTS for step in own)
    attends = ("Softmax" in own and products > 1) or "Attention" in own
    if kind == "attention":
        return attends
    if kind == "product with more":
        return not attends and 0 < products < len(own)
    return not _NORMS.isdisjoint(own) if kind == "normalisation" else len(own) > 1 and not _GELUS.isdisjoint(own)


def _described(layer: EngineLayer) -> str:
    """Its name without what numbers it, and what it takes and gives."""
    taken, given = (", ".join(t.dtype or "?" for t in tensors) for tensors in (layer.inputs, layer.outputs))
    return f"{_NUMBER.sub('', layer.name.removeprefix('__myl_'))}: {taken} → {given}"


def _listed(ones: Iterable[frozenset[str]], others: Iterable[frozenset[str]]) -> list[list[str]]:
    """Groups of nodes that are no kernel of the others."""
    return [sorted(group) for group in (Counter(ones) - Counter(others)).elements() if group]


def region_of(original: onnx.ModelProto, repaired: onnx.ModelProto, repairs: Iterable[Repair]) -> frozenset[str]:
    """The repaired model's nodes that are new or changed, and those between the first and the last of each repair."""
    before = {node.name: _written(node) for node in original.graph.node}
    changed = {node.name for node in repaired.graph.node if before.get(node.name) != _written(node)}
    return frozenset(changed.union(*(_between(repaired, one.nodes[0], one.nodes[1:]) for one in repairs)))


def _written(node: onnx.NodeProto) -> tuple[Any, ...]:
    """What it is, takes and gives, whatever the order of its attributes."""
    attributes = {a.name: str(onnx.helper.get_attribute_value(a)) for a in node.attribute}
    return node.op_type, *node.input, *node.output, sorted(attributes.items())


def _between(model: onnx.ModelProto, first: str, last: Iterable[str]) -> set[str]:
    """The nodes on the ways from one to the others, these among them."""
    behind, before = {first}, set(last)
    tensors: set[str] = set()
    for node in model.graph.node:  # in the order of the graph, which is sorted
        if node.name in behind or tensors.intersection(node.input):
            behind.add(node.name)
            tensors.update(node.output)
    wanted: set[str] = set()
    for node in reversed(model.graph.node):
        if node.name in before or wanted.intersection(node.output):
            before.add(node.name)
            wanted.update(node.input)
    return behind & before
