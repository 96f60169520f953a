"""The file of a plan, read and checked: it may be a stranger's."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

from precisionlab.errors import OptionError, PlanError
from precisionlab.model.blocks import SIZES
from precisionlab.model.repair import Repair
from precisionlab.plan.plan import READ_SCHEMAS, Pin, PrecisionPlan
from precisionlab.precision import Precision
from precisionlab.system.reading import LARGEST_JSON, UnreadableError, parse_json, read_inside
from precisionlab.system.wording import either

REPAIRED = "repaired"
"""What a plan's file says of the repaired model, beside its repairs."""


def plan_files(precisions: Collection[str]) -> dict[str, str]:
    """Precision → what the file of its plan is called in the folder of a sweep over these."""
    return {name: "plan.json" if len(precisions) == 1 else f"plan.{name}.json" for name in precisions}


def plan_from_dict(data: Any, where: str = "plan") -> PrecisionPlan:
    """Read the JSON object of a plan; unknown keys are left alone.

    Raises PlanError that names the key at fault.
    """
    if not isinstance(data, Mapping):
        raise PlanError(f"{where}: a plan is a JSON object, this is a {type(data).__name__}")
    if data.get("schema") not in READ_SCHEMAS:
        read = " and ".join(map(str, READ_SCHEMAS))
        raise PlanError(f"{where}: schema is {data.get('schema')!r}, this version reads {read}")
    try:
        sha256 = data["model"]["sha256"]
        default = Precision.parse(str(data["default"]))
        around = Precision.parse(str(data.get("around", "fp32")))
        raw_pins = data["pins"]
    except (KeyError, TypeError) as error:
        raise PlanError(f"{where}: key {error} is missing or not of the right kind") from None
    except OptionError as error:
        raise PlanError(f"{where}: {error}") from None
    if not isinstance(raw_pins, list) or not isinstance(sha256, str):
        raise PlanError(f"{where}: `pins` must be a list and `model.sha256` a string")
    if around not in Precision.floats():
        raise PlanError(f"{where}: `around` is the precision of the float layers: {either(Precision.floats())}")
    if default.is_for_pins:
        raise PlanError(f"{where}: `default` is {default}, which is for pins alone: {either(Precision.formats())}")
    calibration = data.get("calibration")
    if calibration is not None and not isinstance(calibration, str):
        raise PlanError(f"{where}: `calibration` must be the name of a method")
    block = data.get("block")
    if block is not None and (isinstance(block, bool) or block not in SIZES):
        raise PlanError(f"{where}: `block` is the most numbers of a weight with one scale: {either(map(str, SIZES))}")
    pins = tuple(_pin(p, i, where) for i, p in enumerate(raw_pins))
    _check_one_precision(((node, pin.precision) for pin in pins for node in pin.nodes), "node", where)
    return PrecisionPlan(sha256, default, pins, around, calibration, repairs_from_dict(data, where), block)


def repairs_from_dict(data: Mapping[str, Any], where: str = "plan") -> tuple[Repair, ...]:
    """The repairs of a plan's JSON object. Raises PlanError for what is none, naming it."""
    raw = data.get("repairs", [])
    if not isinstance(raw, list):
        raise PlanError(f"{where}: `repairs` must be a list")
    found = []
    for index, entry in enumerate(raw):
        try:
            found.append(Repair.from_dict(entry))
        except ValueError as error:
            raise PlanError(f"{where}: repairs[{index}]: {error}") from None
    return tuple(found)


def _check_one_precision(pinned: Iterable[tuple[str, Precision]], what: str, where: str) -> None:
    """Raises PlanError where one name is given two precisions: which of them is meant cannot be told."""
    found: dict[str, Precision] = {}
    for name, precision in pinned:
        if found.setdefault(name, precision) is not precision:
            raise PlanError(f"{where}: pins {what} {name!r} to {found[name]} and to {precision}; leave one of them")


def _pin(data: Any, index: int, where: str) -> Pin:
    try:
        nodes = data["nodes"]
        if not isinstance(nodes, list) or not nodes or not all(isinstance(n, str) for n in nodes):
            raise PlanError(f"{where}: pins[{index}].nodes must be a list of node names")
        return Pin(
            layer=str(data.get("layer", nodes[0])),
            nodes=tuple(nodes),
            precision=Precision.parse(str(data.get("precision", "fp32"))),
            reason=str(data.get("reason", "")),
        )
    except (KeyError, TypeError, AttributeError):
        raise PlanError(f"{where}: pins[{index}] needs `nodes` (a list of ONNX node names)") from None
    except OptionError as error:
        raise PlanError(f"{where}: pins[{index}]: {error}") from None


def read_plan_content(path: Path) -> Any:
    """The JSON of a plan's file, whatever it holds. Raises PlanError where it cannot be read."""
    try:
        return parse_json(read_inside(path.parent, path.name, LARGEST_JSON))
    except UnreadableError as error:
        raise PlanError(f"{path}: {error}") from None
    except ValueError as error:
        raise PlanError(f"{path}: not JSON: {error}") from None


def check_model(plan: PrecisionPlan, model_sha256: str, path: Path) -> None:
    """Raises PlanError where the plan belongs to another model than the one of this hash."""
    if plan.model_sha256 != model_sha256:
        raise PlanError(
            f"{path}: made for another model (sha256 {plan.model_sha256[:12]}…, this one is "
            f"{model_sha256[:12]}…); sweep this model to get its own plan"
        )


def read_plan(path: Path, model_sha256: str, layers: Mapping[str, Collection[str]]) -> PrecisionPlan:
    """Read `plan.json` for a model, and match its pins to the model's layers by node name.

    `layers` maps each layer's name to its node names. Raises PlanError where the file is not a plan,
    belongs to another model, or pins a node that the model does not have.
    """
    plan = plan_from_dict(read_plan_content(path), str(path))
    check_model(plan, model_sha256, path)
    layer_of = {node: name for name, nodes in layers.items() for node in nodes}
    pins: dict[str, Pin] = {}
    known = ((layer_of[node], pin.precision) for pin in plan.pins for node in pin.nodes if node in layer_of)
    _check_one_precision(known, "layer", str(path))
    for pin in plan.pins:
        for node in pin.nodes:
            if node not in layer_of:
                raise PlanError(f"{path}: pins node {node!r}, which the model does not have")
            name = layer_of[node]
            pins[name] = Pin(name, tuple(layers[name]), pin.precision, pin.reason)
    return plan.with_pins(pins.values())
