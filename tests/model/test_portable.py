"""What TensorRT refuses or reads otherwise is said when a model is loaded."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from models import load, proto
from rtx import drive, needs_rtx

from precisionlab import sweep
from precisionlab.model.portable import tensorrt_notes
from precisionlab.search.verdict import Tone
from precisionlab.system.observer import Silent

S, X = np.float32(0.1), "(float[2,4] x) => (float[2,4] y)"
QDQ = X + " { a = Exp(x) b = QuantizeLinear(a, s, z) c = DequantizeLinear(b, s, z) y = Neg(c) }"
SCATTER = {"i": np.zeros((2, 4), np.int64), "j": np.zeros((2, 1), np.int64), "u": np.ones((2, 4), np.float32)}

TOLD: dict[str, tuple[str, dict[str, Any], str]] = {
    "uint8": (QDQ, {"s": S, "z": np.uint8(0)}, "'node_of_b' .QuantizeLinear.*half of the range is gone"),
    "uint8 by default": (QDQ.replace(", z", ""), {"s": S}, "half of the range is gone"),
    "a zero point": (QDQ, {"s": S, "z": np.int8(3)}, "zero points other than 0"),
    "int16": (QDQ, {"s": S, "z": np.int16(0)}, "no 16-bit quantisation"),
    "a bias in int32": (
        X + " { b = DequantizeLinear(q, s) a = Exp(x) y = Add(a, b) }",
        {"q": np.ones((2, 4), np.int32), "s": S},
        "quantised to int32",
    ),
    "dynamic quantisation": (
        X + " { a = Exp(x) q, s, z = DynamicQuantizeLinear(a) f = Cast<to = 1>(q) y = Mul(f, s) }",
        {},
        r"'node_of_q' \(DynamicQuantizeLinear\).*has no form",
    ),
    "Compress": ("(float[8] x) => (float[n] y) { a = Exp(x) y = Compress(a, c) }", {"c": np.ones(8, bool)}, "no form"),
    "scatter-add": (
        X + ' { a = Exp(x) y = ScatterND<reduction = "add">(a, j, u) }', SCATTER, r"\(ScatterND\).*no form"
    ),
    "scatter-add by element": (
        X + ' { a = Exp(x) y = ScatterElements<axis = 1, reduction = "add">(a, i, u) }', SCATTER, "plugin of 10.x alone"
    ),
    "inside a branch": (
        "(float[2,4] x, bool c) => (float[a,b] y) { y = If(c) <then_branch = t () => (float[a,b] u) { u = Exp(x) }, "
        "else_branch = f () => (float[a,b] v) { v = Compress<axis = 1>(x, k) }> }",
        {"k": np.array([True, False, True, True])},
        "no form",
    ),
}  # fmt: skip
TAKEN: dict[str, tuple[str, dict[str, Any]]] = {
    "int8": (QDQ, {"s": S, "z": np.int8(0)}),
    "scatter": (X + " { a = Exp(x) y = ScatterElements<axis = 1>(a, i, u) }", SCATTER),
    "scatter of none": (X + ' { a = Exp(x) y = ScatterND<reduction = "none">(a, j, u) }', SCATTER),
}


@pytest.mark.parametrize("kind", TOLD)
def test_what_tensorrt_refuses_or_reads_otherwise_is_told(kind: str, tmp_path: Path) -> None:
    body, weights, words = TOLD[kind]
    (said,) = tensorrt_notes(load(proto(body, weights, opset=21, ir_version=10), tmp_path))
    assert re.search(words, str(said)), said
    assert said.is_silent == kind.startswith("uint8")


@pytest.mark.parametrize("kind", TAKEN)
def test_nothing_is_said_of_what_it_takes(kind: str, tmp_path: Path) -> None:
    body, weights = TAKEN[kind]
    assert tensorrt_notes(load(proto(body, weights, opset=21, ir_version=10), tmp_path)) == ()


@pytest.mark.slow
@needs_rtx
def test_the_real_parser_refuses_what_is_told_and_takes_the_rest(tmp_path: Path) -> None:
    """uint8 it takes, with another meaning; that is the worse of the two."""
    bodies = {kind: case[:2] for kind, case in {**TOLD, **TAKEN}.items() if not kind.startswith("uint8")}
    for number, (body, weights) in enumerate(bodies.values()):
        load(proto(body, weights, opset=21, ir_version=10), tmp_path, f"{number}.onnx")
    answers = drive("parse_models", *(tmp_path / f"{number}.onnx" for number in range(len(bodies))))
    assert {kind: "error" in answer for kind, answer in zip(bodies, answers, strict=True)} == {
        kind: kind in TOLD for kind in bodies
    }


def test_a_sweep_says_it_before_its_figures(tmp_path: Path) -> None:
    class Heard(Silent):
        def __init__(self) -> None:
            self.notes: list[str] = []

        def note(self, text: str) -> None:
            self.notes.append(text)

    body, weights, _ = TOLD["uint8"]
    model = load(proto(body, weights, opset=21, ir_version=10), tmp_path)
    (tmp_path / "data").mkdir()
    np.save(tmp_path / "data" / "0.npy", np.zeros((2, 4), np.float32))
    heard = Heard()
    done = sweep(model.path, tmp_path / "data", precisions="fp16", out=tmp_path / "run", threads=1, observer=heard)
    assert any("half of the range is gone" in note for note in heard.notes)
    verdict = done.precisions[0].verdict
    assert (
        "but this is not judged as TensorRT reads the model: it takes uint8 for int8 of the same scale in 2 nodes"
        in (verdict.sentence)
    )
    assert verdict.mark.tone is Tone.OPEN
    assert "half of the range is gone" in (tmp_path / "run" / "report.html").read_text()


def test_a_sweep_of_int8_says_nothing_of_it(tmp_path: Path) -> None:
    body, weights = TAKEN["int8"]
    model = load(proto(body, weights, opset=21, ir_version=10), tmp_path)
    (tmp_path / "data").mkdir()
    np.save(tmp_path / "data" / "0.npy", np.zeros((2, 4), np.float32))
    done = sweep(model.path, tmp_path / "data", precisions="fp16", out=tmp_path / "run", threads=1)
    assert "TensorRT reads" not in done.precisions[0].verdict.sentence
