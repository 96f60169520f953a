"""The HTML report: one file that opens from disk, offline, and answers without a manual.

Is it right, and what is that worth? Which layers, and why? What is given up? What now? Everything is drawn from
exactly what stands in `run.json`, `variants.csv`, `layers.csv`, `pareto.csv`, `samples.csv`, `histograms.json`,
`network.json` and the plans, so that a report can be drawn again from a run's folder.

Names come from strangers' models. Jinja2 escapes whatever it prints; the markup made here are the charts, which an
XML serialiser writes, and what a script is to know stands beside it as JSON that no browser runs. The page's content
security policy forbids every request and every script but its own.
"""

from __future__ import annotations

import base64
import hashlib
import math
import shlex
from collections.abc import Mapping
from functools import cache
from itertools import groupby
from pathlib import PurePath
from typing import TYPE_CHECKING, Any

from jinja2 import Environment, PackageLoader, StrictUndefined, Template
from markupsafe import Markup, escape

from precisionlab.compare.metrics import agreement_metrics, error_metrics, tabled_metrics
from precisionlab.plan.plan import PrecisionPlan
from precisionlab.precision import Precision
from precisionlab.report.cells import (
    Row,
    as_flag,
    as_number,
    as_text,
    axis_text,
    bound_text,
    figure_cell,
    is_quantized,
    percent,
    records_of,
    show,
    tolerance_text,
    value_text,
    visible,
)
from precisionlab.report.columns import SCHEMAS
from precisionlab.report.commands import (
    commands_of,
    folder_of,
    in_its_folder,
    longer_command,
    next_command,
    run_commands,
)
from precisionlab.report.details import error_labels
from precisionlab.report.graph import draw_graph
from precisionlab.report.hazard import capital
from precisionlab.report.hazards import hazards
from precisionlab.report.histograms import RunHistograms, histograms_json
from precisionlab.report.inside import emulated_words, engines_line, kernels_text
from precisionlab.report.network import Network
from precisionlab.report.quantized_choice import choice_of, tails_of
from precisionlab.report.repair_views import repair_title
from precisionlab.report.section import Tables, metric_name, section_of
from precisionlab.report.shipping import recommendation
from precisionlab.report.spread import spreads_of
from precisionlab.report.terms import TERMS
from precisionlab.report.views import is_part, variant_view
from precisionlab.search.grounds import steadiness_text

if TYPE_CHECKING:
    import pandas as pd

__all__ = [
    "Row",
    "as_flag",
    "as_number",
    "as_text",
    "load_template",
    "records_of",
    "render",
    "render_fragment",
    "show",
    "tolerance_text",
]


def render(
    run: Mapping[str, Any],
    variants: pd.DataFrame,
    layers: pd.DataFrame,
    plans: Mapping[str, PrecisionPlan],
    pareto: pd.DataFrame | None = None,
    samples: pd.DataFrame | None = None,
    histograms: RunHistograms | None = None,
    network: Network | None = None,
) -> str:
    """The whole page.

    `run` is what `run.json` holds; `variants`, `layers`, `pareto` (None: no plans were kept) and `samples` are the
    tables of `precisionlab.report.columns`; `plans` maps each precision to the plan found, and `histograms` is what
    `histograms.json` holds, `network` what `network.json` does (these and the last two tables are None of an older
    run, which has none).
    """
    tables = Tables(records_of(variants), records_of(layers), _rows(pareto), _rows(samples), histograms)
    return _draw("page", run, tables, plans, network)


def render_fragment(
    run: Mapping[str, Any], variants: pd.DataFrame, layers: pd.DataFrame, plans: Mapping[str, PrecisionPlan]
) -> str:
    """Verdict, variants, worst layers and pins, to stand inside another page such as a notebook.

    It has no script and no ids, and its style reaches only what stands inside it.
    """
    return _draw("fragment", run, Tables(records_of(variants), records_of(layers), []), plans)


def _rows(table: pd.DataFrame | None) -> list[Row]:
    return [] if table is None else records_of(table)


def _draw(
    kind: str,
    run: Mapping[str, Any],
    tables: Tables,
    plans: Mapping[str, PrecisionPlan],
    network: Network | None = None,
) -> str:
    variants = [variant_view(list(rows)) for _, rows in groupby(tables.variants, key=lambda row: row["variant"])]
    sections = [section_of(name, run, tables, plans, kind == "page") for name in run["precisions"]]
    advice = recommendation(run, tables.variants, sections)
    taken = next((section for section in sections if section.name == advice.taken), None)
    text = load_template().render(
        kind=kind,
        run=run,
        advice=advice,
        next_command=None if taken is None else next_command(run, taken),
        model_name=PurePath(str(run["model"]["path"])).name,
        precisions=sections,
        places={section.name: place for place, section in enumerate(sections, 1)},
        hazards=hazards(run, sections, tables.histograms),
        choice=choice_of(run["precisions"], tables.layers, tails_of(tables.histograms)),
        histograms=None if tables.histograms is None else histograms_json(tables.histograms),
        spreads=spreads_of(tables.samples),
        commands=[commands_of(run, section) for section in sections],
        run_commands=run_commands(run),
        longer=in_its_folder(run, longer) if (longer := longer_command(run)) else "",
        folder=str(folder_of(run)),
        graph=draw_graph(tables.layers, list(run["precisions"]), network) if kind == "page" else None,
        variants=variants,
        outputs=list(dict.fromkeys(row["output"] for row in tables.variants if not is_part(row))),
        has_parts=any(map(is_part, tables.variants)),
        metric_name=metric_name(tables.variants),
        cost_figures=" and ".join(dict.fromkeys(v.cost_figures for v in variants if v.cost is not None)),
    )
    # A path on a POSIX system may hold bytes that are not UTF-8, as lone surrogates that no file can take.
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


@cache
def load_template() -> Template:
    """The template of the report, with what it calls."""
    environment = Environment(
        loader=PackageLoader("precisionlab", "report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(
        db=lambda value: show(value, ".1f"),
        short=lambda value: show(value, ".3g"),
        share=lambda value: show(value, ".3f"),
        figure=figure_cell,
        count=lambda value: show(value, ".0f"),
        percent=percent,
        output_share=_output_share,
        capitalize_first=capital,
        percentage=lambda share, form=".1f": show(None if share is None else 100 * share, form),
        bound=bound_text,
        axis=axis_text,
        value_of=lambda value, bound: value_text(bound, value) if bound else show(value, ".3g"),
        visible=visible,
        steadiness=steadiness_text,
        csp_hash=_csp_hash,
        quoted=shlex.quote,
    )
    environment.globals.update(
        error_metrics=error_metrics,
        agreement_metrics=agreement_metrics,
        error_labels=error_labels,
        tabled_metrics=tabled_metrics,
        head_of=head_of,
        term=term,
        terms=TERMS,
        engines_line=engines_line,
        kernels_text=kernels_text,
        emulated_words=emulated_words,
        every_precision=tuple(Precision),
        is_quantized=is_quantized,
        repair_title=repair_title,
        tones=_tones,
        ends=_ends,
    )
    return environment.get_template("report.html.j2")


def _output_share(share: float | None) -> str:
    """A share as a percentage without its sign; NaN is a layer that breaks an output by itself."""
    return (
        "breaks it" if share is not None and math.isnan(share) else show(None if share is None else 100 * share, ".1f")
    )


def _tones(scheme: int) -> Markup:
    """The colour of each precision in the graph, as properties of a style: in the light scheme (0) or the dark (1)."""
    return Markup("".join(f"--g-{p}:{p.number_format.colours[scheme]};" for p in Precision))


def _ends() -> str:
    """Where the half formats end: `FP16 ends at 65504, BF16 at 3.39e38`."""
    formats = [precision.number_format for precision in Precision.floats() if precision.is_low]
    ends = [f"{f.largest:g}" if f.largest < 1e5 else f"{f.largest:.3g}".replace("+", "") for f in formats]
    first, *others = (
        f"{f.title} {'at' if i else 'ends at'} {end}" for i, (f, end) in enumerate(zip(formats, ends, strict=True))
    )
    return ", ".join([first, *others])


def head_of(file: str, column: str) -> Markup:
    """The head of a table's column, in which an arrow does not end a line, with what it is as a tooltip."""
    found = SCHEMAS[file].column(column)
    head = str(escape(found.head)).replace(" →", "&nbsp;→")
    return Markup(f'<abbr title="{escape(found.what.replace("`", ""))}">{head}</abbr>')


def term(word: str, meant: str = "") -> Markup:
    """A word of the report with what it means as a tooltip; `meant` is the term that it stands for, if not itself."""
    said = TERMS.get(meant or word.partition(",")[0])
    return Markup(f'<abbr title="{escape(said)}">{escape(word)}</abbr>') if said else escape(word)


def _csp_hash(script: str) -> str:
    """The source expression that lets exactly this script run (Content Security Policy, level 2)."""
    return "sha256-" + base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
