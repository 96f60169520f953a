"""The tables in Markdown."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from benchmarks.repairs.compiled import COMPUTES, FUSIONS

Row = dict[str, Any]


def tables(found: Mapping[str, Row]) -> Iterator[str]:
    """All of them."""
    yield from _engines(found)
    yield from _regions(found)
    yield from _regrouped(found)
    yield from _tools(found)
    yield from _int8(found)


def _engines(found: Mapping[str, Row]) -> Iterator[str]:
    """What each variant of ours is: its error, its kernels, and what they fuse."""
    yield (
        "| model | FP16 | pins | dB, chosen / held out | kernels + copies | "
        + " | ".join(FUSIONS)
        + " | kernels as before |"
    )
    yield "|---|---|---|---|---|" + "---|" * len(FUSIONS) + "---|"
    for name, rows in found.items():
        for row in rows["variants"]:
            repairs = ", ".join(one["repair"].partition(" at ")[0] for one in rows["repairs"])
            title = f"{row['variant']}: {repairs}" if row["variant"] == "repaired" else row["variant"]
            yield f"| {name} | {title} | {row['pins']} | {_decibels(row)} | {_engine(row)} |"
    yield ""


def _engine(row: Row) -> str:
    """The cells of one engine; where the targets differ, those of the second in brackets."""
    cells = [_cells(row[compute]) for compute in COMPUTES]
    others = zip(*cells[1:], strict=True)
    return " | ".join(
        first if all(other == first for other in beside) else f"{first} ({', '.join(beside)})"
        for first, beside in zip(cells[0], others, strict=True)
    )


def _cells(engine: Row) -> list[str]:
    if "failed" in engine:
        return ["refused", *[""] * len(FUSIONS), ""]
    fused = [str(engine["fused"][kind]) for kind in FUSIONS]
    return [f"{engine['kernels']} + {engine['reformats']}", *fused, str(engine["same"])]


def _regions(found: Mapping[str, Row]) -> Iterator[str]:
    """What the kernels of the repaired sub-graph take and give."""
    yield f"| model | repaired | new nodes | in float32 | its kernels ({COMPUTES[0]}) |"
    yield "|---|---|---|---|---|"
    for name, rows in found.items():
        last = rows["variants"][-1]
        if not rows["repairs"] or last["variant"] != "repaired":
            continue
        kinds = ", ".join(f"{one['repair']} ({one['exactness']})" for one in rows["repairs"])
        engine = last[COMPUTES[0]]
        inside = "<br>".join(f"`{text}`" for text in engine.get("region", [engine.get("failed")]))
        yield f"| {name} | {kinds} | {len(rows['new_nodes'])} | {rows['float32']} | {inside} |"
    yield ""


def _regrouped(found: Mapping[str, Row]) -> Iterator[str]:
    """Which kernels of the original are none of a variant's, and what is there in their place."""
    for name, rows in found.items():
        for row in rows["variants"][1:]:
            for compute in COMPUTES:
                engine = row[compute]
                if engine.get("gone") or engine.get("new"):
                    gone, new = (_groups(engine[key]) for key in ("gone", "new"))
                    yield f"- {name}, {row['variant']}, {compute}: in the place of {gone}: {new}"
    yield ""


def _groups(groups: list[list[str]]) -> str:
    shown = (f"[{', '.join(map(_short, group[:4]))}{', …' * (len(group) > 4)}] ({len(group)})" for group in groups)
    return " and ".join(shown) or "nothing"


def _short(name: str) -> str:
    return "/".join(name.split("/")[-2:])


def _tools(found: Mapping[str, Row]) -> Iterator[str]:
    """Ours and the peers': nodes kept high, and the judge's dB."""
    if not any("tools" in rows for rows in found.values()):
        return
    yield "| model | FP16 | kept high / nodes | dB, chosen / held out | kernels |"
    yield "|---|---|---|---|---|"
    for name, rows in found.items():
        ours = [{**row, "tool": f"precisionlab, {row['variant']}"} for row in rows["variants"]]
        for row in (*rows.get("tools", ())[:1], *ours, *rows.get("tools", ())[1:]):
            yield f"| {name} | {row['tool']} | {_tool(row)} |"
    yield ""


def _int8(found: Mapping[str, Row]) -> Iterator[str]:
    for name, rows in found.items():
        if "int8" not in rows:
            continue
        yield "| model | INT8 | kept high / nodes | dB, chosen / held out | kernels |"
        yield "|---|---|---|---|---|"
        for row in rows["int8"]:
            yield f"| {name} | {row['tool']} | {_tool(row)} |"
        yield ""


def _tool(row: Row) -> str:
    built = row.get(COMPUTES[0], {})
    kernels = "refused" if "failed" in built else str(built.get("kernels", ""))
    if "failed" in row:
        return f"fails: {row['failed']} | | {kernels}"
    lost = f" ({row['lost']} not found)" if row["lost"] else ""
    return f"{len(row['high'])} / {row['nodes']}{lost} | {_decibels(row)} | {kernels}"


def _decibels(row: Row) -> str:
    return " / ".join(_number(row[key]) for key in ("chosen", "held_out")) if "chosen" in row else row["failed"]


def _number(value: float | str) -> str:
    names = {"inf": "∞", "-inf": "NaN or Inf", "nan": "NaN or Inf"}
    return names.get(value, value) if isinstance(value, str) else f"{value:.1f}"
