"""What is wrong with a calibration cache, before TensorRT makes a slow or a wrong engine of it without a word.

A pure function of the cache, the model and the fingerprint; the rules, in the order in which they report:

1. header: another algorithm than EntropyCalibration2, a version that is no number;
2. scales: zero, negative, NaN, Inf; bytes the wrong way round; absurdly large or small; all equal;
3. model: Q/DQ nodes beside a cache, names of another model, tensors without a scale, names not in the model;
4. fingerprint: of another model, of another cache, too few samples, tensors that never held an element, NaN or Inf,
   nothing but zeros, heavy clipping.

What a tensor without a scale means, TensorRT says itself: "Missing scale and zero-point for tensor …, expect fall
back to non-int8 implementation for any layer consuming or producing given tensor".
"""

from __future__ import annotations

import math
import re
import struct
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from enum import Enum

import onnx_ir as ir

from precisionlab.calibration.cache import ALGORITHM, CalibrationCache, as_float32, is_scale
from precisionlab.calibration.fingerprint import Fingerprint
from precisionlab.calibration.table import INT8_LEVELS
from precisionlab.model import Model
from precisionlab.model.flow import shape_flow
from precisionlab.model.quantized import quantizing_nodes

LARGEST_AMAX = 1e6
"""Beyond it stand attention masks (−1e9, −3.4e38) and sentinels, not signals: float16 ends at 65504, and an int8 step
of 1e6 / 127 rounds all ordinary values to 0."""

SMALLEST_AMAX = 1e-9
"""Below it a tensor is rounding noise (float32 has 1e-7 of what it is summed up from), and int8 would
clip any real signal to it."""

MOST_CLIPPED = 0.01
"""The percentile that people clip on purpose is 99.9 or more; ten times that is no longer a tail."""

FEWEST_SAMPLES = 32
"""The next sample is larger than all n before it with a chance of 1 / (n + 1): with 32, 3 %. NVIDIA's developer guide
takes about 500 images for ImageNet."""

_FEWEST_EQUAL = 4  # fewer tensors than this may well be copies of one another (Reshape, Transpose, MaxPool)
# Layers without an ONNX name: constants, and helpers that TensorRT's parser puts in.
_TENSORRTS_OWN = re.compile(r"\(Unnamed Layer\* \d+\) \[.*\]_output.*|ONNXTRT_.*", re.DOTALL)


class Severity(str, Enum):
    """An error makes INT8 slow, wrong or absent; a warning may; a note is there to be known."""

    ERROR = "error"
    WARNING = "warning"
    NOTE = "note"

    def __str__(self) -> str:
        return self.value


@dataclass(frozen=True)
class Finding:
    """One thing found: `kind` names the rule, `tensor` is None where the cache as a whole is meant.

    `text` says what is wrong, why it matters and what to do.
    """

    severity: Severity
    kind: str
    tensor: str | None
    text: str


def lint(cache: CalibrationCache, model: Model | None, fingerprint: Fingerprint | None) -> tuple[Finding, ...]:
    """What is wrong with the cache, errors first; without model or fingerprint, what can be told without."""
    found = [*_header(cache), *_scales(cache)]
    if model is not None:
        found += _against_model(cache, model, _never_held(fingerprint))
    if fingerprint is not None:
        found += _against_fingerprint(cache, model, fingerprint)
    order = list(Severity)
    return tuple(sorted(found, key=lambda finding: order.index(finding.severity)))


def _header(cache: CalibrationCache) -> Iterator[Finding]:
    if cache.algorithm != ALGORITHM:
        yield Finding(
            Severity.ERROR,
            "algorithm",
            None,
            f"The header says {cache.algorithm}: an IInt8EntropyCalibrator2 skips this cache and calibrates anew. "
            f"Calibrate with `precisionlab calibrate`, or read it with the calibrator that wrote it.",
        )
    if not cache.version.isdecimal():
        yield Finding(
            Severity.WARNING,
            "version",
            None,
            f"The header's version is {cache.version!r}, no number: TensorRT may skip the cache then. "
            "Write your TensorRT's version there, such as TRT-8601 for 8.6.1 or TRT-101601 for 10.16.1.",
        )
    if not cache.scales:
        yield Finding(
            Severity.ERROR, "empty", None, "The cache holds no scale: no layer would run in INT8. Calibrate again."
        )


def _scales(cache: CalibrationCache) -> Iterator[Finding]:
    scales = cache.scales
    if _are_swapped(scales.values()):
        yield Finding(
            Severity.ERROR,
            "byte-order",
            None,
            "The scales make sense only with their bytes the other way round: what wrote the cache packed them "
            "little-endian (`<f`), and TensorRT reads them big-endian (`>f`). Pack them as `>f`, or calibrate again.",
        )
        return
    for name, scale in scales.items():
        amax = scale * INT8_LEVELS
        if not is_scale(scale):
            yield Finding(
                Severity.ERROR,
                "bad-scale",
                name,
                f"The scale is {scale:g}, not a positive number: every value becomes 0, or NaN. Calibrate again; if it "
                "stays so, look at what the calibration data make of this tensor.",
            )
        elif amax > LARGEST_AMAX:
            yield Finding(
                Severity.WARNING,
                "large-scale",
                name,
                f"The range reaches to {amax:.3g}, so that one step of int8 is {scale:.3g} and ordinary values become "
                "0. A mask or a sentinel value is the usual cause: leave the tensor out: its layers then stay float.",
            )
        elif amax < SMALLEST_AMAX:
            yield Finding(
                Severity.WARNING,
                "small-scale",
                name,
                f"The range ends at {amax:.3g}, and any real signal is clipped to that: it was practically zero "
                "in all samples. Calibrate with samples that make it move, or leave the tensor out.",
            )
    if len(scales) >= _FEWEST_EQUAL and len(set(scales.values())) == 1:
        value = next(iter(scales.values()))
        yield Finding(
            Severity.ERROR,
            "all-equal",
            None,
            f"All {len(scales)} tensors have the scale {value:.6g}, which no real model gives: the calibrator got no "
            "data, or got the same zeros each time. Check what it is fed, and calibrate again.",
        )


def _are_swapped(scales: Iterable[float]) -> bool:
    """Whether most scales are nonsense, and nearly all sensible with their four bytes reversed."""
    values = list(scales)
    swapped = [struct.unpack("<f", struct.pack(">f", value))[0] for value in values]
    sensible = sum(map(_is_sensible, values))
    return len(values) >= _FEWEST_EQUAL and 2 * sensible < len(values) and sum(map(_is_sensible, swapped)) > (
        0.9 * len(values)
    )  # fmt: skip


def _is_sensible(scale: float) -> bool:
    return is_scale(scale) and SMALLEST_AMAX <= scale * INT8_LEVELS <= LARGEST_AMAX


def _never_held(fingerprint: Fingerprint | None) -> frozenset[str]:
    """The tensors that were empty in all samples."""
    ranges = {} if fingerprint is None else fingerprint.ranges
    return frozenset(name for name, found in ranges.items() if found.is_empty)


def _against_model(cache: CalibrationCache, model: Model, never_held: Collection[str]) -> Iterator[Finding]:
    if any(True for _ in quantizing_nodes(model)):
        yield Finding(
            Severity.ERROR,
            "explicit",
            None,
            "The model holds QuantizeLinear and DequantizeLinear nodes: TensorRT takes the scales from these and "
            "ignores a calibration cache. Use the model without them, or build it without a cache.",
        )
        return
    if not cache.scales:
        return  # said already, and of every tensor
    if not any(name in model.tensors for name in cache.scales):
        first = next(iter(cache.scales))
        yield Finding(
            Severity.ERROR,
            "other-model",
            None,
            f"None of the {len(cache.scales)} names is a tensor of {model.path.name} (the first is {first!r}): the "
            "cache belongs to another model, or to another export of it. Calibrate this model.",
        )
        return
    yield from _missing(cache, model, never_held)
    yield from _unknown(cache, model)


def _missing(cache: CalibrationCache, model: Model, never_held: Collection[str]) -> Iterator[Finding]:
    takers = _int8_layers_of(model)
    for name in _calibrated_tensors(model):
        if name in cache.scales or name in never_held:  # of those there is more to be said
            continue
        if name in takers:
            layers = takers[name]
            runs = f"the layer {layers[0]} runs" if len(layers) == 1 else f"{_list_of(layers)} run"
            yield Finding(
                Severity.ERROR,
                "missing-operand",
                name,
                f"It has no scale, so {runs} without INT8. Calibrate again, unless it was left out on purpose.",
            )
        else:
            yield Finding(
                Severity.WARNING,
                "missing",
                name,
                "It has no scale, so layers that give or take it may fall back from INT8. Calibrate again, unless it "
                "was left out on purpose.",
            )


def _int8_layers_of(model: Model) -> Mapping[str, list[str]]:
    """Tensor → the Conv, ConvTranspose, Gemm and MatMul that take it as an operand."""
    takers: dict[str, list[str]] = {}
    for layer in model.layers:
        if layer.quantizable:
            for value in dict.fromkeys(model.node[layer.nodes[0]].inputs[:2]):
                if value is not None and not value.is_initializer():
                    takers.setdefault(str(value.name), []).append(layer.name)
    return takers


def _calibrated_tensors(model: Model) -> Iterator[str]:
    """The float32 tensors of the main graph that carry data: inputs and what nodes give, constants and shapes aside."""
    graph = model.onnx.graph
    shapes = shape_flow(graph)
    for value in [*graph.inputs, *(v for node in graph for v in node.outputs)]:
        known = model.tensors.get(str(value.name)) if value.name else None
        if known is not None and known.dtype == ir.DataType.FLOAT and value not in shapes:
            yield known.name


_MADE = "~"
"""Names that a repair makes have it, behind the name that they are made of."""


def _unknown(cache: CalibrationCache, model: Model) -> Iterator[Finding]:
    inner = {str(v.name) for graph in model.onnx.graphs() for node in graph for v in node.outputs}
    for name in cache.scales:
        if name in model.tensors or name in inner or name in model.gone:
            continue
        # The parser calls the output of the constant that holds an initializer so.
        constant = name.removesuffix("_output") in model.tensors and name.endswith("_output")
        if constant or _TENSORRTS_OWN.fullmatch(name):
            yield Finding(
                Severity.NOTE,
                "tensorrts-own",
                name,
                "TensorRT's own name, for a constant or a helper layer that the ONNX model has no name for. Leave it.",
            )
        elif name.partition(_MADE)[0] in model.tensors:
            yield Finding(
                Severity.WARNING,
                "repaired",
                name,
                f"{model.path.name} has no tensor of this name: a repair makes such beside those that it has. The "
                "cache is for the repaired model; give that with --model (export the plan with repairs as "
                "repaired-onnx), and build with it.",
            )
        else:
            yield Finding(
                Severity.WARNING,
                "unknown",
                name,
                f"{model.path.name} has no tensor of this name, so its scale is not used: it was renamed or removed. "
                "Calibrate again.",
            )


def _against_fingerprint(cache: CalibrationCache, model: Model | None, fingerprint: Fingerprint) -> Iterator[Finding]:
    if model is not None and model.sha256 != fingerprint.model_sha256:
        yield Finding(
            Severity.ERROR,
            "stale-model",
            None,
            f"Calibrated on another model than {model.path.name} (sha256 {fingerprint.model_sha256[:12]}…, this one is "
            f"{model.sha256[:12]}…): after training again or changing the graph its ranges no longer hold. Calibrate "
            "again.",
        )
    ranges = fingerprint.ranges
    known = fingerprint.table.scales
    same = {name for name, scale in cache.scales.items() if name in known and _is_of(scale, known[name])}
    if cache.sha256 and cache.sha256 != fingerprint.cache_sha256:
        yield _stale_cache(cache, fingerprint, same)
    if fingerprint.samples < FEWEST_SAMPLES:
        count = f"{fingerprint.samples} sample{'' if fingerprint.samples == 1 else 's'}"
        yield Finding(
            Severity.WARNING,
            "few-samples",
            None,
            f"Calibrated with {count} only: others will go beyond these ranges. Take {FEWEST_SAMPLES} at least, "
            "and some hundreds where there are any.",
        )
    for name in ranges:
        if ranges[name].is_empty:
            made_up = ", and the scale that the cache has of it is made up" if name in cache.scales else ""
            yield Finding(
                Severity.WARNING,
                "never-held",
                name,
                f"It never held an element in the samples{made_up}: it has no range, and layers that take it run "
                "without INT8. Calibrate with samples in which it holds some.",
            )
    # Where the scale is not the fingerprint's, what the fingerprint says of the tensor is about another range.
    for name in (n for n in cache.scales if n in same):
        found = ranges[name]
        if found.nonfinite:
            yield Finding(
                Severity.WARNING,
                "nonfinite",
                name,
                f"{found.nonfinite} NaN or Inf were left out when its range was found: int8 cannot hold them. Find the "
                "sample that causes them, or keep its layers in float.",
            )
        if found.count and found.largest == 0:
            yield Finding(
                Severity.WARNING,
                "all-zero",
                name,
                "It was zero in all samples, so its range is a guess. Calibrate with samples that make it move.",
            )
        if found.clipped_share > MOST_CLIPPED:
            yield Finding(
                Severity.WARNING,
                "clipping",
                name,
                f"{found.clipped_share:.1%} of its values are clipped: the range ends at {found.amax:.3g}, the largest "
                f"is {found.largest:.3g} ({found.method}). Try the method `max` or `percentile`, and compare.",
            )


def _stale_cache(cache: CalibrationCache, fingerprint: Fingerprint, same: set[str]) -> Finding:
    names = cache.scales.keys() | fingerprint.table.scales.keys()
    if len(same) == len(names):
        return Finding(
            Severity.NOTE,
            "stale-cache",
            None,
            "The file has other bytes than the one that the fingerprint was written for, but the same scales: its "
            "header or its line ends were changed. Nothing to do, if that was meant.",
        )
    return Finding(
        Severity.WARNING,
        "stale-cache",
        None,
        f"The cache was changed since its fingerprint was written: {len(names) - len(same)} of {len(names)} tensors "
        "differ. Calibrate again, or delete the fingerprint if the change was meant.",
    )


def _is_of(scale: float, wanted: float) -> bool:
    """Whether a cache's scale is this one, as float32."""
    try:
        return math.isfinite(scale) and scale == as_float32(wanted)
    except OverflowError:
        return False


def _list_of(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
