"""A plan as JSON for programs of your own: every layer with its precision, and what TensorRT is to be told."""

from __future__ import annotations

import json
from typing import Any

from precisionlab.export.constraints import constraints_of
from precisionlab.export.subject import Export, Subject
from precisionlab.plan.assign import precision_of
from precisionlab.plan.weak import explicit_layer

SCHEMA = 1


def plan_json(subject: Subject) -> Export:
    """The plan as JSON.

    Its own object (`plan`), and beside it

    - `layers`: each layer with its nodes, operators, tensors, and the precision that it runs in; `fixed` says why it
      cannot be given one, else null;
    - `tensorrt`: `enabled` precisions; `own_flags`, the builder flags for the model's own Q/DQ nodes; `pins`, each
      layer to be held with the nodes and tensors to find it by, as TensorRT's names of layers are not known before it
      has parsed the model; `nodes`, those whose layers can be held; `left_alone`, node → why not. Null where the plan
      has a precision that weakly typed TensorRT takes by Q/DQ nodes in the model alone (fp8);
    - `scales`: tensor → scale, null without quantized layers; `scales_of`, the precision that they are of;
      `other_scales`, the same by precision for those that the plan has in pins beside it.
    """
    model, plan, table = subject.model, subject.plan, subject.table
    content = {
        "schema": SCHEMA,
        "plan": plan.to_dict(),
        "model": str(subject.path),
        "layers": [
            {
                "name": layer.name,
                "nodes": list(layer.nodes),
                "op_types": list(layer.op_types),
                "inputs": list(layer.inputs),
                "outputs": list(layer.outputs),
                "precision": precision_of(layer, plan).value,
                "fixed": layer.fixed,
            }
            for layer in model.layers
        ],
        "tensorrt": _told(subject) if explicit_layer(model, plan) is None else None,
        "scales": None if table is None else table.scales,
        "scales_of": None if table is None else table.precision.value,
        "other_scales": {} if table is None else {other.precision.value: other.scales for other in table.others},
    }
    return Export(json.dumps(content, indent=1, ensure_ascii=False) + "\n")


def _told(subject: Subject) -> dict[str, Any]:
    """What weakly typed TensorRT is told."""
    held = constraints_of(subject)
    return {
        "enabled": sorted(precision.value for precision in subject.enabled),
        "own_flags": sorted(subject.own_flags),
        "pins": [
            {
                "layer": pin.layer,
                "nodes": list(pin.nodes),
                "tensors": list(pin.tensors),
                "precision": pin.precision.value,
            }
            for pin in subject.pins
        ],
        "nodes": [
            {"node": node.node, "layer": node.layer, "precision": node.precision.value, "stores": node.stores}
            for node in held.nodes
        ],
        "left_alone": held.left_alone,
    }
