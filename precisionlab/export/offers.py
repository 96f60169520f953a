"""Which tools a plan cannot be exported for, and why: so that none of them is offered."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping

import onnx

from precisionlab.backends.tensorrt.jobs import Profile
from precisionlab.backends.tensorrt.profiles import dynamic_inputs
from precisionlab.calibration.release_here import default_release
from precisionlab.calibration.table import CalibrationTable
from precisionlab.errors import PrecisionLabError
from precisionlab.export.modelopt import modelopt_json
from precisionlab.export.onnxruntime import check_quantizes
from precisionlab.export.polygraphy import polygraphy_script
from precisionlab.export.subject import Subject
from precisionlab.export.trtexec import trtexec_script
from precisionlab.model import Model
from precisionlab.model.prepared import read_again
from precisionlab.plan.plan import PrecisionPlan

_ANY = Profile((1,), (1,), (1,))
_TRIED: Mapping[str, Callable[[Subject], object]] = {
    "trtexec": trtexec_script,
    "polygraphy": lambda subject: polygraphy_script(subject, "precision_pins.py"),
    "modelopt": modelopt_json,
    "onnxruntime": check_quantizes,
}


def refusals(
    model: Model, plan: PrecisionPlan, table: CalibrationTable | None, names: Mapping[str, int]
) -> dict[str, str]:
    """Format → why the plan cannot be exported so, in a sentence; those that are not in it can be tried.

    `model` has the plan's repairs, `names` counts how often the file to be handed on gives each name to a node. A typed
    model is not tried, which takes as long as to write it.
    """
    profiles = {info.name: _ANY for info in dynamic_inputs(model)}
    subject = Subject(model, plan, table, profiles, names, default_release())
    found = {}
    for target, tried in _TRIED.items():
        try:
            tried(subject)
        except PrecisionLabError as error:
            found[target] = str(error)
    return found


def names_in_file(model: Model) -> Counter[str]:
    """How often the file that is handed on gives each name to a node, in bodies too. Raises ModelError."""
    if model.exported is not None:
        return Counter(name for scope in model.scopes for name in scope.node)
    proto = read_again(model, weights=False)
    return Counter(node.name for node in _nodes(proto.graph) if node.name)


def _nodes(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            for inner in (attribute.g, *attribute.graphs):
                yield from _nodes(inner)
