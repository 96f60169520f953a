"""What a job gives back to its user: its findings, with their tables, and what a notebook shows of them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from precisionlab.errors import OptionError
from precisionlab.report.cells import visible
from precisionlab.results.calibration import CalibrationFindings
from precisionlab.results.compare import CompareFindings
from precisionlab.results.extract import Extract
from precisionlab.results.fidelity import FidelityFindings
from precisionlab.results.sweep import SweepFindings
from precisionlab.system.wording import counted

if TYPE_CHECKING:
    import pandas as pd

    from precisionlab.report.diff import RunDiff
    from precisionlab.report.figure import Figure

_WORST = ("precision", "layer", "kind", "output_share", "introduced_sqnr_db", "inherited_sqnr_db", "cause", "pinned_to")
_BY_ITSELF = ("layer", "kind", "one_on_sqnr_db", "one_on_metric", "one_off_sqnr_db", "one_off_metric")
_SUMMARY = ("variant", "pins", "repairs", "met", "sqnr_db", "top1", "metric", "cost_of_fp32")


@dataclass(frozen=True, repr=False)
class SweepResult(SweepFindings):
    """The outcome of one sweep.

    `variants` and `layers` are the tables of `variants.csv` and `layers.csv`; their columns are documented in
    `precisionlab.report.columns`. `summary` and `worst` have few of them. A notebook shows the report's verdict and
    tables.
    """

    @cached_property
    def variants(self) -> pd.DataFrame:
        """One row for each variant and final output."""
        from precisionlab.report.tables import variants_table

        return variants_table(self)

    @cached_property
    def layers(self) -> pd.DataFrame:
        """One row for each layer and low precision, in topological order."""
        from precisionlab.report.tables import layers_table

        return layers_table(self)

    @property
    def summary(self) -> pd.DataFrame:
        """One row for each variant: pins, repairs, whether it is right, its worst figures, and its cost."""
        first = self.variants.drop_duplicates("variant")
        found: pd.DataFrame = _few(first, _SUMMARY).set_index("variant")
        return found

    def worst(self, count: int = 10, precision: str | None = None) -> pd.DataFrame:
        """The layers to look at first, as the report orders them: so many of each precision, or of one alone.

        Raises OptionError for a precision that was not swept.
        """
        names = [self._swept(precision)] if precision is not None else list(self.plans)
        ranked = self.layers[self.layers["rank"].notna() & self.layers["precision"].isin(names)]
        ordered = ranked.sort_values("rank", kind="stable").groupby("precision", sort=False).head(count)
        order = ordered["precision"].map(names.index)
        placed = ordered.assign(place=order).sort_values(["place", "rank"], kind="stable")
        found: pd.DataFrame = _few(placed, _WORST).reset_index(drop=True)
        return found

    def by_itself(self, precision: str | None = None) -> pd.DataFrame:
        """Each layer alone in the low precision, and alone in float32, the worst first: of the first precision.

        The columns are those of `layers.csv`. Raises OptionError for a precision that was not swept, and where a sweep
        had no `each_layer`.
        """
        name = self._swept(precision)
        rows = self.layers[(self.layers["precision"] == name) & self.layers["each_samples"].notna()]
        if rows.empty:
            raise OptionError(f"{name}: no layer was measured by itself; sweep with each_layer, a number of samples")
        found: pd.DataFrame = _few(rows.sort_values("rank", kind="stable"), _BY_ITSELF).reset_index(drop=True)
        return found

    def plot(self, precision: str | None = None) -> Figure:
        """The error along the network, introduced and inherited, as the report draws it: of the first precision.

        A notebook shows it, and `save` writes it as SVG. Raises OptionError for a precision that was not swept.
        """
        from precisionlab.report.figure import layers_figure

        return layers_figure(self, self.layers, self._swept(precision))

    def plot_by_itself(self, precision: str | None = None) -> Figure:
        """The outputs with each layer alone in the low precision, and alone in float32: of the first precision.

        Of the task metric where it tells layers apart, else of the SQNR. Raises OptionError as `by_itself`.
        """
        from precisionlab.report.figure import each_figure

        return each_figure(self, self.layers, self._swept(precision))

    def open(self) -> None:
        """Open the report in the browser; where there is none, the notebook or terminal is told where it lies."""
        _open(self.folder, "report.html")

    def _swept(self, precision: str | None) -> str:
        names = list(self.plans)
        if precision is None:
            return names[0]
        if precision not in names:
            raise OptionError(f"precision {precision!r} was not swept; this run has {', '.join(names)}")
        return precision

    def __repr__(self) -> str:
        """One line."""
        marks = ", ".join(f"{p.precision} {p.verdict.mark}" for p in self.precisions)
        where = f"; {self.folder}" if self.folder else ""
        return f"SweepResult({visible(self.model.path.name)}: {marks}{where})"

    def _repr_html_(self) -> str:
        """How a notebook shows it: the report's verdict and tables."""
        from precisionlab.report.fragment import in_notebook_style
        from precisionlab.report.html import render_fragment

        return in_notebook_style(render_fragment(self.run, self.variants, self.layers, self.plans))


@dataclass(frozen=True, repr=False)
class CalibrationResult(CalibrationFindings):
    """The ranges found, and where they were written; see `CalibrationFindings`."""

    @cached_property
    def ranges(self) -> pd.DataFrame:
        """One row for each tensor; the columns are documented in `precisionlab.report.columns`."""
        from precisionlab.report.ranges import ranges_table

        return ranges_table(self)

    def open(self) -> None:
        """Open the page in the browser; where there is none, the notebook or terminal is told where it lies."""
        _open(self.folder, "calibration.html")

    def __repr__(self) -> str:
        """One line."""
        ranges = counted(len(self.table.ranges), "range")
        found = f"{ranges} from {counted(self.table.samples, 'sample')}"
        return f"CalibrationResult({visible(self.model.path.name)}: {found}; {self.cache or self.folder})"

    def _repr_html_(self) -> str:
        """How a notebook shows it: what was found, and the tensors that were clipped most."""
        from precisionlab.report.fragment import calibration_card

        return calibration_card(self)


@dataclass(frozen=True, repr=False)
class CompareResult(CompareFindings):
    """A second model beside the first; see `CompareFindings`."""

    @cached_property
    def table(self) -> pd.DataFrame:
        """One row for each float tensor that a layer gives, as `compare.csv` has them."""
        from precisionlab.report.compare import compare_table

        return compare_table(self)

    def worst(self, count: int = 10) -> pd.DataFrame:
        """The layers that introduce most."""
        names = ("layer", "kind", "introduced_sqnr_db", "inherited_sqnr_db", "twin", "operator", "type")
        wanted = [row.tensor for row in self.worst_rows(count)]
        return _few(self.table.set_index("tensor").loc[wanted].reset_index(), names)

    def open(self) -> None:
        """Open the page in the browser; where there is none, the notebook or terminal is told where it lies."""
        _open(self.folder, "compare.html")

    def __repr__(self) -> str:
        """One line."""
        return f"CompareResult({visible(f'{self.other} beside {self.model}')}: {visible(self.verdict.sentence)})"

    def _repr_html_(self) -> str:
        """How a notebook shows it: the verdict, the outputs, and the layers that introduce most."""
        from precisionlab.report.compare import compare_fragment
        from precisionlab.report.fragment import in_notebook_style

        return in_notebook_style(compare_fragment(self))


@dataclass(frozen=True, repr=False)
class FidelityResult(FidelityFindings):
    """The emulation beside real arithmetic; see `FidelityFindings`."""

    @cached_property
    def table(self) -> pd.DataFrame:
        """One row for each tensor and precision, as `fidelity.csv` has them."""
        from precisionlab.report.fidelity import fidelity_table

        return fidelity_table(self)

    def open(self) -> None:
        """Open the page in the browser; where there is none, the notebook or terminal is told where it lies."""
        _open(self.folder, "fidelity.html")

    def __repr__(self) -> str:
        """One line."""
        met = ((one, sum(goal.met is True for goal in one.goals)) for one in self.found)
        said = (f"{one.precision} {count} of {len(one.goals)} goals" for one, count in met)
        return f"FidelityResult({visible(self.model)}: {', '.join(said)}; {self.folder})"

    def _repr_html_(self) -> str:
        """How a notebook shows it: each precision's goals."""
        from precisionlab.report.fragment import fidelity_card

        return fidelity_card(self)


@dataclass(frozen=True, repr=False)
class ExtractResult(Extract):
    """A part of a model that shows a fault; see `Extract`."""

    def __repr__(self) -> str:
        """One line."""
        return f"ExtractResult({visible(self.model)}: {visible(self.sentence)}; {self.folder})"

    def _repr_html_(self) -> str:
        """How a notebook shows it: whether the part shows the fault, and its files."""
        from precisionlab.report.fragment import extract_card

        return extract_card(self)


@dataclass(frozen=True, repr=False)
class DiffResult:
    """Two runs beside each other. `diff` has all that differs."""

    diff: RunDiff

    @property
    def worse(self) -> bool:
        """Whether the second is worse than the first allows."""
        return bool(self.diff.failures)

    @property
    def failures(self) -> tuple[str, ...]:
        """Why it is; empty where it is not."""
        return self.diff.failures

    def to_dict(self) -> dict[str, Any]:
        """What `precisionlab diff --json` prints."""
        from precisionlab.report.diff import diff_to_dict

        return diff_to_dict(self.diff)

    def save(self, path: str | Path) -> Path:
        """Write the page. Raises OptionError where that cannot be done."""
        from precisionlab.report.diff import render_diff
        from precisionlab.system.disk import told, write_whole

        page = Path(path)
        with told(page, "choose another place"):
            write_whole(page, render_diff(self.diff))
        return page

    def __repr__(self) -> str:
        """One line."""
        trends = ", ".join(f"{one.name} {one.trend}" for one in self.diff.precisions)
        how = "worse than allowed" if self.worse else "not worse than allowed"
        return f"DiffResult({self.diff.before.folder} → {self.diff.after.folder}: {trends}; {how})"

    def _repr_html_(self) -> str:
        """How a notebook shows it: what each ships, and the figures of the plans found."""
        from precisionlab.report.fragment import diff_card

        return diff_card(self.diff)


def _few(table: pd.DataFrame, names: tuple[str, ...]) -> pd.DataFrame:
    """These columns of a table, but those that hold nothing in it."""
    there = [name for name in names if name in table and (table[name].notna() & (table[name] != "")).any()]
    found: pd.DataFrame = table[there]
    return found


def _open(folder: Path | None, page: str) -> None:
    from precisionlab.system.browser import open_page

    if folder is None or not (folder / page).exists():
        raise OptionError(f"there is no {page} to open: nothing was written")
    open_page(folder / page)
