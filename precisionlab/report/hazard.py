"""One hazard of a run, as the report tells it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from precisionlab.report.views import LayerView

DANGER, WARNING, NOTE = "danger", "warning", "note"
NAMED = 6  # layers that a hazard names


@dataclass(frozen=True)
class LayerLink:
    """A layer's name, and the id of its row in the table of all layers; None where it has none."""

    layer: str
    row: str | None


@dataclass(frozen=True)
class Hazard:
    """One thing that speaks against a plan. `where` are the precisions it is about; nothing where it is about all.

    `severity` is "danger" (what is shown may be wrong), "warning" (to be looked at before the plan is used) or "note".
    `layers` are the worst of those it is about, `more` the number of the others.
    """

    severity: str
    where: str
    title: str
    why: str
    action: str
    layers: tuple[LayerLink, ...] = ()
    more: int = 0


def row_id(place: int, view: LayerView) -> str | None:
    """The id of a layer's row in the table of the precision that stands at this place on the page, counted from 1."""
    return None if view.index is None else f"row-{place}-{view.index:.0f}"


def linked(views: Iterable[LayerView], place: int) -> dict[str, Any]:
    """The layers of a hazard, as its arguments."""
    found = list(views)
    links = tuple(LayerLink(view.layer, row_id(place, view)) for view in found[:NAMED])
    return {"layers": links, "more": len(found) - len(links)}


def capital(text: str) -> str:
    """The text with its first letter in upper case."""
    return text[:1].upper() + text[1:]
