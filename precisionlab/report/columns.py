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
from precisionlab.compare.metrics import SQNR, agreement_metrics, error_metrics, tabled_metrics
from precisionlab.report.column_kinds import (
    cost_columns,
    count_column,
    flag_column,
    metric_column,
    number_column,
    text_column,
    whole_column,
)
from precisionlab.report.layer_columns import layer_columns
from precisionlab.report.schema import Column, Schema
from precisionlab.search.alternatives import AlternativeKind


def _variants() -> Iterator[Column]:
    yield text_column(
        "variant",
        "Variant",
        "What was compared: fp32, fp16, int8, …, or `<precision> mixed` with pins, `<precision> repaired` with repairs "
        "alone; engines end in `engine`.",
    )
    yield text_column("precision", "Precision", "The plan's default precision.")
    yield text_column("figures", "Figures", "Whether the error figures are emulated or measured.")
    yield whole_column(
        "samples", "Samples", "How many samples the figures rest on: those that the pins were chosen on."
    )
    yield count_column(
        "held_out_samples",
        "Samples held out",
        "How many samples chose nothing; empty, as all columns that begin with `held_out_`, where none was held out.",
    )
    yield whole_column("pins", "Pins", "How many layers are pinned.")
    yield whole_column("repairs", "Repairs", "How many repairs are made to the model first.", required=False)
    yield whole_column("layers", "Layers", "How many layers the precision touches.")
    yield text_column("tolerance", "Tolerance", "What was asked.")
    yield flag_column("met", "Met", "Whether this variant holds the tolerance, on the samples held out as well.")
    yield text_column(
        "verdict",
        "Verdict",
        "What is said of the variant; `not known` where the inputs were random unasked.",
        required=False,
    )
    nonfinite = "Tensors on the way with a NaN or Inf that the reference does not have"
    yield whole_column("nonfinite_tensors", "NaN/Inf tensors", f"{nonfinite}.")
    yield count_column(
        "held_out_nonfinite_tensors", "NaN/Inf tensors held out", f"{nonfinite}, on the samples held out."
    )
    yield text_column("metric_name", "Task metric", "What the task metric is called; empty where there is none.")
    yield number_column("metric", "Task metric", "The task metric of the variant.")
    yield number_column("reference_metric", "Reference's metric", "The task metric of the float32 reference.")
    yield number_column(
        "metric_error",
        "Standard error",
        "The standard error of the variant's task metric over the samples; empty where they are too few.",
    )
    for metric in tabled_metrics():
        yield metric_column(metric, "", "", " of the variant.")
        yield metric_column(metric, "held_out_", "Held out", " on the samples held out.")
    yield from _alternatives()
    yield number_column("held_out_metric", "Task metric held out", "The variant's task metric on the samples held out.")
    yield from cost_columns()
    yield number_column("latency_ms", "Time", "An engine's time for one sample, measured: the median.", "ms")
    yield number_column("latency_low_ms", "Least time", "The 5th percentile of that time.", "ms", required=False)
    yield number_column("latency_high_ms", "Greatest time", "The 95th percentile of that time.", "ms", required=False)
    yield number_column("engine_mb", "Engine", "The size of an engine.", "MB", required=False)
    yield number_column(
        "weight_mb",
        "Weights",
        "What the plan's float weights take, each in the precision of the layers that hold it, in 10^6 bytes.",
        "MB",
        required=False,
    )
    yield from _outputs()


def _alternatives() -> Iterator[Column]:
    for kind in AlternativeKind:
        yield text_column(
            f"{kind.value}_verdict",
            f"{kind.words[:1].upper()}{kind.words[1:]}",
            f"Whether it holds the tolerance {kind.words}, on the samples that choose: `met` or `NOT met`; empty where "
            "that was not asked, or changes nothing.",
            required=False,
        )


def _outputs() -> Iterator[Column]:
    yield text_column(
        "output", "Output", "The final output, the tensor within that is judged too, or the part of one of these."
    )
    yield text_column("part_of", "Part of", "For a part the tensor that it is of, else empty.", required=False)
    yield text_column(
        "role", "Role", "Why a tensor within is judged, or why a part is not; else empty.", required=False
    )
    yield flag_column("counts", "Counts", "Whether bounds without a name are about it.", required=False)
    yield text_column(
        "worst_part",
        "Worst part",
        "The part whose error the output's is; empty where it has no parts.",
        required=False,
    )
    for metric in error_metrics():
        yield metric_column(metric, "", "", "; empty for outputs that are not float32.")
    for kind in AlternativeKind:
        yield number_column(
            f"{kind.value}_{SQNR}_db", f"SQNR {kind.words}", f"Its SQNR {kind.words}.", "dB", required=False
        )
    for end, word in (("low", "Lower"), ("high", "Upper")):
        yield number_column(
            f"{SQNR}_{end}_db",
            f"{word} end of the SQNR",
            f"The {word.lower()} end of the 95 % interval of its SQNR over samples; empty where they are too few, or "
            "it is NaN.",
            "dB",
        )
    yield count_column("nan", "NaN", "How many of its values are NaN.")
    yield count_column("inf", "Inf", "How many of its values are infinite.")
    for agreement in agreement_metrics():
        yield metric_column(agreement, "", "", "; empty where it has no class axis.")
    for held in (*error_metrics(), *agreement_metrics()):
        yield metric_column(held, "held_out_", "Held out", " on the samples held out.")
    for end, word in (("low", "lower"), ("high", "upper")):
        yield number_column(
            f"held_out_{SQNR}_{end}_db",
            f"Held out, {word} end of the SQNR",
            f"The {word} end of the 95 % interval of its SQNR over the samples held out; empty as the other.",
            "dB",
            required=False,
        )


def _samples() -> Iterator[Column]:
    yield text_column("variant", "Variant", "As in `variants.csv`.")
    yield text_column("output", "Output", "As in `variants.csv`.")
    yield flag_column("held_out", "Held out", "Whether the sample chose nothing.")
    yield whole_column("sample", "Sample", "Its place among those that chose, or among those held out, from 0.")
    yield text_column("name", "Sample", "Its name in the data.", required=False)
    yield number_column(
        "sqnr_db",
        "SQNR",
        "The output's error on this sample, that of its worst part; empty where it is NaN, inf where there is none.",
        "dB",
    )


def _pareto() -> Iterator[Column]:
    yield text_column("precision", "Precision", "The low precision.")
    yield whole_column("pins", "Pins", "How many layers the plan pins.")
    yield whole_column("repairs", "Repairs", "How many repairs it makes to the model first.", required=False)
    yield text_column(
        "layers",
        "Layers",
        "A JSON list of their names; plans with the same pins may differ in the precisions that these have.",
    )
    yield text_column("figure", "Figure", "The first bound's figure: sqnr, top1, sqnr[logits], ….")
    yield number_column("value", "Value", "What this plan has of it.")
    yield text_column("figures", "Figures", "Whether that is emulated or measured.")
    yield from cost_columns()
    yield flag_column("meets", "Meets", "Whether the plan meets the whole tolerance, on the samples that chose.")
    yield flag_column(
        "on_front", "On the front", "Whether no other plan evaluated is as good in both and better in one."
    )
    yield flag_column("chosen", "Chosen", "Whether it is the plan found.")


def _ranges() -> Iterator[Column]:
    yield text_column("tensor", "Tensor", "Its name in the model and in the cache.")
    yield text_column("method", "Method", "How its range was found.")
    held = "empty for a tensor that never held an element"
    yield number_column("amax", "Range", f"Where its range ends; {held}, as by each method below.")
    yield number_column("scale", "Scale", f"The step of int8, amax / 127; {held}.")
    yield number_column("largest", "Largest", "The largest finite |x| seen.")
    yield whole_column("count", "Values", "How many values were seen, those that are not finite left out.")
    yield whole_column("zeros", "Zeros", "How many of these are exactly 0.")
    yield whole_column("nonfinite", "NaN + Inf", "How many NaN and Inf were seen.")
    yield whole_column("clipped", "Clipped", "How many values lie beyond the range.")
    yield number_column("clipped_share", "Clipped share", "The same as a share of the values.")
    yield whole_column(
        "levels_used", "Levels", "Of the 128 magnitudes that int8 tells apart, those that any value falls on."
    )
    for name, method in METHODS.items():
        yield number_column(name, name, f"The range by `{name}`: {method.words}.", required=False)
    yield number_column("disagreement", "Disagreement", "The largest of these ranges over the smallest.")
    yield flag_column("operand", "Operand", "Whether an int8 layer takes it.")


def _fidelity() -> Iterator[Column]:
    yield text_column("precision", "Precision", "The low precision.")
    yield text_column("layer", "Layer", "The name of the layer that gives the tensor.")
    yield text_column("kind", "Kind", "Its operators.")
    yield text_column("tensor", "Tensor", "The tensor that is compared.")
    for flow, what in (("introduced", "loses given the reference's inputs"), ("inherited", "has lost so far")):
        for side, how in (("emulated", "as it is emulated"), ("real", "in real low-precision arithmetic")):
            yield number_column(
                f"{flow}_{side}",
                f"{flow.capitalize()}, {side}",
                f"The SQNR of what it {what}, {how}; empty where there is none, or it is NaN.",
                "dB",
            )
    for side, how in (("emulated", "as it is emulated"), ("real", "in real low-precision arithmetic")):
        said = f"Whether it holds a NaN or Inf, {how}, that the reference does not have."
        yield flag_column(f"nonfinite_{side}", f"NaN/Inf, {side}", said)
    yield text_column("unsupported", "Unsupported", "Why the layer is float32 on both sides; empty where it is not.")


def _compare() -> Iterator[Column]:
    yield text_column("layer", "Layer", "The name of the layer of the first model that gives the tensor.")
    yield text_column("kind", "Kind", "Its operators.")
    yield text_column("tensor", "Tensor", "The tensor of the first model.")
    yield text_column("twin", "Twin", "The tensor of the second model that is compared with it; empty for none.")
    yield text_column(
        "by", "Twin by", "What makes them twins: `name`, `given`, `the only one left`, `computed alike`; else empty."
    )
    yield text_column("operator", "Operator there", "The operator that gives the twin.")
    yield text_column("type", "Type there", "The type that the second file has the twin in.")
    flows = (
        ("introduced", "what it has lost since the nearest twins ahead, given the first model's values there"),
        ("inherited", "what it has lost so far"),
    )
    for flow, what in flows:
        for metric in error_metrics():
            yield metric_column(metric, f"{flow}_", flow.capitalize(), f" of {what}; empty without a twin.")
    for name, title, what in (
        ("nan", "NaN", "are NaN"),
        ("inf", "Inf", "are infinite"),
        ("new_nonfinite", "New NaN/Inf", "are NaN or Inf where the first model's are finite"),
        ("overflow", "Overflow", "have a value in the first model that the type there cannot hold"),
        ("underflow", "Underflow", "are 0 where the first model's are not"),
        ("reshaped", "Other shape", "samples have another shape there, which is not compared"),
    ):
        said = f"How many {what}." if name == "reshaped" else f"How many of the twin's values {what}."
        yield count_column(name, title, said)
    yield text_column("why", "Why none", "Why there is no twin, or no figure of one; else empty.")


VARIANTS = Schema("variants.csv", "each variant and tensor that is judged, its parts behind it", _variants)
LAYERS = Schema("layers.csv", "each low precision and layer in topological order", layer_columns)
SAMPLES = Schema(
    "samples.csv",
    "each variant of a low precision, tensor that is judged and sample; there is none for the fp32 variant, for "
    "outputs that are not float32, and for a sample whose reference holds no number in an output",
    _samples,
)
PARETO = Schema("pareto.csv", "each plan that was evaluated, in that order", _pareto)
RANGES = Schema("ranges.csv", "each tensor in topological order", _ranges)
FIDELITY = Schema("fidelity.csv", "each precision and tensor that a layer gives", _fidelity)
COMPARE = Schema("compare.csv", "each float tensor that a layer of the first model gives", _compare)

SCHEMAS: Mapping[str, Schema] = {
    schema.file: schema for schema in (VARIANTS, LAYERS, SAMPLES, PARETO, RANGES, FIDELITY, COMPARE)
}
"""File → what stands in it."""
