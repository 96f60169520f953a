"""The ranges of a fault that is cut out: those of the run that it is of, or found anew where there is none."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from precisionlab.calibration.find import table_of
from precisionlab.calibration.methods import AUTO, OUTPUT, default_method
from precisionlab.calibration.table import CalibrationTable
from precisionlab.errors import PlanError
from precisionlab.evaluate.block_scales import chosen_table
from precisionlab.evaluate.prepare import Prepared
from precisionlab.evaluate.ranges import block_methods, operands_of
from precisionlab.model.blocks import LARGEST
from precisionlab.plan.file import plan_files, plan_from_dict, read_plan_content
from precisionlab.plan.plan import PrecisionPlan
from precisionlab.precision import Precision
from precisionlab.report.histograms import HISTOGRAMS, read_histograms
from precisionlab.system.observer import Observer
from precisionlab.system.reading import LARGEST_JSON, UnreadableError, read_inside
from precisionlab.system.wording import counted


def plan_of_run(folder: Path, run: Mapping[str, Any], precision: Precision) -> PrecisionPlan | None:
    """The plan that the run in a folder has found for a precision; None without one. Raises PlanError for a bad one."""
    precisions = run.get("precisions")
    files = plan_files(precisions) if isinstance(precisions, Mapping) else {}
    file = files.get(precision.value)
    if file is None or not (folder / file).is_file():
        return None
    return plan_from_dict(read_plan_content(folder / file), str(folder / file))


def fault_ranges(
    ready: Prepared,
    folder: Path,
    run: Mapping[str, Any],
    plan: PrecisionPlan | None,
    precision: Precision,
    observer: Observer,
) -> CalibrationTable:
    """A precision's ranges of the run in the folder, as `histograms.json` has them; `run` is empty of a model alone.

    Where they are not all there, by the method of its `plan` over all samples, which is said.
    """
    if precision.is_weight_only:
        method = default_method(precision) if plan is None or plan.calibration is None else plan.calibration
        size = LARGEST if plan is None or plan.block is None else plan.block
        if method == OUTPUT:
            observer.stage(f"{precision}, scales by {method}", len(ready.chosen))
            return chosen_table(ready.local.model, ready.chosen, ready.local.look, size, observer.advance, precision)
        return block_methods(size, precision)[method]
    wanted = operands_of(ready.local.model)
    known = _written(folder, precision) if run else None
    if known is not None and known.ranges.keys() >= set(wanted):
        observer.note(f"{precision} ranges: those of the run, over {counted(known.samples, 'sample')}")
        return CalibrationTable({name: known.ranges[name] for name in wanted}, known.samples, precision)
    named = None if plan is None or plan.calibration == AUTO else plan.calibration
    method = named or default_method(precision)
    if run:
        observer.note(f"the run holds no {precision} ranges of this model as it is: they are found anew, by {method}")
    observer.stage(f"{precision} ranges", len(ready.dataset))
    collector = ready.local.collector(wanted)
    collector.add(ready.dataset, observer.advance)
    return table_of(collector.histograms(), method, len(ready.dataset), precision=precision)


def _written(folder: Path, precision: Precision) -> CalibrationTable | None:
    """The ranges in a run's `histograms.json`; None where it has none. Raises PlanError for a broken file."""
    if not (folder / HISTOGRAMS).is_file():
        return None
    try:
        found = read_histograms(read_inside(folder, HISTOGRAMS, LARGEST_JSON).decode())
    except (UnreadableError, ValueError, RecursionError) as error:
        raise PlanError(f"{folder / HISTOGRAMS}: not the histograms of a run ({error}); sweep again") from None
    tensors = found.tensors.items()
    ranges = {name: values.ranges[precision] for name, values in tensors if precision in values.ranges}
    return CalibrationTable(ranges, found.samples, precision) if ranges else None
