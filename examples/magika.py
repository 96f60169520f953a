"""magika: what type is this file?

Input `bytes` int32[N, 2048], output `target_label` float32[N, 214] (softmax).
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from examples.dataset import Array, Recipe, Sample
from examples.known_files import known_files
from examples.packages import MAGIKA

FOLDER = "magika/models/standard_v3_3"
BLOCK = 4096
"""How much of either end of a file is looked at when white space is stripped."""
WINDOW = 1024
"""How many bytes of either end the model sees."""
PADDING = 256
"""The token that stands for no byte."""


def features(content: bytes) -> Array:
    """The bytes of both ends of a file, without white space around them: int32[1, 2048]."""
    tokens = np.full((1, 2 * WINDOW), PADDING, dtype=np.int32)
    head = content[:BLOCK].lstrip()[:WINDOW]
    tail = content[-BLOCK:].rstrip()[-WINDOW:]
    tokens[0, : len(head)] = np.frombuffer(head, dtype=np.uint8)
    tokens[0, 2 * WINDOW - len(tail) :] = np.frombuffer(tail, dtype=np.uint8)
    return tokens


def _model() -> Path:
    return MAGIKA.file(f"{FOLDER}/model.onnx")


def _samples() -> Iterator[Sample]:
    config = json.loads(MAGIKA.file(f"{FOLDER}/config.min.json").read_text(encoding="utf-8"))
    index = {name: position for position, name in enumerate(config["target_labels_space"])}
    files = known_files()
    # So that any part of the samples, taken for calibration, holds a mixture of types.
    random.Random("magika").shuffle(files)
    for file in files:
        yield Sample({"bytes": features(file.content)}, str(index[file.type]))


RECIPE = Recipe(
    id="magika",
    description="Files of known type: found in Python and the system, or written by Python and Pillow.",
    model=_model,
    samples=_samples,
    output="target_label",
    metric="accuracy",
)
