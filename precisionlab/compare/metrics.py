"""The metrics: all that is to be known of a figure that tells how far a variant is from the reference.

Whoever reads, judges, writes, draws or compares such figures asks `METRICS`; a metric that is added there is known to
tolerances and their errors, to the command line's help, to the tables of a run, to its pages, and to `diff`. What it
needs lies in its own entry: nothing elsewhere names a metric but the SQNR, which is the headline of every page.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from precisionlab.compare.comparison import Comparison
    from precisionlab.compare.errors import Agreement, ErrorSums

    Array = NDArray[np.float64]

SQNR = "sqnr"
"""The headline: what default tolerances ask for, and layers are ranked by."""


class Scope(str, Enum):
    """What a metric is about: one output (or the worst of all), the task, or the network with all its tensors."""

    OUTPUT = "output"
    TASK = "task"
    NETWORK = "network"


class Sums(NamedTuple):
    """The sums of one output or part in many resamples, float64 (resamples,): Σref², Σerr², Σref·out, Σout²."""

    ref2: Array
    err2: Array
    ref_out: Array
    out2: Array


@dataclass(frozen=True, kw_only=True)
class Metric:
    """One metric: what it is called, how it is written, and when it is worse.

    `title` stands in sentences, `short` in the heads of tables (by default the title), `brief` in those of short
    tables, which have only the metrics with such a name. `form` is a format specification. `two_sided` says that either
    direction may be asked for. In a comparison of two runs a change up to `least_change`, or up to `least_share` of the
    figure where that is given, is none; without `least_change` the figure is not compared. A `decisive` one says
    whether a run became better or worse as a whole, others say the same as one that is. Figures that differ by less
    than `least_span` are drawn as lying close together. `required` says that the tables of every run have it: a run
    made before a metric was added is read without it.
    """

    name: str
    title: str
    scope: Scope
    short: str = ""
    unit: str = ""
    form: str = ".3g"
    higher_is_better: bool = True
    two_sided: bool = False
    least_change: float | None = None
    least_share: float | None = None
    decisive: bool = False
    brief: str = ""
    least_span: float | None = None
    required: bool = False
    squared: Callable[[float], float] | None = None

    @property
    def column(self) -> str:
        """What its column in a table is called: the name, with the unit where there is one."""
        return f"{self.name}_{self.unit.lower()}" if self.unit else self.name

    @property
    def label(self) -> str:
        """The head of its column on a page: `SQNR, dB`."""
        return _headed(self.short or self.title, self.unit)

    @property
    def brief_label(self) -> str:
        """The head of its column in a short table on a page."""
        return _headed(self.brief, self.unit)

    def as_error(self, value: float) -> float:
        """The figure with its sign turned where more of it is better, so that less is; turns such a one back too."""
        return -value if self.higher_is_better else value

    def worst(self, first: float, second: float) -> float:
        """The worse of two figures that are numbers."""
        return min(first, second) if self.higher_is_better else max(first, second)


@dataclass(frozen=True, kw_only=True)
class ErrorMetric(Metric):
    """A metric of the error sums of an output, a part or a layer.

    `by_part` says that each part of an output is judged on its own scale, and the worst is the output's figure; else
    the output is judged as a whole. One `of_direction` says nothing of a part without a scale of its own. `resampled`
    gives the figure in many resamples of the samples, for a confidence interval; None where it has none. `layer_form`
    is how a layer's figure is written, where that takes more digits.
    """

    of: Callable[[ErrorSums], float]
    scope: Scope = Scope.OUTPUT
    by_part: bool = True
    of_direction: bool = False
    resampled: Callable[[Sums], Any] | None = None
    layer_form: str = ""


@dataclass(frozen=True, kw_only=True)
class AgreementMetric(Metric):
    """A metric of how often an output and the reference's say the same; an output without a class axis has none."""

    of: Callable[[Agreement], float]
    scope: Scope = Scope.OUTPUT


@dataclass(frozen=True, kw_only=True)
class RunMetric(Metric):
    """A metric of the task or the whole network: one figure of a comparison, which no output has of its own.

    `error` is its standard error over the samples, None where that is not known. A `tabled` one has two columns in
    `variants.csv`, held out and not; the others have columns that say more than the figure, or follow from such.
    """

    of: Callable[[Comparison], float]
    tabled: bool = True
    error: Callable[[Comparison], float | None] | None = None


def _sqnr(sums: Sums) -> Any:
    import numpy as np

    return 10 * (np.log10(sums.ref2) - np.log10(sums.err2))


def _cosine(sums: Sums) -> Any:
    import numpy as np

    return sums.ref_out / (np.sqrt(sums.ref2) * np.sqrt(sums.out2))


def _of_decibel(sqnr: float) -> float:
    """Σerr² / Σref² of an SQNR in dB."""
    return math.inf if sqnr < -3000 else 10 ** (-sqnr / 10)  # where float64 ends


def _rel_l2(sums: Sums) -> Any:
    import numpy as np

    return np.sqrt(sums.err2 / sums.ref2)


def _drop_error(comparison: Comparison) -> float | None:
    if comparison.metric_error is None or not comparison.reference_metric:
        return None
    return comparison.metric_error / abs(comparison.reference_metric)


_ALL: tuple[Metric, ...] = (
    ErrorMetric(
        name=SQNR,
        title="SQNR",
        unit="dB",
        form=".1f",
        of=lambda errors: errors.sqnr,
        resampled=_sqnr,
        least_change=0.05,
        decisive=True,
        brief="SQNR",
        least_span=20.0,
        required=True,
        squared=_of_decibel,
    ),
    ErrorMetric(
        name="cosine",
        title="cosine",
        form=".5f",
        layer_form=".6f",
        of=lambda errors: errors.cosine,
        of_direction=True,
        resampled=_cosine,
        least_change=5e-6,
        brief="cosine",
        least_span=0.01,
        required=True,
    ),
    ErrorMetric(
        name="rel_l2",
        title="relative L2 error",
        short="relative L2",
        higher_is_better=False,
        of=lambda errors: errors.rel_l2,
        resampled=_rel_l2,
        least_change=0.0,
        least_share=0.005,  # digits that are not shown
        required=True,
        squared=lambda rel_l2: rel_l2 * rel_l2,
    ),
    ErrorMetric(
        name="max_error",
        title="largest error",
        higher_is_better=False,
        by_part=False,
        of=lambda errors: errors.max_error,
        least_change=0.0,
        least_share=0.005,
        required=True,
    ),
    AgreementMetric(
        name="top1",
        title="equal top-1",
        form=".3f",
        of=lambda agreement: agreement.share,
        least_change=5e-4,
        decisive=True,
        brief="top-1",
        least_span=0.05,
        required=True,
    ),
    RunMetric(
        name="metric",
        title="task metric",
        scope=Scope.TASK,
        form=".3f",
        two_sided=True,
        tabled=False,
        of=lambda comparison: math.nan if comparison.metric is None else comparison.metric,
        error=lambda comparison: comparison.metric_error,
        least_change=5e-4,
        decisive=True,
    ),
    RunMetric(
        name="metric_drop",
        title="loss of the task metric",
        scope=Scope.TASK,
        higher_is_better=False,
        tabled=False,
        of=lambda comparison: comparison.metric_drop,
        error=_drop_error,
    ),
    RunMetric(
        name="nonfinite",
        title="tensors with NaN or Inf",
        short="NaN/Inf tensors",
        scope=Scope.NETWORK,
        tabled=False,
        form=".0f",
        higher_is_better=False,
        of=lambda comparison: float(len(comparison.nonfinite)),
        least_change=0.0,
        decisive=True,
    ),
)

METRICS: dict[str, Metric] = {metric.name: metric for metric in _ALL}
"""Name → metric, in the order in which they are told of."""


def _headed(name: str, unit: str) -> str:
    return f"{name[:1].upper()}{name[1:]}{f', {unit}' if unit else ''}"


def error_metrics() -> tuple[ErrorMetric, ...]:
    """Those of error sums, which layers have as well as outputs."""
    return tuple(metric for metric in METRICS.values() if isinstance(metric, ErrorMetric))


def agreement_metrics() -> tuple[AgreementMetric, ...]:
    """Those of outputs that say which class it is."""
    return tuple(metric for metric in METRICS.values() if isinstance(metric, AgreementMetric))


def tabled_metrics() -> tuple[RunMetric, ...]:
    """Those of the task or the network whose figure is all that tables have of them."""
    return tuple(metric for metric in METRICS.values() if isinstance(metric, RunMetric) and metric.tabled)


def output_metrics() -> tuple[Metric, ...]:
    """All that outputs have."""
    return (*error_metrics(), *agreement_metrics())


def brief_metrics() -> tuple[Metric, ...]:
    """Those of outputs that stand in short tables."""
    return tuple(metric for metric in output_metrics() if metric.brief)
