"""A run's folder read back, and the report drawn again from it: nothing is run."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jinja2 import UndefinedError

from precisionlab.errors import OptionError, PlanError
from precisionlab.plan.file import plan_files, plan_from_dict, read_plan_content
from precisionlab.plan.plan import PrecisionPlan
from precisionlab.report.cells import records_of
from precisionlab.report.columns import LAYERS, PARETO, SAMPLES, VARIANTS
from precisionlab.report.csvfile import from_csv
from precisionlab.report.earlier import check_schema, facts_under_current_names, under_current_names
from precisionlab.report.histograms import HISTOGRAMS, RunHistograms, read_histograms
from precisionlab.report.markdown import render_markdown
from precisionlab.report.network import NETWORK, Network, read_network
from precisionlab.report.schema import Schema
from precisionlab.report.section import Tables
from precisionlab.report.written import altered
from precisionlab.system.plainfiles import is_there
from precisionlab.system.reading import LARGEST_JSON, UnreadableError, parse_json, read_inside
from precisionlab.system.wording import one_line

if TYPE_CHECKING:
    import pandas as pd

# What the pages take from run.json; None stands for a value of any kind.
_RUN: Mapping[str, Any] = {
    **dict.fromkeys(("precisionlab", "created", "backend", "figures", "engines", "threads", "seconds", "command")),
    "versions": {},
    "target": dict.fromkeys(("name", "title", "source")),
    "model": dict.fromkeys(("path", "sha256", "layers")),
    "layers": dict.fromkeys(("from", "difference")),
    "data": dict.fromkeys(
        ("folder", "name", "description", "samples", "choosing", "held_out", "random", "sha256", "seed")
    ),
    "tolerance": {},
    "precisions": {},
}
_PRECISION: Mapping[str, Any] = dict.fromkeys(
    (
        *("met", "pins", "touched", "evaluations", "proven", "remark", "engine", "compiled", "inconclusive", "table"),
        *("first_nonfinite", "first_nonfinite_layer"),
    )
)


@dataclass(frozen=True)
class RunFiles:
    """What a run's folder holds: `run.json`, the tables, and the plan of each precision.

    `samples`, `histograms` and `network` are None in runs of older versions, which had no `samples.csv`,
    `histograms.json` or `network.json`.
    `run["altered"]` names the files that are not as they were written.
    """

    folder: Path
    run: Mapping[str, Any]
    variants: pd.DataFrame
    layers: pd.DataFrame
    pareto: pd.DataFrame
    plans: Mapping[str, PrecisionPlan]
    samples: pd.DataFrame | None
    histograms: RunHistograms | None
    network: Network | None = None


def read_run(folder: Path) -> RunFiles:
    """Read a run's folder. Raises OptionError where it is none, or a file of it is missing, broken or too old."""
    if not folder.is_dir():
        what = f"a file; give the folder, {folder.parent}" if folder.exists() else "no such folder"
        raise OptionError(f"{folder}: {what}")
    if not is_there(folder, "run.json"):
        raise OptionError(f"{folder}: no run.json here; give the folder of a sweep, such as reports/<model>")
    run = _run(folder / "run.json")
    variants = _table(folder, VARIANTS)
    if variants.empty:
        raise _broken(folder / "variants.csv", "holds no variant")
    # The one text that is either there or was never taken.
    variants["metric_name"] = [name or None for name in variants["metric_name"]]
    return RunFiles(
        folder,
        {**run, "altered": altered(run, folder)},
        variants,
        _table(folder, LAYERS),
        _table(folder, PARETO),
        {name: _plan(folder / file) for name, file in plan_files(run["precisions"]).items()},
        _table(folder, SAMPLES) if is_there(folder, SAMPLES.file) else None,
        _histograms(folder / HISTOGRAMS) if is_there(folder, HISTOGRAMS) else None,
        _network(folder / NETWORK) if is_there(folder, NETWORK) else None,
    )


def redraw(files: RunFiles) -> str:
    """The page of `report.html`, from the run's files alone; commands on it name the folder where these lie now.

    Raises OptionError where a value is none of a sweep's.
    """
    with values_told(str(files.folder)):
        return page_of(replace(files, run={**files.run, "folder": str(files.folder.absolute())}))


@contextmanager
def values_told(folders: str) -> Iterator[None]:
    """What stumbles over a value of a run's files is told as an OptionError: only a stranger writes such a one."""
    try:
        yield
    except (KeyError, TypeError, ValueError, ArithmeticError, AttributeError, IndexError, UndefinedError) as error:
        what = one_line(f"{type(error).__name__}: {error}", 200)
        raise OptionError(
            f"{folders}: a value in its files is not what a sweep writes ({what}); sweep again"
        ) from error


def altered_text(files: RunFiles) -> str | None:
    """What to say of a run whose files are not as they were written; None where all are."""
    if not files.run["altered"]:
        return None
    names = one_line(", ".join(files.run["altered"]), 200)
    return (
        f"{files.folder}: not as written by precisionlab: {names}; what was changed there is shown as it stands, and "
        "`precisionlab verify` measures a plan again"
    )


def page_of(files: RunFiles) -> str:
    """The page of `report.html`."""
    from precisionlab.report.html import render

    tables = (files.variants, files.layers, files.plans, files.pareto, files.samples)
    return render(files.run, *tables, files.histograms, files.network)


def summary_of(files: RunFiles) -> str:
    """The text of `summary.md`."""
    tables = Tables(records_of(files.variants), records_of(files.layers), records_of(files.pareto))
    return render_markdown(files.run, tables, files.plans)


def _run(path: Path) -> Mapping[str, Any]:
    try:
        run = parse_json(_text(path))
    except (ValueError, RecursionError) as error:
        raise _broken(path, f"not JSON: {error}") from None
    _check(run, _RUN, path, "")
    try:
        check_schema(run)
    except ValueError as error:
        raise OptionError(f"{path}: {error}; read it with the version that wrote it, or run the sweep again") from None
    precisions = {}
    for name, found in run["precisions"].items():
        precisions[name] = facts_under_current_names(found) if isinstance(found, dict) else found
        _check(precisions[name], _PRECISION, path, f"precisions.{name}.")
        if name not in run["tolerance"]:
            raise _old(path, [f"tolerance.{name}"])
    return {**run, "precisions": precisions}


def _check(found: Any, wanted: Mapping[str, Any], path: Path, where: str) -> None:
    """Raises OptionError where an object lacks a key, or holds something else where an object must stand."""
    if not isinstance(found, dict):
        raise _broken(path, f"{where.rstrip('.') or 'it'} must be a JSON object")
    _check_names(found, wanted, path, where)
    for name, inner in wanted.items():
        if inner is not None:
            _check(found[name], inner, path, f"{where}{name}.")


def _check_names(found: Iterable[str], wanted: Iterable[str], path: Path, where: str = "") -> None:
    known = set(found)
    missing = [f"{where}{name}" for name in wanted if name not in known]
    if missing:
        raise _old(path, missing)


def _table(folder: Path, schema: Schema) -> pd.DataFrame:
    """The table; further columns, as a later version may have, are read where they stand there."""
    path = folder / schema.file
    try:
        table = under_current_names(from_csv(_text(path), schema.columns))
    except ValueError as error:  # pandas' own errors are of this kind
        raise _broken(path, str(error).strip().splitlines()[0] if str(error).strip() else "not a table") from None
    _check_names(map(str, table), (column.name for column in schema.columns if column.required), path)
    return table


def _histograms(path: Path) -> RunHistograms:
    try:
        return read_histograms(_text(path))
    except (ValueError, RecursionError) as error:
        raise _broken(path, f"not the histograms of a run: {error}") from None


def _network(path: Path) -> Network:
    try:
        return read_network(_text(path))
    except (ValueError, RecursionError) as error:
        raise _broken(path, f"not the network of a run: {error}") from None


def _plan(path: Path) -> PrecisionPlan:
    if not is_there(path.parent, path.name):
        raise OptionError(f"{path}: missing; put it back, or run the sweep again")
    try:
        return plan_from_dict(read_plan_content(path), str(path))
    except PlanError as error:
        raise OptionError(str(error)) from None


def _text(path: Path) -> str:
    if not is_there(path.parent, path.name):
        raise OptionError(f"{path}: missing; put it back, or run the sweep again")
    try:
        # Bytes as they are: a line's end inside a name is part of the name.
        return read_inside(path.parent, path.name, LARGEST_JSON).decode("utf-8-sig")
    except UnreadableError as error:
        raise OptionError(f"{path}: {error}") from None
    except UnicodeDecodeError as error:
        raise _broken(path, f"not UTF-8: byte {error.start}") from None


def _broken(path: Path, what: str) -> OptionError:
    return OptionError(f"{path}: broken: {what}; run the sweep again")


def _old(path: Path, missing: Collection[str]) -> OptionError:
    names = ", ".join(list(missing)[:5]) + (f" and {len(missing) - 5} more" if len(missing) > 5 else "")
    return OptionError(f"{path}: made by another version of precisionlab: it lacks {names}; run the sweep again")
