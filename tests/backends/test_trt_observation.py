"""Which tensors can be looked at, in which groups, and whether looking changed the engine."""

from __future__ import annotations

import math
from itertools import pairwise
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from models import DIGITS, load, proto
from rtx import drive, needs_rtx

from precisionlab.backends.tensorrt.buildlog import layers_of
from precisionlab.backends.tensorrt.network import NetworkLayer, NetworkTensor
from precisionlab.backends.tensorrt.observation import differs, eligible, groups
from precisionlab.model import Model, load_model


def network(*described: tuple[str, str, str]) -> list[NetworkLayer]:
    """A network of float tensors: kind, what each layer takes, what it gives."""
    return [
        NetworkLayer(
            i,
            f"layer {i}",
            kind,
            (),
            tuple(NetworkTensor(name, "fp32") for name in takes.split()),
            tuple(NetworkTensor(name, "fp32") for name in gives.split()),
        )
        for i, (kind, takes, gives) in enumerate(described)
    ]


# Which


@pytest.mark.parametrize(
    ("tensor", "seen"),
    [
        (NetworkTensor("t", "fp32"), True),
        (NetworkTensor("t", "fp16"), True),
        (NetworkTensor("t", "bf16"), True),
        (NetworkTensor("t", "int32"), False),
        (NetworkTensor("t", "bool"), False),
        (NetworkTensor("t", "int8"), False),
        (NetworkTensor("t", "fp32", is_execution=False), False),
        (NetworkTensor("t", "fp32", is_network_output=True), False),
    ],
)
def test_float_tensors_on_the_device_that_are_no_outputs_can_be_marked(tensor: NetworkTensor, seen: bool) -> None:
    layer = NetworkLayer(0, "x", "ACTIVATION", (), (NetworkTensor("x", "fp32"),), (tensor,))
    assert eligible([layer]) == (("t",) if seen else ())


def test_constants_and_what_is_computed_from_them_alone_are_not_looked_at() -> None:
    layers = network(
        ("CONSTANT", "", "w"), ("SHUFFLE", "w", "w2"), ("CONVOLUTION", "x w2", "y"), ("SHAPE", "y", "s"),
        ("ELEMENTWISE", "y w", "z"),
    )  # fmt: skip
    assert eligible(layers) == ("y", "z")


def test_quantisation_is_left_to_its_kernels() -> None:
    layers = network(("QUANTIZE", "x", "q"), ("DEQUANTIZE", "q", "d"), ("MATRIX_MULTIPLY", "d", "y"))
    assert eligible(layers) == ("y",)


def test_nothing_within_a_loop_or_a_branch_can_be_marked_in_whatever_order_its_layers_stand() -> None:
    layers = network(
        ("ACTIVATION", "x", "a"),
        ("ELEMENTWISE", "state inner", "next"), ("UNARY", "state", "inner"),
        ("RECURRENCE", "a next", "state"), ("TRIP_LIMIT", "n", ""), ("LOOP_OUTPUT", "next", "out"),
        ("UNARY", "entered", "branch"), ("CONDITIONAL_INPUT", "out", "entered"), ("CONDITION", "c", ""),
        ("CONDITIONAL_OUTPUT", "branch a", "chosen"), ("ACTIVATION", "chosen", "y"),
    )  # fmt: skip
    assert eligible(layers) == ("a", "out", "chosen", "y")


@needs_rtx
@pytest.mark.slow
def test_of_a_real_network_what_a_branch_computes_is_left_out_and_the_rest_seen(tmp_path: Path) -> None:
    body = """(float[4,8] x, bool c) => (float[4,8] y) {
        a = Mul(x, k)
        i = If(c) <then_branch = t () => (float[4,8] u) { p = Relu(a) u = Exp(p) },
                   else_branch = e () => (float[4,8] v) { v = Tanh(a) }>
        s = Sigmoid(i)
        y = Add(s, a)
    }"""
    onnx.save_model(proto(body, {"k": np.full(8, 2, np.float32)}), tmp_path / "branch.onnx")
    (answer,) = drive("layers", tmp_path / "branch.onnx")
    assert {"p", "u", "v"} <= set(answer["tensors"])
    assert set(answer["marked"]) == {"a", "i", "s"}


@pytest.mark.slow
@needs_rtx
def test_all_that_can_be_marked_builds_and_what_the_model_has_of_it_is_given_by_its_name() -> None:
    (answer,) = drive("layers", DIGITS / "digits.onnx")
    plain, observed = (
        {tensor.name for layer in layers_of(answer[engine]) for tensor in layer.outputs}
        for engine in ("plain", "observed")
    )
    marked = {name for group in groups(load_model(DIGITS / "digits.onnx"), answer["marked"], 1 << 30) for name in group}
    assert len(marked) > 20
    assert marked <= observed
    assert not marked & plain  # all of them had been fused away
    # The parser's own tensors have other names in an engine: no group may have one.
    assert not (set(answer["marked"]) - marked) & observed


# In which groups


def chain(folder: Path) -> Model:
    """Layers `conv+relu`, `exp`, `wide`, `sum`, whose outputs have 8, 8, 32 and 8 elements."""
    body = """(float[1,2,2,2] x) => (float[1,2,2,2] z) {
        c = Conv(x, w) r = Relu(c) e = Exp(r) f = Concat <axis: int = 1> (e, e, e, e) z = Conv(f, v)
    }"""
    return load(proto(body, {"w": np.ones((2, 2, 1, 1), np.float32), "v": np.ones((2, 8, 1, 1), np.float32)}), folder)


@pytest.mark.parametrize(
    ("budget", "wanted"),
    [
        (10_000, (("r", "e", "f"), ("c",))),
        (4 * 48, (("r", "e", "f"), ("c",))),  # all of it, to the byte
        (4 * 48 - 1, (("r", "e"), ("f",), ("c",))),
        (1, (("r",), ("e",), ("f",), ("c",))),  # what is too large goes alone
    ],
)
def test_borders_come_first_in_runs_that_fit_the_budget(budget: int, wanted: Any, tmp_path: Path) -> None:
    model = chain(tmp_path)
    assert groups(model, {"c", "r", "e", "f"}, budget) == wanted
    assert groups(model, ["f", "e", "r", "c"], budget) == wanted  # in whatever order they are given


def test_what_the_model_does_not_have_is_no_group_s(tmp_path: Path) -> None:
    model = chain(tmp_path)
    assert groups(model, {"e", "(Unnamed Layer* 3) [Shuffle]_output"}, 10_000) == (("e",),)
    assert groups(model, (), 10_000) == ()


def test_tensors_of_unknown_size_count_as_the_largest_and_alone_as_the_whole_budget(tmp_path: Path) -> None:
    mixed = load(
        proto("(float[N,4] x, float[4] k) => (float[N,4] z) { a = Exp(k) b = Exp(x) z = Add(b, a) }"), tmp_path
    )
    assert groups(mixed, {"a", "b"}, 32) == (("a", "b"),)
    assert groups(mixed, {"a", "b"}, 31) == (("a",), ("b",))
    unknown = load(proto("(float[N,4] x) => (float[N,4] z) { a = Exp(x) b = Exp(a) z = Exp(b) }"), tmp_path)
    assert groups(unknown, {"a", "b"}, 1 << 30) == (("a",), ("b",))


@pytest.fixture(scope="module")
def growing(tmp_path_factory: pytest.TempPathFactory) -> Model:
    """Twelve layers whose outputs have 4, 8, … 48 elements."""
    steps = " ".join(f"a{i} = Concat <axis: int = 0> (a{i - 1}, x)" for i in range(1, 12))
    body = f"(float[4] x) => (float[48] z) {{ a0 = Exp(x) {steps} z = Exp(a11) }}"
    return load(proto(body), tmp_path_factory.mktemp("growing"))


@given(st.integers(1, 1500), st.sets(st.integers(0, 11)))
def test_groups_hold_each_tensor_once_within_the_budget_and_are_as_few_as_fit(
    growing: Model, budget: int, picked: set[int]
) -> None:
    found = groups(growing, {f"a{i}" for i in picked}, budget)
    assert [name for group in found for name in group] == [f"a{i}" for i in sorted(picked)]
    needs = [[16 * (int(name[1:]) + 1) for name in group] for group in found]
    assert all(len(need) == 1 or sum(need) <= budget for need in needs)
    assert all(sum(need) + following[0] > budget for need, following in pairwise(needs))


# Whether looking changed anything


def outputs(**arrays: Any) -> dict[str, np.ndarray[Any, Any]]:
    return {
        name: value if isinstance(value, np.ndarray) else np.asarray(value, np.float32)
        for name, value in arrays.items()
    }


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16, np.int64, np.bool_])
def test_outputs_that_are_the_same_bit_for_bit_are_unchanged(dtype: Any) -> None:
    found = differs(outputs(y=np.ones((2, 3), dtype)), outputs(y=np.ones((2, 3), dtype), marked=[1, 2]))
    assert (found.changed, found.worst, found.sqnr, found.nonfinite) == ((), None, math.inf, 0)
    assert found.warning is None


def test_nan_and_inf_that_stay_where_they_were_are_unchanged() -> None:
    same = [math.nan, math.inf, -math.inf, 1]
    assert not differs(outputs(y=same), outputs(y=same)).changed


@pytest.mark.newest
def test_the_smallest_change_is_seen_and_its_size_told() -> None:
    before, after = outputs(a=[1, 2, 3], b=[10, 0]), outputs(a=[1, 2, np.nextafter(np.float32(3), 4)], b=[10, 0.1])
    found = differs(before, after)
    assert (found.changed, found.worst, found.nonfinite) == (("a", "b"), "b", 0)
    assert found.sqnr == pytest.approx(40, abs=1e-5)
    assert found.warning is not None
    assert "'b'" in found.warning
    assert "40.0 dB" in found.warning
    assert "NaN" not in found.warning


def test_a_zero_that_changed_its_sign_is_a_change_without_an_error() -> None:
    found = differs(outputs(y=[0, 1]), outputs(y=[-0.0, 1]))
    assert (found.changed, found.sqnr) == (("y",), math.inf)


@pytest.mark.parametrize(
    ("before", "after", "count", "sqnr"),
    [
        ([1, 2], [1, math.nan], 1, math.nan),
        ([1, 2], [1, math.inf], 1, -math.inf),
        ([math.nan, 2], [1, 2], 1, math.inf),
        ([math.inf, 2], [-math.inf, 2], 1, math.inf),
        ([math.inf, math.nan, 2], [math.nan, math.inf, 2], 2, math.inf),
        ([math.nan, math.inf, 2], [math.nan, math.inf, 4], 0, 0),
    ],
)
def test_nan_and_inf_of_only_one_engine_are_counted(before: Any, after: Any, count: int, sqnr: float) -> None:
    found = differs(outputs(y=before, x=[1]), outputs(y=after, x=[1]))
    assert (found.changed, found.nonfinite) == (("y",), count)
    assert found.sqnr == pytest.approx(sqnr, nan_ok=True)
    assert ("values that are NaN or Inf" in str(found.warning)) == bool(count)


def test_the_worst_output_is_the_one_with_a_nan() -> None:
    assert differs(outputs(a=[1], b=[1]), outputs(a=[9], b=[math.nan])).worst == "b"


def test_another_shape_or_type_is_a_change() -> None:
    found = differs(outputs(y=[1, 2]), outputs(y=[1, 2, 3]))
    assert (found.changed, math.isnan(found.sqnr), found.nonfinite) == (("y",), True, 0)
    assert "another shape" in str(found.warning)
    assert differs(outputs(y=[1, 2]), outputs(y=np.array([1, 2], np.float16))).changed == ("y",)
    ints = differs(outputs(y=np.array([3, 4])), outputs(y=np.array([3, 5])))
    assert (ints.changed, ints.sqnr) == (("y",), pytest.approx(10 * math.log10(25)))


def test_an_output_that_is_missing_is_a_bug() -> None:
    with pytest.raises(ValueError, match="no output 'y'"):
        differs(outputs(y=[1]), outputs(z=[1]))
