"""Two runs beside each other, layers and variants matched by name."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from precisionlab.report.diff.conditions import Condition, failures_of
from precisionlab.report.diff.figures import SAME
from precisionlab.report.diff.layers import LayerChange, layer_change, layers_of
from precisionlab.report.diff.plans import PrecisionChange, precision_change
from precisionlab.report.diff.settings import Setting, settings_between
from precisionlab.report.diff.shipped import advice_of, shipped_first
from precisionlab.report.diff.variants import VariantChange, variant_change, variants_of
from precisionlab.report.redraw import RunFiles
from precisionlab.search.recommendation import Recommendation


@dataclass(frozen=True)
class RunDiff:
    """All that differs. `only` names what one of the runs has alone: (what, those of A, those of B).

    `advice` is what each run says to ship; the precision that B ships stands first among `precisions`. `failures` say
    why B is worse than A beyond what was allowed; empty where it is not.
    """

    before: RunFiles
    after: RunFiles
    settings: tuple[Setting, ...]
    precisions: tuple[PrecisionChange, ...]
    variants: tuple[VariantChange, ...]
    layers: tuple[LayerChange, ...]
    only: tuple[tuple[str, tuple[str, ...], tuple[str, ...]], ...]
    failures: tuple[str, ...]
    advice: tuple[Recommendation, Recommendation]

    @property
    def same_data(self) -> bool:
        """Whether both runs are of the same samples."""
        return bool(self.before.run["data"]["sha256"] == self.after.run["data"]["sha256"])

    @property
    def same_model(self) -> bool:
        """Whether both runs are of the same bytes."""
        return bool(self.before.run["model"]["sha256"] == self.after.run["model"]["sha256"])


def diff_runs(before: RunFiles, after: RunFiles, fail_if: Sequence[str] = ()) -> RunDiff:
    """Compare two runs. `fail_if` are conditions such as "sqnr drop>1", which `failures` are judged by beside verdicts.

    Raises OptionError for a condition that cannot be read, or that is about a figure that run A does not have.
    """
    conditions = [Condition.parse(text) for text in fail_if]
    advice = advice_of(before), advice_of(after)
    common = [name for name in before.run["precisions"] if name in after.plans]
    precisions = tuple(precision_change(name, before, after) for name in shipped_first(common, *advice))
    old, new = variants_of(before), variants_of(after)
    old_layers, new_layers = layers_of(before), layers_of(after)
    layers = [layer_change(key, old_layers[key], new_layers[key]) for key in old_layers if key in new_layers]
    changed = [layer for layer in layers if {layer.introduced.trend, layer.inherited.trend} != {SAME}]
    only = (
        _only("precision", before.run["precisions"], after.run["precisions"]),
        _only("variant", old, new),
        _only("layer", _names(old_layers), _names(new_layers)),
    )
    return RunDiff(
        before,
        after,
        tuple(settings_between(before, after)),
        precisions,
        tuple(variant_change(old[name], new[name]) for name in old if name in new),
        tuple(sorted(changed, key=lambda layer: layer.weight, reverse=True)),
        tuple(entry for entry in only if entry[1] or entry[2]),
        tuple(failures_of(before, after, precisions, conditions)),
        advice,
    )


def _only(what: str, old: Iterable[str], new: Iterable[str]) -> tuple[str, tuple[str, ...], tuple[str, ...]]:
    a, b = dict.fromkeys(old), dict.fromkeys(new)
    return what, tuple(name for name in a if name not in b), tuple(name for name in b if name not in a)


def _names(layers: Iterable[tuple[str, str]]) -> list[str]:
    return [layer for _, layer in layers]
