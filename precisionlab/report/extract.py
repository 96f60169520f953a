"""The README of an extract: what somebody needs who has never seen the model."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING

from precisionlab.precision import Precision
from precisionlab.report.cells import show, visible

if TYPE_CHECKING:
    from precisionlab.results.extract import Extract

_LISTED = 30


def readme(found: Extract) -> str:
    """The text, in Markdown. Names come from strangers, and stand in code spans that they cannot end."""
    facts = found.facts
    asked = f" Right is {found.bound:g} dB or more."
    said = "It shows what the whole does" if found.shown else "It does NOT show the fault"
    figures = f"SQNR {show(found.part, '.1f')} dB alone, {show(found.whole, '.1f')} dB in the whole model"
    lines = [
        f"# {_plain(found.what)} of {_plain(found.model)}",
        "",
        f"{said}: {figures} ({_plain(facts['fault'])} beside float32, computed by precisionlab).{asked}",
        "",
        "| file | content |",
        "|---|---|",
        "| `model.onnx` | the part, in float32 |",
        *(["| `other.onnx` | the same part of the second model |"] if facts["other"] else []),
        *(["| `calibration.cache` | the INT8 ranges, for TensorRT |"] if "calibration.cache" in found.files else []),
        "| `inputs/`, `expected/`, `found/` | its inputs, what float32 gives, and what was found (`numpy.load`) |",
        "| `inputs.json`, `outputs.json` | the same for Polygraphy |",
        "",
        "In this folder:",
        "",
        "```sh",
        *_commands(found),
        "```",
        "",
        f"Inputs: {_list(facts['inputs'])}. Outputs: {_list(found.outputs)}. Samples: {_list(found.samples)}.",
        "",
        f"Layers: {_list(found.layers)}.",
        "",
        f"Model sha256 `{facts['model']['sha256']}`"
        + (f", second model `{facts['other']['sha256']}`" if facts["other"] else "")
        + f"; {', '.join(f'{name} {_plain(version)}' for name, version in facts['versions'].items())}.",
    ]
    return "\n".join(lines) + "\n"


def _commands(found: Extract) -> list[str]:
    facts = found.facts
    if facts["other"]:
        pairs = [word for ours, theirs in facts["match"].items() for word in ("--match", f"{ours}={theirs}")]
        words = ["precisionlab", "compare", "model.onnx", "other.onnx", "--data", "inputs", *pairs]
        return [shlex.join(map(visible, words))]
    precision = Precision(facts["precision"])
    words = ["precisionlab", "sweep", "model.onnx", "--data", "inputs", "--precisions", precision.value, "--no-repair"]
    words += ["--around", facts["around"]] if facts["around"] != Precision.FP32.value else []
    if precision.is_quantized and not precision.number_format.is_implicit:
        return [shlex.join(words)]  # no flag of Polygraphy quantises to it
    flags = [f"--{precision.value}"]
    if precision.is_quantized:
        flags += ["--calibration-cache", "calibration.cache"]
    trt = ["polygraphy", "run", "model.onnx", "--trt", *flags, "--load-inputs", "inputs.json"]
    return [
        shlex.join(words),
        "# TensorRT up to 10, beside what float32 gives:",
        shlex.join([*trt, "--load-outputs", "outputs.json"]),
    ]


def _list(names: object) -> str:
    found = list(names) if isinstance(names, list | tuple) else []
    more = f" and {len(found) - _LISTED} more" if len(found) > _LISTED else ""
    return ", ".join(_plain(name) for name in found[:_LISTED]) + more


def _plain(text: object) -> str:
    """A stranger's name as code: control characters are shown, and backticks become another sign."""
    return f"`{visible(text).replace('`', 'ˋ')}`" if text else "–"
