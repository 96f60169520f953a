"""Models with Q/DQ nodes of their own, swept on the double of TensorRT, which refuses what the real one refuses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from doubled import arrange
from quantized import explicit, in_body, in_float8, in_function

from precisionlab.backends.options import EngineOptions
from precisionlab.errors import PlanError
from precisionlab.jobs.result import SweepResult
from precisionlab.jobs.sweep import sweep
from precisionlab.search.outcome import EngineResult
from precisionlab.system.plainfiles import make_plain_folder


@pytest.fixture(autouse=True)
def _double(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    arrange(monkeypatch, tmp_path)


def swept(proto: onnx.ModelProto, folder: Path, precisions: str, **engine: Any) -> SweepResult:
    path = folder / "model.onnx"
    onnx.save_model(proto, path)
    shape = [dim.dim_value for dim in proto.graph.input[0].type.tensor_type.shape.dim]
    data = make_plain_folder(folder, "data")
    for index in range(4):
        np.save(data / f"{index}.npy", np.random.default_rng(index).standard_normal(shape).astype(np.float32))
    return sweep(
        path, data, precisions=precisions, backend="tensorrt", out=folder / "out", threads=1, holdout=0,
        engine=EngineOptions(observe=0, **engine),
    )  # fmt: skip


def engine_of(result: SweepResult) -> EngineResult:
    (found,) = result.precisions
    assert found.engine is not None
    return found.engine


@pytest.mark.parametrize(
    "model",
    [explicit(whole=False), in_body(), in_function(), in_float8()],
    ids=["graph", "body", "function", "float8"],
)
def test_float_plans_build_with_the_flag_for_the_models_own_nodes(model: onnx.ModelProto, tmp_path: Path) -> None:
    result = swept(model, tmp_path, "fp16")
    assert engine_of(result).mixed is not None, engine_of(result).notes
    assert engine_of(result).met


def test_an_int8_plan_that_touches_no_layer_builds_without_a_calibrator(tmp_path: Path) -> None:
    found = engine_of(swept(explicit(whole=True), tmp_path, "int8"))
    assert found.met, found.notes
    assert found.low is not None
    assert not any("Calibrator" in said for said in found.low.inside.built.warnings)


def test_int8_for_further_layers_is_refused_in_a_sentence_that_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(PlanError, match=r"layer 'conv1' in int8, and model.onnx is quantised by nodes of its own"):
        swept(explicit(whole=False), tmp_path, "int8")
