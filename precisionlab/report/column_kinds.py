"""The kinds of columns that tables are made of, each in a line."""

from __future__ import annotations

from collections.abc import Iterator

from precisionlab.compare.metrics import Metric
from precisionlab.report.schema import Column, Kind

SPREAD_PARTS = {"low": "least", "quarter": "lower quartile", "median": "median", "three_quarters": "upper quartile",
                "high": "greatest"}  # fmt: skip
"""How the SQNR of single samples is told of: the part's name in a column, and in words."""


def text_column(name: str, title: str, what: str, required: bool = True) -> Column:
    """A column of text."""
    return Column(name, Kind.TEXT, title, what, required=required)


def number_column(name: str, title: str, what: str, unit: str = "", required: bool = True) -> Column:
    """A column of numbers."""
    return Column(name, Kind.NUMBER, title, what, unit, required)


def whole_column(name: str, title: str, what: str, unit: str = "", required: bool = True) -> Column:
    """A column of whole numbers."""
    return Column(name, Kind.WHOLE, title, what, unit, required)


def count_column(name: str, title: str, what: str, unit: str = "", required: bool = True) -> Column:
    """A column of whole numbers, some of which are not known."""
    return Column(name, Kind.COUNT, title, what, unit, required=required)


def flag_column(name: str, title: str, what: str, required: bool = True) -> Column:
    """A column of yes and no."""
    return Column(name, Kind.FLAG, title, what, required=required)


def metric_column(metric: Metric, prefix: str, before: str, what: str) -> Column:
    """A column of a metric's figures."""
    short = metric.short or metric.title
    title = f"{before} {short}" if before else f"{short[:1].upper()}{short[1:]}"
    return number_column(prefix + metric.column, title, f"Its {metric.title}{what}", metric.unit, metric.required)


def cost_columns() -> Iterator[Column]:
    """The columns that tell a cost."""
    yield text_column("target", "Target", "The device that costs are for.")
    yield number_column("cost_us", "Cost", "What the plan costs on the target for one sample.", "µs", required=False)
    yield number_column("cost_of_fp32", "Cost", "The same as a share of what the float32 plan costs.")
    yield text_column(
        "cost_figures",
        "Cost figures",
        "Whether costs are estimated, measured or partly measured; an estimate compares plans of one model on one "
        "device, and predicts no latency.",
    )
