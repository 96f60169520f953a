"""The order in which people are shown layers: by what they do to the outputs, and not by what breaks on the way."""

from __future__ import annotations

import math

import numpy as np
import pytest

from precisionlab.compare.errors import error_sums
from precisionlab.compare.sensitivity import Sensitivity
from precisionlab.search.rank import by_share, output_shares, sums_of_shares
from precisionlab.search.worst import order_words
from precisionlab.system.prefix import common_prefix


def sensitivity(error: float) -> dict[str, Sensitivity]:
    """What a layer does to one output of ones that it moves by so much."""
    reference = np.ones(4, np.float32)
    return {"y": Sensitivity(error_sums(reference, (reference + error).astype(np.float32)), 0.0)}


def test_shares_are_of_the_sum_and_what_breaks_an_output_has_none() -> None:
    found = output_shares({"a": sensitivity(2.0), "b": sensitivity(1.0), "none": sensitivity(0.0)})
    assert found == pytest.approx({"a": 0.8, "b": 0.2, "none": 0.0})
    assert math.isnan(output_shares({"a": sensitivity(math.nan), "b": sensitivity(1.0)})["a"])
    assert output_shares({"a": sensitivity(math.nan), "b": sensitivity(1.0)})["b"] == 1.0
    assert output_shares({"a": sensitivity(0.0)}) == {"a": 0.0}


def test_sums_of_shares_go_down_from_the_largest_and_leave_out_what_breaks_an_output() -> None:
    shares = {"small": 0.1, "nan": math.nan, "large": 0.6, "none": 0.0, "middle": 0.3}
    found = sums_of_shares(shares)
    assert list(found) == list(shares)
    assert math.isnan(found.pop("nan"))
    assert found == pytest.approx({"large": 0.6, "middle": 0.9, "small": 1.0, "none": 1.0})
    assert sums_of_shares({}) == {}


def test_the_largest_share_stands_first_whatever_the_search_had_in_front() -> None:
    measured = {"inf": sensitivity(0.0), "small": sensitivity(0.5), "large": sensitivity(1.0)}
    assert by_share(["inf", "small", "large"], output_shares(measured), broken=["inf"]) == ("large", "small", "inf")


def test_what_alone_breaks_an_output_stands_before_all_others() -> None:
    measured = {"a": sensitivity(1.0), "nan": sensitivity(math.nan)}
    assert by_share(["a", "nan"], output_shares(measured), broken=[]) == ("nan", "a")


def test_without_shares_the_broken_come_first_and_what_is_absorbed_last() -> None:
    order = ["absorbed", "broken", "lossy", "good"]
    assert by_share(order, {}, broken=["absorbed", "broken"], absorbed=["absorbed"]) == (
        "broken",
        "lossy",
        "good",
        "absorbed",
    )
    assert by_share(order, {}, broken=["absorbed", "broken"]) == tuple(order)


def test_what_was_not_measured_stands_behind_what_was_but_for_the_broken() -> None:
    measured = {"a": sensitivity(0.1)}
    assert by_share(["broken", "b", "a"], output_shares(measured), broken=["broken"]) == ("broken", "a", "b")


def test_the_order_is_said_in_words() -> None:
    assert order_words(0, 9).startswith("by the error that each introduces itself")
    assert order_words(9, 9).startswith("by share of the output error")
    assert "not measured so" in order_words(3, 9)


@pytest.mark.parametrize(
    ("names", "prefix"),
    [
        (["/encoder/layer.0/Add", "/encoder/layer.1/Add", "/encoder/pool"], "/encoder/layer."),
        (["/encoder/a", "/encoder/b", "/decoder/c"], "/encoder/"),
        (["/encoder/a", "/decoder/b"], ""),
        (["/a/b", "/a/c"], ""),
        (["Conv_0", "Conv_1"], ""),
        ([], ""),
    ],
)
def test_the_beginning_that_most_names_share_ends_at_a_separator(names: list[str], prefix: str) -> None:
    assert common_prefix(names) == prefix
