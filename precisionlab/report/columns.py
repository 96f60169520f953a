"""What stands in each table of a run: the one place that says it.

A table is written, read back and checked, drawn and documented from its `Schema`: a column that a row lacks, or has
beside it, is an error where the row is made, and no page knows a column that is not here. Columns of metrics and of
calibration methods follow from their registries.

In the files, text that begins with one of `= + - @`, a tab, a line's end or an apostrophe has an apostrophe in front,
so that no spreadsheet takes a stranger's name for a formula; numbers have none (`precisionlab.report.csvfile`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from precisionlab.calibration.methods import METHODS
from precisionlab.compare.metrics import SQNR, Metric, agreement_metrics, error_metrics, tabled_metrics
from precisionlab.report.schema import Column, Kind, Schema

SPREAD_PARTS = {"low": "least", "quarter": "lower quartile", "median": "median", "three_quarters": "upper quartile",
                "high": "greatest"}  # fmt: skip
"""How the SQNR of single samples is told of: the part's name in a column, and in words."""


def _text(name: str, title: str, what: str, required: bool = True) -> Column:
    return Column(name, Kind.TEXT, title, what, required=required)


def _number(name: str, title: str, what: str, unit: str = "", required: bool = True) -> Column:
    return Column(name, Kind.NUMBER, title, what, unit, required)


def _whole(name: str, title: str, what: str, unit: str = "") -> Column:
    return Column(name, Kind.WHOLE, title, what, unit)


def _count(name: str, title: str, what: str, unit: str = "") -> Column:
    return Column(name, Kind.COUNT, title, what, unit)


def _flag(name: str, title: str, what: str, required: bool = True) -> Column:
    return Column(name, Kind.FLAG, title, what, required=required)


def _metric(metric: Metric, prefix: str, before: str, what: str) -> Column:
    short = metric.short or metric.title
    title = f"{before} {short}" if before else f"{short[:1].upper()}{short[1:]}"
    return _number(prefix + metric.column, title, f"Its {metric.title}{what}", metric.unit, metric.required)


def _costs() -> Iterator[Column]:
    yield _text("target", "Target", "The device that costs are for.")
    yield _number("cost_us", "Cost", "What the plan costs on the target for one sample.", "µs", required=False)
    yield _number("cost_of_fp32", "Cost", "The same as a share of what the float32 plan costs.")
    yield _text(
        "cost_figures",
        "Cost figures",
        "Whether costs are estimated, measured or partly measured; an estimate compares plans of one model on one "
        "device, and predicts no latency.",
    )


def _variants() -> Iterator[Column]:
    yield _text(
        "variant",
        "Variant",
        "What was compared: fp32, fp16, int8, …, or `<precision> mixed` with pins; engines end in `engine`.",
    )
    yield _text("precision", "Precision", "The plan's default precision.")
    yield _text("figures", "Figures", "Whether the error figures are emulated or measured.")
    yield _whole("samples", "Samples", "How many samples the figures rest on: those that the pins were chosen on.")
    yield _count(
        "held_out_samples",
        "Samples held out",
        "How many samples chose nothing; empty, as all columns that begin with `held_out_`, where none was held out.",
    )
    yield _whole("pins", "Pins", "How many layers are pinned.")
    yield _whole("layers", "Layers", "How many layers the precision touches.")
    yield _text("tolerance", "Tolerance", "What was asked.")
    yield _flag("met", "Met", "Whether this variant holds the tolerance, on the samples held out as well.")
    yield _text(
        "verdict",
        "Verdict",
        "What is said of the variant; `not known` where the inputs were random unasked.",
        required=False,
    )
    nonfinite = "Tensors on the way with a NaN or Inf that the reference does not have"
    yield _whole("nonfinite_tensors", "NaN/Inf tensors", f"{nonfinite}.")
    yield _count("held_out_nonfinite_tensors", "NaN/Inf tensors held out", f"{nonfinite}, on the samples held out.")
    yield _text("metric_name", "Task metric", "What the task metric is called; empty where there is none.")
    yield _number("metric", "Task metric", "The task metric of the variant.")
    yield _number("reference_metric", "Reference's metric", "The task metric of the float32 reference.")
    yield _number(
        "metric_error",
        "Standard error",
        "The standard error of the variant's task metric over the samples; empty where they are too few.",
    )
    for metric in tabled_metrics():
        yield _metric(metric, "", "", " of the variant.")
        yield _metric(metric, "held_out_", "Held out", " on the samples held out.")
    yield _number("held_out_metric", "Task metric held out", "The variant's task metric on the samples held out.")
    yield from _costs()
    yield _number("latency_ms", "Time", "An engine's time for one sample, measured: the median.", "ms")
    yield _number("latency_low_ms", "Least time", "The 5th percentile of that time.", "ms", required=False)
    yield _number("latency_high_ms", "Greatest time", "The 95th percentile of that time.", "ms", required=False)
    yield _number("engine_mb", "Engine", "The size of an engine.", "MB", required=False)
    yield _number(
        "weight_mb",
        "Weights",
        "What the plan's float weights take, each in the precision of the layers that hold it, in 10^6 bytes.",
        "MB",
        required=False,
    )
    yield from _outputs()


def _outputs() -> Iterator[Column]:
    yield _text(
        "output", "Output", "The final output, the tensor within that is judged too, or the part of one of these."
    )
    yield _text("part_of", "Part of", "For a part the tensor that it is of, else empty.", required=False)
    yield _text("role", "Role", "Why a tensor within is judged, or why a part is not; else empty.", required=False)
    yield _flag("counts", "Counts", "Whether bounds without a name are about it.", required=False)
    yield _text(
        "worst_part",
        "Worst part",
        "The part whose error the output's is; empty where it has no parts.",
        required=False,
    )
    for metric in error_metrics():
        yield _metric(metric, "", "", "; empty for outputs that are not float32.")
    for end, word in (("low", "Lower"), ("high", "Upper")):
        yield _number(
            f"{SQNR}_{end}_db",
            f"{word} end of the SQNR",
            f"The {word.lower()} end of the 95 % interval of its SQNR over samples; empty where they are too few, or "
            "it is NaN.",
            "dB",
        )
    yield _count("nan", "NaN", "How many of its values are NaN.")
    yield _count("inf", "Inf", "How many of its values are infinite.")
    for agreement in agreement_metrics():
        yield _metric(agreement, "", "", "; empty where it has no class axis.")
    for held in (*error_metrics(), *agreement_metrics()):
        yield _metric(held, "held_out_", "Held out", " on the samples held out.")


def _layers() -> Iterator[Column]:
    yield from _layer()
    yield from _pin()
    yield from _size()
    yield from _alone()
    yield from _flow("introduced", "what the layer loses given the reference's inputs")
    yield from _flow("inherited", "what its outputs have lost so far, without pins; empty of rows picked by value")
    yield _number(
        "mixed_sqnr_db", "Inherited SQNR with pins", "What its outputs have lost so far under the plan found.", "dB"
    )
    yield from _engine()


def _layer() -> Iterator[Column]:
    yield _text("precision", "Precision", "The low precision.")
    yield _text("figures", "Figures", "Whether the error figures are emulated or measured.")
    yield _whole("index", "Place", "The layer's place in topological order, from 0.")
    yield _text("layer", "Layer", "Its name: that of its first node.")
    yield _text("kind", "Kind", "Its operators.")
    yield _text("nodes", "ONNX nodes", "Its ONNX nodes, joined by ` + `.")
    yield _text(
        "inputs",
        "Takes from",
        "The `index` of each layer that this one takes from, as `3 7`; empty where it takes from none.",
        required=False,
    )
    yield _text("runs_in", "Runs in", "The precision that the layer has in the variant without pins.")
    yield _text("fixed", "Fixed", "Why it cannot be given a precision, else empty.")
    yield _count(
        "rank",
        "Rank",
        "Its place in the ranking, of which 1 is the worst; empty for layers that the precision does not touch.",
    )


def _pin() -> Iterator[Column]:
    yield _flag("pinned", "Pinned", "Whether the plan found pins it.")
    yield _text("pinned_to", "Pinned to", "The precision that it is pinned to, else empty.")
    yield _text("reason", "Why", "Why it is pinned.")
    yield _number(
        "released_figure",
        "If released",
        "The tolerance's first figure with this pin alone released to `runs_in`: the pin's proof; empty, as the next "
        "column, where it was not released.",
    )
    yield _count("released_nonfinite", "NaN/Inf if released", "How many tensors have a new NaN or Inf then.")
    yield _text("cause", "Cause", "What breaks in it, in words: an overflow, a constant that underflows, ….")
    yield _text(
        "cause_kinds",
        "Kinds of cause",
        "The same for programs: words such as `first_nonfinite overflow`, with blanks between.",
        required=False,
    )


def _size() -> Iterator[Column]:
    yield _text("shape", "Shape", "The shape of its first output, at the first sample's shapes.")
    yield _count("multiply_adds", "Multiply-adds", "Its multiply-adds, at the first sample's shapes.")
    yield _whole("weight_bytes", "Weights", "What its weights take in float32.", "bytes")
    yield Column(
        "products",
        Kind.COUNT,
        "Products summed",
        "K: of how many products each of its values is the sum, channels / groups × taps of a Conv, the inner size of "
        "a MatMul; empty for other operators and where a size is not known.",
        required=False,
    )
    yield _number(
        "cost_us",
        "Cost without pins",
        "What it costs on the target without pins, conversions before and after not counted; empty if unknown.",
        "µs",
    )
    yield _text("cost_figures", "Cost figures", "Whether that is estimated or measured; empty as the cost is.")
    yield _text(
        "format",
        "Format",
        "The number format that its outputs are held in without pins: of int8 layers that around them.",
        required=False,
    )
    yield _number("ref_max", "Reference’s largest value", "The largest |x| of its outputs in the reference.")
    yield _count("overflow", "Overflow", "How many of these values are beyond the largest of `format`.")


def _alone() -> Iterator[Column]:
    searched = "rests on the samples where the precision is worst, and is empty where no pin was searched for"
    yield _number(
        "alone_sqnr_db",
        "Alone → output",
        f"What this layer's precision alone does to the worst final output, all others in float32; {searched}.",
        "dB",
    )
    yield _count("alone_nonfinite", "NaN + Inf alone", "The new NaN and Inf in the final outputs by it alone.")
    yield _number(
        "gain",
        "Gain",
        f"An estimate: the final outputs' squared error, relative to the signal's, that should go if it is pinned; "
        f"{searched}.",
    )


def _flow(prefix: str, what: str) -> Iterator[Column]:
    word = prefix.capitalize()
    for metric in error_metrics():
        yield _metric(metric, f"{prefix}_", word, f" by {what}." if prefix == "introduced" else f": {what}.")
    yield _count(f"{prefix}_nan", f"{word} NaN", "How many NaN are in that.")
    yield _count(f"{prefix}_inf", f"{word} Inf", "How many infinite values are in that.")
    yield _count(f"{prefix}_underflow", f"{word} underflow", "How many values became 0 in that.")
    for part, name in SPREAD_PARTS.items():
        said = f"The {name} SQNR of single samples; of several outputs that of the one with the least median."
        yield _number(f"{prefix}_{part}_db", f"{word} SQNR, {name}", said, "dB", required=False)
    yield _text(
        f"{prefix}_worst",
        f"{word}, worst sample",
        "The name of the sample with the least SQNR.",
        required=False,
    )


def _engine() -> Iterator[Column]:
    """Of real engines, run on a GPU or (types and pins) compiled for one; empty where there is none."""
    yield _number(
        "engine_sqnr_db",
        "SQNR in the engine",
        "What its outputs have lost so far in the engine that was taken, measured; empty where there is none, or the "
        "layer could not be looked at.",
        "dB",
        required=False,
    )
    yield _text(
        "engine_types",
        "Types in the engine",
        "What the layer's kernels give there, such as `fp16`; empty where the engine does not tell.",
        required=False,
    )
    yield _text(
        "engine_pin",
        "Pin in the engine",
        "What became of the layer's pin there: honoured, overridden, unknown, or not found.",
        required=False,
    )
    yield _number(
        "engine_ms",
        "Time in the engine",
        "The layer's own time there, measured; empty where it runs in one kernel with others.",
        "ms",
        required=False,
    )
    yield _text(
        "engine_sum",
        "Adds up in",
        "What the layer's kernel adds up in there, by its name: `half`, `float32`, `int32`; empty where the name does "
        "not tell.",
        required=False,
    )
    yield _text(
        "engine_order",
        "Order of sums",
        "In which order it does so, by its name: on tensor cores, in single products, by Winograd, depthwise.",
        required=False,
    )
    yield _text("engine_tactic", "Kernel", "That kernel's name, TensorRT's tactic.", required=False)


def _samples() -> Iterator[Column]:
    yield _text("variant", "Variant", "As in `variants.csv`.")
    yield _text("output", "Output", "As in `variants.csv`.")
    yield _flag("held_out", "Held out", "Whether the sample chose nothing.")
    yield _whole("sample", "Sample", "Its place among those that chose, or among those held out, from 0.")
    yield _text("name", "Sample", "Its name in the data.", required=False)
    yield _number(
        "sqnr_db",
        "SQNR",
        "The output's error on this sample, that of its worst part; empty where it is NaN, inf where there is none.",
        "dB",
    )


def _pareto() -> Iterator[Column]:
    yield _text("precision", "Precision", "The low precision.")
    yield _whole("pins", "Pins", "How many layers the plan pins.")
    yield _text(
        "layers",
        "Layers",
        "A JSON list of their names; plans with the same pins may differ in the precisions that these have.",
    )
    yield _text("figure", "Figure", "The first bound's figure: sqnr, top1, sqnr[logits], ….")
    yield _number("value", "Value", "What this plan has of it.")
    yield _text("figures", "Figures", "Whether that is emulated or measured.")
    yield from _costs()
    yield _flag("meets", "Meets", "Whether the plan meets the whole tolerance, on the samples that chose.")
    yield _flag("on_front", "On the front", "Whether no other plan evaluated is as good in both and better in one.")
    yield _flag("chosen", "Chosen", "Whether it is the plan found.")


def _ranges() -> Iterator[Column]:
    yield _text("tensor", "Tensor", "Its name in the model and in the cache.")
    yield _text("method", "Method", "How its range was found.")
    held = "empty for a tensor that never held an element"
    yield _number("amax", "Range", f"Where its range ends; {held}, as by each method below.")
    yield _number("scale", "Scale", f"The step of int8, amax / 127; {held}.")
    yield _number("largest", "Largest", "The largest finite |x| seen.")
    yield _whole("count", "Values", "How many values were seen, those that are not finite left out.")
    yield _whole("zeros", "Zeros", "How many of these are exactly 0.")
    yield _whole("nonfinite", "NaN + Inf", "How many NaN and Inf were seen.")
    yield _whole("clipped", "Clipped", "How many values lie beyond the range.")
    yield _number("clipped_share", "Clipped share", "The same as a share of the values.")
    yield _whole("levels_used", "Levels", "Of the 128 magnitudes that int8 tells apart, those that any value falls on.")
    for name, method in METHODS.items():
        yield _number(name, name, f"The range by `{name}`: {method.words}.", required=False)
    yield _number("disagreement", "Disagreement", "The largest of these ranges over the smallest.")
    yield _flag("operand", "Operand", "Whether an int8 layer takes it.")


def _fidelity() -> Iterator[Column]:
    yield _text("precision", "Precision", "The low precision.")
    yield _text("layer", "Layer", "The name of the layer that gives the tensor.")
    yield _text("kind", "Kind", "Its operators.")
    yield _text("tensor", "Tensor", "The tensor that is compared.")
    for flow, what in (("introduced", "loses given the reference's inputs"), ("inherited", "has lost so far")):
        for side, how in (("emulated", "as it is emulated"), ("real", "in real low-precision arithmetic")):
            yield _number(
                f"{flow}_{side}",
                f"{flow.capitalize()}, {side}",
                f"The SQNR of what it {what}, {how}; empty where there is none, or it is NaN.",
                "dB",
            )
    for side, how in (("emulated", "as it is emulated"), ("real", "in real low-precision arithmetic")):
        said = f"Whether it holds a NaN or Inf, {how}, that the reference does not have."
        yield _flag(f"nonfinite_{side}", f"NaN/Inf, {side}", said)
    yield _text("unsupported", "Unsupported", "Why the layer is float32 on both sides; empty where it is not.")


VARIANTS = Schema("variants.csv", "each variant and tensor that is judged, its parts behind it", _variants)
LAYERS = Schema("layers.csv", "each low precision and layer in topological order", _layers)
SAMPLES = Schema(
    "samples.csv",
    "each variant without or with pins, tensor that is judged and sample; there is none for the fp32 variant, for "
    "outputs that are not float32, and for a sample whose reference holds no number in an output",
    _samples,
)
PARETO = Schema("pareto.csv", "each plan that was evaluated, in that order", _pareto)
RANGES = Schema("ranges.csv", "each tensor in topological order", _ranges)
FIDELITY = Schema("fidelity.csv", "each precision and tensor that a layer gives", _fidelity)

SCHEMAS: Mapping[str, Schema] = {
    schema.file: schema for schema in (VARIANTS, LAYERS, SAMPLES, PARETO, RANGES, FIDELITY)
}
"""File → what stands in it."""
