"""NonMaxSuppression: a box kept or dropped by noise alone is a near-tie, one that is lost otherwise is an error."""

from __future__ import annotations

import numpy as np
import onnxruntime as ort
import pytest
from models import Array, proto

from precisionlab.compare.judged import judged_errors
from precisionlab.compare.judging import Judged, Judging, RowGroup
from precisionlab.compare.output import OutputErrors, settled
from precisionlab.compare.rows import RowCounts
from precisionlab.compare.suppression import Detections
from precisionlab.model.pickers import Suppression

HOW = Suppression("boxes", "scores", most=20, iou=0.5, score=0.25, centered=False)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("centered", [False, True])
def test_the_boxes_kept_are_those_of_onnx_runtime(seed: int, centered: bool) -> None:
    rng = np.random.default_rng(seed)
    boxes, scores = np.float32(rng.uniform(0, 30, (2, 80, 4))), np.float32(rng.random((2, 3, 80)))
    scores[0, 1, :20] = 0.5  # equal ones go by their places
    how = Suppression("b", "s", 7 + 10 * (seed % 2), 0.1 * (1 + seed), [0.4, None][seed % 2], centered)
    line = "" if how.score is None else ", line"
    model = proto(
        f"(float[2,80,4] b, float[2,3,80] s) => (int64[n,3] y) {{ y = NonMaxSuppression <center_point_box = "
        f"{int(centered)}> (b, s, most, iou{line}) }}",
        {"most": np.array([how.most]), "iou": np.float32([how.iou]), "line": np.float32([how.score or 0])},
    )
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    expected = session.run(None, {"b": boxes, "s": scores})[0]
    assert [list(box) for box in Detections(how, boxes, scores).kept] == expected.tolist()


def scene(objects: int = 40, seed: int = 0) -> tuple[Array, Array]:
    """Boxes far from each other, each with a copy that it suppresses by far: (1, 2n, 4), (1, 1, 2n)."""
    rng = np.random.default_rng(seed)
    corner = np.stack(np.meshgrid(np.arange(8), np.arange(objects // 8)), -1).reshape(-1, 2) * 100.0
    first = np.concatenate([corner, corner + rng.uniform(40, 60, corner.shape)], 1)
    boxes = np.concatenate([first, first + rng.uniform(-2, 2, first.shape)])
    high = rng.uniform(0.5, 0.95, objects)
    return np.float32(boxes[None]), np.float32(np.concatenate([high, high - 0.1])[None, None])


def outputs(boxes: Array, scores: Array, how: Suppression) -> dict[str, Array]:
    kept = list(Detections(how, boxes, scores).kept)
    places = [place for _, _, place in kept]
    return {"boxes": boxes, "scores": scores, "det": boxes[0, places], "sel": np.array(kept).reshape(-1, 3)}


def rows_of(reference: tuple[Array, Array], output: tuple[Array, Array], how: Suppression) -> OutputErrors:
    group = RowGroup("NonMaxSuppression nms", (("det", 0), ("sel", 0)), ("boxes", "scores"), suppression=how)
    within = [Judged(name, role="ahead") for name in ("boxes", "scores")]
    judging = Judging((Judged("det"), Judged("sel"), *within), (group,))
    return judged_errors(judging, outputs(*reference, how), outputs(*output, how))["det"]


def noisy(boxes: Array, scores: Array, size: float, seed: int = 1) -> tuple[Array, Array]:
    rng = np.random.default_rng(seed)
    return (
        boxes + np.float32(60 * size * rng.standard_normal(boxes.shape)),
        scores + np.float32(size * rng.standard_normal(scores.shape)),
    )


def counts(found: OutputErrors) -> RowCounts:
    assert found.rows is not None
    return found.rows


ALL = Suppression("boxes", "scores", most=100, iou=0.5, score=0.25, centered=False)
NOISE = 3e-4


def test_a_score_at_the_threshold_is_a_near_tie_and_one_that_collapses_is_lost() -> None:
    boxes, scores = scene()
    scores[0, 0, [3, 43]] = [0.2503, 0.1]
    low_boxes, low = noisy(boxes, scores, NOISE)
    low[0, 0, 3] = 0.2497
    found = rows_of((boxes, scores), (low_boxes, low), ALL)
    assert (counts(found).lost, counts(found).new, counts(found).at_cut, counts(found).other_number) == (0, 0, 1, 1)
    assert found.errors is not None
    assert found.errors.sqnr > 60
    back = rows_of((low_boxes, low), (boxes, scores), ALL)
    assert (counts(back).lost, counts(back).new, counts(back).at_cut) == (0, 0, 1)
    for before, after in ((0.2503, 0.2), (0.9, 0.2497), (0.9, 0.1)):
        true, wrong = scores.copy(), low.copy()
        true[0, 0, 3], wrong[0, 0, 3] = before, after
        found = rows_of((boxes, true), (low_boxes, wrong), ALL)
        assert (counts(found).lost, counts(found).at_cut) == (1, 0)
        assert found.errors is not None
        assert found.errors.sqnr < 25


def test_the_only_detection_explains_no_noise_of_its_own() -> None:
    boxes, scores = scene()
    scores[:] = 0.01
    scores[0, 0, 3] = 0.9
    low_boxes, low = noisy(boxes, scores, NOISE)
    low[0, 0, 3] = 0.1
    assert counts(rows_of((boxes, scores), (low_boxes, low), ALL)).lost == 1
    low[0, 0, 3], scores[0, 0, 3] = 0.2499, 0.2501
    assert counts(rows_of((boxes, scores), (low_boxes, low), ALL)).at_cut == 1


def beside(overlap: float) -> tuple[Array, Array]:
    """A scene where one box has another beside it that overlaps by so much, and a lower score."""
    boxes, scores = scene()
    width = 50.0
    shift = width * (1 - overlap) / (1 + overlap)
    boxes[0, 3], boxes[0, 43] = [300, 0, 350, 50], [300, shift, 350, 50 + shift]
    scores[0, 0, [3, 43]] = [0.8, 0.6]
    return boxes, scores


@pytest.mark.parametrize(("before", "after"), [(0.4995, 0.5005), (0.5005, 0.4995)])
def test_an_overlap_at_the_threshold_is_a_near_tie(before: float, after: float) -> None:
    (boxes, scores), (other, _) = beside(before), beside(after)
    low_boxes, low = noisy(other, scores, NOISE)
    low_boxes[0, [3, 43]] = other[0, [3, 43]]
    found = counts(rows_of((boxes, scores), (low_boxes, low), ALL))
    assert (found.lost, found.new, found.at_cut) == (0, 0, 1)


def test_an_overlap_that_moves_by_more_than_noise_is_an_error() -> None:
    (boxes, scores), (other, _) = beside(0.45), beside(0.55)
    low_boxes, low = noisy(other, scores, NOISE)
    found = counts(rows_of((boxes, scores), (low_boxes, low), ALL))
    assert (found.lost, found.at_cut) == (1, 0)


def test_two_scores_in_another_order_swap_their_boxes_and_what_these_suppress() -> None:
    """A and B suppress each other and are equal but for noise; C overlaps with B alone, and follows it."""
    boxes, scores = scene()
    boxes[0, 43] = boxes[0, 3] + np.float32([0, 10, 0, 10])
    boxes[0, 44] = boxes[0, 3] + np.float32([0, 24, 0, 24])
    width = float(boxes[0, 3, 3] - boxes[0, 3, 1])
    assert (width - 24) / (width + 24) < 0.5 < (width - 14) / (width + 14)
    scores[0, 0, [3, 43, 44]] = [0.8001, 0.8, 0.6]
    low_boxes, low = noisy(boxes, scores, NOISE)
    low[0, 0, [3, 43]] = [0.8, 0.8001]
    found = counts(rows_of((boxes, scores), (low_boxes, low), ALL))
    assert (found.lost, found.new, found.at_cut) == (0, 0, 3)
    scores[0, 0, 3] = 0.9  # the same swap, by more than noise
    found = counts(rows_of((boxes, scores), (low_boxes, low), ALL))
    assert (found.lost, found.new, found.at_cut) == (2, 1, 0)


def test_the_number_of_boxes_is_a_cut_as_well() -> None:
    boxes, scores = scene()
    how = Suppression("boxes", "scores", most=30, iou=0.5, score=None, centered=False)
    order = np.argsort(-scores[0, 0, :40])
    scores[0, 0, order[[29, 30]]] = [0.6002, 0.6]
    scores[0, 0, order[31:]] = np.float32(0.3)
    scores[0, 0, order[:29]] = np.maximum(scores[0, 0, order[:29]], 0.65)
    low_boxes, low = noisy(boxes, scores, NOISE)
    low[0, 0, order[[29, 30]]] = [0.6, 0.6002]
    found = counts(rows_of((boxes, scores), (low_boxes, low), how))
    assert (found.lost, found.new, found.at_cut) == (0, 0, 2)
    low[0, 0, order[30]] = 0.9
    found = counts(rows_of((boxes, scores), (low_boxes, low), how))
    assert (found.lost, found.new, found.at_cut) == (1, 1, 0)


def test_boxes_that_a_topk_has_put_in_order_are_not_told_by_their_places() -> None:
    """Ahead of NonMaxSuppression two boxes have changed places: the rows are the same ones for all that."""
    boxes, scores = scene()
    order = np.arange(80)
    order[[3, 4, 7, 8]] = [4, 3, 8, 7]
    low_boxes, low = boxes[:, order], scores[:, :, order]
    group = RowGroup("NonMaxSuppression nms", (("det", 0),), ("boxes", "scores"), suppression=ALL)
    topk = RowGroup("TopK topk", (("boxes", 1), ("scores", 2)), ())
    within = [Judged(name, role="ahead") for name in ("boxes", "scores")]
    judging = Judging((Judged("det"), *within), (group, topk))
    found = judged_errors(judging, outputs(boxes, scores, ALL), outputs(low_boxes, low, ALL))
    assert (counts(found["det"]).lost, counts(found["det"]).new) == (0, 0)
    assert all(errors.errors is not None and errors.errors.err2 == 0 for errors in found.values())


def test_of_many_samples_no_more_than_a_twentieth_of_the_rows_is_set_aside() -> None:
    """Each sample drops one of its rows within the noise: of 40 rows that is noise, of 8 a loss."""
    for objects, is_right in ((40, True), (8, False)):
        boxes, scores = scene(objects)
        scores[0, 0, [3, 3 + objects]] = [0.2503, 0.1]
        low_boxes, low = noisy(boxes, scores, NOISE)
        low[0, 0, 3] = 0.2497
        total, each = settled([rows_of((boxes, scores), (low_boxes, low), ALL)] * 10)
        assert total.errors is not None
        assert (counts(total).at_cut > 0) == is_right
        assert (total.errors.sqnr > 60) == is_right
        assert len(each) == 10
        assert counts(each[0]).lost == (0 if is_right else 1)
