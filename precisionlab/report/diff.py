"""What became better and what worse between two runs, from their folders alone.

A figure of run A stands beside that of run B, matched by variant and output; layers are matched by name. Nothing here
decides by a rounding: a change that no page would show is none.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from precisionlab.errors import OptionError
from precisionlab.precision import Pin
from precisionlab.report.cells import Row, as_number, records_of, show
from precisionlab.report.redraw import RunFiles
from precisionlab.report.views import ErrorFigures, LayerView, VariantView, layer_view, variant_view
from precisionlab.search.certificate import json_number

WORSE, BETTER, SAME = "worse", "better", "same"

# Figure → its words, how it is written, what no page would show, and whether more of it is better.
_KINDS: Mapping[str, tuple[str, str, float, bool]] = {
    "sqnr": ("SQNR, dB", ".1f", 0.05, True),
    "cosine": ("cosine", ".5f", 5e-6, True),
    "top1": ("equal top-1", ".3f", 5e-4, True),
    "metric": ("task metric", ".3f", 5e-4, True),
    "rel_l2": ("relative L2", ".3g", 0.0, False),
    "max_error": ("largest error", ".3g", 0.0, False),
    "nonfinite": ("NaN/Inf tensors", ".0f", 0.0, False),
    "pins": ("pins", ".0f", 0.0, False),
    "cost": ("cost, share of FP32", ".3f", 5e-4, False),
    "latency": ("latency, ms", ".3g", 0.0, False),
}
_ERRORS = ("sqnr", "cosine", "top1", "rel_l2", "max_error")
_RELATIVE = {"rel_l2": 0.005, "max_error": 0.005, "latency": 0.03}  # of A's: digits not shown, and times that jitter
_DECISIVE = ("sqnr", "top1", "metric", "nonfinite", "pins", "cost", "latency")  # others say the same as the SQNR
_CONDITION = re.compile(r"\s*(\w+)\s*(?:\[(.+)\])?\s+(drop|rise)\s*>\s*(\d+(?:\.\d+)?(?:e-?\d+)?)\s*(%?)\s*", re.I)
_LEAST_DB, _MOST_DB = -60.0, 120.0  # beyond these all is lost, or nothing


@dataclass(frozen=True)
class Change:
    """One figure in both runs; None where it does not exist, NaN where it was measured as such.

    `kind` is a key such as "sqnr", `output` the output that it belongs to (None: the worst), `held_out` whether it is
    that of the samples that chose nothing.
    """

    kind: str
    before: float | None
    after: float | None
    output: str | None = None
    held_out: bool = False

    @property
    def name(self) -> str:
        """The figure as a condition names it: `sqnr`, `sqnr[logits]`."""
        return self.kind if self.output is None else f"{self.kind}[{self.output}]"

    @property
    def label(self) -> str:
        """The figure in words."""
        words, _, unit = _KINDS[self.kind][0].partition(", ")
        of = "" if self.output is None else f" of {self.output}"
        return words + of + (" held out" if self.held_out else "") + (f", {unit}" if unit else "")

    @property
    def loss(self) -> float | None:
        """By how much B is worse, in the figure's unit; negative where it is better, infinite where a NaN came."""
        if self.before is None or self.after is None:
            return None
        if self.before == self.after or (math.isnan(self.before) and math.isnan(self.after)):
            return 0.0
        if math.isnan(self.before) or math.isnan(self.after):
            return math.inf if math.isnan(self.after) else -math.inf
        return self.before - self.after if _KINDS[self.kind][3] else self.after - self.before

    @property
    def trend(self) -> str:
        """Worse, better or the same; the same too where one of the two is missing, or no digit shown differs."""
        loss = self.loss
        if loss is None:
            return SAME
        least = _KINDS[self.kind][2]
        if least == 0 and "g" in _KINDS[self.kind][1] and self.before:
            least = _RELATIVE[self.kind] * abs(self.before)
        return WORSE if loss > least else BETTER if loss < -least else SAME

    @property
    def texts(self) -> tuple[str, str, str]:
        """A's figure, B's, and the change as it is written, with its sign."""
        form = _KINDS[self.kind][1]
        change = "" if self.loss is None or self.trend == SAME else _signed(self, form)
        return show(self.before, form), show(self.after, form), change


def _signed(change: Change, form: str) -> str:
    """B's figure less A's; nothing where that is no number."""
    by = (change.after or 0.0) - (change.before or 0.0)
    return show(by, "+" + form) if math.isfinite(by) else ""


@dataclass(frozen=True)
class VariantChange:
    """One variant in both runs."""

    name: str
    reference: bool
    met: tuple[bool, bool]
    changes: tuple[Change, ...]

    @property
    def shown(self) -> tuple[Change, ...]:
        """What a page shows: the SQNR always, the rest where it changed."""
        return tuple(c for c in self.changes if c.trend != SAME or (c.name == "sqnr" and not c.held_out))


@dataclass(frozen=True)
class PinChange:
    """A layer whose pin differs; an empty precision is none."""

    layer: str
    before: str
    after: str
    reason: str


@dataclass(frozen=True)
class PrecisionChange:
    """One low precision that both runs swept, and the plans that they found. `found` are the figures of these."""

    name: str
    met: tuple[bool, bool]
    pins: tuple[PinChange, ...]
    found: tuple[Change, ...]

    @property
    def trend(self) -> str:
        """Worse where a met tolerance no longer is, or the plan found lost and gained nothing; "mixed" where both."""
        if self.met[0] != self.met[1]:
            return BETTER if self.met[1] else WORSE
        trends = {change.trend for change in self.found if change.kind in _DECISIVE}
        if {WORSE, BETTER} <= trends:
            return "mixed"
        return WORSE if WORSE in trends else BETTER if BETTER in trends else SAME

    @property
    def added(self) -> tuple[PinChange, ...]:
        """Pins of B alone."""
        return tuple(pin for pin in self.pins if not pin.before)

    @property
    def removed(self) -> tuple[PinChange, ...]:
        """Pins of A alone."""
        return tuple(pin for pin in self.pins if not pin.after)


@dataclass(frozen=True)
class LayerChange:
    """One layer in both runs under one precision, without pins."""

    precision: str
    layer: str
    kind: str
    introduced: Change
    inherited: Change

    @property
    def weight(self) -> tuple[float, float]:
        """What it is ordered by: by how many dB its own error changed, then the error that has come together there."""
        return abs(_between(self.introduced)), abs(_between(self.inherited))


def _between(change: Change) -> float:
    """The change in dB between what counts as lost and as right, so that no ∞ outweighs all others."""
    if change.before is None or change.after is None:
        return 0.0
    low, high = map(_bounded, (change.before, change.after))
    return high - low


def _bounded(decibel: float) -> float:
    return _LEAST_DB if math.isnan(decibel) else min(max(decibel, _LEAST_DB), _MOST_DB)


@dataclass(frozen=True)
class Setting:
    """Something that the runs were not given alike."""

    name: str
    before: str
    after: str


@dataclass(frozen=True)
class RunDiff:
    """All that differs. `only` names what one of the runs has alone: (what, those of A, those of B).

    `failures` say why B is worse than A beyond what was allowed; empty where it is not.
    """

    before: RunFiles
    after: RunFiles
    settings: tuple[Setting, ...]
    precisions: tuple[PrecisionChange, ...]
    variants: tuple[VariantChange, ...]
    layers: tuple[LayerChange, ...]
    only: tuple[tuple[str, tuple[str, ...], tuple[str, ...]], ...]
    failures: tuple[str, ...]

    @property
    def same_model(self) -> bool:
        """Whether both runs are of the same bytes."""
        return bool(self.before.run["model"]["sha256"] == self.after.run["model"]["sha256"])


def diff_runs(before: RunFiles, after: RunFiles, fail_if: Sequence[str] = ()) -> RunDiff:
    """Compare two runs. `fail_if` are conditions such as "sqnr drop>1", which `failures` are judged by beside verdicts.

    Raises OptionError for a condition that cannot be read, or that is about a figure that run A does not have.
    """
    conditions = [Condition.parse(text) for text in fail_if]
    precisions = tuple(_precision(name, before, after) for name in before.run["precisions"] if name in after.plans)
    old, new = _variants(before), _variants(after)
    old_layers, new_layers = _layers(before), _layers(after)
    layers = [_layer(key, old_layers[key], new_layers[key]) for key in old_layers if key in new_layers]
    changed = [layer for layer in layers if {layer.introduced.trend, layer.inherited.trend} != {SAME}]
    only = (
        _only("precision", before.run["precisions"], after.run["precisions"]),
        _only("variant", old, new),
        _only("layer", _names(old_layers), _names(new_layers)),
    )
    return RunDiff(
        before,
        after,
        tuple(_settings(before, after)),
        precisions,
        tuple(_variant(old[name], new[name]) for name in old if name in new),
        tuple(sorted(changed, key=lambda layer: layer.weight, reverse=True)),
        tuple(entry for entry in only if entry[1] or entry[2]),
        tuple(_failures(before, after, precisions, conditions)),
    )


def _only(what: str, old: Iterable[str], new: Iterable[str]) -> tuple[str, tuple[str, ...], tuple[str, ...]]:
    a, b = dict.fromkeys(old), dict.fromkeys(new)
    return what, tuple(name for name in a if name not in b), tuple(name for name in b if name not in a)


def _names(layers: Iterable[tuple[str, str]]) -> list[str]:
    return [layer for _, layer in layers]


# Variants and plans


def _variants(files: RunFiles) -> dict[str, VariantView]:
    rows = groupby(records_of(files.variants), key=lambda row: row["variant"])
    return {str(name): variant_view(list(found)) for name, found in rows}


def _variant(old: VariantView, new: VariantView) -> VariantChange:
    return VariantChange(old.name, old.reference, (old.met, new.met), tuple(_changes(old, new)))


def _changes(old: VariantView, new: VariantView) -> Iterable[Change]:
    yield from _errors(old.worst, new.worst, None, False)
    yield from _errors(old.worst.held_out, new.worst.held_out, None, True)
    yield Change("metric", old.metric, new.metric)
    yield Change("metric", old.held_out_metric, new.held_out_metric, held_out=True)
    yield Change("nonfinite", old.nonfinite_tensors, new.nonfinite_tensors)
    yield Change("nonfinite", old.held_out_nonfinite, new.held_out_nonfinite, held_out=True)
    yield Change("pins", old.pins, new.pins)
    yield Change("cost", old.cost, new.cost)
    outputs = {output.name: output for output in new.outputs}
    for output in old.outputs if len(old.outputs) > 1 else ():
        if (other := outputs.get(output.name)) is not None:
            yield from _errors(output, other, output.name, False)
            yield from _errors(output.held_out, other.held_out, output.name, True)


def _errors(old: ErrorFigures, new: ErrorFigures, output: str | None, held_out: bool) -> Iterable[Change]:
    return [Change(name, getattr(old, name), getattr(new, name), output, held_out) for name in _ERRORS]


def _precision(name: str, before: RunFiles, after: RunFiles) -> PrecisionChange:
    runs = (before, after)
    met = tuple(bool(files.run["precisions"][name]["met"]) for files in runs)
    found: list[Change] = []
    for engine in ("", " engine"):
        old, new = (_found(_variants(files), name, engine) for files in runs)
        if old is not None and new is not None:
            found += _changes(old, new)
            found.append(Change("latency", _latency(before, old.name), _latency(after, new.name)))
    pins = _pins(*({pin.layer: pin for pin in files.plans[name].pins} for files in runs))
    return PrecisionChange(name, (met[0], met[1]), tuple(pins), tuple(found))


def _found(variants: Mapping[str, VariantView], name: str, engine: str) -> VariantView | None:
    """The variant of the plan found: the one with pins where there is one."""
    return variants.get(f"{name} mixed{engine}") or variants.get(f"{name}{engine}")


def _latency(files: RunFiles, variant: str) -> float | None:
    rows: Iterable[Row] = records_of(files.variants)
    return next((as_number(row, "latency_ms") for row in rows if row["variant"] == variant), None)


def _pins(old: Mapping[str, Pin], new: Mapping[str, Pin]) -> Iterable[PinChange]:
    for layer in dict.fromkeys([*old, *new]):
        pins = old.get(layer), new.get(layer)
        before, after = (pin.precision.value if pin else "" for pin in pins)
        if before != after:
            yield PinChange(layer, before, after, next((pin.reason for pin in reversed(pins) if pin), ""))


# Layers


def _layers(files: RunFiles) -> dict[tuple[str, str], LayerView]:
    return {(str(row["precision"]), str(row["layer"])): layer_view(row) for row in records_of(files.layers)}


def _layer(key: tuple[str, str], old: LayerView, new: LayerView) -> LayerChange:
    introduced = Change("sqnr", old.introduced, new.introduced)
    return LayerChange(*key, new.kind, introduced, Change("sqnr", old.inherited, new.inherited))


# Settings


def _settings(before: RunFiles, after: RunFiles) -> Iterable[Setting]:
    old, new = _given(before), _given(after)
    for name in dict.fromkeys([*old, *new]):
        a, b = old.get(name, "–"), new.get(name, "–")
        if a != b:
            yield Setting(name, a, b)


def _given(files: RunFiles) -> dict[str, str]:
    """What the run was given, and by what it was made; not where and when."""
    run, data = files.run, files.run["data"]
    engines = run["engines"] or {}
    given = {
        "model sha256": str(run["model"]["sha256"])[:16],
        "layers": str(run["model"]["layers"]),
        "layers from": run["layers"]["from"],
        "data": data["name"] or "unnamed",
        "data sha256": str(data["sha256"] or "–")[:16],
        "random data": data["random"],
        "samples that chose": data["choosing"],
        "samples held out": data["held_out"],
        "seed": data["seed"],
        "metric": data.get("metric"),
        "figures": run["figures"],
        "backend": run["backend"],
        "target": run["target"]["title"],
        **{f"engines: {key}": value for key, value in engines.items() if isinstance(value, (str, bool))},
        **{f"tolerance of {name}": value for name, value in run["tolerance"].items()},
        **{f"around {name}": plan.around for name, plan in files.plans.items() if name == "int8"},
        **{f"ranges of {name}": plan.calibration for name, plan in files.plans.items() if plan.calibration},
        "precisionlab": run["precisionlab"],
        **{name: version for name, version in run["versions"].items() if name != "precisionlab"},
    }
    return {name: "–" if value is None else str(value) for name, value in given.items()}


# Whether B is worse than allowed


@dataclass(frozen=True)
class Condition:
    """By how much a figure of the plans found may become worse: "sqnr drop>1", "cost rise>5%"."""

    text: str
    kind: str
    output: str | None
    most: float
    relative: bool

    @classmethod
    def parse(cls, text: str) -> Condition:
        """Read a condition. Raises OptionError for anything else, and for a change that would be for the better."""
        match = _CONDITION.fullmatch(text)
        if match is None or match[1].lower() not in _KINDS:
            raise OptionError(
                f'--fail-if {text!r}: write FIGURE drop>NUMBER or FIGURE rise>NUMBER, such as "sqnr drop>1" or '
                f'"cost rise>5%", FIGURE one of {", ".join(_KINDS)}, or FIGURE[OUTPUT] for one output'
            )
        kind, falls = match[1].lower(), match[3].lower() == "drop"
        if falls != _KINDS[kind][3]:
            raise OptionError(f"--fail-if {text!r}: {kind} is worse when it {'rises' if falls else 'drops'}; say that")
        if match[2] is not None and kind not in _ERRORS:
            raise OptionError(f"--fail-if {text!r}: {kind} is of the whole network, not of an output")
        percent = bool(match[5])
        return cls(text.strip(), kind, match[2], float(match[4]) / (100 if percent else 1), percent)

    def concerns(self, change: Change) -> bool:
        """Whether it is about this figure."""
        return change.kind == self.kind and change.output == self.output

    def breaks(self, change: Change) -> bool:
        """Whether the figure became worse by more; also where B does not have it any more."""
        if change.before is None:
            return False
        loss = change.loss
        if loss is None:
            return not change.held_out  # B may have held out nothing: that is a setting
        return loss == math.inf or loss > self.most * (abs(change.before) if self.relative else 1)


def _failures(
    before: RunFiles, after: RunFiles, precisions: Sequence[PrecisionChange], conditions: Sequence[Condition]
) -> Iterable[str]:
    for name, found in before.run["precisions"].items():
        if found["met"] and name not in after.run["precisions"]:
            yield f"{name}: the tolerance was met, and B did not sweep it"
    for precision in precisions:
        if precision.met == (True, False):
            yield f"{precision.name}: the tolerance was met, and is not met any more"
    for condition in conditions:
        concerned = [(p, c) for p in precisions for c in p.found if condition.concerns(c) and c.before is not None]
        if precisions and not concerned:
            raise OptionError(f"--fail-if {condition.text!r}: {before.folder} has no such figure")
        for precision, change in concerned:
            if condition.breaks(change):
                a, b, _ = change.texts
                yield f"{precision.name}: {condition.text}: {change.label} {a} → {b}"


# For machines


def diff_to_dict(diff: RunDiff) -> dict[str, Any]:
    """The object that `--json` prints; NaN and infinities are the words "nan", "inf" and "-inf"."""
    return {
        "a": str(diff.before.folder),
        "b": str(diff.after.folder),
        "worse": bool(diff.failures),
        "failures": list(diff.failures),
        "settings": [{"name": s.name, "a": s.before, "b": s.after} for s in diff.settings],
        "precisions": [
            {
                "precision": p.name,
                "trend": p.trend,
                "met": {"a": p.met[0], "b": p.met[1]},
                "pins": [
                    {"layer": pin.layer, "a": pin.before or None, "b": pin.after or None, "reason": pin.reason}
                    for pin in p.pins
                ],
                "figures": [_change_dict(change) for change in p.found],
            }
            for p in diff.precisions
        ],
        "variants": [
            {"variant": v.name, "met": {"a": v.met[0], "b": v.met[1]}, "figures": [_change_dict(c) for c in v.changes]}
            for v in diff.variants
        ],
        "layers": [
            {
                "precision": layer.precision,
                "layer": layer.layer,
                "introduced_sqnr_db": _change_dict(layer.introduced),
                "inherited_sqnr_db": _change_dict(layer.inherited),
            }
            for layer in diff.layers
        ],
        "only": [{"what": what, "a": list(a), "b": list(b)} for what, a, b in diff.only],
    }


def _change_dict(change: Change) -> dict[str, Any]:
    a, b = (None if value is None else json_number(value) for value in (change.before, change.after))
    return {"figure": change.name, "held_out": change.held_out, "a": a, "b": b, "trend": change.trend}


# The page

LAYERS_SHOWN = 200


def render_diff(diff: RunDiff) -> str:
    """The page, in the style of the report."""
    from precisionlab.report.html import load_template

    page = load_template().environment.get_template("diff.html.j2")
    text = page.render(diff=diff, layers=diff.layers[:LAYERS_SHOWN], signs={WORSE: "▼", BETTER: "▲", "mixed": "◆"})
    # A path on a POSIX system may hold bytes that are not UTF-8, as lone surrogates that no file can take.
    return text.encode("utf-8", "backslashreplace").decode("utf-8")
