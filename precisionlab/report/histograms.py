"""What the tensors of the reference hold: `histograms.json`, and how a page draws it.

`histograms.json` is an object of

| key | meaning |
|---|---|
| samples | how many samples were counted: those that chose the pins |
| layers | for each layer, by `index`: `outputs`, float32 tensors that it gives, quantized `operands`, `weights` |
| tensors | for each its histogram; of operands of quantized layers `ranges` and `channels`, of weights `channels` |

A histogram is of |x| in the float32 reference: `bins` counts the finite values from 2^(exponent − 10) to 2^exponent,
four bins of equal width to each power of two; `below` what is smaller but not zero, `zeros` exact zeros, `nonfinite`
NaN and Inf; `amax` is the largest finite |x|. `ranges` has by precision where that ends (`amax`), by which `method`,
and how many values lie beyond (`clipped`). `channels` has the number of channels along `axis`, the median of their
largest |x| (channels of zeros left out), and the largest with its channel (`place`), over the first eight samples; of a
weight its output channels, each of which has a scale where it is quantized. Weights of models that are too large for a
copy are left out.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from markupsafe import Markup

from precisionlab.calibration.channels import ChannelSpread
from precisionlab.calibration.coarse import CoarseHistogram
from precisionlab.calibration.table import INT8_LEVELS, Range, tables_in
from precisionlab.model.layers import quantized_operands
from precisionlab.precision import Precision
from precisionlab.report.cells import percent, show, visible
from precisionlab.report.details import script_json
from precisionlab.report.weights import weight_values
from precisionlab.system.plain import of_plain
from precisionlab.system.reading import parse_json

if TYPE_CHECKING:
    from precisionlab.results.sweep import SweepFindings

HISTOGRAMS = "histograms.json"
_HEIGHTS = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
"""Of bars, from nothing to the highest: one character each keeps thousands of histograms small."""


@dataclass(frozen=True)
class TensorValues:
    """What one tensor holds. `ranges`, by precision, and `channels` are of operands of quantized layers alone."""

    histogram: CoarseHistogram
    ranges: Mapping[Precision, Range]
    channels: ChannelSpread | None

    def is_uneven(self, precision: Precision) -> bool:
        """Whether outlier channels leave the others few levels of a precision whose values are all as far apart."""
        found = self.ranges.get(precision) if precision.number_format.is_uniform else None
        return self.channels is not None and found is not None and self.channels.is_uneven(found.amax)


@dataclass(frozen=True)
class LayerTensors:
    """The names of the tensors of one layer that were counted."""

    outputs: tuple[str, ...]
    operands: tuple[str, ...]
    weights: tuple[str, ...] = ()


@dataclass(frozen=True)
class RunHistograms:
    """What `histograms.json` holds."""

    samples: int
    layers: tuple[LayerTensors, ...]
    tensors: Mapping[str, TensorValues]

    def uneven_of(self, index: int, precision: Precision) -> tuple[tuple[str, TensorValues], ...]:
        """The operands of a layer that have outlier channels for a quantized precision."""
        found = self.layers[index].operands if index < len(self.layers) else ()
        return tuple((name, self.tensors[name]) for name in found if self.tensors[name].is_uneven(precision))


# The file


def histograms_text(result: SweepFindings) -> str:
    """The content of `histograms.json`."""
    values = result.values
    tables = {table.precision: table for found in result.precisions for table in tables_in(found.own_ranges)}
    model, is_small = result.model, not result.run["annotated"]["note"]
    weights = [list(weight_values(model, layer)) if is_small else [] for layer in model.layers]
    layers = [
        {
            "outputs": [name for name in layer.outputs if name in values.histograms],
            "operands": [name for name in quantized_operands(model, layer) if name in values.histograms],
            "weights": [name for name, _, _ in own],
        }
        for layer, own in zip(model.layers, weights, strict=True)
    ]
    tensors: dict[str, dict[str, Any]] = {
        name: {**histogram.to_dict(), **({"channels": channels.to_dict()} if channels else {})}
        for own in weights
        for name, histogram, channels in own
    }
    for name, histogram in values.histograms.items():
        tensors[name] = histogram.to_dict()
        known = {p.value: table.ranges[name] for p, table in tables.items() if name in table.ranges}
        if known:
            tensors[name]["ranges"] = {
                p: {"amax": found.amax, "method": found.method, "clipped": found.clipped} for p, found in known.items()
            }
        if name in values.channels:
            tensors[name]["channels"] = values.channels[name].to_dict()
    # A line for each tensor: for people who look, and for those who compare two runs.
    head = json.dumps({"samples": values.samples, "layers": layers}, ensure_ascii=False)
    lines = [f"{json.dumps(name, ensure_ascii=False)}: {json.dumps(found)}" for name, found in tensors.items()]
    return head[:-1] + ', "tensors": {\n' + ",\n".join(lines) + "\n}}\n"


def read_histograms(text: str) -> RunHistograms:
    """What `histograms_text` wrote. Raises ValueError where it is something else."""
    data = parse_json(text)
    try:
        tensors = {name: _tensor(found) for name, found in data["tensors"].items()}
        # Runs of older versions have no weights.
        names = [(la["outputs"], la["operands"], la.get("weights", ())) for la in data["layers"]]
        layers = tuple(LayerTensors(*map(tuple, of)) for of in names)
        samples = int(data["samples"])
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{type(error).__name__}: {error}") from None
    unknown = next((n for la in layers for n in (*la.outputs, *la.operands, *la.weights) if n not in tensors), None)
    if unknown is not None:
        raise ValueError(f"no histogram of tensor {unknown!r}")
    return RunHistograms(samples, layers, tensors)


def _tensor(data: Mapping[str, Any]) -> TensorValues:
    content = {name: value for name, value in data.items() if name not in ("range", "ranges", "channels")}
    histogram = CoarseHistogram.from_dict(content)
    channels = of_plain(ChannelSpread, data["channels"]) if "channels" in data else None
    older = {Precision.INT8.value: data["range"]} if "range" in data else {}  # before there was another
    ranges = {Precision(name): _range(found, histogram) for name, found in data.get("ranges", older).items()}
    return TensorValues(histogram, ranges, channels)


def _range(data: Mapping[str, Any], histogram: CoarseHistogram) -> Range:
    amax, clipped = float(data["amax"]), int(data["clipped"])
    return Range(amax, str(data["method"]), histogram.amax, histogram.count, clipped, histogram.nonfinite)


# The page


def histograms_json(found: RunHistograms) -> Markup:
    """The histograms as the page's script draws them: `tensors`, and for each layer's index the places of its tensors.

    A tensor is its name, the exponent, the heights of its bars (logarithmic, one character each), the largest value as
    a text, what else is known of the values, and for a quantized operand by precision where its range ends, with words.
    """
    places = {name: place for place, name in enumerate(found.tensors)}
    layers = {
        str(index): [
            [places[n] for n in layer.outputs],
            [places[n] for n in layer.operands if n not in layer.outputs],
            [places[n] for n in layer.weights],
        ]
        for index, layer in enumerate(found.layers)
        if layer.outputs or layer.operands or layer.weights
    }
    tensors = [_drawn(name, values) for name, values in found.tensors.items()]
    return script_json({"samples": found.samples, "layers": layers, "tensors": tensors})


def _drawn(name: str, values: TensorValues) -> list[Any]:
    histogram = values.histogram
    largest, words = show(histogram.amax, ".4g"), _words(histogram)
    if not values.ranges and values.channels is not None:
        words += f". {_weight_words(values.channels)}"
    drawn: list[Any] = [visible(name), histogram.exponent, _bars(histogram), largest, words]
    if values.ranges:
        ends = {
            precision.value: [float(f"{found.amax:.6g}"), " ".join(_range_words(precision, found, values.channels))]
            for precision, found in values.ranges.items()
        }
        drawn.append(ends)
    return drawn


def _bars(histogram: CoarseHistogram) -> str:
    top = math.log1p(max(histogram.bins))
    most = len(_HEIGHTS) - 1
    return "".join(_HEIGHTS[max(1, round(most * math.log1p(n) / top)) if n else 0] for n in histogram.bins)


def _words(histogram: CoarseHistogram) -> str:
    """How many values, and those that the picture does not show."""
    count = histogram.count
    said = [f"{count:,} values"]
    if histogram.zeros:
        said.append(f"{percent(histogram.zeros / count, '.3g')} exactly 0")
    if histogram.below:
        said.append(f"{percent(histogram.below / count, '.3g')} further left")
    if histogram.nonfinite:
        said.append(f"{histogram.nonfinite:,} NaN or Inf, not counted")
    return ", ".join(said)


def _weight_words(channels: ChannelSpread) -> str:
    return (
        f"Of its {channels.channels} output channels the largest, {channels.place}, reaches "
        f"{show(channels.largest, '.3g')}, the median one {show(channels.median, '.3g')}"
    )


def _range_words(precision: Precision, found: Range, channels: ChannelSpread | None) -> Iterable[str]:
    clips = "nothing" if not found.clipped else f"{percent(found.clipped_share, '.3g')} of the values"
    yield f"{precision.number_format.title} ends at {show(found.amax, '.4g')} ({found.method}) and clips {clips}."
    if channels is not None:
        where = f"channel {channels.place} of {channels.channels}"
        levels = f": {show(channels.levels(found.amax), '.1f')} of {INT8_LEVELS} levels"
        yield (
            f"Its largest channel ({where}) reaches {show(channels.largest, '.3g')}, the median one "
            f"{show(channels.median, '.3g')}{levels if precision.number_format.is_uniform else ''}."
        )
