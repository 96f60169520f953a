"""PP-OCRv4 text detection: where on this page is text?

Input `x` float32[1, 3, H, W], output `sigmoid_0.tmp_0` float32[1, 1, H, W]: the probability that a pixel lies
in the core of a text box.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from pathlib import Path

from PIL import Image

from examples.dataset import Array, Recipe, Sample
from examples.packages import RAPIDOCR
from examples.rendering import bgr_planes, scattered_page

SIZE = 640
COUNT = 30


def features(page: Image.Image) -> Array:
    """Values in [-1, 1]: float32[1, 3, 640, 640]."""
    return (bgr_planes(page) / 255 - 0.5)[None] / 0.5


def _model() -> Path:
    return RAPIDOCR.file("rapidocr_onnxruntime/models/ch_PP-OCRv4_det_infer.onnx")


def _samples() -> Iterator[Sample]:
    for index in range(COUNT):
        page, boxes = scattered_page(random.Random(f"ppocr4_det {index}"), SIZE)
        yield Sample({"x": features(page)}, json.dumps(boxes))


RECIPE = Recipe(
    id="ppocr4_det",
    description="Rendered pages with separate pieces of text; label: their boxes [x0, y0, x1, y1].",
    model=_model,
    samples=_samples,
    output="sigmoid_0.tmp_0",
)
