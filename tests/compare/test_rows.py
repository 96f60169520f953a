"""Rows that are picked by value are judged with their twins: another order is no error, another row is one."""

from __future__ import annotations

import io
import json
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pandas as pd
import pytest
from models import Array, compared, load, proto, sample
from scipy.optimize import linear_sum_assignment

from precisionlab.backends.onnxruntime import OnnxRuntimeBackend
from precisionlab.cli.summary import print_summary
from precisionlab.compare.assignment import assign
from precisionlab.compare.comparison import Comparison
from precisionlab.compare.judged import judged_differences, judged_errors
from precisionlab.compare.judging import Judged, Judging, RowGroup, judging_of
from precisionlab.compare.rows import RowCounts
from precisionlab.data import Sample
from precisionlab.jobs.sweep import sweep
from precisionlab.model import Model
from precisionlab.model.selections import picked_rows
from precisionlab.precision import Precision

TOPK = """(float[{b},300,32] q) => (float[{b},100] scores, float[{b},100,4] boxes, int64[{b},100] labels) {{
    h0 = MatMul (q, W0)  h = Relu (h0)  c0 = MatMul (h, Wc)  c = Sigmoid (c0)  b0 = MatMul (h, Wb)  b = Sigmoid (b0)
    cf = Flatten <axis = 1> (c)  scores, idx = TopK <axis = 1> (cf, k)  labels = Mod (idx, nc)  qi = Div (idx, nc)
    qi3 = Unsqueeze (qi, two)  qie = Expand (qi3, shape)  boxes = GatherElements <axis = 1> (b, qie) }}"""


def topk_model(batch: int = 1) -> onnx.ModelProto:
    """A DETR's head: the best of all scores, and the boxes by their indices."""
    rng = np.random.default_rng(70)
    weights: dict[str, Array] = {
        "W0": np.float32(rng.standard_normal((32, 32)) * 0.2),
        "Wc": np.float32(rng.standard_normal((32, 3)) * 0.3),
        "Wb": np.float32(rng.standard_normal((32, 4)) * 0.8),
        "k": np.array([100]),
        "nc": np.array(3),
        "two": np.array([2]),
        "shape": np.array([batch, 100, 4]),
    }
    return proto(TOPK.format(b=batch), weights)


def save_samples(folder: Path, count: int, make: Callable[[np.random.Generator], Array]) -> Path:
    rng = np.random.default_rng(1)
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(count):
        np.save(folder / f"s{i:03}.npy", np.float32(make(rng)))
    return folder


@pytest.mark.slow
def test_the_same_rows_in_another_order_are_right(tmp_path: Path) -> None:
    onnx.save(topk_model(), tmp_path / "m.onnx")
    data = save_samples(tmp_path / "data", 8, lambda rng: rng.standard_normal((1, 300, 32)))
    result = sweep(tmp_path / "m.onnx", data, precisions="fp16", out=tmp_path / "out", threads=1)
    low = result.precisions[0].low
    assert low.met
    assert result.precisions[0].plan.pins == ()
    found = low.comparison
    rows = found.outputs["boxes"].rows
    assert rows is not None
    assert rows.moved > 50  # of near-equal scores many change places: row by row the boxes are at 13 dB
    assert (rows.lost, rows.new, rows.other_number) == (0, 0, 0)
    # Matched, they are as good as the boxes that they are picked from.
    assert found.worst("sqnr", "boxes") == pytest.approx(found.inherited["b"].sqnr, abs=1)
    assert {name for name, errors in found.outputs.items() if errors.role} == {"cf", "b"}
    assert found.worst("sqnr", "cf") == pytest.approx(found.inherited["cf"].sqnr)
    assert found.outputs["labels"].errors is None
    assert found.outputs["labels"].top1.share > 0.99
    assert any("scores, boxes, labels" in note and "cf, b" in note for note in result.run["judging"])
    table = pd.read_csv(tmp_path / "out" / "variants.csv").set_index(["variant", "output"])
    assert table.loc[("fp16", "b"), "role"] == "ahead of TopK node_of_scores"
    # Place by place the rows behind TopK would be at 13 dB: no figure is better than that one.
    layers = pd.read_csv(tmp_path / "out" / "layers.csv").set_index("layer")
    behind, ahead = layers.loc["node_of_boxes"], layers.loc["node_of_b0"]
    assert behind[["inherited_sqnr_db", "inherited_cosine", "inherited_nan", "mixed_sqnr_db"]].isna().all()
    assert behind["introduced_sqnr_db"] > 60
    assert ahead["inherited_sqnr_db"] > 60


NMS = """(float[1,3,8,8] x) => (float[n,4] det) {
    f0 = Conv <pads = [1,1,1,1]> (x, W0)  f = Relu (f0)
    b0 = Conv (f, Wb)  b1 = Sigmoid (b0)  b2 = Reshape (b1, sb)  b3 = Transpose <perm = [0,2,1]> (b2)
    boxes = Mul (b3, k)  c0 = Conv (f, Wc)  c1 = Sigmoid (c0)  scores = Reshape (c1, sc)
    sel = NonMaxSuppression (boxes, scores, mx, iou, th)
    bi = Gather <axis = 1> (sel, two)  ob = Gather <axis = 1> (boxes, bi)  det = Squeeze (ob, zero) }"""


def nms_model(seed: int = 23) -> onnx.ModelProto:
    """A detector with NonMaxSuppression inside: how many rows there are hangs on the values."""
    rng = np.random.default_rng(seed)
    weights: dict[str, Array] = {
        "W0": np.float32(rng.standard_normal((8, 3, 3, 3)) * 0.3),
        "Wb": np.float32(rng.standard_normal((4, 8, 1, 1)) * 0.6),
        "Wc": np.float32(rng.standard_normal((2, 8, 1, 1)) * 0.9),
        **{"sb": np.array([1, 4, 64]), "sc": np.array([1, 2, 64]), "k": np.float32(64), "mx": np.array([20])},
        **{"iou": np.float32([0.5]), "th": np.float32([0.6]), "two": np.array(2), "zero": np.array([0])},
    }
    return proto(NMS, weights)


def nms_data(folder: Path) -> Path:
    rng = np.random.default_rng(23)
    for shape in ((8, 3, 3, 3), (4, 8, 1, 1), (2, 8, 1, 1)):
        rng.standard_normal(shape)
    folder.mkdir(parents=True)
    for i in range(16):
        np.save(folder / f"s{i:03}.npy", rng.random((1, 3, 8, 8)).astype(np.float32))
    return folder


@pytest.mark.slow
def test_another_number_of_rows_is_told_by_sample_and_operator(tmp_path: Path) -> None:
    onnx.save(nms_model(), tmp_path / "m.onnx")
    result = sweep(tmp_path / "m.onnx", nms_data(tmp_path / "d"), precisions="fp16", out=tmp_path / "out", threads=1)
    low = result.precisions[0].low
    assert low.comparison.nonfinite == ()
    # The row that s011 lacks is a near-tie: all others are as good as the boxes and scores that they are picked from.
    assert low.met
    assert low.comparison.worst("sqnr") == pytest.approx(low.comparison.inherited["scores"].sqnr)
    assert low.comparison.worst("sqnr", "det") > 70
    rows = low.comparison.outputs["det"].rows
    assert rows is not None
    assert (rows.reference, rows.lost, rows.new) == (318, 0, 0)
    assert rows.at_cut in (1, 2, 3)
    said = "1 of 16 samples gives another number of rows from NonMaxSuppression node_of_sel on: "
    said += "s011.npy has 18 rows, not 19"
    told = json.loads((tmp_path / "out" / "run.json").read_text())["precisions"]["fp16"]["rows"]
    assert told[-1] == said
    assert said in (tmp_path / "out" / "report.html").read_text()
    assert said.replace("_", "\\_") in (tmp_path / "out" / "summary.md").read_text()
    terminal = io.StringIO()
    print_summary(result, terminal)
    assert said in " ".join(terminal.getvalue().split())


@pytest.mark.slow
def test_int8_that_loses_detections_is_not_right(tmp_path: Path) -> None:
    onnx.save(nms_model(), tmp_path / "m.onnx")
    result = sweep(
        tmp_path / "m.onnx", nms_data(tmp_path / "d"), precisions="int8", out=tmp_path / "out", threads=1, max_pins=0
    )
    low = result.precisions[0].low
    rows = low.comparison.outputs["det"].rows
    assert not low.met
    assert rows is not None
    assert rows.lost > 0.05 * rows.reference
    assert rows.at_cut == 0  # more than noise moves are not set aside
    assert low.comparison.worst("sqnr", "det") < 15


# By values


GROUP = RowGroup("TopK topk", (("scores", 1), ("boxes", 1), ("labels", 1)), (), "scores")


def judging() -> Judging:
    return Judging((Judged("scores"), Judged("boxes"), Judged("labels")), (GROUP,))


def detections(count: int = 60, seed: int = 0, batch: int = 1) -> dict[str, Array]:
    rng = np.random.default_rng(seed)
    scores = -np.sort(-rng.uniform(0.3, 0.95, (batch, count)), 1)
    boxes = rng.uniform(0, 640, (batch, count, 4))
    return {
        "scores": np.float32(scores),
        "boxes": np.float32(boxes),
        "labels": rng.integers(0, 80, (batch, count)),
    }


def reordered(found: dict[str, Array], order: Array) -> dict[str, Array]:
    return {name: array[:, order] for name, array in found.items()}


def worst(reference: dict[str, Array], output: dict[str, Array]) -> tuple[float, RowCounts]:
    errors = judged_errors(judging(), reference, output)
    rows = errors["boxes"].rows
    assert rows is not None
    return Comparison(1, {}, {}, errors).worst("sqnr"), rows


@pytest.mark.parametrize("batch", [1, 3])
def test_order_alone_is_no_error_and_noise_is_what_it_is(batch: int) -> None:
    true = detections(batch=batch)
    rng = np.random.default_rng(5)
    noisy = {**true, "boxes": true["boxes"] + np.float32(rng.standard_normal(true["boxes"].shape))}
    order = rng.permutation(60)
    expected = 10 * np.log10((true["boxes"].astype(float) ** 2).sum() / ((noisy["boxes"] - true["boxes"]) ** 2).sum())
    for output in (noisy, reordered(noisy, order)):
        value, rows = worst(true, output)
        assert value == pytest.approx(expected, abs=0.01)
        assert (rows.lost, rows.new) == (0, 0)
    assert judged_errors(judging(), true, reordered(noisy, order))["labels"].top1.share == 1


@pytest.mark.parametrize("seed", range(5))
def test_boxes_that_are_wrong_stay_wrong_in_any_order(seed: int) -> None:
    true, other = detections(seed=seed), detections(seed=seed + 100)
    value, rows = worst(true, {**true, "boxes": other["boxes"]})
    assert value < 10
    assert rows.lost > 15
    shifted = {**true, "boxes": true["boxes"] + np.float32(60)}
    assert worst(true, reordered(shifted, np.random.default_rng(seed).permutation(60)))[0] < 20
    swapped = {**true, "labels": np.roll(true["labels"], 1, 1)}
    assert judged_errors(judging(), true, swapped)["labels"].top1.share < 0.2
    halved = {**true, "scores": true["scores"] / 2}
    assert worst(true, halved)[0] < 10


def test_a_lost_row_and_a_new_one_count_as_large_as_they_are() -> None:
    true = detections()
    kept = np.delete(np.arange(60), 10)
    value, rows = worst(true, reordered(true, kept))
    assert (rows.reference, rows.output, rows.lost, rows.new, rows.other_number) == (60, 59, 1, 0, 1)
    power = (true["boxes"].astype(float) ** 2).sum((0, 2))
    by_hand = 10 * np.log10(power.sum() / power[10])
    score = true["scores"].astype(float)[0] ** 2
    assert value == pytest.approx(min(by_hand, 10 * np.log10(score.sum() / score[10])), abs=1e-4)
    value, rows = worst(reordered(true, kept), true)
    assert (rows.lost, rows.new) == (0, 1)
    assert value < 25
    assert judged_errors(judging(), true, reordered(true, kept))["labels"].top1.share == pytest.approx(59 / 60)


def test_a_row_that_falls_at_the_cut_by_the_scores_noise_is_no_error_and_another_is_one() -> None:
    true = detections()
    rng = np.random.default_rng(3)
    other = detections(seed=9)

    def replaced(row: int) -> dict[str, Array]:
        output = {name: array.copy() for name, array in true.items()}
        output["scores"] += np.float32(1e-4 * rng.standard_normal(60))
        for name in ("boxes", "labels"):
            output[name][:, row] = other[name][:, row]
        return output

    value, rows = worst(true, replaced(59))
    assert value > 60
    assert (rows.lost, rows.new, rows.at_cut) == (0, 0, 2)
    value, rows = worst(true, replaced(20))
    assert value < 20
    assert (rows.lost, rows.new, rows.at_cut) == (1, 1, 0)


@pytest.mark.parametrize("seed", range(20))
def test_the_assignment_is_as_good_as_the_best_one_where_rows_can_be_told_apart(seed: int) -> None:
    """Against SciPy's Hungarian method: with noise below half of the rows' distance both give the same pairs."""
    rng = np.random.default_rng(seed)
    first = rng.uniform(0, 1, (rng.integers(1, 200), 5))
    second = (first + 0.01 * rng.standard_normal(first.shape))[rng.permutation(len(first))]
    none = np.zeros((len(first), 0), np.int64)
    twin, distance = assign(first, second, none, none, 0.0, len(first))
    costs = ((first[:, None] - second[None]) ** 2).sum(2)
    _, best = linear_sum_assignment(costs)
    assert distance.sum() <= 1.02 * costs[np.arange(len(first)), best].sum()
    assert sorted(twin.tolist()) == list(range(len(first)))


@pytest.mark.slow
def test_thousands_of_rows_and_rows_that_are_all_alike_are_quick() -> None:
    rng = np.random.default_rng(0)
    first = rng.uniform(0, 1, (3000, 5))
    none = np.zeros((3000, 0), np.int64)
    assign(first[:4], first[:4], none[:4], none[:4], 0.0, 4)
    started = time.perf_counter()
    twin, _ = assign(first, first[::-1].copy(), none, none, 0.0, 3000)
    assert twin.tolist() == list(range(3000))[::-1]
    alike, _ = assign(np.zeros((3000, 5)), np.zeros((3000, 5)), none, none, 0.0, 3000)
    assert alike.tolist() == list(range(3000))
    assert time.perf_counter() - started < 10


PICKED = """(float[4,400,16] x) => (float[4,60,5] det) {
    h = MatMul (x, W)  s = Sigmoid (h)  m = ReduceMax <axes = [2], keepdims = 0> (s)  v, i = TopK <axis = 1> (m, k)
    iu = Unsqueeze (i, two)  ie = Expand (iu, shape)  det = GatherElements <axis = 1> (s, ie) }"""


@pytest.mark.parametrize("precision", [Precision.FP16, Precision.INT8])
def test_what_stands_at_the_cut_is_told_by_what_the_rows_are_picked_by(precision: Precision, tmp_path: Path) -> None:
    """Four batches whose scores are no output; near the cut they lie closer together than half can tell."""
    rng = np.random.default_rng(0)
    weights = {"W": np.float32(rng.standard_normal((16, 5)) * 0.7), "k": np.array([60]), "two": np.array([2])}
    model = load(proto(PICKED, {**weights, "shape": np.array([4, 60, 5])}), tmp_path)
    samples = [sample(x=np.float32(rng.standard_normal((4, 400, 16)))) for _ in range(4)]
    found = compared(model, samples, precision)
    rows = found.outputs["det"].rows
    assert rows is not None
    assert rows.reference == 4 * 4 * 60
    assert rows.at_cut > 0
    assert (rows.lost, rows.new) == (0, 0)
    # Boxes and scores ahead are all that the precision has harmed, and the rows are as good as they are.
    assert found.worst("sqnr", "det") == pytest.approx(found.inherited["s"].sqnr, abs=3)
    assert found.outputs["m"].top1.total == 0


def test_differences_of_rows_stand_in_the_references_order() -> None:
    """So that what a layer alone does can be held against what all do together."""
    true = detections()
    noisy = {**true, "boxes": true["boxes"] + np.float32(np.random.default_rng(0).standard_normal((1, 60, 4)))}
    first = judged_differences(judging(), true, noisy)["boxes"]
    again = judged_differences(judging(), true, reordered(noisy, np.random.default_rng(1).permutation(60)))["boxes"]
    np.testing.assert_array_equal(first, again)


# Where the rows come from


def groups_of(model: Model, *shapes: tuple[int, ...]) -> list[tuple[tuple[str, ...], dict[str, int]]]:
    rng = np.random.default_rng(0)
    inputs = {info.name: np.float32(rng.standard_normal(s)) for info, s in zip(model.inputs, shapes, strict=True)}
    backend = OnnxRuntimeBackend(model, Sample("s", inputs), threads=1)
    return [(found.by, dict(found.tensors)) for found in picked_rows(backend.model)]


GRAPHS: dict[str, tuple[str, dict[str, Array], dict[str, int]]] = {
    "attention between the rows leaves one axis": (
        "(float[1,20,8] x) => (float[1,6,8] y) { s = ReduceMax <axes = [2], keepdims = 0> (x)  v, i = TopK (s, k)"
        "  g = Gather <axis = 1> (x, i)  e = Squeeze (g, zero)  t = Transpose <perm = [0, 2, 1]> (e)"
        "  a = MatMul (e, t)  p = Softmax (a)  y = MatMul (p, e) }",
        {"k": np.array([6]), "zero": np.array([1])},
        {"y": 1},
    ),
    "a sum over the rows has no order": (
        "(float[1,20] x) => (float[1,1] y) { v, i = TopK (x, k)  r = Relu (v)  y = ReduceSum (r, one) }",
        {"k": np.array([6]), "one": np.array([1])},
        {},
    ),
    "the best alone has no order": (
        "(float[1,20] x) => (float[1,1] y) { r = Exp (x)  y, i = TopK (r, k) }",
        {"k": np.array([1])},
        {},
    ),
    "what is not zero": (
        "(float[4,20] x) => (int64[n,2] y) { e = Exp (x)  c = Greater (e, t)  z = NonZero (c)"
        "  y = Transpose <perm = [1, 0]> (z) }",
        {"t": np.float32(1)},
        {"y": 0},
    ),
}


@pytest.mark.parametrize("name", GRAPHS)
def test_rows_are_followed_to_the_outputs(name: str, tmp_path: Path) -> None:
    body, weights, expected = GRAPHS[name]
    model = load(proto(body, weights), tmp_path)
    shape = tuple(dim for dim in model.inputs[0].shape or () if isinstance(dim, int))
    found = {tensor: axis for _, tensors in groups_of(model, shape) for tensor, axis in tensors.items()}
    assert {tensor: axis for tensor, axis in found.items() if tensor == "y"} == expected


def test_a_mask_that_is_given_picks_the_same_rows_in_every_precision(tmp_path: Path) -> None:
    body = """(float[4,8] x, int64[4] m) => (float[n,8] y) {
        e = Exp (x)  b = Cast <to = 9> (m)  y = Compress <axis = 0> (e, b) }"""
    assert picked_rows(load(proto(body), tmp_path))[:1] == ()


def test_nothing_is_said_of_models_without_such_rows(tmp_path: Path) -> None:
    model = load(proto("(float[2,3] x) => (float[2,3] y) { y = Softmax (x) }"), tmp_path)
    assert picked_rows(model) == ()
    assert judging_of(model).notes == ()


def test_another_number_of_rows_is_counted_and_is_no_nan() -> None:
    true = detections()
    errors = judged_errors(judging(), true, reordered(true, np.delete(np.arange(60), [10, 20])))
    found = Comparison(1, {}, {}, errors)
    assert np.isfinite(found.worst("sqnr"))
    assert found.nonfinite == ()
