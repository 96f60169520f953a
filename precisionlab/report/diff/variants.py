"""One variant in both runs: its figures, for the worst output and for each."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import groupby

from precisionlab.compare.metrics import METRICS, SQNR, ErrorMetric
from precisionlab.report.cells import records_of
from precisionlab.report.diff.figures import SAME, Change, Ends, output_kinds, run_kinds
from precisionlab.report.redraw import RunFiles
from precisionlab.report.views import ErrorFigures, IntervalFigures, VariantView, variant_view


@dataclass(frozen=True)
class VariantChange:
    """One variant in both runs."""

    name: str
    reference: bool
    met: tuple[bool, bool]
    changes: tuple[Change, ...]

    @property
    def shown(self) -> tuple[Change, ...]:
        """What a page shows."""
        return shown_of(self.changes)


def shown_of(changes: Iterable[Change]) -> tuple[Change, ...]:
    """What is shown of a variant: the SQNR always, the rest where it changed."""
    return tuple(c for c in changes if c.trend != SAME or (c.name == SQNR and not c.held_out))


def variants_of(files: RunFiles) -> dict[str, VariantView]:
    """Each variant of a run, by name."""
    rows = groupby(records_of(files.variants), key=lambda row: row["variant"])
    return {str(name): variant_view(list(found)) for name, found in rows}


def variant_change(old: VariantView, new: VariantView) -> VariantChange:
    """One variant, A's beside B's."""
    return VariantChange(old.name, old.reference, (old.met, new.met), tuple(changes_of(old, new)))


def changes_of(old: VariantView, new: VariantView) -> Iterable[Change]:
    """Every figure of a variant; those of single outputs where there are several."""
    yield from _errors(old.worst, new.worst, None, False)
    yield from _errors(old.worst.held_out, new.worst.held_out, None, True)
    for name in run_kinds():
        (before, held_before), (after, held_after) = old.run(name), new.run(name)
        yield Change(name, before, after)
        yield Change(name, held_before, held_after, held_out=True)
    yield Change("pins", old.pins, new.pins)
    yield Change("cost", old.cost, new.cost)
    outputs = {output.name: output for output in new.outputs}
    for output in old.outputs if len(old.outputs) > 1 else ():
        if (other := outputs.get(output.name)) is not None:
            yield from _errors(output, other, output.name, False)
            yield from _errors(output.held_out, other.held_out, output.name, True)


def _errors(old: ErrorFigures, new: ErrorFigures, output: str | None, held_out: bool) -> Iterable[Change]:
    headline = Change(SQNR, old.of(SQNR), new.of(SQNR), output, held_out, (_ends(old), _ends(new)))
    # Those that are made of the same sums say the same in another unit, and would turn with the same samples.
    beside = {name: headline if _says_the_same(name) else None for name in output_kinds()}
    others = {n: Change(n, old.of(n), new.of(n), output, held_out, beside=beside[n]) for n in output_kinds()}
    return list({**others, SQNR: headline}.values())


def _says_the_same(name: str) -> bool:
    metric = METRICS[name]
    return isinstance(metric, ErrorMetric) and not metric.decisive and metric.resampled is not None


def _ends(figures: ErrorFigures) -> Ends | None:
    """The interval of the SQNR over samples, where the tables have one; older runs have none of those held out."""
    if not isinstance(figures, IntervalFigures) or figures.low is None or figures.high is None:
        return None
    return figures.low, figures.high
