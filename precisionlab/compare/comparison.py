"""What one comparison of a variant with the reference found."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from precisionlab.compare.errors import ErrorSums
from precisionlab.compare.metrics import METRICS, ErrorMetric, RunMetric
from precisionlab.compare.output import OutputErrors
from precisionlab.compare.spread import Spread
from precisionlab.system.plain import Amount, Count, of_plain


@dataclass(frozen=True)
class Spreads:
    """How the SQNR of layers' outputs spreads over the samples, by tensor: inherited, and introduced."""

    inherited: Mapping[str, Spread]
    introduced: Mapping[str, Spread]


NO_SPREADS = Spreads({}, {})


@dataclass(frozen=True)
class Comparison:
    """A variant against the reference, over `samples` samples.

    `inherited` and `introduced` map tensor names to statistics: what the tensor has lost so far, and
    what its layer loses given the reference's inputs. `introduced` is empty where it was not asked
    for, and holds nothing for layers that stay in float32. `metric` is the task metric of the
    variant, `reference_metric` that of the reference; None without labels. `metric_error` is the standard
    error of `metric` over the samples, None where they are too few. `broken` are the tensors that hold what no rounding
    gives (see `precisionlab.backends.base.broken_tensors`). `each` has the final outputs' errors sample
    by sample, in the samples' order; `spreads` says in short how those of the layers' tensors lie, and is empty where
    these were not compared. `seen` says of each tensor of an engine how it was looked at, or that it was not observed;
    it is empty where all is computed.
    """

    samples: Count
    inherited: Mapping[str, ErrorSums]
    introduced: Mapping[str, ErrorSums]
    outputs: Mapping[str, OutputErrors]
    each: Mapping[str, tuple[OutputErrors, ...]] = field(default_factory=dict)
    broken: tuple[str, ...] = ()
    metric: float | None = None
    metric_error: Amount | None = None
    reference_metric: float | None = None
    metric_name: str | None = None
    higher_is_better: bool = True
    seconds: Amount = field(default=0.0, compare=False)
    spreads: Spreads = NO_SPREADS
    seen: Mapping[str, str] = field(default_factory=dict)

    @property
    def nonfinite(self) -> tuple[str, ...]:
        """The tensors with a NaN or Inf that the reference does not have, in topological order."""
        return tuple(name for name, errors in self.inherited.items() if errors.nonfinite)

    def worst(self, metric: str, output: str | None = None) -> float:
        """The worst figure by one of `METRICS` of all that is judged; NaN if any of it is NaN.

        With `output` that of one output, inner tensor or part alone. NaN too where nothing has the figure. `metric` and
        `metric_drop` (how far the task metric is worse than the reference's, relative to it) are of the task;
        `nonfinite` is the number of tensors on the way with a NaN or Inf that the reference does not have.
        """
        found = METRICS[metric]
        return found.of(self) if isinstance(found, RunMetric) else self.worst_of(metric, output)[1]

    def worst_of(self, metric: str, output: str | None = None) -> tuple[str, float]:
        """The name of the output or part with the worst figure, "" for none, and that figure; see `worst`."""
        found = self.figures(metric, output)
        lost = [name for name, value in found.items() if math.isnan(value)]
        if not found or lost:
            return (lost[0] if lost else ""), math.nan
        choose = min if METRICS[metric].higher_is_better else max
        name = choose(found, key=found.__getitem__)
        return name, found[name]

    def made_from(self, part: str) -> str:
        """What a part of an output is made from, in short; empty for what is no part."""
        return next((e.parts[part].source for e in self.outputs.values() if part in e.parts), "")

    def figures(self, metric: str, output: str | None = None) -> dict[str, float]:
        """The figure of each output, or of each of its parts, by name; of one output or part with `output`."""
        found: dict[str, float] = {}
        of = METRICS[metric]
        for name, errors in self.outputs.items():
            if output == name or (output is None and errors.counts):
                found.update((part or name, value) for part, value in errors.figures(metric).items())
            elif output is not None and output in errors.parts and isinstance(of, ErrorMetric):
                found[output] = of.of(errors.parts[output].errors)
        return found

    @property
    def metric_drop(self) -> float:
        """How much worse the task metric is than the reference's, as a share of it; below 0 is better."""
        if self.metric is None or self.reference_metric is None:
            return math.nan
        loss = self.reference_metric - self.metric
        if not self.higher_is_better:
            loss = -loss
        if loss == 0:
            return 0.0
        return loss / abs(self.reference_metric) if self.reference_metric else math.copysign(math.inf, loss)

    def is_of(self, samples: int) -> bool:
        """Whether all in it is of so many samples."""
        spreads = (*self.spreads.inherited.values(), *self.spreads.introduced.values())
        return (
            self.samples == samples
            and all(len(each) == samples for each in self.each.values())
            and all(spread.worst < samples for spread in spreads)
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for the journal."""
        return {
            "samples": self.samples,
            "inherited": {k: v.to_dict() for k, v in self.inherited.items()},
            "introduced": {k: v.to_dict() for k, v in self.introduced.items()},
            "outputs": {k: v.to_list() for k, v in self.outputs.items()},
            "each": {k: [errors.to_list() for errors in v] for k, v in self.each.items()},
            "broken": list(self.broken),
            "metric": self.metric,
            "metric_error": self.metric_error,
            "reference_metric": self.reference_metric,
            "metric_name": self.metric_name,
            "higher_is_better": self.higher_is_better,
            "seconds": self.seconds,
            "spreads": [
                {k: v.to_list() for k, v in found.items()}
                for found in (self.spreads.inherited, self.spreads.introduced)
            ],
            "seen": dict(self.seen),
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Comparison:
        """The comparison that `to_dict` wrote. Raises ValueError where it is something else."""
        return of_plain(cls, data)
