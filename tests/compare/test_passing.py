"""A mask of values above a threshold picks rows: what noise alone lets pass is a near-tie, the rest is lost."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from models import Array, load, proto

from precisionlab.compare.judged import judged_errors
from precisionlab.compare.judging import judging_of
from precisionlab.model import Model

BODIES = {
    "NonZero": "z = NonZero (c)  zt = Transpose (z)  zi = Squeeze (zt, one)  y = Gather (b, zi)",
    "Compress": "y = Compress <axis = 0> (b, c)",
}


def masked(kind: str, folder: Path) -> Model:
    body = "(float[50,4] x) => (float[n,4] y) { b = Exp (x)  s = ReduceMax <axes = [1], keepdims = 0> (b)"
    return load(proto(f"{body}  c = Greater (s, line)  {BODIES[kind]} }}", {"line": LINE, "one": ONE}), folder)


LINE, ONE = np.float32(0.5), np.array([1])


def values(scores: Array, boxes: Array) -> dict[str, Array]:
    return {"b": boxes, "s": scores, "y": boxes[scores > LINE]}


@pytest.mark.parametrize("kind", BODIES)
@pytest.mark.parametrize(
    ("before", "after", "near"),
    [(0.5003, 0.4997, True), (0.4997, 0.5003, True), (0.9, 0.4999, False), (0.6, 0.1, False)],
)
def test_what_crosses_the_line_by_noise_is_a_near_tie(
    kind: str, before: float, after: float, near: bool, tmp_path: Path
) -> None:
    rng = np.random.default_rng(0)
    boxes, scores = np.float32(rng.uniform(0, 640, (50, 4))), np.float32(rng.uniform(0.1, 0.95, 50))
    low_boxes = boxes + np.float32(0.1 * rng.standard_normal(boxes.shape))
    low = scores + np.float32(3e-4 * rng.standard_normal(50))
    scores[7], low[7] = before, after
    found = judged_errors(judging_of(masked(kind, tmp_path)), values(scores, boxes), values(low, low_boxes))["y"]
    assert found.rows is not None
    assert found.errors is not None
    assert found.rows.other_number == 1
    assert (found.rows.lost + found.rows.new, found.rows.at_cut) == ((0, 1) if near else (1, 0))
    assert (found.errors.sqnr > 60) == near
