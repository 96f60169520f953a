"""The examples' own metrics agree with their definitions, and a NaN is never left out of them."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from models import DIGITS, Array

from examples.metrics import CtcCharacterErrorRate, TextBoxF1, WordSimSpearman
from precisionlab.compare.task import load_metric

# Spearman's rank correlation of cosines with scores


def pair(cosine: float) -> Array:
    """Two vectors with this cosine, of different length."""
    return np.array([[2, 0], [3 * cosine, 3 * math.sqrt(1 - cosine**2)]], np.float32)


def spearman(cosines: list[float], scores: list[float]) -> float:
    metric = WordSimSpearman()
    for cosine, score in zip(cosines, scores, strict=True):
        metric.update({"461": pair(cosine)}, str(score))
    return metric.compute()


@pytest.mark.slow
@given(st.lists(st.tuples(st.integers(-20, 20), st.integers(0, 10)), min_size=3, max_size=30))
def test_spearman_is_scipys_also_with_equal_values(values: list[tuple[int, int]]) -> None:
    stats = pytest.importorskip("scipy.stats", reason="scipy is in the extra `models`")
    cosines = [c / 20 for c, _ in values]
    scores = [float(s) for _, s in values]
    with np.errstate(all="ignore"):
        found = spearman(cosines, scores)
    if len(set(cosines)) < 2 or len(set(scores)) < 2:
        assert math.isnan(found)
    else:
        assert found == pytest.approx(stats.spearmanr(cosines, scores).statistic, abs=1e-12)


def test_spearman_of_the_same_and_the_opposite_order() -> None:
    assert spearman([0.1, 0.5, 0.9], [1, 2, 30]) == pytest.approx(1)
    assert spearman([0.9, 0.5, 0.1], [1, 2, 30]) == pytest.approx(-1)


@pytest.mark.parametrize("broken", [[[math.nan, 1], [1, 1]], [[math.inf, 1], [1, 1]], [[0, 0], [1, 1]]])
def test_one_embedding_without_a_direction_makes_spearman_nan(broken: list[list[float]]) -> None:
    metric = WordSimSpearman()
    for cosine, label in ((0.1, "1"), (0.2, "2"), (0.3, "3")):
        metric.update({"461": pair(cosine)}, label)
    assert metric.compute() == pytest.approx(1)
    metric.update({"461": np.array(broken, np.float32)}, "4")
    assert math.isnan(metric.compute())


def test_spearman_of_nothing_is_nan() -> None:
    assert math.isnan(WordSimSpearman().compute())
    assert math.isnan(spearman([0.5], [1]))


# Character error rate

CHARACTERS = ["", "a", "b", "c", "ﬁ", " "]


def steps(text: str) -> Array:
    """Probabilities whose largest are these classes, "_" standing for CTC's blank."""
    best = [0 if c == "_" else CHARACTERS.index(c) for c in text]
    return np.eye(len(CHARACTERS), dtype=np.float32)[best][None]


def error_rate(*lines: tuple[Array, str]) -> float:
    metric = CtcCharacterErrorRate(CHARACTERS)
    for probabilities, label in lines:
        metric.update({"softmax_11.tmp_0": probabilities}, label)
    return metric.compute()


@pytest.mark.parametrize(
    ("read", "label", "rate"),
    [
        ("abc", "abc", 0),
        ("aabbbc", "abc", 0),  # a repeated class is one character
        ("_a_bb__c_", "abc", 0),
        ("a_a", "aa", 0),  # unless a blank stands between
        ("aa", "aa", 1 / 2),
        ("____", "abc", 1),
        ("abb_bc", "abc", 1 / 3),  # one too many
        ("ac", "abc", 1 / 3),  # one too few
        ("cab", "abc", 2 / 3),
        ("bbb", "abc", 2 / 3),
        (" ab ", "ab", 0),  # stripped
        ("ﬁ", "fi", 0),  # NFKC
        ("a_b_c_a_b_c", "ab", 2),  # may exceed one
    ],
)
def test_the_error_rate_of_hand_made_lines(read: str, label: str, rate: float) -> None:
    assert error_rate((steps(read), label)) == pytest.approx(rate)


def test_the_error_rate_is_over_all_characters_not_the_mean_of_lines() -> None:
    assert error_rate((steps("abc"), "abc"), (steps("_"), "a")) == pytest.approx(1 / 4)


def test_a_line_with_nan_counts_as_wholly_unread() -> None:
    broken = steps("abc")
    broken[0, 1, 3] = math.nan
    assert error_rate((broken, "abc")) == 1
    assert math.isnan(error_rate())


words = st.text("abc", max_size=7)


def distance(left: str, right: str) -> int:
    """Edit distance by its definition."""
    if not left or not right:
        return len(left) + len(right)
    return min(
        distance(left[1:], right) + 1,
        distance(left, right[1:]) + 1,
        distance(left[1:], right[1:]) + (left[0] != right[0]),
    )


@given(st.text("abc", max_size=5), st.text("abc", min_size=1, max_size=5))
def test_the_errors_are_the_edit_distance(read: str, label: str) -> None:
    apart = "_".join(read) or "_"
    assert error_rate((steps(apart), label)) == pytest.approx(distance(read, label) / len(label))


# F1 of text boxes


def page(*boxes: tuple[int, int, int, int], level: float = 0.9) -> Array:
    """A probability map with these boxes of high probability, before they are grown."""
    found = np.zeros((1, 1, 200, 200), np.float32)
    for x0, y0, x1, y1 in boxes:
        found[0, 0, y0:y1, x0:x1] = level
    return found


def grown(box: tuple[int, int, int, int]) -> list[float]:
    """What TextBoxF1 makes of a box: every side further out by area x 1.6 / perimeter."""
    x0, y0, x1, y1 = box
    by = (x1 - x0) * (y1 - y0) * 1.6 / (2 * (x1 - x0 + y1 - y0))
    return [x0 - by, y0 - by, x1 + by, y1 + by]


def f1(*pages: tuple[Array, list[list[float]]]) -> float:
    pytest.importorskip("scipy", reason="scipy is in the extra `models`")
    metric = TextBoxF1()
    for probabilities, boxes in pages:
        metric.update({"sigmoid_0.tmp_0": probabilities}, json.dumps(boxes))
    return metric.compute()


FIRST, SECOND, THIRD = (20, 20, 80, 30), (20, 100, 80, 110), (120, 60, 180, 72)


def test_all_boxes_found_and_no_other_is_1() -> None:
    assert f1((page(FIRST, SECOND), [grown(SECOND), grown(FIRST)])) == 1


def test_f1_counts_missed_and_invented_boxes_over_all_pages() -> None:
    assert f1((page(FIRST), [grown(FIRST), grown(SECOND)])) == pytest.approx(2 / 3)
    assert f1((page(FIRST, SECOND), [grown(FIRST)])) == pytest.approx(2 / 3)
    assert f1((page(FIRST, SECOND, THIRD), [grown(FIRST)]), (page(), [])) == pytest.approx(1 / 2)
    assert f1((page(FIRST), [grown(SECOND)])) == 0
    assert math.isnan(f1((page(), [])))


def test_a_box_must_overlap_by_half_and_matches_once() -> None:
    x0, y0, x1, y1 = grown(FIRST)
    third, half = (x1 - x0) / 3, (x1 - x0) / 2
    just, less = [x0 + third - 0.1, y0, x1 + third - 0.1, y1], [x0 + half, y0, x1 + half, y1]
    assert f1((page(FIRST), [just])) == 1  # shifted by a third: 2/3 shared of 4/3
    assert f1((page(FIRST), [less])) == 0
    assert f1((page(FIRST), [grown(FIRST), just])) == pytest.approx(2 / 3)


def test_faint_small_and_uncertain_spots_are_no_boxes() -> None:
    assert f1((page(FIRST, level=0.29), [grown(FIRST)])) == 0
    assert f1((page(FIRST, level=0.45), [grown(FIRST)])) == 0
    assert f1((page(FIRST, level=0.55), [grown(FIRST)])) == 1
    assert f1((page(FIRST, (100, 100, 160, 102)), [grown(FIRST)])) == 1


def test_a_page_with_nan_has_no_boxes() -> None:
    broken = page(FIRST)
    broken[0, 0, 199, 199] = math.nan
    assert f1((broken, [grown(FIRST)])) == 0


# As the command line loads them


@pytest.mark.parametrize("name", ["WordSimSpearman", "TextBoxF1"])
def test_a_metric_is_loaded_by_the_path_of_its_file(name: str) -> None:
    metric = load_metric(f"{DIGITS.parent / 'examples/metrics.py'}:{name}")()
    assert metric.higher_is_better
    assert math.isnan(metric.compute())
