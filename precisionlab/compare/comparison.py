"""What one comparison of a variant with the reference found."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from precisionlab.compare.errors import Agreement, ErrorSums
from precisionlab.compare.spread import Spread


@dataclass(frozen=True)
class OutputErrors:
    """One final output of the model: its errors (None unless float) and its top-1 agreement."""

    errors: ErrorSums | None
    top1: Agreement

    def __add__(self, other: OutputErrors) -> OutputErrors:
        errors = None if self.errors is None or other.errors is None else self.errors + other.errors
        return OutputErrors(errors, self.top1 + other.top1)

    def to_list(self) -> list[Any]:
        """Plain values, for the journal; read back by `from_list`."""
        return [self.errors and list(self.errors.to_dict().values()), self.top1.agree, self.top1.total]

    @classmethod
    def from_list(cls, data: Sequence[Any]) -> OutputErrors:
        """What `to_list` wrote."""
        errors, agree, total = data
        return cls(None if errors is None else ErrorSums(*errors), Agreement(agree, total))


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
    these were not compared.
    """

    samples: int
    inherited: Mapping[str, ErrorSums]
    introduced: Mapping[str, ErrorSums]
    outputs: Mapping[str, OutputErrors]
    each: Mapping[str, tuple[OutputErrors, ...]] = field(default_factory=dict)
    broken: tuple[str, ...] = ()
    metric: float | None = None
    metric_error: float | None = None
    reference_metric: float | None = None
    metric_name: str | None = None
    higher_is_better: bool = True
    seconds: float = field(default=0.0, compare=False)
    spreads: Spreads = NO_SPREADS

    @property
    def nonfinite(self) -> tuple[str, ...]:
        """The tensors with a NaN or Inf that the reference does not have, in topological order."""
        return tuple(name for name, errors in self.inherited.items() if errors.nonfinite)

    def worst(self, metric: str, output: str | None = None) -> float:
        """The worst output's sqnr, cosine, rel_l2, max_error or top1; NaN if any output's is NaN.

        With `output` that one's alone. NaN too where no output has the figure. `metric` and `metric_drop` (how far the
        task metric is worse than the reference's, relative to it) are of the task; `nonfinite` is the number of
        tensors on the way with a NaN or Inf that the reference does not have.
        """
        if metric == "metric":
            return math.nan if self.metric is None else self.metric
        if metric == "metric_drop":
            return self.metric_drop
        if metric == "nonfinite":
            return float(len(self.nonfinite))
        asked = [errors for name, errors in self.outputs.items() if output in (None, name)]
        if metric == "top1":
            values = [o.top1.share for o in asked if o.top1.total]
        else:
            values = [getattr(o.errors, metric) for o in asked if o.errors is not None]
        if not values or any(math.isnan(v) for v in values):
            return math.nan
        return float(max(values) if metric in LOWER_IS_BETTER else min(values))

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
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Comparison:
        """The comparison that `to_dict` wrote."""
        return cls(
            **{
                **data,
                "inherited": {k: ErrorSums(**v) for k, v in data["inherited"].items()},
                "introduced": {k: ErrorSums(**v) for k, v in data["introduced"].items()},
                "broken": tuple(data["broken"]),
                "outputs": {k: OutputErrors.from_list(v) for k, v in data["outputs"].items()},
                "each": {k: tuple(map(OutputErrors.from_list, v)) for k, v in data["each"].items()},
                "spreads": Spreads(*({k: Spread(*v) for k, v in found.items()} for found in data["spreads"])),
            }
        )


LOWER_IS_BETTER = frozenset({"rel_l2", "max_error", "metric_drop", "nonfinite"})
