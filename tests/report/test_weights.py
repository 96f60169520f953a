"""Weights in a run's histograms: every one counted, with the output channels that int8 scales by."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from models import load, proto
from onnx import numpy_helper
from test_report import layer

from precisionlab.jobs.result import SweepResult
from precisionlab.report.histograms import histograms_json, histograms_text, read_histograms
from precisionlab.report.weights import weight_values
from precisionlab.report.work import work_of


def test_a_weight_is_counted_whole_with_the_channels_of_its_product(tmp_path: Path) -> None:
    model = proto("(float[2,4] x) => (float[2,5] y) { h = MatMul(x, w) y = Add(h, b) }")
    weight = np.full((4, 5), 0.5, np.float32)
    weight[1, 3], weight[0, 0] = -4.0, 0.0
    for name, array in (("w", weight), ("b", np.ones(5, np.float32))):
        model.graph.initializer.append(numpy_helper.from_array(array, name))
    loaded = load(model, tmp_path)
    ((name, histogram, channels),) = weight_values(loaded, loaded.layers[0])
    assert name == "w"
    assert (histogram.count, histogram.zeros, histogram.amax) == (20, 1, 4.0)
    assert channels is not None
    assert (channels.axis, channels.channels, channels.place, channels.median, channels.largest) == (1, 5, 3, 0.5, 4.0)


def test_the_weights_of_a_run_stand_in_its_file_and_on_its_page(swept_digits: SweepResult) -> None:
    text = histograms_text(swept_digits)
    found = read_histograms(text)
    convolutions = [n for n, layer in enumerate(swept_digits.model.layers) if layer.op_types[0] == "Conv"]
    assert all(len(found.layers[place].weights) == 1 for place in convolutions)
    drawn = json.loads(str(histograms_json(found)))
    (place,) = drawn["layers"][str(convolutions[-1])][2]
    assert "Of its" in drawn["tensors"][place][4]
    assert "output channels the largest" in drawn["tensors"][place][4]
    older = json.loads(text)
    for names in older["layers"]:
        del names["weights"]
    assert all(names.weights == () for names in read_histograms(json.dumps(older)).layers)


def test_the_work_is_shared_out_between_precisions_and_kinds() -> None:
    rows = [
        layer(0, "a", kind="Conv", multiply_adds=300, weight_bytes=0, cost_us=1.0),
        layer(1, "b", kind="MatMul", multiply_adds=100, weight_bytes=50, cost_us=1.0, pinned_to="fp32"),
        layer(2, "c", kind="Relu", multiply_adds=0, weight_bytes=50, cost_us=2.0),
        layer(3, "shape", kind="Shape", fixed="shape flow"),
    ]
    found = work_of(rows)
    assert found is not None
    assert [(s.name, s.layers, s.multiply_adds, s.weights, s.cost) for s in found.precisions] == [
        ("fp16", 2, "75.0", "50.0", "75.0"),
        ("fp32", 1, "25.0", "50.0", "25.0"),
    ]
    assert [(s.name, s.bar) for s in found.kinds] == [("Conv", 0.75), ("MatMul", 0.25), ("Relu", 0.0)]
    assert not found.timed
    assert [s.time for s in found.kinds] == ["–"] * 3
    timed = work_of([row | {"engine_ms": 1.0} for row in rows])
    assert timed is not None
    assert timed.timed
    assert [s.time for s in timed.precisions] == ["66.7", "33.3"]


def test_without_a_layer_that_computes_there_is_no_work() -> None:
    assert work_of([]) is None
    assert work_of([layer(0, "shape", fixed="shape flow")]) is None
    unknown = work_of([layer(0, "a", multiply_adds=None, weight_bytes=0, cost_us=None)])
    assert unknown is not None
    assert [(s.multiply_adds, s.weights, s.cost) for s in unknown.kinds] == [("–", "–", "–")]
