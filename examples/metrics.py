"""The example tasks' own metrics, where plain accuracy does not fit.

To be named by path and class: `--metric examples/metrics.py:WordSimSpearman`.

Each sees the samples one by one and keeps a few numbers of each. What is not finite is never left out: a rank
correlation with a NaN in it is NaN, and a page or a line with a NaN in it counts as wholly wrong.

This file is loaded by its path, so it imports nothing from its neighbours.
"""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
Box = tuple[float, float, float, float]
"""x0, y0, x1, y1 in pixels."""


class WordSimSpearman:
    """Spearman's rank correlation of embedding cosines with human scores (minilm_l3; label: the score)."""

    name = "wordsim353 Spearman"
    higher_is_better = True
    output = "461"

    def __init__(self) -> None:
        self._cosines: list[float] = []
        self._scores: list[float] = []

    def update(self, outputs: Mapping[str, Array], label: str) -> None:
        first, second = np.asarray(outputs[self.output], dtype=np.float64)  # [2, 384], one row per word
        with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
            cosine = first @ second / (np.linalg.norm(first) * np.linalg.norm(second))
        self._cosines.append(float(cosine))
        self._scores.append(float(label))

    def compute(self) -> float:
        cosines = np.array(self._cosines)
        if len(cosines) < 2 or not np.isfinite(cosines).all() or np.ptp(cosines) == 0:
            return float("nan")
        return float(np.corrcoef(_ranks(cosines), _ranks(np.array(self._scores)))[0, 1])


class CtcCharacterErrorRate:
    """Edit distance over reference length, after greedy CTC decoding (ppocr4_rec; label: the text)."""

    name = "character error rate"
    higher_is_better = False
    output = "softmax_11.tmp_0"

    def __init__(self, characters: Sequence[str] | None = None) -> None:
        self._characters = _ppocr_characters() if characters is None else characters
        self._errors = 0
        self._length = 0

    def update(self, outputs: Mapping[str, Array], label: str) -> None:
        probabilities = outputs[self.output][0]  # [T, classes]
        expected = _normal(label)
        read = _normal(self._decode(probabilities)) if np.isfinite(probabilities).all() else ""
        self._errors += _edit_distance(read, expected)
        self._length += len(expected)

    def compute(self) -> float:
        return self._errors / self._length if self._length else float("nan")

    def _decode(self, probabilities: Array) -> str:
        best = probabilities.argmax(axis=1)
        starts = np.flatnonzero(np.diff(best, prepend=-1))  # a repeated class is one character
        return "".join(self._characters[index] for index in best[starts])  # class 0, blank, is ''


class TextBoxF1:
    """F1 of text boxes at IoU 0.5 (ppocr4_det; label: JSON list of [x0, y0, x1, y1]).

    From the probability map to boxes: connected pixels above 0.3, kept if their bounding rectangle has a mean
    of 0.5, grown by area x 1.6 / perimeter, because the model is trained on boxes shrunk by about as much.
    """

    name = "text box F1"
    higher_is_better = True
    output = "sigmoid_0.tmp_0"

    pixel_threshold = 0.3
    box_threshold = 0.5
    unclip_ratio = 1.6
    smallest_side = 3
    smallest_iou = 0.5

    def __init__(self) -> None:
        self._matched = 0
        self._found = 0
        self._expected = 0

    def update(self, outputs: Mapping[str, Array], label: str) -> None:
        probabilities = np.asarray(outputs[self.output][0, 0], dtype=np.float32)  # [H, W]
        expected: list[Box] = [tuple(box) for box in json.loads(label)]
        found = self._boxes(probabilities) if np.isfinite(probabilities).all() else []
        self._matched += _match_count(found, expected, self.smallest_iou)
        self._found += len(found)
        self._expected += len(expected)

    def compute(self) -> float:
        total = self._found + self._expected
        return 2 * self._matched / total if total else float("nan")

    def _boxes(self, probabilities: Array) -> list[Box]:
        from scipy import ndimage  # type: ignore[import-untyped, unused-ignore]

        components, _ = ndimage.label(probabilities > self.pixel_threshold, structure=np.ones((3, 3)))
        boxes: list[Box] = []
        for rows, columns in ndimage.find_objects(components):
            height, width = rows.stop - rows.start, columns.stop - columns.start
            score = probabilities[rows, columns].mean()
            if min(height, width) < self.smallest_side or score < self.box_threshold:
                continue
            grow = height * width * self.unclip_ratio / (2 * (height + width))
            boxes.append((columns.start - grow, rows.start - grow, columns.stop + grow, rows.stop + grow))
        return boxes


def _ranks(values: Array) -> Array:
    """Ranks from 0, equal values sharing the mean of theirs."""
    _, group, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts) - 1
    mean_rank: Array = last - (counts - 1) / 2
    return mean_rank[group]


def _normal(text: str) -> str:
    return unicodedata.normalize("NFKC", text).strip()


def _ppocr_characters() -> list[str]:
    """The recogniser's classes: blank, the model's own list, space."""
    import onnx

    package = find_spec("rapidocr_onnxruntime")
    if package is None or package.origin is None:
        raise ModuleNotFoundError("the character list is missing: pip install rapidocr-onnxruntime==1.4.4")
    model = onnx.load(Path(package.origin).parent / "models" / "ch_PP-OCRv4_rec_infer.onnx")
    properties = {entry.key: entry.value for entry in model.metadata_props}
    return ["", *properties["character"].split("\n"), " "]


def _edit_distance(left: str, right: str) -> int:
    """Levenshtein's: insertions, deletions and substitutions that turn one into the other."""
    previous = list(range(len(right) + 1))
    for row, symbol in enumerate(left, start=1):
        current = [row]
        for column, other in enumerate(right, start=1):
            replaced = previous[column - 1] + (symbol != other)
            current.append(min(replaced, previous[column] + 1, current[column - 1] + 1))
        previous = current
    return previous[-1]


def _match_count(found: Sequence[Box], expected: Sequence[Box], smallest_iou: float) -> int:
    """One-to-one matches, best overlap first."""
    overlaps = ((_iou(box, other), i, j) for i, box in enumerate(found) for j, other in enumerate(expected))
    free_found, free_expected = set(range(len(found))), set(range(len(expected)))
    for overlap, i, j in sorted(overlaps, reverse=True):
        if overlap < smallest_iou:
            break
        if i in free_found and j in free_expected:
            free_found.remove(i)
            free_expected.remove(j)
    return len(found) - len(free_found)


def _iou(left: Box, right: Box) -> float:
    width = min(left[2], right[2]) - max(left[0], right[0])
    height = min(left[3], right[3]) - max(left[1], right[1])
    if width <= 0 or height <= 0:
        return 0.0
    shared = width * height
    return shared / (_area(left) + _area(right) - shared)


def _area(box: Box) -> float:
    return (box[2] - box[0]) * (box[3] - box[1])
