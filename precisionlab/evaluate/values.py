"""What the tensors of the float32 reference hold: histograms, channels, and from the same pass quantized ranges."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import asdict, dataclass
from itertools import islice
from typing import Any

import numpy as np
from numpy.typing import NDArray

from precisionlab.calibration.channels import ChannelMaxima, ChannelSpread, channel_axes
from precisionlab.calibration.coarse import CoarseHistogram
from precisionlab.calibration.methods import methods_of
from precisionlab.calibration.table import CalibrationTable, Range
from precisionlab.data import Sample
from precisionlab.evaluate.evaluator import Evaluator
from precisionlab.evaluate.ranges import Methods, operands_of, tables_by_method
from precisionlab.model import Layer, Model
from precisionlab.precision import Precision
from precisionlab.rewrite.observe import is_observed
from precisionlab.system.plain import Count, of_kind

_CHANNEL_SAMPLES = 8
"""Outlier channels stand out in every sample; all of them would cost another pass."""

Look = Callable[[Iterable[Sample], Callable[[str, NDArray[Any]], None]], None]
"""Shows the float32 reference's tensors, by name, sample by sample."""


@dataclass(frozen=True)
class ObservedValues:
    """Over `samples` samples: tensor → histogram and channels, and by quantized precision the ranges by method.

    `histograms` has every float32 tensor that a layer gives, rounds inside, or a quantized one takes; `channels` those
    that a quantized one takes, over the first samples. `channels` and `methods` are empty where no such precision was
    asked for.
    """

    samples: int
    histograms: Mapping[str, CoarseHistogram]
    channels: Mapping[str, ChannelSpread]
    methods: Mapping[Precision, Methods]

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for the journal."""
        return {
            "samples": self.samples,
            "histograms": {name: found.to_dict() for name, found in self.histograms.items()},
            "channels": {name: found.to_dict() for name, found in self.channels.items()},
            "methods": {
                precision.value: {
                    method: {name: asdict(found) for name, found in table.ranges.items()}
                    for method, table in methods.items()
                }
                for precision, methods in self.methods.items()
            },
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> ObservedValues:
        """What `to_dict` wrote. Raises ValueError where it is something else."""
        samples = of_kind(Count, data["samples"])
        given = of_kind(Mapping[str, Mapping[str, Mapping[str, Range]]], data["methods"])
        tables = {Precision(name): methods for name, methods in given.items()}
        every = (found for methods in tables.values() for table in methods.values() for found in table.values())
        if not all(math.isfinite(found.amax) for found in every):
            raise ValueError("a range without an end")
        return cls(
            samples,
            {name: CoarseHistogram.from_dict(found) for name, found in data["histograms"].items()},
            of_kind(Mapping[str, ChannelSpread], data["channels"]),
            {
                precision: {method: CalibrationTable(ranges, samples, precision) for method, ranges in found.items()}
                for precision, found in tables.items()
            },
        )


def observed_values(evaluator: Evaluator, quantized: Collection[Precision], look: Look) -> ObservedValues:
    """What the tensors hold on the samples that choose, from one pass; of quantized precisions the ranges too.

    Those are by each method that the precision has.
    """
    model, chosen = evaluator.model, evaluator.chosen
    operands = operands_of(model)
    shown = (name for layer in model.layers for name in (*rounded_inside(model, layer), *layer.outputs))
    given = (name for name in shown if is_observed(model, name))
    tensors = tuple(dict.fromkeys((*given, *operands)))

    names = [precision.value for precision in quantized]

    def work() -> dict[str, Any]:
        what = f"{' and '.join(names)} ranges and histograms" if names else "histograms"
        evaluator.observer.stage(what, len(chosen))
        collector = evaluator.backend.collector(tensors)
        collector.add(chosen, evaluator.observer.advance)
        # One after the other: of thousands of tensors all at once are hundreds of MB.
        taken = {name: collector.histogram(name) for name in operands} if quantized else {}
        return ObservedValues(
            len(chosen),
            {name: CoarseHistogram.of(collector.histogram(name)) for name in tensors},
            _channels(evaluator, look) if quantized else {},
            {precision: tables_by_method(taken, len(chosen), precision) for precision in quantized},
        ).to_dict()

    key = {"values": hashlib.sha256(json.dumps(tensors).encode()).hexdigest(), "quantized": names}

    def fits(found: ObservedValues) -> bool:
        tables = (found.methods.get(p, {}).get(method) for p in quantized for method in methods_of(p))
        ranges = [() if table is None else table.ranges.keys() for table in tables]
        return (
            found.samples == len(chosen)
            and found.histograms.keys() == set(tensors)
            and found.channels.keys() <= set(operands)
            and all(set(names) == set(operands) for names in ranges)
        )

    return evaluator.journalled("histograms", key, work, ObservedValues.from_dict, fits)


def rounded_inside(model: Model, layer: Layer) -> tuple[str, ...]:
    """The tensors between the nodes of a layer that rounds what each of them gives: what a compiler fuses of others.

    Of one that begins with a product none, as all of it is computed in one go.
    """
    if layer.quantizable or layer.fixed is not None:
        return ()
    given = (str(value.name) for name in layer.nodes for value in model.node[name].outputs if value.name)
    return tuple(name for name in given if name not in layer.outputs and name in model.tensors)


def _channels(evaluator: Evaluator, look: Look) -> dict[str, ChannelSpread]:
    axes = channel_axes(evaluator.model)
    maxima = ChannelMaxima(axes)

    def observer(name: str, tensor: NDArray[Any]) -> None:
        if name in axes and tensor.dtype == np.float32:
            maxima.add(name, tensor)

    look(islice(evaluator.chosen, _CHANNEL_SAMPLES), observer)
    return maxima.spreads()
