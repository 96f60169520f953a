"""PP-OCRv4 text recognition: what does this line say?

Input `x` float32[1, 3, 48, W], output `softmax_11.tmp_0` float32[1, W / 8, 6625]: for each step the
probability of CTC's blank, of the characters in the model's metadata, of a space.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from examples.dataset import Array, Recipe, Sample
from examples.packages import RAPIDOCR
from examples.rendering import bgr_planes, text_line

HEIGHT, WIDTH = 48, 320
COUNT = 120


def features(line: Image.Image) -> Array:
    """Scaled to 48 rows, values in [-1, 1], zeros to the right: float32[1, 3, 48, 320]."""
    width = round(line.width * HEIGHT / line.height)
    planes = bgr_planes(line.resize((width, HEIGHT), Image.Resampling.BILINEAR))
    padded = np.zeros((1, 3, HEIGHT, WIDTH), dtype=np.float32)
    padded[0, :, :, :width] = planes / 127.5 - 1
    return padded


def _model() -> Path:
    return RAPIDOCR.file("rapidocr_onnxruntime/models/ch_PP-OCRv4_rec_infer.onnx")


def _samples() -> Iterator[Sample]:
    for index in range(COUNT):
        line, text = text_line(random.Random(f"ppocr4_rec {index}"), aspect=WIDTH / HEIGHT)
        yield Sample({"x": features(line)}, text)


RECIPE = Recipe(
    id="ppocr4_rec",
    description="Rendered lines of words, numbers and codes, in several fonts and colours; label: the text.",
    model=_model,
    samples=_samples,
    output="softmax_11.tmp_0",
)
