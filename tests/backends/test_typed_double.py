"""A sweep on a double of strongly typed TensorRT, which keeps the integer sums of INT8 in half as the real one does."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest
import typeddouble
from models import proto

from precisionlab.backends import registry
from precisionlab.jobs.result import SweepResult
from precisionlab.jobs.sweep import sweep
from precisionlab.rewrite.typed import assignment
from precisionlab.search.outcome import EngineResult

K = 512


@pytest.fixture(autouse=True)
def _registered() -> Iterator[None]:
    registry.register(typeddouble.KIND)
    yield
    registry._KINDS.pop(typeddouble.NAME)


def swept(folder: Path, around: str = "fp16") -> SweepResult:
    rng = np.random.default_rng(0)
    weights = {f"w{i}": (rng.standard_normal((K, 32 if i else K)) / 22).astype(np.float32) for i in (0, 1)}
    nodes = "[m0] a = MatMul(x, w0) [r] b = Relu(a) [m1] y = MatMul(b, w1)"
    onnx.save(proto(f"(float[4,{K}] x) => (float[4,32] y) {{ {nodes} }}", weights, opset=21), folder / "m.onnx")
    (folder / "data").mkdir()
    for place in range(6):
        np.save(folder / "data" / f"{place}.npy", rng.standard_normal((4, K)).astype(np.float32))
    options = {"precisions": "int8", "around": around, "backend": typeddouble.NAME, "threads": 1}
    return sweep(folder / "m.onnx", folder / "data", out=folder / "out", **options)


def engine_of(result: SweepResult) -> EngineResult:
    engine = result.precisions[0].engine
    assert engine is not None
    return engine


def test_what_we_write_is_right_on_it_and_what_others_write_is_told(tmp_path: Path) -> None:
    result = swept(tmp_path)
    (found,) = result.precisions
    assert found.met
    engine = engine_of(result).low
    assert engine is not None
    assert engine.variant.met
    assert engine.variant.comparison.worst("sqnr") == pytest.approx(found.low.comparison.worst("sqnr"), abs=1)
    assert found.unscaled is not None
    assert not found.unscaled.met
    assert "integer sums pass 65504" in found.unscaled.title


def test_with_a_scale_for_each_channel_in_half_its_engines_are_not_right_as_the_emulation_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(assignment, "weight_by_channel", lambda node: None)
    result = swept(tmp_path)
    (found,) = result.precisions
    assert found.low.met, "the emulation is of what we write"
    engine = engine_of(result).low
    assert engine is not None
    assert not engine.variant.met
    assert found.unscaled is not None
    assert engine.variant.comparison.worst("sqnr") == found.unscaled.sqnr == -np.inf


def test_around_float32_a_scale_for_each_channel_is_right_on_it(tmp_path: Path) -> None:
    result = swept(tmp_path, around="fp32")
    engine = engine_of(result).low
    assert engine is not None
    assert engine.variant.met
    assert result.precisions[0].unscaled is None
