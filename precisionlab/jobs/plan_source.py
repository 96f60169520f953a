"""What stands round a plan's file: the run beside it, and with that the model and the samples that it was found on."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from precisionlab.data.hook import is_hook
from precisionlab.errors import EngineError, PlanError
from precisionlab.evaluate.prepare import Source
from precisionlab.model import Model
from precisionlab.model.compiled import Fusions, with_compiled_layers
from precisionlab.plan.arithmetic import Arithmetic
from precisionlab.plan.file import REPAIRED, check_model, plan_from_dict, read_plan_content
from precisionlab.rewrite.repairs import repaired_model
from precisionlab.system.plainfiles import is_there
from precisionlab.system.usercode import is_object

RUN_FILE = "run.json"
_HOLDOUT = 0.25  # of a plan that stands alone; as in a sweep
_SAMPLING = ("folder", "shapes", "limit", "seed", "holdout", "skip_bad", "metric")


def run_beside(plan: Path) -> Mapping[str, Any]:
    """What the run's folder says of how the plan was found; empty where the plan stands alone. Raises PlanError."""
    path = plan.parent / RUN_FILE
    if not is_there(plan.parent, RUN_FILE):
        return {}
    run = read_plan_content(path)
    try:
        run["model"]["path"], [run["data"][key] for key in _SAMPLING]
    except (KeyError, TypeError) as error:
        raise PlanError(f"{path}: {error} is missing; move it away, and give --model and --data") from None
    wrong = _wrong_key(run)
    if wrong is not None:
        raise PlanError(f"{path}: {wrong} is not what a sweep writes; move it away, and give --model and --data")
    return dict(run)


def metric_of(run: Mapping[str, Any], metric: str | None) -> str | None:
    """The task metric that stands on the command line. Raises PlanError where only the run's folder names one."""
    named = run["data"]["metric"] if run else None
    if metric is None and named is not None:
        raise _code("task metric", named, "--metric")
    return metric


def _code(what: str, named: str, option: str) -> PlanError:
    if is_object(named):
        return PlanError(
            f"{RUN_FILE}: its {what} came from an object of a Python session, {named.partition(':')[2]}; give it again"
        )
    return PlanError(
        f"{RUN_FILE}: its {what} come{'s' if what[-1] != 's' else ''} from Python code, {named!r}, which is not run "
        f"because a file says so; if the code is yours, give it again: {option} {named}"
    )


def _wrong_key(run: Mapping[str, Any]) -> str | None:
    """The key whose value is of no kind that a sweep writes; None where all are right."""
    data, layers = run["data"], run.get("layers", {})
    shapes, limit, holdout = data["shapes"], data["limit"], data["holdout"]
    groups = layers.get("groups", []) if isinstance(layers, Mapping) else None
    right = {
        "model.path": isinstance(run["model"]["path"], str),
        "data.folder": isinstance(data["folder"], str | None),
        "data.shapes": isinstance(shapes, Mapping) and all(map(_is_list_of_counts, shapes.values())),
        "data.limit": limit is None or (_is_whole(limit) and limit > 0),
        "data.seed": _is_whole(data["seed"]) and data["seed"] >= 0,
        "data.holdout": isinstance(holdout, int | float) and 0 <= holdout < 1,
        "data.skip_bad": isinstance(data["skip_bad"], bool),
        "data.metric": isinstance(data["metric"], str | None),
        "layers.groups": isinstance(groups, list) and all(isinstance(group, list) for group in groups),
    }
    return next((key for key, is_right in right.items() if not is_right), None)


def _is_list_of_counts(value: Any) -> bool:
    return isinstance(value, list) and all(_is_whole(dim) and dim > 0 for dim in value)


def _is_whole(value: Any) -> bool:
    return type(value) is int  # bool is an int in Python, and none in JSON


def model_of(run: Mapping[str, Any], plan: Path) -> str:
    """The path of the model that the plan was found for. Raises PlanError where the plan stands alone."""
    if not run:
        raise PlanError(
            f"{plan}: no {RUN_FILE} beside it says which model and data it belongs to; give --model and --data"
        )
    return located(run, str(run["model"]["path"]))


def located(run: Mapping[str, Any], path: str) -> str:
    """A path of `run.json`: one that is not there from here is looked for below the folder that the run began in."""
    begun = run.get("started_in")  # runs of older versions do not say
    if not isinstance(begun, str) or Path(path).exists():
        return path
    there = Path(begun) / path
    return str(there) if there.exists() else path


def arithmetic_of(content: Any, plan: Path) -> Arithmetic:
    """How the figures of a plan were emulated, by its file's content. Raises PlanError."""
    try:
        return Arithmetic.from_plain(content.get("arithmetic"))
    except ValueError as error:
        raise PlanError(f"{plan}: {error}") from None


def with_layers_of(run: Mapping[str, Any], model: Model) -> Model:
    """The model with its nodes grouped into layers as they were in the run. Raises PlanError where they do not fit."""
    return grouped_as_in(run, model)[0]


def repaired_for(model: Model, plan: Path) -> Model:
    """The model with the repairs of a plan's file; itself where it has none.

    Raises PlanError where the file is no plan, is another model's, or its repairs cannot be made, or do not give the
    model that it was found for.
    """
    content = read_plan_content(plan)
    asked = plan_from_dict(content, str(plan))
    if not asked.repairs:
        return model
    check_model(asked, model.sha256, plan)
    try:
        repaired = repaired_model(model, asked.repairs)
    except PlanError as error:
        raise PlanError(f"{plan}: {error}") from None
    wanted = _told(content)
    if wanted is not None and wanted != repaired.content:
        raise PlanError(
            f"{plan}: its repairs give another model than the one that it was found for (`{REPAIRED}.sha256`): it was "
            "changed, or another version found it; sweep the model anew"
        )
    return repaired


def is_told(plan: Path) -> bool:
    """Whether the plan's file says which model its repairs give, as a sweep does that has seen that model's float32.

    Raises PlanError where the file is no plan.
    """
    return _told(read_plan_content(plan)) is not None


def _told(content: Any) -> str | None:
    """The digest of the repaired model in a plan's file; None where it has none."""
    repaired = content.get(REPAIRED)
    return str(repaired.get("sha256", "")) if isinstance(repaired, Mapping) else None


def layered_for(run: Mapping[str, Any], model: Model, plan: Path) -> Model:
    """The model with the plan's repairs, its nodes grouped as they were in the run. Raises PlanError."""
    repaired = repaired_for(model, plan)
    if not repaired.repairs or not run:
        return with_layers_of(run, repaired)
    facts = run.get("precisions")
    own = facts.get(str(read_plan_content(plan)["default"])) if isinstance(facts, Mapping) else None
    groups = own.get("groups") if isinstance(own, Mapping) else None
    return with_layers_of({"layers": {"groups": groups if isinstance(groups, list) else []}}, repaired)


def grouped_as_in(run: Mapping[str, Any], model: Model) -> tuple[Model, Fusions | None]:
    """As `with_layers_of`, and how far a compiled engine's layers differ from our patterns; None where it is these."""
    groups = run.get("layers", {}).get("groups") if run else None
    if not groups:
        return model, None
    try:
        return with_compiled_layers(model, [tuple(map(str, group)) for group in groups])
    except (TypeError, EngineError) as error:
        raise PlanError(f"the run's `layers` do not fit the model: {error}") from None


def source_of(run: Mapping[str, Any], data: str | Path | None) -> Source:
    """The samples of the run, chosen and parted as they were there; others where `data` names them.

    Raises PlanError where the run's own are a hook: it is code, and a run's folder may come from a stranger.
    """
    if not run:
        return Source(data, {}, None, 0, _HOLDOUT, skip_bad=False)
    known = run["data"]
    folder = known["folder"]
    if data is None and folder is not None and is_hook(folder) and not Path(folder).is_dir():
        raise _code("samples", folder, "--data")
    shapes = {name: tuple(shape) for name, shape in known["shapes"].items()}
    own = None if folder is None else located(run, folder)
    return Source(
        own if data is None else data,
        {} if data is not None else shapes,
        known["limit"],
        known["seed"],
        known["holdout"],
        known["skip_bad"],
    )
