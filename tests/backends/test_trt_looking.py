"""In which way each tensor of an engine is looked at: sweeps on the double, whose engines can be told how to show.

What a real TensorRT marks as unfused, and under which names, no machine of ours has seen.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from doubled import arrange
from models import DIGITS

from precisionlab.backends.options import EngineOptions
from precisionlab.compare.comparison import Comparison
from precisionlab.jobs.result import SweepResult
from precisionlab.jobs.sweep import sweep


@pytest.fixture(scope="module")
def fixed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundled model for one image at a time: with dynamic shapes the double's inspector needs a context."""
    model = onnx.load_model(DIGITS / "digits.onnx")
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.shape.dim[0].dim_value = 1
    path = tmp_path_factory.mktemp("fixed") / "digits.onnx"
    onnx.save_model(model, path)
    return path


@pytest.fixture
def swept(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, fixed: Path) -> Callable[..., SweepResult]:
    """A sweep in FP16 with the double told this."""

    def run(**settings: Any) -> SweepResult:
        arrange(monkeypatch, tmp_path, **settings)
        return sweep(
            fixed, DIGITS, precisions="fp16", backend="tensorrt", out=tmp_path / "run", samples=4, threads=1,
            engine=EngineOptions(observe=1 << 20, builds=2),
        )  # fmt: skip

    return run


def found_in(result: SweepResult) -> tuple[Comparison, tuple[str, ...]]:
    """Of the plan's engine, as all is NaN in the one without pins."""
    engine = result.precisions[0].engine
    assert engine is not None
    assert engine.mixed is not None
    return engine.mixed.variant.comparison, engine.notes


@pytest.fixture(scope="module")
def marked(tmp_path_factory: pytest.TempPathFactory, fixed: Path) -> Comparison:
    """The errors of an engine whose tensors can only be marked as outputs."""
    out = tmp_path_factory.mktemp("marked")
    with pytest.MonkeyPatch.context() as patch:
        arrange(patch, out)
        result = sweep(
            fixed, DIGITS, precisions="fp16", backend="tensorrt", out=out / "run", samples=4, threads=1,
            engine=EngineOptions(observe=1 << 20, builds=2),
        )  # fmt: skip
    comparison, notes = found_in(result)
    assert notes == ()
    assert set(comparison.seen.values()) == {"output"}
    assert set(comparison.seen) == set(comparison.inherited)
    return comparison


def test_unfused_tensors_are_looked_at_first_and_what_they_do_not_show_is_marked(
    swept: Callable[..., SweepResult], marked: Comparison
) -> None:
    names = list(marked.seen)
    result = swept(unfused={"renames": names[:3], "channel_major": names[3:5]})
    comparison, notes = found_in(result)
    assert Counter(comparison.seen.values()) == {"unfused": len(names) - 5, "output": 5}
    assert [name for name in names if comparison.seen[name] == "output"] == names[:5]
    assert comparison.inherited == marked.inherited, "the same errors, whichever way they were seen"
    assert any(f"{len(names) - 5} unfused in the engine itself, 5 marked as outputs" in note for note in notes)
    ways = result.layers["engine_seen"]
    assert {"unfused", "output"} <= set(ways)
    assert "Looked at there" in (Path(str(result.folder)) / "report.html").read_text()


def test_where_unfused_tensors_cannot_be_marked_all_are_outputs_and_it_is_said(
    swept: Callable[..., SweepResult], marked: Comparison
) -> None:
    comparison, notes = found_in(swept(unfused="refused"))
    assert comparison.inherited == marked.inherited
    assert set(comparison.seen.values()) == {"output"}
    assert any("TensorRT does not mark its unfused tensors" in note for note in notes)


def test_a_tensor_that_tensorrt_marks_as_no_debug_tensor_is_not_observed_and_never_silently_absent(
    swept: Callable[..., SweepResult], marked: Comparison
) -> None:
    """Marked as outputs, they change this engine, so that debug tensors are tried."""
    refused = list(marked.seen)[2:4]
    result = swept(marking_changes=["/stem/conv"], no_debug=refused)
    comparison, notes = found_in(result)
    assert {name for name, way in comparison.seen.items() if way == "not observed"} == set(refused)
    assert {comparison.seen[name] for name in comparison.inherited} == {"debug tensor"}
    assert not set(refused) & set(comparison.inherited)
    said = f"not observed: {refused[0]!r}, {refused[1]!r} (TensorRT takes it for no debug tensor)"
    assert any(said in note for note in notes), notes
    assert "not observed" in set(result.layers["engine_seen"])


def test_where_no_tensor_is_marked_no_listener_is_set_and_the_outputs_stand_with_a_word(
    swept: Callable[..., SweepResult], marked: Comparison
) -> None:
    comparison, notes = found_in(swept(marking_changes=["/stem/conv"], no_debug=list(marked.seen)))
    assert set(comparison.seen.values()) == {"output"}
    assert any("looking at its layers changed the engine" in note for note in notes)
    assert np.isfinite([errors.err2 for errors in comparison.inherited.values()]).all()
