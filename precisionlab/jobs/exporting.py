"""A plan for other tools, as Python asks for it: of a file, of a run's folder, or of its result."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from precisionlab.errors import OptionError
from precisionlab.jobs.export import Exported, export_plan
from precisionlab.jobs.report import folder_of_run
from precisionlab.jobs.result import SweepResult
from precisionlab.plan.file import plan_files
from precisionlab.report.redraw import read_run
from precisionlab.system.notebook import observer_of
from precisionlab.system.observer import Observer


def export(
    plan: str | Path | SweepResult,
    target: str = "trtexec",
    out: str | Path | None = None,
    *,
    precision: str | None = None,
    observer: Observer | None = None,
    **options: Any,
) -> Exported:
    """Write a plan as another tool wants it.

    `target` is trtexec, polygraphy, modelopt, onnxruntime, json, typed-onnx or repaired-onnx.
    `plan` is a plan's file, the folder of a sweep, or its result; of these `precision` says which plan, where there are
    several. Without `out` the text is in what is returned; targets of several files, or of binary ones, need it.
    `options` are those of `precisionlab export`: model, data, shapes, tensorrt, hold_float, tuning, plugins, typed,
    threads. Raises a PrecisionLabError where the plan cannot be read, or the target cannot be told it.
    """
    return export_plan(_file(plan, precision), target, out=out, observer=observer_of(observer), **options)


def _file(plan: str | Path | SweepResult, precision: str | None) -> Path:
    path = folder_of_run(plan)
    if not isinstance(plan, SweepResult) and not path.is_dir():
        if precision is not None:
            raise OptionError(f"{path} is one plan; precision chooses among those of a run")
        return path
    files = plan_files(read_run(path).run["precisions"])
    if precision is None and len(files) > 1:
        raise OptionError(f"{path} has plans for {', '.join(files)}; say which with precision")
    name = precision or next(iter(files))
    if name not in files:
        raise OptionError(f"{path} has no plan for {name!r}; it has those for {', '.join(files)}")
    return path / files[name]
