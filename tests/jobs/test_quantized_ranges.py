"""Which int8 ranges a model gets: the default's where they hold, on the samples held out too."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from models import proto

from precisionlab.calibration.methods import DEFAULT_METHOD
from precisionlab.compare.tolerance import Tolerance, parse_tolerance
from precisionlab.evaluate.journal import NoJournal
from precisionlab.evaluate.prepare import Source, prepare
from precisionlab.evaluate.ranges import compared_with, held_to
from precisionlab.jobs.quantized_ranges import ranges_that_hold
from precisionlab.jobs.repair_trials import Means
from precisionlab.model import load_model
from precisionlab.precision import Precision
from precisionlab.system.observer import Silent


class Heard(Silent):
    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, text: str) -> None:
        self.notes.append(text)


@pytest.fixture
def refuted(tmp_path: Path) -> tuple[Means, Heard]:
    """A product, with samples of which those that are held out are the larger ones."""
    path, data, heard = tmp_path / "m.onnx", tmp_path / "data", Heard()
    weights = np.random.default_rng(0).standard_normal((16, 8)).astype(np.float32)
    onnx.save_model(proto("(float[4, 16] x) => (float[4, 8] y) { y = MatMul(x, w) }", {"w": weights}), path)
    data.mkdir()
    for number in range(32):
        sample = np.random.default_rng(number).standard_normal((4, 16)).astype(np.float32)
        np.save(data / f"{number:02}.npy", sample * (4 if number % 4 == 3 else 1))
    ready = prepare(load_model(path), Source(data, {}, None, 0, 0.25, False), None, 1, None, heard)
    evaluator = ready.evaluator(NoJournal(), heard, ready.judging(bound(20)))
    assert evaluator.held_out is not None
    assert evaluator.held_out.names[0] == "03.npy"
    return Means(evaluator, ready.local.look), heard


def bound(value: float) -> Tolerance:
    return parse_tolerance([f"sqnr>={value:.3f}"])


def test_others_are_tried_where_the_held_out_samples_refute_the_default(refuted: tuple[Means, Heard]) -> None:
    means, heard = refuted
    default = means.methods(Precision.INT8)[DEFAULT_METHOD]
    chosen = compared_with(means.evaluator, DEFAULT_METHOD, default, True)
    held = held_to(means.evaluator, DEFAULT_METHOD, default)
    assert held is not None
    assert held.worst("sqnr") < chosen.worst("sqnr")
    between = bound((held.worst("sqnr") + chosen.worst("sqnr")) / 2)

    found = ranges_that_hold(means.evaluator, means.methods(Precision.INT8), between)

    assert any("on the held-out samples: trying others before any pin" in note for note in heard.notes)
    assert found.figures
    tables = means.methods(Precision.INT8).items()
    best = max(compared_with(means.evaluator, name, table, True).worst("sqnr") for name, table in tables)
    assert found.table is not None
    assert compared_with(means.evaluator, "taken", found.table, True).worst("sqnr") >= best - 0.5  # by these alone


def test_the_default_stays_where_it_holds_on_all_samples(refuted: tuple[Means, Heard]) -> None:
    means, heard = refuted
    held = held_to(means.evaluator, DEFAULT_METHOD, means.methods(Precision.INT8)[DEFAULT_METHOD])
    assert held is not None
    found = ranges_that_hold(means.evaluator, means.methods(Precision.INT8), bound(held.worst("sqnr") - 1))
    assert (found.method, found.figures) == (DEFAULT_METHOD, "")
    assert not any("trying others" in note for note in heard.notes)


def test_others_are_tried_where_the_default_does_not_hold_on_the_samples_that_choose(
    refuted: tuple[Means, Heard],
) -> None:
    means, heard = refuted
    found = ranges_that_hold(means.evaluator, means.methods(Precision.INT8), bound(90))
    assert found.figures
    assert any(": trying others before any pin" in note and "held-out" not in note for note in heard.notes)
