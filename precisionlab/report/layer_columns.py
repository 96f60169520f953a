"""What stands in `layers.csv`."""

from __future__ import annotations

from collections.abc import Iterator

from precisionlab.compare.metrics import error_metrics
from precisionlab.report.column_kinds import (
    SPREAD_PARTS,
    count_column,
    flag_column,
    metric_column,
    number_column,
    text_column,
    whole_column,
)
from precisionlab.report.schema import Column, Kind


def layer_columns() -> Iterator[Column]:
    """All of them, in order."""
    yield from _layer()
    yield from _pin()
    yield from _size()
    yield from _alone()
    yield from _by_itself()
    yield from _flow("introduced", "what the layer loses given the reference's inputs")
    yield from _flow("inherited", "what its outputs have lost so far, without pins; empty of rows picked by value")
    yield number_column(
        "mixed_sqnr_db",
        "Inherited SQNR of the plan",
        "What its outputs have lost so far under the plan found.",
        "dB",
    )
    yield from _engine()


def _layer() -> Iterator[Column]:
    yield text_column("precision", "Precision", "The low precision.")
    yield text_column("figures", "Figures", "Whether the error figures are emulated or measured.")
    yield whole_column("index", "Place", "The layer's place in topological order, from 0.")
    yield text_column("layer", "Layer", "Its name: that of its first node.")
    yield text_column("kind", "Kind", "Its operators.")
    yield text_column("nodes", "ONNX nodes", "Its ONNX nodes, joined by ` + `.")
    yield text_column(
        "inputs",
        "Takes from",
        "The `index` of each layer that this one takes from, as `3 7`; empty where it takes from none.",
        required=False,
    )
    yield text_column("runs_in", "Runs in", "The precision that the layer has in the variant without pins.")
    yield text_column("fixed", "Fixed", "Why it cannot be given a precision, else empty.")
    yield count_column(
        "rank",
        "Rank",
        "Its place among the layers, of which 1 is the worst: by `output_share`, where that was not measured by the "
        "error that it introduces; empty for layers that the precision does not touch.",
    )


def _pin() -> Iterator[Column]:
    yield flag_column("pinned", "Pinned", "Whether the plan found pins it.")
    yield text_column("pinned_to", "Pinned to", "The precision that it is pinned to, else empty.")
    yield text_column("reason", "Why", "Why it is pinned.")
    yield number_column(
        "released_figure",
        "If released",
        "The tolerance's first figure with this pin alone released to `runs_in`: the pin's proof; empty, as the next "
        "column, where it was not released.",
    )
    yield count_column("released_nonfinite", "NaN/Inf if released", "How many tensors have a new NaN or Inf then.")
    yield text_column(
        "repair",
        "Repaired",
        "The kinds of repair that the plan found has for it, with blanks between; else empty.",
        required=False,
    )
    yield text_column("cause", "Cause", "What breaks in it, in words: an overflow, a constant that underflows, ….")
    yield text_column(
        "cause_kinds",
        "Kinds of cause",
        "The same for programs: words such as `first_nonfinite overflow`, with blanks between.",
        required=False,
    )


def _size() -> Iterator[Column]:
    yield text_column("shape", "Shape", "The shape of its first output, at the first sample's shapes.")
    yield count_column("multiply_adds", "Multiply-adds", "Its multiply-adds, at the first sample's shapes.")
    yield whole_column("weight_bytes", "Weights", "What its weights take in float32.", "bytes")
    yield Column(
        "products",
        Kind.COUNT,
        "Products summed",
        "K: of how many products each of its values is the sum, channels / groups × taps of a Conv, the inner size of "
        "a MatMul; empty for other operators and where a size is not known.",
        required=False,
    )
    yield Column(
        "blocks",
        Kind.COUNT,
        "Blocks",
        "How many times a sum of them that is kept in half is rounded on tensor cores: blocks of 16, or a tap where a "
        "group has fewer channels; empty for layers in another precision.",
        required=False,
    )
    yield number_column(
        "half_sums_sqnr_db",
        "With half sums",
        "The SQNR of its sums themselves where they are kept in half, an estimate by the number of blocks: within 2 dB "
        "for nine of ten layers. What the layer rounds before and behind them is not in it.",
        "dB",
        required=False,
    )
    yield number_column(
        "sum_bound",
        "Bound of its sums",
        "What no order of summation can pass: the largest operand × the largest sum of a channel's weights, without "
        "signs. Where it is below the precision's end no running sum overflows.",
        required=False,
    )
    yield number_column(
        "largest_running_sum",
        "Largest running sum",
        "How large its sums are on the way, block by block in the order of tensor cores, on the samples that choose; "
        "looked at where the bound is beyond the precision's end.",
        required=False,
    )
    yield number_column(
        "cost_us",
        "Cost without pins",
        "What it costs on the target without pins, conversions before and after not counted; empty if unknown.",
        "µs",
    )
    yield text_column("cost_figures", "Cost figures", "Whether that is estimated or measured; empty as the cost is.")
    yield text_column(
        "format",
        "Format",
        "The number format that its outputs are held in without pins: of int8 layers that around them.",
        required=False,
    )
    yield number_column("ref_max", "Reference’s largest value", "The largest |x| of its outputs in the reference.")
    yield count_column("overflow", "Overflow", "How many of these values are beyond the largest of `format`.")


def _alone() -> Iterator[Column]:
    searched = "rests on `alone_samples`, and is empty where no pin was searched for"
    yield number_column(
        "alone_sqnr_db",
        "Alone → output",
        f"What this layer's precision alone does to the worst final output, all others in float32; {searched}.",
        "dB",
    )
    yield number_column(
        "output_share",
        "Share of output error",
        "The squared error that it alone makes in the final output that it harms most, relative to the signal's, as a "
        "share of what all layers make so, one by one: 0 to 1; NaN where it alone breaks an output; rests on "
        "`alone_samples`, or where no pin was searched for on `each_samples`; else empty.",
        required=False,
    )
    yield number_column(
        "output_share_sum",
        "Shares down to it",
        "The sum of its share and of all that are larger: where it reaches 0.9 are the layers that make 90 % of the "
        "error, which is diffuse where these are many (`carriers` in `run.json`).",
        required=False,
    )
    yield count_column("alone_nonfinite", "NaN + Inf alone", "The new NaN and Inf in the final outputs by it alone.")
    yield count_column(
        "alone_samples",
        "Alone on samples",
        "On how many of the samples where the precision is worst that was measured: all layers are on the worst one, "
        "those that rank high on more.",
        required=False,
    )
    yield number_column(
        "gain",
        "Gain",
        f"An estimate: the final outputs' squared error, relative to the signal's, that should go if it is pinned; "
        f"{searched}.",
    )


def _by_itself() -> Iterator[Column]:
    """What `--each-layer` measures; empty without it, and where time did not do."""
    parts = {
        "one_on": ("Only it", "with this layer alone in the low precision, all others in float32"),
        "one_off": ("All but it", "with all in the low precision but this layer, in float32"),
    }
    for prefix, (title, what) in parts.items():
        yield number_column(
            f"{prefix}_sqnr_db", f"{title}, SQNR", f"The worst final output {what}.", "dB", required=False
        )
        yield number_column(f"{prefix}_metric", f"{title}, task metric", f"The task metric {what}.", required=False)
        yield count_column(
            f"{prefix}_nonfinite",
            f"{title}, NaN + Inf",
            f"The new NaN and Inf in the final outputs {what}.",
            required=False,
        )
    yield count_column(
        "each_samples",
        "By itself on samples",
        "On how many samples these six were measured, the same ones for all layers.",
        required=False,
    )


def _flow(prefix: str, what: str) -> Iterator[Column]:
    word = prefix.capitalize()
    for metric in error_metrics():
        yield metric_column(metric, f"{prefix}_", word, f" by {what}." if prefix == "introduced" else f": {what}.")
    yield count_column(f"{prefix}_nan", f"{word} NaN", "How many NaN are in that.")
    yield count_column(f"{prefix}_inf", f"{word} Inf", "How many infinite values are in that.")
    yield count_column(f"{prefix}_underflow", f"{word} underflow", "How many values became 0 in that.")
    for part, name in SPREAD_PARTS.items():
        said = f"The {name} SQNR of single samples; of several outputs that of the one with the least median."
        yield number_column(f"{prefix}_{part}_db", f"{word} SQNR, {name}", said, "dB", required=False)
    yield text_column(
        f"{prefix}_worst",
        f"{word}, worst sample",
        "The name of the sample with the least SQNR.",
        required=False,
    )


def _engine() -> Iterator[Column]:
    """Of real engines, run on a GPU or (types and pins) compiled for one; empty where there is none."""
    yield number_column(
        "engine_sqnr_db",
        "SQNR in the engine",
        "What its outputs have lost so far in the engine that was taken, measured; empty where there is none, or the "
        "layer could not be looked at.",
        "dB",
        required=False,
    )
    yield text_column(
        "engine_seen",
        "Looked at there",
        "How its outputs were looked at: `unfused` in an engine that this does not change, as an `output`, as a `debug "
        "tensor`; or `not observed`.",
        required=False,
    )
    yield text_column(
        "engine_types",
        "Types in the engine",
        "What the layer's kernels give there, such as `fp16`; empty where the engine does not tell.",
        required=False,
    )
    yield text_column(
        "engine_pin",
        "Pin in the engine",
        "What became of the layer's pin there: honoured, overridden, unknown, or not found.",
        required=False,
    )
    yield number_column(
        "engine_ms",
        "Time in the engine",
        "The layer's own time there, measured; empty where it runs in one kernel with others.",
        "ms",
        required=False,
    )
    yield text_column(
        "engine_sum",
        "Adds up in",
        "What the layer's kernel adds up in there, by its name: `half`, `float32`, `int32`; empty where the name does "
        "not tell.",
        required=False,
    )
    yield text_column(
        "engine_order",
        "Order of sums",
        "In which order it does so, by its name: on tensor cores, in single products, by Winograd, depthwise.",
        required=False,
    )
    yield text_column("engine_tactic", "Kernel", "That kernel's name, TensorRT's tactic.", required=False)
