"""Calibration of a model that is quantised by nodes of its own: it is done, and said to be of no use to TensorRT."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from click.testing import CliRunner
from models import proto
from quantized import explicit

from precisionlab.cli import cli


@pytest.mark.parametrize(
    ("model", "is_said"),
    [
        (explicit(whole=False), True),
        (proto("(float[1,3,8,8] x) => (float[1,3,8,8] y) { [a] b = Exp(x) [c] y = Sigmoid(b) }"), False),
    ],
)
def test_that_tensorrt_ignores_the_cache_is_said(model: onnx.ModelProto, is_said: bool, tmp_path: Path) -> None:
    onnx.save_model(model, tmp_path / "m.onnx")
    data = tmp_path / "data"
    data.mkdir()
    np.save(data / "0.npy", np.random.default_rng(0).standard_normal((1, 3, 8, 8)).astype(np.float32))
    words = ["calibrate", str(tmp_path / "m.onnx"), "--data", str(data), "--out", str(tmp_path / "out")]
    done = CliRunner().invoke(cli, words)
    assert done.exit_code == 0, done.output
    assert ("ignores a calibration cache beside them" in done.output) is is_said
    assert (tmp_path / "out" / "calibration.cache").exists()
