"""The graphs of the self-test tell apart what an engine may do: each answer is made by hand here."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from models import Array

from precisionlab.jobs.selftest_rules import COLUMNS, ROWS, RULES, K, inputs, made_rules


def judged(name: str, found: Array) -> tuple[bool, str]:
    (rule,) = (rule for rule in RULES if rule.name == name)
    return rule.judge(found)


def half_sum(products: Array, block: int) -> Array:
    """Sums along the first axis, rounded to half after each block of products."""
    total = np.zeros(products.shape[1:], np.float16)
    for start in range(0, len(products), block):
        total = (total.astype(np.float64) + products[start : start + block].sum(axis=0)).astype(np.float16)
    return total.astype(np.float32)


@pytest.fixture(scope="module")
def weight(tmp_path_factory: pytest.TempPathFactory) -> Array:
    """What the products are, for rows of ones; (K, columns)."""
    model, dataset = made_rules(tmp_path_factory.mktemp("rules"))
    assert len(dataset) == 1
    tensor = model.onnx.graph.initializers["weight"].const_value
    assert tensor is not None
    kernel = model.onnx.graph.initializers["kernel"].const_value
    assert kernel is not None
    assert np.array_equal(kernel.numpy().reshape(COLUMNS, K).T, tensor.numpy())
    return tensor.numpy().astype(np.float64)


def test_every_weight_and_every_input_of_the_sums_is_exact_in_half(weight: Array) -> None:
    assert np.array_equal(weight.astype(np.float16), weight)
    assert (inputs()["rows"] == 1).all()
    assert (inputs()["image"] == 1).all()


@pytest.mark.parametrize("name", ["sums of a MatMul", "sums of a convolution"])
def test_sums_of_each_kind_are_told(name: str, weight: Array) -> None:
    def told(sums: Array) -> tuple[bool, str]:
        rows = np.broadcast_to(sums, (ROWS, COLUMNS))
        return judged(name, rows if "MatMul" in name else rows.T.reshape(1, COLUMNS, 8, 8))

    assert told(half_sum(weight, K)) == (True, "sums are kept in float32")
    for block in (16, 8, 4):
        holds, seen = told(half_sum(weight, block))
        assert (holds, seen.startswith("sums are kept in half, and several products")) == (False, True)
        assert seen.endswith(": --sums half")
    assert told(half_sum(weight, 1)) == (
        False,
        "sums are kept in half, and rounded at every product: --sums half-single",
    )
    in_two = (half_sum(weight[: K // 2], 16) + half_sum(weight[K // 2 :], 16)).astype(np.float16).astype(np.float32)
    assert told(in_two) == (False, "neither half nor float32: 33024 and 5120")
    assert told(weight.sum(axis=0).astype(np.float32))[1].startswith("neither")  # not stored in half at all


def test_sums_that_differ_where_they_must_not_are_told(weight: Array) -> None:
    found = np.repeat(half_sum(weight, K)[None], ROWS, axis=0)
    found[3, 2] = 1
    assert judged("sums of a MatMul", found) == (
        False,
        "neither half nor float32: its outputs, which are alike, differ (2 kinds)",
    )


@pytest.mark.parametrize(
    ("name", "found", "holds", "seen"),
    [
        ("constants beyond half", [0, 16376, 32752, 65504], True, "1e6 is clamped to 65504"),
        ("constants beyond half", [np.nan, np.inf, np.inf, np.inf], False, "1e6 becomes Inf"),
        ("constants beyond half", [0, 2.5e5, 5e5, 1e6], False, "the layer was not computed in FP16"),
        ("constants beyond half", [0, 0, 0, 7], False, "1e6 gives 7"),
        ("a mask of -3.4e38", [0, -16376, -32752, -65504], True, "times 1 gives -65504, and times 0 0"),
        ("a mask of -3.4e38", [np.nan, -np.inf, -np.inf, -np.inf], False, "times 1 gives -inf, and times 0 nan"),
        ("a mask of -3.4e38", [0, -1e4, -1e4, -1e4], False, "times 1 gives -10000"),
        ("a constant below half", [-16.64, -1.4, -0.7, 0], True, "1e-12 is clamped to 6e-08"),
        ("a constant below half", [-np.inf, -1.4, -0.7, 0], False, "1e-12 becomes 0"),
        ("a constant below half", [-27.63, -1.4, -0.7, 0], False, "not computed in FP16"),
        ("a constant below half", [-9.7, -1.4, -0.7, 0], False, "gives -9.7"),  # flushed to the smallest normal
        ("a BatchNormalization behind a Conv", [128, 127.9, 128, 128], True, "nothing is rounded between: 128"),
        (
            "a BatchNormalization behind a Conv",
            [np.inf] * 4,
            False,
            "the Conv's result is stored in half: it gives inf",
        ),
        ("a bias behind a MatMul", [60000] * 4, True, "nothing is rounded between"),
        (
            "a bias behind a MatMul",
            [np.inf] * 4,
            False,
            "the product is stored in half: it gives inf in the place of 6",
        ),
        ("a mean", [2048] * 4, True, "nothing is rounded between"),
        ("a mean", [np.inf] * 4, False, "the sum is kept in half: it gives inf"),
        ("a LayerNormalization", [-1, 1, -1, 1], True, "nothing is rounded between"),
        ("a LayerNormalization", [0, 0, 0, 0], False, "squares are kept in half: it gives 0 in the place of 1"),
        ("a LayerNormalization", [np.nan] * 4, False, "squares are kept in half: it gives nan"),
        ("0·x", [np.nan, np.nan, np.nan, 0], True, "NaN is kept"),
        ("0·x", [0, 0, 0, 0], False, "an engine hides NaN: 0·x of inf, -inf, nan and 1 gives 0, 0, 0, 0"),
        ("x - x", [0, 0, np.nan, 0], False, "an engine hides NaN"),
        ("x / x", [1, 1, 1, 1], False, "an engine hides NaN"),
    ],
)
def test_every_answer_has_its_words(name: str, found: list[float], holds: bool, seen: str) -> None:
    judgement = judged(name, np.float32([found]))
    assert judgement[0] == holds
    assert seen in judgement[1]


def test_the_graph_has_a_layer_for_each_rule_and_all_can_be_given_half(tmp_path: Path) -> None:
    model, _ = made_rules(tmp_path)
    assert {rule.output for rule in RULES} == {info.name for info in model.outputs}
    assert all(layer.fixed is None for layer in model.layers)
    assert len(model.layers) == len(RULES) + 1  # the epsilon's sum before the logarithm
