"""A YOLOv8 head with its own boxes and scores: the verdict agrees with the detections that are kept."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from models import Array, proto

from precisionlab.backends.base import Detail, Evaluation
from precisionlab.backends.onnxruntime import OnnxRuntimeBackend
from precisionlab.compare.judging import judging_of
from precisionlab.data import open_dataset
from precisionlab.jobs.sweep import sweep
from precisionlab.plan.plan import PrecisionPlan
from precisionlab.precision import Precision
from precisionlab.search.outcome import PrecisionResult

SIDE, CLASSES, REACH = 96, 80, 16
STRIDES = (8, 16)
PLACES = sum((SIDE // stride) ** 2 for stride in STRIDES)
SAMPLES = 10


def yolov8(outlier: float) -> onnx.ModelProto:
    """Backbone, two levels of decoupled heads, softmax over distances (DFL), anchors and strides; output0 (1, 84, N).

    `outlier` makes one channel of the features behind the classes so much louder than the others, as normalisation
    that is folded into weights does; the classes hang on the others, of which int8 then leaves little.
    """
    rng = np.random.default_rng(8)
    weights: dict[str, Array] = {}
    body: list[str] = []

    def conv(x: str, name: str, weight: Array, bias: Array, stride: int = 1, act: bool = True) -> str:
        weights[f"{name}_w"], weights[f"{name}_b"] = np.float32(weight), np.float32(bias)
        pad = weight.shape[2] // 2
        body.append(
            f"{name} = Conv <pads = [{pad}, {pad}, {pad}, {pad}], strides = [{stride}, {stride}]> "
            f"({x}, {name}_w, {name}_b)"
        )
        if act:
            body.append(f"{name}_a = Relu ({name})")
        return f"{name}_a" if act else name

    def random(out: int, into: int, size: int) -> Array:
        return rng.standard_normal((out, into, size, size)) * np.sqrt(2 / (into * size * size))

    x = conv("images", "stem", random(24, 3, 3), np.zeros(24), 2)
    x = conv(x, "down", random(32, 24, 3), np.zeros(32), 2)
    p3 = conv(x, "p3", random(32, 32, 3), np.zeros(32), 2)
    p4 = conv(p3, "p4", random(32, 32, 3), np.zeros(32), 2)
    levels = []
    for i, p in enumerate((p3, p4)):
        boxes = conv(conv(p, f"box{i}a", random(32, 32, 3), np.zeros(32)), f"box{i}", random(4 * REACH, 32, 1),
                     np.zeros(4 * REACH), act=False)  # fmt: skip
        features = random(32, 32, 3)
        features[0] *= outlier
        classes = random(CLASSES, 32, 1) * 6
        classes[:, 0] = 0
        scores = conv(conv(p, f"cls{i}a", features, np.zeros(32)), f"cls{i}", classes, np.full(CLASSES, -9.0),
                      act=False)  # fmt: skip
        places = (SIDE // STRIDES[i]) ** 2
        weights[f"shape{i}"] = np.array([1, 4 * REACH + CLASSES, places])
        body.append(f"both{i} = Concat <axis = 1> ({boxes}, {scores})  flat{i} = Reshape (both{i}, shape{i})")
        levels.append(f"flat{i}")
    grids = [(np.stack(np.meshgrid(*[np.arange(SIDE // s) + 0.5] * 2)).reshape(2, -1), s) for s in STRIDES]
    weights |= {
        "sizes": np.array([4 * REACH, CLASSES]),
        "split4": np.array([1, 4, REACH, PLACES]),
        "bins": np.arange(REACH, dtype=np.float32).reshape(1, REACH, 1, 1),
        "back": np.array([1, 4, PLACES]),
        "halves": np.array([2, 2]),
        "anchors": np.float32(np.concatenate([grid for grid, _ in grids], 1)[None]),
        "strides": np.float32(np.concatenate([np.full(grid.shape[1], s) for grid, s in grids])[None, None]),
        "two": np.float32(2),
    }
    body.append(
        f"all = Concat <axis = 2> ({', '.join(levels)})  raw_boxes, raw_scores = Split <axis = 1> (all, sizes) "
        "d0 = Reshape (raw_boxes, split4)  d1 = Transpose <perm = [0, 2, 1, 3]> (d0)  d2 = Softmax <axis = 1> (d1) "
        "d3 = Conv (d2, bins)  distances = Reshape (d3, back)  lt, rb = Split <axis = 1> (distances, halves) "
        "x1y1 = Sub (anchors, lt)  x2y2 = Add (anchors, rb)  sum = Add (x1y1, x2y2)  centre = Div (sum, two) "
        "size = Sub (x2y2, x1y1)  grid_boxes = Concat <axis = 1> (centre, size)  boxes = Mul (grid_boxes, strides) "
        "scores = Sigmoid (raw_scores)  output0 = Concat <axis = 1> (boxes, scores)"
    )
    signature = f"(float[1,3,{SIDE},{SIDE}] images) => (float[1,{4 + CLASSES},{PLACES}] output0)"
    return proto(f"{signature} {{ {' '.join(body)} }}", weights)


def scene(rng: np.random.Generator) -> Array:
    """A dark picture with bright blobs of random colours."""
    found = rng.uniform(0, 0.1, (3, SIDE, SIDE))
    rows, columns = np.mgrid[:SIDE, :SIDE]
    for _ in range(4):
        y, x, size = *rng.uniform(10, SIDE - 10, 2), rng.uniform(6, 16)
        blob = np.exp(-((rows - y) ** 2 + (columns - x) ** 2) / (2 * size**2))
        found += blob * rng.uniform(0.2, 1, (3, 1, 1))
    return np.float32(np.clip(found, 0, 1)[None])


# Detections by hand


def detections(output: Array, threshold: float = 0.5) -> list[tuple[int, Array]]:
    """Class and corners of what is left after the threshold and greedy suppression within each class at IoU 0.5."""
    boxes, scores = output[0, :4].T.astype(np.float64), output[0, 4:].T.astype(np.float64)
    corners = np.concatenate([boxes[:, :2] - boxes[:, 2:] / 2, boxes[:, :2] + boxes[:, 2:] / 2], 1)
    best, kept = scores.argmax(1), []
    for i in np.argsort(-scores.max(1), kind="stable"):
        if scores[i, best[i]] < threshold:
            break
        if all(c != best[i] or iou(b, corners[i]) < 0.5 for c, b in kept):
            kept.append((int(best[i]), corners[i]))
    return kept


def iou(a: Array, b: Array) -> float:
    inside = np.clip(np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2]), 0, None).prod()
    return float(inside / ((a[2:] - a[:2]).prod() + (b[2:] - b[:2]).prod() - inside))


def count_kept(reference: list[tuple[int, Array]], variant: list[tuple[int, Array]]) -> int:
    """How many of the reference's detections have one of the same class at IoU 0.5 or more, each used once."""
    left, kept = list(variant), 0
    for cls, box in reference:
        found = max((v for v in left if v[0] == cls), key=lambda v: iou(box, v[1]), default=None)
        if found is not None and iou(box, found[1]) >= 0.5:
            left = [v for v in left if v is not found]
            kept += 1
    return kept


def swept(folder: Path, outlier: float) -> tuple[PrecisionResult, int, int, int]:
    """The INT8 result; the reference's detections, how many of them INT8 keeps, and how many it has in all."""
    onnx.save(yolov8(outlier), folder / "m.onnx")
    rng = np.random.default_rng(1)
    (folder / "data").mkdir()
    for i in range(SAMPLES):
        np.save(folder / "data" / f"s{i:02}.npy", scene(rng))
    result = sweep(
        folder / "m.onnx", folder / "data", precisions="int8", out=folder / "out", threads=1, holdout=0, repair=False
    )
    found = result.precisions[0]
    data = open_dataset(folder / "data", result.model, None, 0)
    backend = OnnxRuntimeBackend(result.model, next(iter(data)), threads=1)
    plan = PrecisionPlan(result.model.sha256, Precision.INT8, calibration=found.low.plan.calibration)
    evaluation = Evaluation(plan, found.table, Detail.NONFINITE, True, judging_of(backend.model))
    total = kept = every = 0
    for one in backend.results(evaluation, data):
        assert one.values is not None
        reference, variant = (detections(side["output0"]) for side in one.values)
        total, kept, every = total + len(reference), kept + count_kept(reference, variant), every + len(variant)
    return found, total, kept, every


def test_right_means_that_detections_are_kept(tmp_path: Path) -> None:
    found, total, kept, every = swept(tmp_path, 1.0)
    assert total >= 24
    assert found.low.met
    assert kept >= 0.95 * total
    assert every <= 1.05 * total


@pytest.mark.parametrize("outlier", [1000.0])
def test_where_detections_are_lost_the_verdict_says_so(outlier: float, tmp_path: Path) -> None:
    found, total, kept, every = swept(tmp_path, outlier)
    assert total >= 24
    assert kept < 0.85 * total
    assert every > 1.2 * total  # and as many others come instead
    assert not found.low.met
    low = found.low.comparison
    # In one figure over boxes and scores nothing is seen of it.
    whole = low.outputs["output0"].errors
    assert whole is not None
    assert whole.sqnr > 20
    assert low.worst_of("sqnr")[0] == "output0[:, 4:84]"
    assert found.mixed.met
