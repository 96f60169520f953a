"""What the words of a report mean, in a sentence each: for tooltips, and a list at the page's end."""

from __future__ import annotations

TERMS = {
    "SQNR": "Signal to quantisation-noise ratio in decibels, 10·log10(Σ reference² / Σ error²): more is better, "
    "30 dB is an error of a thousandth of the signal’s power, ∞ is none.",
    "Cosine": "The cosine between an output and the reference’s, over all its values: 1 is the same direction.",
    "Relative L2": "The length of the error over that of the reference: 0 is no error.",
    "Largest error": "The largest error of any single value.",
    "Equal top-1": "The share of samples (or places) where the largest class is that of the reference.",
    "Reference": "The model in float32, run by ONNX Runtime on the same samples; everything is compared with it.",
    "Variant": "The model under one plan: in one precision as it is, repaired, or with pins (mixed).",
    "Plan": "A default precision, what is repaired first, and the layers that are pinned to another.",
    "Pin": "A layer that the plan keeps in a higher precision than its default.",
    "Repair": "A part of the model that is computed another way, to the same result, so that nothing in it breaks.",
    "Tolerance": "What counts as right: bounds on figures of the worst output.",
    "Held out": "Samples that choose no range and no pin, and only judge.",
    "Proven": "Each pin was released and each repair left out, one after the other, and the tolerance then failed.",
    "Cost": "What a plan costs on the target GPU as a share of FP32: an estimate from each layer’s arithmetic and "
    "bytes, which compares plans and predicts no latency, unless it is said to be measured.",
    "Emulated": "Figures of a float32 graph in which every layer’s values are rounded to the precision; nothing ran "
    "in a TensorRT engine.",
    "Measured": "Figures read from a real engine on a GPU.",
    "Layer": "What a precision is given to: an ONNX node, or the nodes that one kernel runs.",
    "Introduced": "What a layer loses by itself, given the reference’s inputs.",
    "Inherited": "What a layer’s output has lost so far: its own error and that of all before it.",
    "Share of output error": "What a layer alone does to the worst output, all others in FP32, of the sum over layers.",
    "Cause": "Why a layer breaks: an overflow, a constant that becomes 0 or Inf, a NaN that comes in.",
    "Range": "How far the 255 steps of INT8 reach in a tensor; what lies beyond is clipped.",
    "Calibration": "Finding the INT8 ranges of all tensors over the samples, by a method; auto measures several.",
    "Sums in half": "Most FP16 kernels keep the running sum of a product in half, and round it after each block.",
    "Inconclusive": "With other samples of the same kind the figure may lie beyond what was asked (95 %).",
}
"""Term → what it means."""
