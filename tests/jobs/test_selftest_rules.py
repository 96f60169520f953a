"""The graphs of the self-test tell apart what an engine may do: each answer is made by hand here."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from doubled import arrange
from models import Array
from rtx import drive, needs_rtx

from precisionlab.backends import emulation
from precisionlab.backends.options import EngineOptions
from precisionlab.backends.registry import TENSORRT
from precisionlab.backends.tensorrt.buildlog import layers_of
from precisionlab.backends.tensorrt.opening import open_engines
from precisionlab.jobs.selftest_family import Family
from precisionlab.jobs.selftest_fp16 import COLUMNS, FP16, ROWS, K
from precisionlab.jobs.selftest_int4 import INT4
from precisionlab.jobs.selftest_rules import FAMILIES
from precisionlab.precision import Precision
from precisionlab.rewrite.typed import save_typed, typed_model
from precisionlab.search.devices import computes_on
from precisionlab.system.observer import Silent

RULES = [rule for family in FAMILIES for rule in family.rules]
families = pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.title)


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
    model, dataset = FP16.made(tmp_path_factory.mktemp("rules"))
    assert len(dataset) == 1
    tensor = model.onnx.graph.initializers["weight"].const_value
    assert tensor is not None
    kernel = model.onnx.graph.initializers["kernel"].const_value
    assert kernel is not None
    assert np.array_equal(kernel.numpy().reshape(COLUMNS, K).T, tensor.numpy())
    return tensor.numpy().astype(np.float64)


def test_every_weight_and_every_input_of_the_sums_is_exact_in_half(weight: Array) -> None:
    assert np.array_equal(weight.astype(np.float16), weight)
    assert (FP16.inputs["rows"] == 1).all()
    assert (FP16.inputs["image"] == 1).all()


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
    model, _ = FP16.made(tmp_path)
    assert len(model.layers) == len(FP16.rules) + 1  # the epsilon's sum before the logarithm


@families
def test_every_output_tells_of_a_rule_and_every_layer_can_be_pinned(family: Family, tmp_path: Path) -> None:
    model, dataset = family.made(tmp_path)
    assert len(dataset) == 1
    assert {rule.output for rule in family.rules} == {info.name for info in model.outputs}
    if family.precision is not None:
        assert all(layer.fixed is None for layer in model.layers)
    if family.precision is not None and family.precision.is_quantized:
        assert all(layer.takes(family.precision) for layer in model.layers)
    if family.precision is not None and family.precision.needs_ranges:
        assert set(family.ranges) == set(model.tensors) - set(family.constants)


def test_no_two_rules_have_the_same_name() -> None:
    assert len({rule.name for rule in RULES}) == len(RULES)


@families
def test_the_emulation_does_as_it_assumes(family: Family, tmp_path: Path) -> None:
    model, dataset = family.made(tmp_path)
    found = list(family.measured(emulation(model, dataset, None)))  # type: ignore[arg-type]
    assert [name for name, _, _ in found] == [rule.name for rule in family.rules]
    assert [seen for _, holds, seen in found if not holds] == []


@pytest.mark.thorough
@pytest.mark.parametrize("family", FAMILIES[1:-1], ids=lambda family: family.title)
def test_an_engine_is_asked_by_pins_a_calibration_cache_and_pairs(
    family: Family, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The double's parser has no LayerNormalization, which FP16's graph holds, and no INT4."""
    arrange(monkeypatch, tmp_path)
    model, dataset = family.made(tmp_path)
    reference = emulation(model, dataset, None)
    options = EngineOptions(typed=family.is_typed)
    with open_engines(TENSORRT, reference, dataset, dataset, options, tmp_path, Silent()) as backend:
        found = list(family.measured(backend))
    assert [seen for _, holds, seen in found if not holds] == []


@needs_rtx
@pytest.mark.thorough
def test_a_real_compiler_builds_every_graph_in_the_types_of_its_pins(tmp_path: Path) -> None:
    paths = []
    for family in FAMILIES:
        model, _ = family.made(tmp_path)
        paths.append(tmp_path / f"{len(paths)}.typed.onnx")
        save_typed(typed_model(model, family.plan(model), family.table), paths[-1])
    for family, built in zip(FAMILIES, drive("layers", *paths), strict=True):
        layers = layers_of(built["plain"])
        types = {t.dtype for layer in layers for t in (*layer.inputs, *layer.outputs, *(layer.constants or ()))}
        assert (family.precision or Precision.INT8).value in types


def one_hot(values: list[float], row: int | None = None) -> Array:
    """What 32 channels give at 32 places: these values in a row, or each at its own place."""
    found = np.zeros((32, 32), np.float32)
    if row is None:
        found[np.arange(len(values)), np.arange(len(values))] = values
    else:
        found[row, : len(values)] = values
    return found.reshape(1, 32, 4, 8)


EVEN, AWAY, EXACT = (0, 2, 2, 4, 0, -2, -2), (1, 2, 3, 4, -1, -2, -3), (0.5, 1.5, 2.5, 3.5, -0.5, -1.5, -2.5)


@pytest.mark.parametrize(
    ("name", "found", "holds", "seen"),
    [
        ("INT8: the scale of a weight", one_hot([0, 10 / 128], 1), True, "a scale of its own"),
        ("INT8: the scale of a weight", one_hot([0, 0], 1), False, "a weight has one scale: in a smaller channel 0.07"),
        ("INT8: the scale of a weight", one_hot([0, 0.5], 1), False, "0.078125 gives 0.5"),
        ("INT8: rounding of weights", one_hot([127, *EVEN], 0), True, "go to the even"),
        ("INT8: rounding of weights", one_hot([127, *AWAY], 0), False, "go away from 0"),
        ("INT8: rounding of weights", one_hot([127, *EXACT], 0), False, "was not computed in INT8"),
        ("INT8: rounding of activations", one_hot([127 * x for x in EVEN]), True, "go to the even"),
        ("INT8: rounding of activations", one_hot([127 * x for x in (0, 1, 2, 3, 0, -1, -2)]), False, "go towards 0"),
        ("INT8: rounding of activations", one_hot([127 * x for x in (1, 2, 3, 4, 0, -1, -2)]), False, "go up"),
        ("INT8: rounding of activations", one_hot([127.0] * 7), False, "go 1, 1, 1, 1, 1, 1, 1"),
        ("INT8: rounding of activations", one_hot([127 * x for x in EXACT]), False, "was not computed in INT8"),
        ("INT8: beyond the range", one_hot([0] * 8 + [127 * 127, -128 * 127]), True, "1000 gives 127, and -1000 -128"),
        ("INT8: beyond the range", one_hot([0] * 8 + [127 * 127, -127 * 127]), False, "and -1000 -127"),
        ("INT8: sums of a convolution", np.full((1, 64, 8, 8), 1040384), True, "sums are exact"),
        ("INT8: sums of a convolution", np.full((1, 64, 8, 8), np.inf), False, "a sum of 1040384 gives inf"),
        ("INT8: sums of a MatMul", np.full((64, 64), 1032192), False, "gives 1.03219e+06"),
        ("Q/DQ: in front of a Conv", one_hot([127 / 8 * x for x in AWAY]), False, "go away from 0"),
        ("Q/DQ: beyond the range", one_hot([0] * 8 + [127 / 8 * 127, -127 / 8 * 128]), True, "and -1000 -128"),
        ("Q/DQ: in front of a layer in float", np.resize(np.exp(EVEN), (1, 16)), True, "the pair rounds"),
        ("Q/DQ: in front of a layer in float", np.resize(np.exp(EXACT), (1, 16)), False, "the pair was taken out"),
        ("Q/DQ: in front of a layer in float", np.zeros((1, 16)), False, "go -inf"),
        ("Q/DQ: a mean of what it gives", np.full((1, 32, 4, 4), 0.25), True, "a mean of steps is no step"),
        ("Q/DQ: a mean of what it gives", np.zeros((1, 32, 4, 4)), False, "the mean of 0, 0, 0 and 1 gives 0"),
        ("BF16: operands of a MatMul", np.zeros((64, 64)), True, "activations and weights are rounded"),
        ("BF16: operands of a MatMul", np.full((64, 64), 0.0625), False, "was not computed in BF16"),
        ("BF16: operands of a MatMul", np.diag([0.0625, 0] * 32), False, "of activations 0.0625 is left, and of wei"),
        ("BF16: operands of a convolution", np.zeros((1, 64, 8, 8)), True, "activations and weights are rounded"),
        ("BF16: sums of a MatMul", np.full((64, 64), 33792), True, "kept in float32"),
        ("BF16: sums of a MatMul", np.full((64, 64), 33791), True, "unrounded, as an output of the model"),
        ("BF16: sums of a convolution", np.full((1, 64, 8, 8), 32768), False, "sums are kept in BF16"),
        ("BF16: sums of a convolution", np.full((1, 64, 8, 8), 33280), False, "neither BF16 nor float32: 33280"),
        ("BF16: what a layer gives", np.zeros((1, 8, 4, 4)), True, "is rounded before the next takes it"),
        ("BF16: what a layer gives", np.full((1, 8, 4, 4), 2.0**-9), False, "goes on in float32"),
        ("BF16: what a layer gives", np.ones((1, 8, 4, 4)), False, "1 + 1/512 less 1 gives 1"),
    ],
)
def test_every_answer_of_int8_and_bf16_has_its_words(name: str, found: Array, holds: bool, seen: str) -> None:
    judgement = judged(name, np.asarray(found, np.float32))
    assert (judgement[0], seen in judgement[1]) == (holds, True), judgement


FP8_EVEN, FP8_AWAY = (16, 20, 20, 24, -16, -20, -20), (18, 20, 22, 24, -18, -20, -22)
KEPT, LARGE = [2.0**-9, 3 * 2.0**-9, 2.0**-9], [448.0, -448.0]
SMALL = 2.0**-14


def fp8(values: Sequence[float], small: Sequence[float] = KEPT, large: Sequence[float] = LARGE) -> Array:
    return one_hot([448 * value for value in (*values, *small, *large)])


def changed(name: str, *at: tuple[slice | int, ...] | slice | int, by: float) -> Array:
    """What the emulation gives of a constant of INT4's graph, with some of it otherwise."""
    found = INT4.constants[name].copy()
    for place in at:
        found[place] *= by
    return found


@pytest.mark.parametrize(
    ("name", "found", "holds", "seen"),
    [
        ("FP8: the scale of a weight", one_hot([0, 16 * SMALL], 1), True, "a scale of its own"),
        ("FP8: the scale of a weight", one_hot([0, 0], 1), False, "one scale: of a channel smaller by 2⁻¹⁴ nothing is"),
        ("FP8: the scale of a weight", one_hot([0, 17 * SMALL], 1), False, "0.0010376 gives 0.0010376"),
        ("FP8: rounding of weights", one_hot([448, *FP8_EVEN], 0), True, "go to the even"),
        ("FP8: rounding of weights", one_hot([448, *FP8_AWAY], 0), False, "go away from 0"),
        ("FP8: rounding of weights", one_hot([448, 17, 19, 21, 23, -17, -19, -21], 0), False, "not computed in FP8"),
        ("FP8: rounding of activations", fp8(FP8_EVEN), True, "activations between two values go to the even"),
        ("FP8: rounding of activations", fp8((16, 18, 20, 22, -16, -18, -20)), False, "go towards 0"),
        ("FP8: rounding of activations", fp8((17, 19, 21, 23, -17, -19, -21)), False, "not computed in FP8"),
        ("FP8: beyond the range", fp8(FP8_EVEN), True, "1000 gives 448, and -1000 -448"),
        ("FP8: beyond the range", fp8(FP8_EVEN, large=[np.nan, np.nan]), False, "1000 gives nan"),
        ("FP8: beyond the range", fp8(FP8_EVEN, large=[480, -480]), False, "1000 gives 480"),
        ("FP8: subnormal values", fp8(FP8_EVEN), True, "are kept"),
        ("FP8: subnormal values", fp8(FP8_EVEN, [0, 0, 0]), False, "become 0"),
        ("FP8: subnormal values", fp8(FP8_EVEN, [2.0**-9, 3 * 2.0**-9, 0]), False, "0.00585938, 0"),
        ("FP8: sums of a MatMul", np.full((64, 64), 201727), True, "sums are exact: 201727"),
        ("FP8: sums of a MatMul", np.full((64, 64), 200704), False, "what is small beside one large product is lost"),
        ("FP8: sums of a MatMul", np.full((64, 64), np.inf), False, "gives inf"),
        ("INT4: the levels of a weight", INT4.constants["levels"], True, "every level from -7 to 7"),
        ("INT4: the levels of a weight", changed("levels", (0, 0), by=8 / 7), False, "level -7 comes back as -8"),
        ("INT4: the scale of a block", INT4.constants["levels"], True, "a scale of its own"),
        ("INT4: the scale of a block", changed("levels", slice(32, 64), by=64), False, "of the one before it"),
        ("INT4: the scale of a block", changed("levels", slice(32, 64), by=2), False, "-0.109375 comes back as"),
        ("INT4: activations", np.eye(64) * (4 + 2.0**-8), True, "is not quantised"),
        ("INT4: activations", np.eye(64) * 4, False, "4 times 1.00098 gives 4"),
        ("INT4: sums of a MatMul", np.full((64, 64), 28720), True, "kept in float32"),
        ("INT4: sums of a MatMul", np.full((64, 64), 28672), False, "896 products are lost beside one"),
        ("INT4: sums of a MatMul", np.full((64, 64), 28704), False, "gives 28704"),
    ],
)  # fmt: skip
def test_every_answer_of_fp8_and_int4_has_its_words(name: str, found: Array, holds: bool, seen: str) -> None:
    judgement = judged(name, np.asarray(found, np.float32))
    assert (judgement[0], seen in judgement[1]) == (holds, True), judgement


@pytest.mark.parametrize(("precision", "capability", "has"), [
    (Precision.FP8, (8, 6), False), (Precision.FP8, (8, 9), True), (Precision.FP8, (12, 0), True),
    (Precision.INT4, (7, 5), False), (Precision.INT4, (8, 0), True), (Precision.INT8, (7, 5), True),
])  # fmt: skip
def test_nothing_is_asked_of_a_precision_that_the_gpu_has_not(
    precision: Precision, capability: tuple[int, int], has: bool
) -> None:
    assert computes_on(precision, capability) is has
