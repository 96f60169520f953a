"""What became of rows that operators pick by value, in words: what is lost, and where there are more or fewer."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from precisionlab.compare.output import OutputErrors
from precisionlab.compare.rows import RowCounts
from precisionlab.model import Model
from precisionlab.model.selections import picked_rows
from precisionlab.results.sweep import SampleNames
from precisionlab.search.outcome import Variant
from precisionlab.system.wording import counted

_NAMED = 3
"""Samples that are named; the others are counted."""


def rows_text(model: Model, variant: Variant, names: SampleNames) -> list[str]:
    """What became of rows under a variant, and of outputs of another shape: lines for each that differs."""
    by = {tensor: " and ".join(found.by) for found in picked_rows(model) for tensor, _ in found.tensors}
    groups: dict[tuple[str, RowCounts], list[str]] = {}
    said = []
    for name, found in variant.comparison.outputs.items():
        if found.rows is not None:
            groups.setdefault((by.get(name, "a selection"), found.rows), []).append(name)
        elif found.errors is not None and found.errors.reshaped:
            said.append(f"{name} has another shape in {found.errors.reshaped} of {variant.comparison.samples} samples")
    for (picker, rows), tensors in groups.items():
        said += _of_rows(", ".join(tensors), rows)
        said += _of_number(picker, list(_each(variant, names, tensors[0])))
    return said


def _of_rows(tensors: str, rows: RowCounts) -> list[str]:
    if rows.choices:
        took = f"{tensors} without pins: of {rows.choices} choices {rows.differ} take another entry"
        near = f", {rows.near} more by near-ties, which are set aside" if rows.near else ""
        return [f"{took}{near}"] if rows.near or rows.differ else []
    if not (rows.lost or rows.new or rows.at_cut or rows.moved):
        return []
    cut = f", {rows.at_cut} near-ties of the selection are set aside" if rows.at_cut else ""
    lost = f"{rows.lost} {'has' if rows.lost == 1 else 'have'} no twin"
    new = f"{rows.new} {'is' if rows.new == 1 else 'are'} new"
    stand = f"{rows.moved} {'stands' if rows.moved == 1 else 'stand'} elsewhere"
    return [f"Rows of {tensors} without pins: of {rows.reference} {lost}, {new}, {stand}{cut}"]


def _of_number(picker: str, each: Sequence[tuple[str, RowCounts]]) -> list[str]:
    other = [(name, rows) for name, rows in each if rows.other_number]
    if not other:
        return []
    first = [f"{name} has {counted(rows.output, 'row')}, not {rows.reference}" for name, rows in other[:_NAMED]]
    more = f"; and {len(other) - _NAMED} more" if len(other) > _NAMED else ""
    gives = "gives" if len(other) == 1 else "give"
    return [
        f"{len(other)} of {counted(len(each), 'sample')} {gives} another number of rows from {picker} on: "
        f"{'; '.join(first)}{more}"
    ]


def _each(variant: Variant, names: SampleNames, tensor: str) -> Iterator[tuple[str, RowCounts]]:
    """The rows of each sample that the tensor has some in, those held out behind those that chose."""
    parts = [(names.chosen, variant.comparison)]
    parts += [(names.held_out, variant.held_out)] if variant.held_out else []
    for called, comparison in parts:
        each: tuple[OutputErrors, ...] = comparison.each.get(tensor, ())
        yield from ((name, one.rows) for name, one in zip(called, each, strict=False) if one.rows is not None)
