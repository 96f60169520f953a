"""Repairs of random graphs: what is found can be carried out, by its names alone, and changes no float32."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from models import examples
from repaired import Array, found, halved, made, run

from precisionlab.model import Model, load_model
from precisionlab.model.names import all_names
from precisionlab.model.repair import Exactness, Repair
from precisionlab.rewrite.repairs import repaired_graph, repaired_model

# What is written with @ is what a part takes, with § what it gives; both are float[4,16].
NORMALISATIONS = {
    "LayerNorm": "§mu = ReduceMean <axes=[-1]> (@) §d = Sub(@, §mu) §q = Pow(§d, two) "
    "§m = ReduceMean <axes=[-1]> (§q) §e = Add(§m, eps) §r = Sqrt(§e) § = Div(§d, §r)",
    "LayerNorm by a reciprocal": "§mu = ReduceMean <axes=[-1]> (@) §d = Sub(@, §mu) §q = Mul(§d, §d) "
    "§m = ReduceMean <axes=[-1]> (§q) §e = Add(eps, §m) §r = Sqrt(§e) §i = Reciprocal(§r) § = Mul(§i, §d)",
    "LayerNormalization": "§ = LayerNormalization <axis=-1> (@, gain, bias)",
    "RMSNorm": "§q = Mul(@, @) §m = ReduceMean <axes=[-1]> (§q) §e = Add(§m, eps) §r = Sqrt(§e) § = Div(@, §r)",
    "RMSNorm by a power": "§q = Pow(@, two) §m = ReduceMean <axes=[-1]> (§q) §e = Add(§m, eps) "
    "§i = Pow(§e, less_half) § = Mul(@, §i)",
    "ReduceL2": "§r = ReduceL2 <axes=[-1]> (@) §c = Clip(§r, tiny) § = Div(@, §c)",
    "ReduceL2 without a floor": "§r = ReduceL2 <axes=[-1]> (@) § = Div(@, §r)",
    "a root of a sum": "§q = Mul(@, @) §s = ReduceSum(§q, axes) §r = Sqrt(§s) §c = Max(§r, tiny) § = Div(@, §c)",
    "ReduceSumSquare": "§s = ReduceSumSquare <axes=[-1]> (@) §e = Add(§s, eps) §r = Sqrt(§e) § = Div(@, §r)",
    "LpNormalization": "§ = LpNormalization <axis=-1, p=2> (@)",
    "a difference of means": "§mu = ReduceMean <axes=[-1]> (@) §q = Mul(@, @) §m = ReduceMean <axes=[-1]> (§q) "
    "§mm = Mul(§mu, §mu) §v = Sub(§m, §mm) §e = Add(§v, eps) §r = Sqrt(§e) §d = Sub(@, §mu) § = Div(§d, §r)",
    "a cosine": "§p = Mul(@, x) §s = ReduceSum(§p, axes) §a = ReduceL2 <axes=[-1]> (@) §b = ReduceL2 <axes=[-1]> (x) "
    "§n = Mul(§a, §b) §m = Max(§n, tiny) §c = Div(§s, §m) § = Mul(@, §c)",
}
SUMS = {
    "a mean of squares": "§q = Mul(@, @) §s = ReduceSum(§q, axes) §m = Mul(§s, sixteenth) § = Mul(@, §m)",
    "a mean": "§s = ReduceSum(@, axes) §m = Mul(§s, sixteenth) § = Sub(@, §m)",
    "scores": "§t = Transpose <perm=[1,0]> (@) §s = MatMul(@, §t) §r = Transpose(§s) §c = Mul(§r, sixteenth) "
    "§p = Softmax(§c) § = MatMul(§p, @)",
    "a mask": "§s = Add(@, mask) § = Softmax(§s)",
    "a chosen mask": "§c = Greater(@, half) §w = Where(§c, @, far) § = Softmax(§w)",
}
LOGARITHMS = {
    "of a sum of squares": "§q = Mul(@, @) §s = ReduceSum(§q, axes) §e = Add(§s, small) §l = Log(§e) § = Mul(bias, §l)",
    "of squares": "§q = Pow(@, two) §e = Add(§q, small) § = Log(§e)",
    "of a filter bank": "§q = Mul(@, @) §m = MatMul(§q, bank) §e = Max(§m, small) §l = Log(§e) § = Mul(§l, factor)",
    "of sizes": "§a = Abs(@) §e = Add(§a, small) § = Log(§e)",
    "of exponentials": "§e = Exp(@) §s = ReduceSum(§e, axes) §l = Log(§s) § = Sub(@, §l)",
    "of one and an exponential": "§e = Exp(@) §s = Add(§e, one) § = Log(§s)",
    "none, but shares": "§e = Exp(@) §s = ReduceSum(§e, axes) § = Div(§e, §s)",
}
BETWEEN = {
    "Relu": "§ = Relu(@)",
    "LeakyRelu": "§ = LeakyRelu <alpha=0.3> (@)",
    "Abs": "§ = Abs(@)",
    "Clip": "§ = Clip(@, low, high)",
    "Where": "§c = Greater(@, half) § = Where(§c, @, half)",
    "Pad": "§p = Pad(@, pads, half) § = Slice(§p, starts, stops)",
    "BatchNormalization": "§ = BatchNormalization(@, gain, bias, mean, spread)",
    "a bias": "§ = Add(@, bias)",
    "a factor": "§ = Mul(@, factor)",
    "a quotient": "§ = Div(@, factor)",
    "a gate": "§s = Sigmoid(@) § = Mul(@, §s)",
    "MatMul up": "§ = MatMul(@, up)",
    "MatMul down": "§ = MatMul(@, down)",
    "Gemm up": "§ = Gemm <alpha=0.5, beta=2.0, transB=1> (@, up, bias)",
    "Gemm down": "§ = Gemm <alpha=2.0, beta=0.5> (@, down, bias)",
    "pooling": "§c = Unsqueeze(@, first) §p = AveragePool <kernel_shape=[3], pads=[1,1]> (§c) § = Squeeze(§p, first)",
    "a residual branch": "§m = MatMul(@, up) § = Add(@, §m)",
    "the input again": "§ = Add(@, x)",
    "a subgraph": "§t = Mul(@, @) §k = If(flag) <then_branch = §then () => (float[4,16] §a) { §a = Sqrt(§t) }, "
    "else_branch = §else () => (float[4,16] §b) { §b = Identity(§t) }> §f = Mul(§t, factor) § = Sub(§f, §k)",
}
PARTS = {**NORMALISATIONS, **SUMS, **LOGARITHMS, **BETWEEN}


def normal(seed: int, *shape: int, scale: float = 1.0) -> Array:
    return (np.random.default_rng(seed).standard_normal(shape) * scale).astype(np.float32)


NUMBERS: dict[str, Any] = {
    **{name: np.float32(value) for name, value in {"two": 2, "less_half": -0.5, "one": 1, "half": 0.5}.items()},
    **{name: np.float32(value) for name, value in {"eps": 1e-5, "tiny": 1e-12, "small": 1e-10}.items()},
    **{name: np.float32(value) for name, value in {"low": -3, "high": 1e5, "far": -3.4e38}.items()},
    **{name: np.float32(value) for name, value in {"factor": 4.3, "sixteenth": 1 / 16}.items()},
    "axes": np.array([-1]),
    "first": np.array([1]),
    "gain": normal(1, 16),
    "bias": normal(2, 16, scale=3),
    "mean": normal(3, 16),
    "spread": np.abs(normal(4, 16)) + np.float32(0.1),
    "bank": np.abs(normal(5, 16, 16, scale=0.1)),
    "up": normal(6, 16, 16, scale=3e3),
    "down": normal(7, 16, 16, scale=1e-4),
    "mask": np.triu(np.full((4, 16), -3.4028235e38, np.float32), 5),
    "pads": np.array([0, 1, 0, 1]),
    "starts": np.array([0, 1]),
    "stops": np.array([4, 17]),
    "flag": np.array(True),
}
SPECIAL = [0.0, -0.0, 1e-45, -1e-42, 1e-38, 1e-30, 1e-12, 256.0, 65504.0, 1e10, 1e19, 3e38, -3e38]
SPECIAL += [np.inf, -np.inf, np.nan]


@dataclass(frozen=True)
class Case:
    """Parts in a row, which of them are outputs too, and samples."""

    parts: tuple[str, ...]
    outputs: frozenset[int]
    samples: tuple[dict[str, Array], ...]

    @property
    def body(self) -> str:
        """The model as text."""
        text, given = "", "x"
        for number, part in enumerate(self.parts):
            text += PARTS[part].replace("@", given).replace("§", f"t{number}") + " "
            given = f"t{number}"
        names = [f"t{number}" for number in sorted(self.outputs | {len(self.parts) - 1})]
        return f"(float[4,16] x) => ({', '.join(f'float[4,16] {name}' for name in names)}) {{ {text} }}"

    def model(self, folder: Path) -> Model:
        """By way of a file."""
        words = set(self.body.replace("(", " ").replace(")", " ").replace(",", " ").split())
        return made(folder, self.body, {name: value for name, value in NUMBERS.items() if name in words})


@st.composite
def cases(draw: st.DrawFn, parts: list[str], longest: int = 3) -> Case:
    """Up to `longest` of the parts, on two samples of any size with a few special numbers."""
    chosen = draw(st.lists(st.sampled_from(parts), min_size=1, max_size=longest))
    outputs = draw(st.frozensets(st.integers(0, len(chosen) - 1), max_size=1))
    seed, power = draw(st.integers(0, 2**20)), draw(st.integers(-26, 16))
    x = [normal(seed + number, 4, 16, scale=2.0**power) for number in range(2)]
    for value in x:
        for place, number in draw(st.lists(st.tuples(st.integers(0, 63), st.sampled_from(SPECIAL)), max_size=3)):
            value.flat[place] = number
        if draw(st.integers(0, 5)) == 0:
            value[draw(st.integers(0, 3))] = draw(st.sampled_from(SPECIAL))
    return Case(tuple(chosen), outputs, tuple({"x": value} for value in x))


def difference(was: Array, now: Array) -> float:
    """Of the finite numbers, as a share of the largest; infinite where others stand in other places."""
    finite = np.isfinite(was)
    if not np.array_equal(was[~finite], now[~finite], equal_nan=True) or not np.isfinite(now[finite]).all():
        return np.inf
    true = was[finite].astype(np.float64)
    return float(np.abs(now[finite] - true).max(initial=0) / max(np.abs(true).max(initial=0), 2.0**-126))


def check(model: Model, repair: Repair, samples: tuple[dict[str, Array], ...]) -> None:
    """That it keeps its promise on the samples that it was found from, and its graph is one."""
    repaired = repaired_model(model, (repair,))
    onnx.checker.check_model(ir.to_proto(repaired.onnx), full_check=True)
    for inputs in samples:
        was, now = run(model.onnx, inputs), run(repaired.onnx, inputs)
        assert list(was) == list(now)
        for name in was:
            if repair.exactness is Exactness.BITWISE:
                assert np.array_equal(was[name], now[name], equal_nan=True), (str(repair), repair.scales, name)
            else:
                assert difference(was[name], now[name]) <= 1e-5, (str(repair), name)


ALONE = [*NORMALISATIONS, *SUMS, *BETWEEN]


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@settings(max_examples=examples(30))
@given(cases(ALONE))
def test_what_only_scales_changes_no_bit_of_float32(tmp_path_factory: pytest.TempPathFactory, case: Case) -> None:
    model = case.model(tmp_path_factory.mktemp("m"))

    for repair in found(model, *case.samples):
        if repair.exactness is Exactness.BITWISE:
            check(model, repair, case.samples)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@settings(max_examples=examples(20))
@given(cases(list(LOGARITHMS), longest=1))
def test_what_rounds_elsewhere_stays_within_a_hundred_thousandth(
    tmp_path_factory: pytest.TempPathFactory, case: Case
) -> None:
    model = case.model(tmp_path_factory.mktemp("m"))

    for repair in found(model, *case.samples):
        check(model, repair, case.samples)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@settings(max_examples=examples(20))
@given(cases(list(PARTS)))
def test_a_repair_is_carried_out_alike_on_a_model_that_is_loaded_anew_and_names_are_unique(
    tmp_path_factory: pytest.TempPathFactory, case: Case
) -> None:
    model = case.model(tmp_path_factory.mktemp("m"))

    for repair in found(model, *case.samples):
        here = repaired_graph(model.onnx, [repair])
        bare = Repair(repair.kind, repair.exactness, "", repair.nodes, repair.scales)
        there = repaired_graph(load_model(model.path).onnx, [bare])
        names = Counter(
            name
            for name in [
                *(str(value.name) for node in here.graph.all_nodes() for value in node.outputs),
                *map(str, here.graph.initializers),
                "x",
            ]
        )

        assert ir.to_proto(here).SerializeToString() == ir.to_proto(there).SerializeToString()
        assert max(names.values()) == 1
        assert set(names) <= set(all_names(here.graph))


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@settings(max_examples=examples(20))
@given(st.sampled_from([*NORMALISATIONS]), st.integers(8, 14), st.integers(0, 2**20))
def test_what_breaks_in_half_is_nearer_with_the_repairs(
    tmp_path_factory: pytest.TempPathFactory, part: str, power: int, seed: int
) -> None:
    case = Case((part,), frozenset(), ({"x": normal(seed, 4, 16, scale=2.0**power)},))
    model, (inputs,) = case.model(tmp_path_factory.mktemp("m")), case.samples
    true = run(model.onnx, inputs)["t0"]
    repaired = repaired_model(model, found(model, inputs))

    before, after = (np.abs(run(halved(one), inputs)["t0"] - true) for one in (model, repaired))

    assert not after.max() > max(0.02, np.nan_to_num(before, nan=np.inf).max())
