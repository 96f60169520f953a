"""Engines of a model with repairs: built of the repaired graph, its layers those of its own kernels."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from doubled import arrange
from repairing import breaking, plan_file, repair_of, samples_in
from rtx import needs_rtx

from precisionlab.backends.options import EngineOptions
from precisionlab.backends.registry import RTX
from precisionlab.jobs.result import SweepResult
from precisionlab.jobs.sweep import sweep
from precisionlab.jobs.verify import verify
from precisionlab.search.verdict import State


def swept(folder: Path, backend: str, **options: Any) -> SweepResult:
    model, data = breaking(folder), samples_in(folder)
    given = {"precisions": "fp16", "backend": backend, "target": "l4", "out": folder / "run", "threads": 1}
    return sweep(model.path, data, **{**given, **options})


def test_the_engine_of_the_plan_is_built_of_the_repaired_graph_and_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arrange(monkeypatch, tmp_path)
    (found,) = swept(tmp_path, "tensorrt", engine=EngineOptions(observe=0)).precisions
    assert found.engine is not None
    assert found.engine.low is not None
    assert found.engine.mixed is not None
    assert not found.engine.low.variant.met
    assert found.engine.mixed.variant.met
    assert (len(found.plan.repairs), found.plan.pins) == (1, ())
    assert len(list((tmp_path / "run" / "engines").glob("model.repaired-*.onnx"))) == 1
    low, mixed = found.low.cost, found.mixed.cost
    assert low is not None
    assert mixed is not None
    assert 0.1 < low.seconds / mixed.seconds < 10, "both are shares of times that were measured"

    again = verify(tmp_path / "run" / "plan.json", backend="tensorrt", threads=1)
    assert again.holds
    assert again.figures == "measured"


@pytest.mark.thorough
def test_a_plan_that_is_only_measured_costs_a_share_of_what_was_measured_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arrange(monkeypatch, tmp_path)
    model, data = breaking(tmp_path), samples_in(tmp_path, 2)
    pin = {"layer": "node_of_y", "nodes": ["node_of_y"], "precision": "fp32", "reason": ""}
    plan = plan_file(model, repair_of(), pins=[pin])
    result = sweep(
        model.path, data, plan=plan, backend="tensorrt", out=tmp_path / "run", threads=1,
        engine=EngineOptions(observe=0),
    )  # fmt: skip
    reference, mixed = result.reference.cost, result.precisions[0].mixed.cost
    assert reference is not None
    assert mixed is not None
    assert 0.1 < mixed.seconds / reference.seconds < 2
    (pinned,) = [cost for cost in mixed.layers if cost.layer == "node_of_y"]
    assert pinned.bound == "measured", "as the model without repairs has the layer too, in float32"


@needs_rtx
@pytest.mark.thorough
def test_an_overflow_inside_of_a_kernel_that_gives_finite_numbers_is_named_and_repaired(tmp_path: Path) -> None:
    result = swept(tmp_path, RTX)
    assert ("node_of_sq", "node_of_ms", "node_of_me", "node_of_rt", "node_of_hn") in {
        layer.nodes for layer in result.model.layers
    }
    (found,) = result.precisions
    said = str(found.causes["node_of_sq"])
    assert said.startswith("overflow inside: node_of_sq, values up to 6.67e+07")
    assert (len(found.plan.repairs), found.plan.pins) == (1, ())
    assert [compiled.name for compiled in found.compiled] == ["fp16", "fp16 repaired"]
    assert all(compiled.inside is not None for compiled in found.compiled)
    assert found.verdict.state is State.MET

    again = verify(tmp_path / "run" / "plan.json", backend="onnxruntime", threads=1)
    written = json.loads((tmp_path / "run" / "plan.json").read_text())
    assert again.holds
    assert again.certificate.to_dict() == written["certificate"]
    measured = swept_again(tmp_path)
    assert measured.mixed.comparison.worst("sqnr") == found.mixed.comparison.worst("sqnr")


def swept_again(folder: Path) -> Any:
    given = {"backend": RTX, "target": "l4", "out": folder / "again", "threads": 1}
    run = folder / "run"
    return sweep(folder / "model.onnx", folder / "data", plan=run / "plan.json", **given).precisions[0]
