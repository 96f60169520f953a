"""Sweeps where layers tell their nodes as the parsers of other versions do: pins are found, and each layer's time."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from doubled import arrange
from models import proto

from precisionlab.backends.options import EngineOptions
from precisionlab.jobs.sweep import sweep

DOC = (
    'File "/home/me/net.py", line 3, in forward\n/usr/lib/site-packages/torch/nn.py(9): relu\n\n  y = f(x) [see] | (If)'
)


def told() -> onnx.ModelProto:
    """A layer that overflows in half, an If and a name with a bar, each node with a doc string of several lines."""
    body = """(float[1,4] x) => (float[1,4] y) {
        s = ReduceSum <keepdims = 0> (x) [gt] c = Greater(s, nothing) [shift] h = Add(x, shift)
        [square] q = Mul(h, h) [root] e = Sqrt(q)
        [iff] z = If (c) <
            then_branch = tb () => (float[1,4] t) { [one] r = Relu(e) [two] t = Neg(r) },
            else_branch = eb () => (float[1,4] f) { [other] f = Sigmoid(e) }
        >
        [last] y = Mul(z, small)
    }"""
    model = proto(body, {"nothing": np.float32(0), "shift": np.float32(300), "small": np.float32(0.01)})
    for node in model.graph.node:
        node.doc_string = DOC
    model.graph.node[-1].name = "last | odd: [0]"
    return model


@pytest.mark.parametrize("manner", ["8.6", "10.1", "10.16"])
def test_pins_are_found_and_no_time_is_left_over(manner: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    arrange(monkeypatch, tmp_path, metadata=manner)
    onnx.save_model(told(), tmp_path / "model.onnx")
    data = tmp_path / "data"
    data.mkdir()
    for index in range(4):
        values = np.random.default_rng(index).standard_normal((1, 4)).astype(np.float32)
        np.save(data / f"{index}.npy", values)
    result = sweep(
        tmp_path / "model.onnx", data, precisions="fp16", backend="tensorrt", out=tmp_path / "out", threads=1,
        holdout=0, repair=False, tolerance="sqnr>=20", engine=EngineOptions(observe=0),
    )  # fmt: skip
    (found,) = result.precisions
    assert found.engine is not None
    assert found.engine.mixed is not None, found.engine.notes
    assert found.engine.met
    pins = {report.layer: report.verdict for report in found.engine.mixed.inside.pins}
    assert pins
    assert set(pins.values()) == {"honoured"}
    assert set(found.engine.mixed.times) >= {"square", "iff", "last | odd: [0]"}
